#include "bindings/bindings.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hmp {

void refuse(const std::string& text) { throw std::invalid_argument(text); }

int64_t product(const char* name, std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  for (const int64_t size : sizes) {
    if (size <= 0) refuse(std::string(name) + " has a size of " + std::to_string(size) + ", expected positive sizes");
    if (__builtin_mul_overflow(all, size, &all)) refuse(std::string(name) + " has more values than 63 bits count");
  }
  return all;
}

Coding coding_of(int code) {
  if (code < 0 || code >= static_cast<int>(std::size(kCodings))) {
    refuse("coding " + std::to_string(code) + " is not one of CODINGS, which has " + std::to_string(std::size(kCodings)));
  }
  return static_cast<Coding>(code);
}

int threads_of(int threads) {
  if (threads < 1) refuse("threads is " + std::to_string(threads) + ", expected at least 1");
  return threads;
}

namespace {

std::string text_of(const std::array<int64_t, 3>& shape) {
  return "(" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ", " + std::to_string(shape[2]) + ")";
}

}  // namespace

View view(const char* name, const Strided* from, const std::array<int64_t, 3>& shape) {
  if (from == nullptr) return {};
  if (from->shape != shape) {
    refuse(std::string(name) + " is " + text_of(from->shape) + " (batch, length, channels), expected " + text_of(shape));
  }
  if (from->coding != Coding::kFloat32 && from->coding != Coding::kBFloat16) {
    refuse(std::string(name) + " is " + row_of(from->coding).name + ", expected float32 or bfloat16");
  }
  return {reinterpret_cast<char*>(from->address), from->coding, from->strides[0], from->strides[1], from->strides[2]};
}

View needed_view(const char* name, const Strided* from, const std::array<int64_t, 3>& shape) {
  if (from == nullptr) refuse(std::string(name) + " is missing");
  return view(name, from, shape);
}

void announce(const View& out, int64_t values) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  if (!out || out.channel_stride != 1) return;
  const uintptr_t from = reinterpret_cast<uintptr_t>(out.data);
  const uintptr_t bytes = values * value_bytes(out.coding);
  const uintptr_t first = (from + kHuge - 1) & ~(kHuge - 1), last = (from + bytes) & ~(kHuge - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)out, (void)values;
#endif
}

void bind_buffers(nb::module_& module) {
  nb::class_<Buffer>(module, "Buffer")
      .def("__init__",
           [](Buffer* self, uintptr_t address, int64_t bytes) {
             if (bytes < 0 || (address == 0 && bytes > 0)) refuse("a buffer has an address and no negative size");
             new (self) Buffer{address, bytes};
           }, nb::kw_only(), "address"_a, "bytes"_a)
      .def_ro("address", &Buffer::address)
      .def_ro("bytes", &Buffer::bytes);
  nb::class_<Strided>(module, "Strided")
      .def("__init__",
           [](Strided* self, uintptr_t address, int coding, const std::array<int64_t, 3>& shape,
              const std::array<int64_t, 3>& strides) {
             product("a tensor", {shape[0], shape[1], shape[2]});
             if (address == 0) refuse("a tensor has no memory");
             new (self) Strided{address, coding_of(coding), shape, strides};
           }, nb::kw_only(), "address"_a, "coding"_a, "shape"_a, "strides"_a);

  nb::dict codings;
  for (size_t code = 0; code < std::size(kCodings); ++code) codings[kCodings[code].name] = code;
  module.attr("CODINGS") = codings;
  nb::list types;
  for (const CodingRow& row : kCodings) {
    if (!row.coded) types.append(row.name);
  }
  module.attr("TYPES") = types;
}

}  // namespace hmp
