// Weights of a few bits times vectors that were rounded to int8.
#pragma once
#include "packed/codes.h"
#include "packed/codes_wide.h"
#include "packed/multiply_bytes.h"

namespace hmp {
namespace HMP_ISA {

#if defined(__AVX2__)

// Products of 64 unsigned levels, at most 63, with bytes of at least -127, are added to sums of whole numbers in lanes,
// and those of a group, times its scale, to sums of floats.
#if HMP_WIDE
using WholeSums = __m512i;
using FloatSums = __m512;

HMP_INLINE __m512i joined(LevelBytes w) { return _mm512_inserti64x4(_mm512_castsi256_si512(w.low), w.high, 1); }
HMP_INLINE WholeSums add_products(WholeSums part, __m512i w, const int8_t* x, __m256i) {
  return _mm512_dpbusd_epi32(part, w, load_as<__m512i>(x));
}
HMP_INLINE WholeSums add_products(WholeSums part, LevelBytes w, const int8_t* x, __m256i ones) {
  return add_products(part, joined(w), x, ones);
}
HMP_INLINE WholeSums whole_sums(const int32_t* eight) { return _mm512_zextsi256_si512(load_as<__m256i>(eight)); }
HMP_INLINE FloatSums add_scaled(FloatSums sum, WholeSums part, float scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_set1_ps(scale), sum);
}
HMP_INLINE Floats whole_lanes(FloatSums sum) { return (Floats)sum; }
#else
using WholeSums = __m256i;
using FloatSums = __m256;

// Two products of neighbours are added as 16 bits, which is enough for two pairs.
HMP_INLINE WholeSums add_products(WholeSums part, LevelBytes w, const int8_t* x, __m256i ones) {
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.low, load_as<__m256i>(x)),
                                         _mm256_maddubs_epi16(w.high, load_as<__m256i>(x + 32)));
  return _mm256_add_epi32(part, _mm256_madd_epi16(pairs, ones));
}
HMP_INLINE WholeSums whole_sums(const int32_t* eight) { return load_as<__m256i>(eight); }
HMP_INLINE FloatSums add_scaled(FloatSums sum, WholeSums part, float scale) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), _mm256_set1_ps(scale), sum);
}
#endif

// Reads words without masks.
template <int kBits, bool Narrow>
struct WordLevels {
  __m256i table;
  HMP_INLINE explicit WordLevels(const PackedMatrix& m) : table(level_table<kBits, true>(m)) {}
  HMP_INLINE LevelBytes next(const PackedMatrix& m, const uint8_t*& word) const {
    return level_bytes<kBits, Narrow>(m, table, word);
  }
};
#if HMP_WIDE
template <int kBits>
struct WordLevels<kBits, false> {
  __m512i table;
  HMP_INLINE explicit WordLevels(const PackedMatrix& m) : table(wide_level_table<kBits>(m)) {}
  HMP_INLINE __m512i next(const PackedMatrix&, const uint8_t*& word) const {
    const __m512i codes = wide_codes_of_word<kBits>(word);
    word += 8 * kBits;
    return _mm512_permutexvar_epi8(codes, table);
  }
};
#endif

// A few rows with codes of the same bits, which share what is read of the vectors. All loops over rows and vectors are
// unrolled, or the sums would live in memory.
template <int kBits, bool Narrow, int Batch, int Rows>
struct RowsByCodes {
  static constexpr int kWords = kGroup / 64;
  const PackedMatrix& m;
  const Vectors& v;
  const WordLevels<kBits, Narrow> levels;
  const __m256i ones;
  const uint8_t* words[2];
  const char* coming;  // what memory is asked for next
  WholeSums part[Rows][Batch];
  FloatSums sum[Rows][Batch];

