// Histograms and masks over magnitudes.
#include "bindings/bindings.h"

namespace hmp {
namespace {

constexpr uint32_t kKeys = uint32_t{1} << 31;

Values values(const Buffer& from, int code) {
  const Coding coding = coding_of(code);
  if (row_of(coding).scaled) refuse(std::string("values are ") + row_of(coding).name + ", expected a type of floats");
  if (from.bytes % value_bytes(coding) != 0) refuse("the bytes of the values are not whole values");
  return {reinterpret_cast<char*>(from.address), coding, from.bytes / value_bytes(coding)};
}

// Memory for `count` values, where none is needed for no values.
template <typename T>
T* room(const char* name, const Buffer& to, int64_t count) {
  if (to.bytes != count * static_cast<int64_t>(sizeof(T))) {
    refuse(std::string(name) + " has " + std::to_string(to.bytes) + " bytes, expected " + std::to_string(count) +
           " values of " + std::to_string(sizeof(T)));
  }
  return reinterpret_cast<T*>(to.address);
}

void check_key(const char* name, uint32_t key) {
  if (key >= kKeys) refuse(std::string(name) + " is no key: keys are below 2^31");
}

void range_histogram(const std::string& isa, int threads, const Buffer& from, int coding, uint32_t low, int shift,
                     int64_t bins, const Buffer& counts) {
  const KernelTable& table = table_named(isa);
  const Values own = values(from, coding);
  check_key("low", low);
  if (shift < 0 || shift > 31) refuse("shift is " + std::to_string(shift) + ", expected 0 to 31");
  product("a histogram", {bins, 2 * static_cast<int64_t>(sizeof(int64_t))});
  int64_t* to = room<int64_t>("counts", counts, bins + 2);
  threads_of(threads);
  nb::gil_scoped_release release;
  table.range_histogram(own, low, shift, bins, to, threads);
}

int64_t keep_above(const std::string& isa, int threads, const Buffer& from, int coding, uint32_t threshold,
                   const Buffer& keep) {
  const KernelTable& table = table_named(isa);
  const Values own = values(from, coding);
  check_key("threshold", threshold);
  uint8_t* to = room<uint8_t>("keep", keep, own.count);
  threads_of(threads);
  nb::gil_scoped_release release;
  return table.keep_above(own, threshold, to, threads);
}

BetweenCounts between(const std::string& isa, int threads, const Buffer& from, int coding, uint32_t low, uint32_t high,
                      const Buffer& positions, const Buffer& keys) {
  const KernelTable& table = table_named(isa);
  const Values own = values(from, coding);
  check_key("low", low);
  check_key("high", high);
  if (low > high) refuse("low is above high");
  const int64_t count = positions.bytes / static_cast<int64_t>(sizeof(int64_t));
  int64_t* places = room<int64_t>("positions", positions, count);
  int32_t* found = room<int32_t>("keys", keys, count);
  threads_of(threads);
  nb::gil_scoped_release release;
  return table.between(own, low, high, places, found, count, threads);
}

}  // namespace

void bind_ranking(nb::module_& module) {
  nb::class_<BetweenCounts>(module, "BetweenCounts")
      .def_ro("below", &BetweenCounts::below)
      .def_ro("found", &BetweenCounts::found);
  module.def("range_histogram", &range_histogram, nb::kw_only(), "isa"_a, "threads"_a, "values"_a, "coding"_a, "low"_a,
             "shift"_a, "bins"_a, "counts"_a);
  module.def("keep_above", &keep_above, nb::kw_only(), "isa"_a, "threads"_a, "values"_a, "coding"_a, "threshold"_a,
             "keep"_a);
  module.def("between", &between, nb::kw_only(), "isa"_a, "threads"_a, "values"_a, "coding"_a, "low"_a, "high"_a,
             "positions"_a, "keys"_a);
}

}  // namespace hmp
