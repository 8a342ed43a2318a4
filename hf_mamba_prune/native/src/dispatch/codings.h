// How values are coded: the one table, which Python reads as `CODINGS`.
#pragma once
#include <cstdint>

namespace hmp {

enum class Coding : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

struct CodingRow {
  const char* name;  // torch's name of the type
  int bytes;         // of a value
  bool scaled;       // each row of a matrix has a float scale
};
// In the order of Coding.
constexpr CodingRow kCodings[] = {
    {"float32", 4, false},
    {"bfloat16", 2, false},
    {"float16", 2, false},
    {"int8", 1, true},
};

constexpr const CodingRow& row_of(Coding coding) { return kCodings[static_cast<int>(coding)]; }
constexpr int value_bytes(Coding coding) { return row_of(coding).bytes; }

}  // namespace hmp