  HMP_INLINE RowsByCodes(const PackedMatrix& matrix, const Vectors& vectors, WordLevels<kBits, Narrow> reader,
                         int64_t one, int64_t other, const char* ahead)
      : m(matrix), v(vectors), levels(reader), ones(all_words_one()),
        words{first_word(matrix, one), first_word(matrix, other)}, coming(ahead) {
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) sum[r][b] = FloatSums{};
    }
  }

  // Memory is asked for in whole, as a core that guesses what comes next stops at each row's end, and in the order that
  // it lies in, whichever rows are read first.
  HMP_INLINE void fetch_group() {
    constexpr int kBytes = Rows * kGroup / 8 * kBits;
#pragma GCC unroll 8
    for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(coming + byte);
    coming += kBytes;
  }
  HMP_INLINE void add_word(int64_t word) {
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      const auto w = levels.next(m, words[r]);
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) part[r][b] = add_products(part[r][b], w, v.bytes + b * v.padded + word * 64, ones);
    }
  }
  HMP_INLINE void add_group(int64_t group, int64_t groups, int64_t left) {
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) {
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) part[r][b] = whole_sums(v.corrections + (b * groups + group) * 16);
    }
    fetch_group();
    if (left >= kWords) {
#pragma GCC unroll 4
      for (int word = 0; word < kWords; ++word) add_word(group * kWords + word);
    } else {
      for (int64_t word = 0; word < left; ++word) add_word(group * kWords + word);
    }
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) {
      const float scale = v.scales[b * groups + group];
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) sum[r][b] = add_scaled(sum[r][b], part[r][b], scale);
    }
  }
};

// parts: (Batch, kBand), of which those of `rows` are filled.
template <int kBits, bool Narrow, int Batch, int Rows>
HMP_INLINE void few_rows_by_codes(const PackedMatrix& m, int64_t first, const int* rows,
                                  WordLevels<kBits, Narrow> levels, const Vectors& v, const char*& coming,
                                  Floats (*parts)[kBand]) {
  RowsByCodes<kBits, Narrow, Batch, Rows> own(m, v, levels, first + rows[0], first + rows[Rows - 1], coming);
  const int64_t groups = v.padded / kGroup, words = m.words();
  for (int64_t group = 0; group < groups; ++group) own.add_group(group, groups, words - group * own.kWords);
  coming += Rows * m.row_bytes(kBits);
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) parts[b][rows[r]] = whole_lanes(own.sum[r][b]);
  }
}

// Two rows at once where reading codes is little work beside the rest.
template <int kBits, bool Narrow, int Batch>
HMP_INLINE void rows_in_pairs(const PackedMatrix& m, int64_t first, uint32_t which, const Vectors& v,
                              const char*& coming, Floats (*parts)[kBand]) {
  const WordLevels<kBits, Narrow> levels(m);
  for (; which != 0; which &= which - 1) {
    int rows[2] = {__builtin_ctz(which)};
    if constexpr (kBits <= 3 && Batch <= 2) {
      const uint32_t rest = which & (which - 1);
      if (rest != 0) {
        which = rest;
        rows[1] = __builtin_ctz(which);
        few_rows_by_codes<kBits, Narrow, Batch, 2>(m, first, rows, levels, v, coming, parts);
        continue;
      }
    }
    few_rows_by_codes<kBits, Narrow, Batch, 1>(m, first, rows, levels, v, coming, parts);
  }
}

// A row under a mask.
template <int kBits, int Batch>
HMP_INLINE void masked_row_by_codes(const PackedMatrix& m, int64_t row, __m256i table, const Vectors& v,
                                    FloatSums (&sum)[Batch]) {
  MaskedWords<kBits> from(m, row, table);
  const __m256i ones = all_words_one();
  const int64_t groups = v.padded / kGroup;
  const int8_t* x = v.bytes;
  for (int64_t group = 0, left = m.words(); group < groups; ++group, left -= kGroup / 64) {
    WholeSums part[Batch];
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) part[b] = whole_sums(v.corrections + (b * groups + group) * 16);
#pragma GCC unroll 1
    for (int64_t word = smaller(left, kGroup / 64); word > 0; --word, x += 64) {
      const LevelBytes w = from.next();
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) part[b] = add_products(part[b], w, x + b * v.padded, ones);
    }
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) sum[b] = add_scaled(sum[b], part[b], v.scales[b * groups + group]);
  }
}

