// int8 weights times vectors that were rounded to int8.
#pragma once
#include "packed/expand.h"
#include "packed/vectors.h"

namespace hmp {
namespace HMP_ISA {

// The sums over the lanes of (Batch, kBand) vectors.
template <int Batch>
HMP_INLINE void add_lanes(Floats (*parts)[kBand], float* sums) {
  for (int b = 0; b < Batch; ++b) {
    for (int row = 0; row < kBand; row += kLanes) store(sums + b * kBand + row, row_sums(parts[b] + row));
  }
}

#if HMP_WIDE

// The next 64 weights of a row that has `left` of them; the places in it move on.
template <bool Dense>
HMP_INLINE __m512i bytes_of_row(const char*& values, const uint64_t*& masks, int64_t left) {
  __m512i found;
  if constexpr (Dense) {
    const uint64_t held = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    found = _mm512_maskz_loadu_epi8(held, values);
    values += smaller(left, 64);
    (void)masks;
  } else {
    const uint64_t bits = *masks++;
    found = _mm512_maskz_expand_epi8(bits, _mm512_loadu_si512(values));
    values += _mm_popcnt_u64(bits);
  }
  fetch_ahead(values);
  return found;
}

// `Rows` rows at once, neighbours: they share what is read of the vectors. All loops over rows are unrolled, or the
// places that they have come to would live in memory.
template <bool Dense, int Batch, int Rows>
HMP_INLINE void rows_by_bytes(const PackedMatrix& m, const Vectors& v, int64_t first, Floats (*parts)[kBand], int row) {
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));  // weights come with 128 added, as unsigned bytes
  const int64_t groups = v.padded / kGroup, columns = m.columns;
  const char* values[Rows];
  const uint64_t* masks[Rows];
  __m512 sum[Rows][Batch];
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
    const Walker<Coding::kInt8, Dense> weights(m, first + r);
    values[r] = weights.values;
    masks[r] = weights.masks;
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) sum[r][b] = _mm512_setzero_ps();
  }
  for (int64_t group = 0; group < groups; ++group) {
    __m512i part[Rows][Batch];
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) {
      const __m512i correction = _mm512_loadu_si512(v.corrections + (b * groups + group) * 16);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) part[r][b] = correction;
    }
#pragma GCC unroll 4
    for (int chunk = 0; chunk < kGroup / 64; ++chunk) {
      const int64_t column = group * kGroup + chunk * 64, left = columns - column;
      __m512i w[Rows];
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
        w[r] = bias;
        if (left > 0) w[r] = _mm512_xor_si512(bytes_of_row<Dense>(values[r], masks[r], left), bias);
      }
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const __m512i x = _mm512_loadu_si512(v.bytes + b * v.padded + column);
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) part[r][b] = _mm512_dpbusd_epi32(part[r][b], w[r], x);
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) {
      const __m512 scale = _mm512_set1_ps(v.scales[b * groups + group]);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) sum[r][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][b]), scale, sum[r][b]);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) parts[b][row + r] = (Floats)sum[r][b];
  }
}

// Two rows at once are faster from bitmasks; dense rows are faster one by one, as a single stream from memory.
template <bool Dense, int Batch>
void band_by_bytes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  Floats parts[Batch][kBand] = {};
  int row = 0;
  if constexpr (!Dense) {
    for (; row + 1 < count; row += 2) rows_by_bytes<false, Batch, 2>(m, v, first + row, parts, row);
  }
  for (; row < count; ++row) rows_by_bytes<Dense, Batch, 1>(m, v, first + row, parts, row);
  add_lanes<Batch>(parts, sums);
}

#elif HMP_BYTES

// Eight lanes, and 0 in those that wider vectors have behind them: `add_lanes` reads all.
HMP_INLINE Floats whole_lanes(__m256 eight) {
  Floats whole{};
  std::memcpy(&whole, &eight, sizeof(eight));
  return whole;
}

// For each mask of 8 bits: which value goes to each of the lower or of the upper 8 bytes, 0x80 elsewhere.
struct BytePlaces {
  uint8_t bytes[2][256][16];
  constexpr BytePlaces() : bytes() {
    for (int half = 0; half < 2; ++half) {
      for (int mask = 0; mask < 256; ++mask) {
        uint8_t next = 0;
        for (int lane = 0; lane < 16; ++lane) {
          const bool here = lane / 8 == half && (mask >> lane % 8 & 1);
          bytes[half][mask][lane] = here ? next++ : 0x80;
        }
      }
    }
  }
};
alignas(64) constexpr BytePlaces kBytePlaces;

HMP_INLINE __m128i place_bytes(const char* values, int half, uint32_t bits) {
  return _mm_shuffle_epi8(load_as<__m128i>(values), load_as<__m128i>(kBytePlaces.bytes[half][bits]));
}

// 16 weights from their kept values and bits; `values` moves on.
HMP_INLINE __m128i sixteen_bytes(const char*& values, const uint8_t* bits) {
  const __m128i low = place_bytes(values, 0, bits[0]);
  values += static_cast<uint32_t>(__builtin_popcount(bits[0]));
  const __m128i high = place_bytes(values, 1, bits[1]);
  values += static_cast<uint32_t>(__builtin_popcount(bits[1]));
  return _mm_or_si128(low, high);
}

// The products of neighbours are added as 16 bits, which is enough: no byte of a vector is below -127.
template <bool Dense, int Batch>
void band_by_bytes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  const Walker<Coding::kInt8, Dense> weights(m, first);
  const char* values = weights.values;
  const uint8_t* masks = reinterpret_cast<const uint8_t*>(weights.masks);
  const int64_t groups = v.padded / kGroup;
  const __m256i ones = _mm256_set1_epi16(1);
  Floats parts[Batch][kBand] = {};
  for (int row = 0; row < count; ++row) {
    __m256 sum[Batch];
    for (int b = 0; b < Batch; ++b) sum[b] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; ++group) {
      __m256i part[Batch];
      for (int b = 0; b < Batch; ++b) part[b] = _mm256_setzero_si256();
      const int64_t last = smaller(m.columns, (group + 1) * kGroup);
      for (int64_t column = group * kGroup; column < last; column += 32) {
        __m256i w;
        if constexpr (Dense) {
          const int64_t left = smaller(m.columns - column, 32);
          char tail[32] = {};
          if (left < 32) std::memcpy(tail, values, left);
          w = load_as<__m256i>(left < 32 ? tail : values);
          values += left;
        } else {
          const __m128i low = sixteen_bytes(values, masks + column / 8);
          w = _mm256_set_m128i(sixteen_bytes(values, masks + column / 8 + 2), low);
          fetch_ahead(values);
        }
        const __m256i magnitudes = _mm256_abs_epi8(w);
#pragma GCC unroll 8
        for (int b = 0; b < Batch; ++b) {
          const __m256i x = load_as<__m256i>(v.bytes + b * v.padded + column);
          const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, w));
          part[b] = _mm256_add_epi32(part[b], _mm256_madd_epi16(pairs, ones));
        }
      }
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const __m256 scale = _mm256_set1_ps(v.scales[b * groups + group]);
        sum[b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[b]), scale, sum[b]);
      }
    }
    if constexpr (!Dense) masks += 8 * m.words();
    for (int b = 0; b < Batch; ++b) parts[b][row] = whole_lanes(sum[b]);
  }
  add_lanes<Batch>(parts, sums);
}

#endif

}  // namespace HMP_ISA
}  // namespace hmp
