// How values are coded: the one table, which Python reads as `CODINGS`.
#pragma once
#include <cstdint>

namespace hmp {

enum class Coding : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kInt8 = 3,
  kMixed = 4,
  kInt1 = 5,
  kInt2 = 6,
  kInt3 = 7,
  kInt4 = 8,
};

struct CodingRow {
  const char* name;  // torch's name of the type, where it has one
  int bits;          // of a value; 0: each row has its own
  bool scaled;       // each row of a matrix has a float scale
  bool coded;        // a value is a code: a table of the matrix says which level it stands for
};
// In the order of Coding. The integers of less than 8 bits stand under masks, `mixed` without.
constexpr CodingRow kCodings[] = {
    {"float32", 32, false, false}, {"bfloat16", 16, false, false}, {"float16", 16, false, false},
    {"int8", 8, true, false},      {"mixed", 0, true, true},       {"int1", 1, true, true},
    {"int2", 2, true, true},       {"int3", 3, true, true},        {"int4", 4, true, true},
};

constexpr const CodingRow& row_of(Coding coding) { return kCodings[static_cast<int>(coding)]; }
constexpr bool is_code(Coding coding) { return row_of(coding).coded; }
// Of whole values; 0 of codes, which lie in planes of bits.
constexpr int value_bytes(Coding coding) { return is_code(coding) ? 0 : row_of(coding).bits / 8; }

// Levels of codes of 1 to 5 bits, one table after the other; codes of 6 are levels from -32 on, and a row of 0 bits is
// zero.
constexpr int kLevels = 62;
constexpr int kLevelOffset = 32;  // levels lie from -32 to 31
constexpr int first_level(int bits) { return (1 << bits) - 2; }
constexpr int levels_of(int bits) { return bits <= 5 ? 1 << bits : 0; }
constexpr bool known_bits(int bits) { return bits >= 0 && bits <= 6; }

}  // namespace hmp