// `which`: the rows of the band that have codes of these bits; parts: (Batch, kBand).
template <int kBits, bool Dense, int Batch>
void rows_by_codes(const PackedMatrix& m, int64_t first, uint32_t which, const Vectors& v, const char*& coming,
                   Floats (*parts)[kBand]) {
  if constexpr (Dense) {
    if (m.columns <= kNarrow) return rows_in_pairs<kBits, true, Batch>(m, first, which, v, coming, parts);
    return rows_in_pairs<kBits, false, Batch>(m, first, which, v, coming, parts);
  } else {
    const __m256i table = level_table<kBits, false>(m);
    for (; which != 0; which &= which - 1) {
      const int row = __builtin_ctz(which);
      FloatSums sum[Batch] = {};
      masked_row_by_codes<kBits, Batch>(m, first + row, table, v, sum);
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) parts[b][row] = whole_lanes(sum[b]);
    }
  }
}

#else

template <int kBits, bool Dense, int Batch>
void rows_by_codes(const PackedMatrix& m, int64_t first, uint32_t which, const Vectors& v, const char*&,
                   Floats (*parts)[kBand]) {
  for (; which != 0; which &= which - 1) {
    const int row = __builtin_ctz(which);
    LevelWalker<kBits, Dense> weights(m, first + row);
    Floats sum[Batch] = {};
    for (int64_t column = 0; column < m.columns; column += 64) {
      uint8_t bytes[64];
      float levels[64];
      weights.next(bytes);
      for (int i = 0; i < 64; ++i) levels[i] = static_cast<float>(bytes[i] - kLevelOffset);
      for (int b = 0; b < Batch; ++b) {
        const float* x = v.floats + b * v.padded + column;
        for (int i = 0; i < 64; i += kLanes) sum[b] += load(levels + i) * load(x + i);
      }
    }
    for (int b = 0; b < Batch; ++b) parts[b][row] = sum[b];
  }
}

#endif

template <int Batch>
struct RowsOfBand {
  const PackedMatrix& m;
  int64_t first;
  uint32_t which;
  const Vectors& v;
  const char*& coming;
  Floats (*parts)[kBand];
  template <int kBits, bool Dense>
  HMP_INLINE void of() const {
    rows_by_codes<kBits, Dense, Batch>(m, first, which, v, coming, parts);
  }
};

// The rows of a band that have each width, as bits; those that are not there have 0.
inline void rows_by_width(const uint8_t* row_bits, int count, uint32_t (&which)[7]) {
  alignas(16) uint8_t widths[kBand] = {};
  std::memcpy(widths, row_bits, count);
#if defined(__AVX2__)
  static_assert(kBand == 16);
  const __m128i all = load_as<__m128i>(widths);
#pragma GCC unroll 7
  for (int bits = 0; bits < 7; ++bits) {
    which[bits] = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(all, _mm_set1_epi8(static_cast<char>(bits)))));
  }
#else
  for (uint32_t& rows : which) rows = 0;
  for (int row = 0; row < kBand; ++row) which[widths[row]] |= 1u << row;
#endif
}

// What to ask for while a band is read: what comes after it, or kAhead later.
HMP_INLINE const char* behind_band(const PackedMatrix& m, int64_t first, int count) {
  const int64_t begin = m.row_starts[first];
  const int64_t bytes = first + count < m.rows ? m.row_starts[first + count] - begin : 0;
  return m.values + begin + (bytes > kAhead ? bytes : kAhead);
}

// Rows of one width after those of another, so that what comes next is seldom guessed wrong.
template <int Batch>
void band_by_codes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  Floats parts[Batch][kBand];
  const char* coming = m.masks == nullptr ? behind_band(m, first, count) : nullptr;
  uint32_t which[7] = {((1u << kBand) - 1) & ~((1u << count) - 1)};
  if (m.masks == nullptr) rows_by_width(m.row_bits + first, count, which);
  for (uint32_t rows = which[0]; rows != 0; rows &= rows - 1) {
    for (int b = 0; b < Batch; ++b) parts[b][__builtin_ctz(rows)] = Floats{};
  }
  if (m.masks != nullptr) {
    with_bits(row_of(m.coding).bits, false, RowsOfBand<Batch>{m, first, (1u << count) - 1, v, coming, parts});
  }
  for (int bits = 1; bits < 7; ++bits) {
    if (which[bits] != 0) with_bits(bits, true, RowsOfBand<Batch>{m, first, which[bits], v, coming, parts});
  }
  add_lanes<Batch>(parts, sums);
}

}  // namespace HMP_ISA
}  // namespace hmp
