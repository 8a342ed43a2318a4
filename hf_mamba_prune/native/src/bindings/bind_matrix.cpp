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

// The bits of a row's last mask that stand for no column.
uint64_t beyond_last(const PackedMatrix& m) {
  const int64_t held = m.columns - (m.words() - 1) * 64;
  uint64_t beyond = 0;
  for (int bit = 0; bit < 64; ++bit) {
    const int column = is_code(m.coding) ? column_of_bit(bit) : bit;
    if (column >= held) beyond |= uint64_t{1} << bit;
  }
  return beyond;
}

// The values that the masks keep. Refuses starts that are not where the masks say that a row begins.
int64_t kept_values(const PackedMatrix& m) {
  const int64_t words = m.words();
  const uint64_t beyond = beyond_last(m);
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

// What a matrix may have beside its masks and scales.
struct CodeBuffers {
  const Buffer *levels, *column_scales, *row_bits, *row_starts;
};

// Bytes of the codes of a matrix without masks. Refuses rows that do not follow each other.
int64_t bytes_of_rows(const PackedMatrix& m) {
  int64_t bytes = 0;
  for (int64_t row = 0; row < m.rows; ++row) {
    const int bits = m.row_bits[row];
    if (!known_bits(bits)) refuse("row " + std::to_string(row) + " has codes of " + std::to_string(bits) + " bits");
    if (m.row_starts[row] != static_cast<uint64_t>(bytes)) {
      refuse("row " + std::to_string(row) + " starts at byte " + std::to_string(m.row_starts[row]) +
             ", those before it end at " + std::to_string(bytes));
    }
    bytes += m.row_bytes(bits);
  }
  return bytes;
}

void add_codes(PackedMatrix& m, int64_t kept, const Buffer& values, const CodeBuffers& given_buffers) {
  const std::string name = row_of(m.coding).name;
  const bool mixed = m.coding == Coding::kMixed;
  m.levels = needed<int8_t>("levels", given_buffers.levels, {kLevels});
  for (int i = 0; i < kLevels; ++i) {
    if (m.levels[i] < -kLevelOffset || m.levels[i] >= kLevelOffset) {
      refuse("a level is " + std::to_string(m.levels[i]) + ", expected -32 to 31");
    }
  }
  m.column_scales = given<float>("column_scales", given_buffers.column_scales, {m.columns});
  m.row_bits = given<uint8_t>("row_bits", given_buffers.row_bits, {m.rows});
  m.row_starts = given<uint64_t>("row_starts", given_buffers.row_starts, {m.rows});
  if ((m.masks == nullptr) != mixed || (m.row_bits != nullptr) != mixed || (m.row_starts != nullptr) != mixed) {
    refuse(name + (mixed ? " has widths of rows and no masks" : " has masks and no widths of rows"));
  }
  m.plane_bytes = mixed ? 0 : (kept + 63) / 64 * 8;
  const int64_t expected = (mixed ? bytes_of_rows(m) : m.plane_bytes * row_of(m.coding).bits) + kReadable;
  if (values.bytes < expected) {
    refuse("values has " + std::to_string(values.bytes) + " bytes, expected the codes of " + std::to_string(kept) +
           " weights as " + name + " and READABLE_BYTES behind them: " + std::to_string(expected));
  }
}

PackedMatrix matrix(int64_t rows, int64_t columns, int code, const Buffer* masks, const Buffer& values,
                    const Buffer* starts, const Buffer* scales, const CodeBuffers& own) {
  const Coding coding = coding_of(code);
  int64_t kept = product("a matrix", {rows, columns, kReadable}) / kReadable;
  PackedMatrix m;
  m.rows = rows, m.columns = columns, m.coding = coding, m.values = reinterpret_cast<const char*>(values.address);
  m.masks = given<uint64_t>("masks", masks, {rows, m.words()});
  m.starts = given<uint32_t>("starts", starts, {rows});
  m.scales = given<float>("scales", scales, {rows});
  if ((m.masks == nullptr) != (m.starts == nullptr)) refuse("masks and starts belong together: one of them is missing");
  if ((m.scales != nullptr) != row_of(coding).scaled) {
    refuse(std::string("scales must ") + (row_of(coding).scaled ? "" : "not ") + "be given with " + row_of(coding).name);
  }
  if (m.masks != nullptr) kept = kept_values(m);
  if (is_code(coding)) {
    add_codes(m, kept, values, own);
    return m;
  }
  if (own.levels != nullptr || own.column_scales != nullptr || own.row_bits != nullptr || own.row_starts != nullptr) {
    refuse(std::string("levels, column_scales and widths of rows must not be given with ") + row_of(coding).name);
  }
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
  if (batch < 1) refuse("batch is " + std::to_string(batch) + ", expected at least 1");
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
              const Buffer* starts, const Buffer* scales, const Buffer* levels, const Buffer* column_scales,
              const Buffer* row_bits, const Buffer* row_starts) {
             const nb::gil_scoped_release release;
             new (self) PackedMatrix(matrix(rows, columns, coding, masks, values, starts, scales, {levels, column_scales, row_bits, row_starts}));
           }, nb::kw_only(), "rows"_a, "columns"_a, "coding"_a, optional("masks"), "values"_a, optional("starts"),
           optional("scales"), optional("levels"), optional("column_scales"),
           optional("row_bits"), optional("row_starts"))
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
