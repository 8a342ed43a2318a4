// Weights of a few bits times vectors that were rounded to int8.
#pragma once
#include "packed/codes.h"
#include "packed/multiply_bytes.h"

namespace hmp {
namespace HMP_ISA {

#if defined(__AVX2__)

// part + the products of 64 unsigned levels, at most 63, with bytes of at least -127: two products of neighbours are
// added as 16 bits, which is enough for two pairs.
HMP_INLINE __m256i add_products(__m256i part, LevelBytes w, const int8_t* x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  part = _mm256_dpbusd_epi32(part, w.low, load_as<__m256i>(x));
  return _mm256_dpbusd_epi32(part, w.high, load_as<__m256i>(x + 32));
#else
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.low, load_as<__m256i>(x)),
                                         _mm256_maddubs_epi16(w.high, load_as<__m256i>(x + 32)));
  return _mm256_add_epi32(part, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

// `which`: the rows of the band that have codes of these bits; parts: (Batch, kBand).
template <int kBits, bool Dense, int Batch>
void rows_by_codes(const PackedMatrix& m, int64_t first, uint32_t which, const Vectors& v, Floats (*parts)[kBand]) {
  const int64_t groups = v.padded / kGroup, words = m.words();
  const __m256i table = level_table<kBits, Dense>(m);
  for (; which != 0; which &= which - 1) {
    const int row = __builtin_ctz(which);
    CodePlace place(m, first + row);
    __m256 sum[Batch];
    for (int b = 0; b < Batch; ++b) sum[b] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; ++group) {
      __m256i part[Batch];
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) part[b] = load_as<__m256i>(v.corrections + (b * groups + group) * 16);
      const int64_t last = smaller(words, (group + 1) * (kGroup / 64));
      if constexpr (Dense) fetch_ahead(reinterpret_cast<const char*>(place.word));
      for (int64_t word = group * (kGroup / 64); word < last; ++word) {
        const LevelBytes w = next_level_bytes<kBits, Dense>(m, table, place);
#pragma GCC unroll 8
        for (int b = 0; b < Batch; ++b) part[b] = add_products(part[b], w, v.bytes + b * v.padded + word * 64);
      }
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const __m256 scale = _mm256_set1_ps(v.scales[b * groups + group]);
        sum[b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[b]), scale, sum[b]);
      }
    }
    for (int b = 0; b < Batch; ++b) std::memcpy(&parts[b][row], &sum[b], sizeof(sum[b]));
  }
}

#else

template <int kBits, bool Dense, int Batch>
void rows_by_codes(const PackedMatrix& m, int64_t first, uint32_t which, const Vectors& v, Floats (*parts)[kBand]) {
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
  Floats (*parts)[kBand];
  template <int kBits, bool Dense>
  HMP_INLINE void of() const {
    rows_by_codes<kBits, Dense, Batch>(m, first, which, v, parts);
  }
};

// Rows of one width after those of another, so that what comes next is seldom guessed wrong.
template <int Batch>
void band_by_codes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  Floats parts[Batch][kBand] = {};
  if (m.masks != nullptr) {
    with_bits(row_of(m.coding).bits, false, RowsOfBand<Batch>{m, first, (1u << count) - 1, v, parts});
  } else {
    uint32_t which[7] = {};
    for (int row = 0; row < count; ++row) which[m.row_bits[first + row]] |= 1u << row;
    for (int bits = 1; bits < 7; ++bits) {
      if (which[bits] != 0) with_bits(bits, true, RowsOfBand<Batch>{m, first, which[bits], v, parts});
    }
  }
  add_lanes<Batch>(parts, sums);
}

}  // namespace HMP_ISA
}  // namespace hmp
