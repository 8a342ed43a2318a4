// Packed matrices: what one is made of fits together before a kernel sees it.
#include "bindings/bindings.h"
#include "packed/packed_model.h"

namespace hmp {
namespace {

// Bits that are set; written out so that it becomes vector code without an instruction of its own.
int64_t bits_of(uint64_t word) {
  word -= word >> 1 & 0x5555555555555555u;
  word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int64_t>(word * 0x0101010101010101u >> 56);
}

// The values that the masks keep. Refuses starts that are not where the masks say that a row begins.
int64_t kept_values(const PackedMatrix& m) {
  const int64_t words = m.words();
  const uint64_t beyond = m.columns % 64 == 0 ? 0 : ~uint64_t{0} << m.columns % 64;
  int64_t kept = 0;
  for (int64_t row = 0; row < m.rows; ++row) {
    const uint64_t* mask = m.masks + row * words;
    if (int64_t{m.starts[row]} != kept) {
      refuse("row " + std::to_string(row) + " starts at value " + std::to_string(m.starts[row]) +
             ", the masks before it keep " + std::to_string(kept));
    }
    if (mask[words - 1] & beyond) {
      refuse("the mask of row " + std::to_string(row) + " has bits beyond its " + std::to_string(m.columns) + " columns");
    }
    for (int64_t i = 0; i < words; ++i) kept += bits_of(mask[i]);
  }
  return kept;
}

PackedMatrix matrix(int64_t rows, int64_t columns, int code, const Buffer* masks, const Buffer& values,
                    const Buffer* starts, const Buffer* scales) {
  const Coding coding = coding_of(code);
  int64_t kept = product("a matrix", {rows, columns, kReadable}) / kReadable;
  PackedMatrix m{rows, columns, coding, nullptr, reinterpret_cast<const char*>(values.address), nullptr, nullptr};
  m.masks = given<uint64_t>("masks", masks, {rows, m.words()});
  m.starts = given<uint32_t>("starts", starts, {rows});
  m.scales = given<float>("scales", scales, {rows});
  if ((m.masks == nullptr) != (m.starts == nullptr)) refuse("masks and starts belong together: one of them is missing");
  if ((m.scales != nullptr) != row_of(coding).scaled) {
    refuse(std::string("scales must ") + (row_of(coding).scaled ? "" : "not ") + "be given with " + row_of(coding).name);
  }
  if (m.masks != nullptr) kept = kept_values(m);
  // Floats of which none is left out are read one by one where a row ends, so they may be a model's own tensors.
  const bool beyond = m.masks != nullptr || row_of(coding).scaled;
  const int64_t expected = kept * value_bytes(coding) + (beyond ? kReadable : 0);
  if (values.bytes < expected) {
    refuse("values has " + std::to_string(values.bytes) + " bytes, expected " + std::to_string(kept) + " values of " +
           row_of(coding).name + (beyond ? " and READABLE_BYTES behind them: " : ": ") + std::to_string(expected));
  }
  return m;
}

void packed_product(const std::string& isa, int threads, const PackedMatrix& m, int64_t batch, const Buffer& vectors,
                    const Buffer& out) {
  const KernelTable& table = table_named(isa);
  if (batch < 1 || batch > kMaxBatch) {
    refuse("batch is " + std::to_string(batch) + ", expected 1 to MAX_BATCH: " + std::to_string(kMaxBatch));
  }
  const PackedProduct own{&m, batch, given<float>("vectors", &vectors, {batch, m.columns}),
                          given<float>("out", &out, {batch, m.rows})};
  threads_of(threads);
  nb::gil_scoped_release release;
  table.packed_product(own, threads);
}

void check_rows(const PackedMatrix& m, const int64_t* rows, int64_t first, int64_t count) {
  bool fits = first >= 0 && count >= 0 && count <= m.rows - first;
  for (int64_t i = 0; rows != nullptr && i < count; ++i) fits = rows[i] >= 0 && rows[i] < m.rows && (i == 0 || fits);
  if (!fits) throw std::out_of_range("a row is not among the " + std::to_string(m.rows) + " of the matrix");
}

void packed_rows(const std::string& isa, int threads, const PackedMatrix& m, const Buffer* rows, int64_t first,
                 int64_t count, int code, const Buffer& out) {
  const KernelTable& table = table_named(isa);
  const Coding coding = coding_of(code);
  if (coding != Coding::kFloat32 && coding != Coding::kBFloat16) {
    refuse(std::string("rows cannot be written as ") + row_of(coding).name + ": expected float32 or bfloat16");
  }
  if (count == 0) return;
  const int64_t* chosen = given<int64_t>("rows", rows, {count});
  check_rows(m, chosen, first, count);
  if (out.bytes != product("out", {count, m.columns, value_bytes(coding)})) {
    refuse("out has " + std::to_string(out.bytes) + " bytes, expected " + std::to_string(count) + " rows of " +
           std::to_string(m.columns) + " values of " + row_of(coding).name);
  }
  const PackedRows own{&m, chosen, first, count, coding == Coding::kBFloat16, reinterpret_cast<char*>(out.address)};
  threads_of(threads);
  nb::gil_scoped_release release;
  table.packed_rows(own, threads);
}

}  // namespace

void bind_matrix(nb::module_& module) {
  nb::class_<PackedMatrix>(module, "Matrix")
      .def("__init__",
           [](PackedMatrix* self, int64_t rows, int64_t columns, int coding, const Buffer* masks, const Buffer& values,
              const Buffer* starts, const Buffer* scales) {
             const nb::gil_scoped_release release;
             new (self) PackedMatrix(matrix(rows, columns, coding, masks, values, starts, scales));
           }, nb::kw_only(), "rows"_a, "columns"_a, "coding"_a, optional("masks"), "values"_a, optional("starts"),
           optional("scales"))
      .def_ro("rows", &PackedMatrix::rows)
      .def_ro("columns", &PackedMatrix::columns)
      .def_prop_ro("coding", [](const PackedMatrix& m) { return static_cast<int>(m.coding); })
      .def_prop_ro("values", [](const PackedMatrix& m) { return reinterpret_cast<uintptr_t>(m.values); });
  module.def("packed_product", &packed_product, nb::kw_only(), "isa"_a, "threads"_a, "matrix"_a, "batch"_a,
             "vectors"_a, "out"_a);
  module.def("packed_rows", &packed_rows, nb::kw_only(), "isa"_a, "threads"_a, "matrix"_a, optional("rows"),
             "first"_a = 0, "count"_a, "coding"_a, "out"_a);
  module.attr("READABLE_BYTES") = kReadable;
  module.attr("MAX_BATCH") = kMaxBatch;
}

}  // namespace hmp
