// Packed matrices times a few vectors, band by band of kBand rows.
#pragma once
#include "packed/multiply_codes.h"
#include "threads/pool.h"

namespace hmp {
namespace HMP_ISA {

// sums: (Batch, kBand), the products of rows [first, first + count) with the vectors. A sum is several chains of
// additions, or each would wait for the one before it.
template <Coding coding, bool Dense, int Batch>
void band_by_lanes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  constexpr int kChains = Batch == 8 ? 1 : Batch == 4 ? 2 : 4;
  Walker<coding, Dense> weights(m, first);
  Floats parts[Batch][kBand] = {};
  for (int row = 0; row < count; ++row) {
    Floats sum[kChains][Batch] = {};
    for (int64_t at = 0; at < m.columns; at += kChains * kLanes) {
      if constexpr (!Dense) fetch_ahead(weights.values);
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t column = at + chain * kLanes;
        const Floats w = weights.next(column);
#pragma GCC unroll 8
        for (int b = 0; b < Batch; ++b) sum[chain][b] += w * load(v.floats + b * v.padded + column);
      }
    }
    weights.end_row();
#pragma GCC unroll 8
    for (int b = 0; b < Batch; ++b) {
      for (int chain = 1; chain < kChains; ++chain) sum[0][b] += sum[chain][b];
      parts[b][row] = sum[0][b];
    }
  }
  add_lanes<Batch>(parts, sums);
}

#if HMP_WIDE

// Two neighbours share 32 bits: the first is the lower half moved up, the second the upper half as it is.
template <bool Dense, int Batch>
void band_by_words(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  constexpr int kChains = Batch <= 2 ? 2 : 1;
  const Walker<Coding::kBFloat16, Dense> weights(m, first);
  const char* values = weights.values;
  const uint64_t* masks = weights.masks;
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Floats parts[Batch][kBand] = {};
  for (int row = 0; row < count; ++row) {
    Floats even[kChains][Batch] = {}, odd[kChains][Batch] = {};
    for (int64_t column = 0; column < m.columns; column += 64) {
      __m512i words[2];
      if constexpr (Dense) {
        const int64_t left = m.columns - column;
        const uint64_t held = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        words[0] = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(held), values);
        words[1] = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(held >> 32), values + 64);
        values += 2 * smaller(left, 64);
        fetch_ahead(values);
        fetch_ahead(values + 64);
      } else {
        const uint64_t bits = masks[column / 64];
        const char* second = values + 2 * _mm_popcnt_u32(static_cast<uint32_t>(bits));
        words[0] = _mm512_maskz_expand_epi16(static_cast<__mmask32>(bits), _mm512_loadu_si512(values));
        words[1] = _mm512_maskz_expand_epi16(static_cast<__mmask32>(bits >> 32), _mm512_loadu_si512(second));
        values += 2 * _mm_popcnt_u64(bits);
        fetch_ahead(values);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int chain = half % kChains;
        const Floats low = (Floats)_mm512_slli_epi32(words[half], 16), high = (Floats)_mm512_and_si512(words[half], upper);
#pragma GCC unroll 8
        for (int b = 0; b < Batch; ++b) {
          const float* x = v.pairs + b * v.padded + column + 32 * half;
          even[chain][b] += low * load(x);
          odd[chain][b] += high * load(x + kLanes);
        }
      }
    }
    if constexpr (!Dense) masks += m.words();
    for (int b = 0; b < Batch; ++b) {
      parts[b][row] = even[0][b] + odd[0][b];
      if constexpr (kChains == 2) parts[b][row] += even[1][b] + odd[1][b];
    }
  }
  add_lanes<Batch>(parts, sums);
}

#endif

template <bool Dense, int Batch>
void band_of(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  if (is_code(m.coding)) return band_by_codes<Batch>(m, first, count, v, sums);
#if HMP_WIDE
  if (m.coding == Coding::kBFloat16) return band_by_words<Dense, Batch>(m, first, count, v, sums);
#endif
#if HMP_BYTES
  if (m.coding == Coding::kInt8) return band_by_bytes<Dense, Batch>(m, first, count, v, sums);
#endif
  switch (m.coding) {
    case Coding::kFloat32: return band_by_lanes<Coding::kFloat32, Dense, Batch>(m, first, count, v, sums);
    case Coding::kBFloat16: return band_by_lanes<Coding::kBFloat16, Dense, Batch>(m, first, count, v, sums);
    case Coding::kFloat16: return band_by_lanes<Coding::kFloat16, Dense, Batch>(m, first, count, v, sums);
    case Coding::kInt8: return band_by_lanes<Coding::kInt8, Dense, Batch>(m, first, count, v, sums);
    default: return;
  }
}

template <int Batch>
void band_in_batch(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  (m.masks == nullptr ? band_of<true, Batch> : band_of<false, Batch>)(m, first, count, v, sums);
  if (m.scales == nullptr) return;
  for (int b = 0; b < Batch; ++b) {
    for (int row = 0; row < count; ++row) sums[b * kBand + row] *= m.scales[first + row];
  }
}

// sums: (v.batch, kBand). `first` is a multiple of kBand.
inline void multiply_band(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  auto band = v.batch == 1   ? band_in_batch<1>
              : v.batch == 2 ? band_in_batch<2>
              : v.batch == 4 ? band_in_batch<4>
                             : band_in_batch<8>;
  band(m, first, count, v, sums);
}

HMP_INLINE int64_t bands(const PackedMatrix& m) { return (m.rows + kBand - 1) / kBand; }
HMP_INLINE int rows_of(const PackedMatrix& m, int64_t band) {
  const int64_t left = m.rows - band * kBand;
  return static_cast<int>(left < kBand ? left : kBand);
}

// A task of a whole product: some bands, enough to be worth taking.
constexpr int64_t kBandsOfTask = 8;

inline void product_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const PackedProduct& p = *static_cast<const PackedProduct*>(context);
  const PackedMatrix& m = *p.matrix;
  Vectors vectors(p.batch, m.columns, scratch(Vectors::memory(p.batch, m.columns)));
  vectors.clear();
  for (int64_t b = 0; b < p.batch; ++b) {
    std::memcpy(vectors.floats + b * vectors.padded, p.vectors + b * m.columns, m.columns * sizeof(float));
  }
  vectors.prepare(m);
  const int64_t last = (task + 1) * kBandsOfTask < bands(m) ? (task + 1) * kBandsOfTask : bands(m);
  for (int64_t band = task * kBandsOfTask; band < last; ++band) {
    float sums[kMaxBatch * kBand];
    multiply_band(m, band * kBand, rows_of(m, band), vectors, sums);
    for (int64_t b = 0; b < p.batch; ++b) {
      std::memcpy(p.out + b * m.rows + band * kBand, sums + b * kBand, rows_of(m, band) * sizeof(float));
    }
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
