// Packed matrices times a few vectors, band by band of kBand rows.
#pragma once
#include "expand.h"
#include "pool.h"

namespace hmp {
namespace HMP_ISA {

// AVX-512 with VBMI2, VNNI and BF16 expands and multiplies whole vectors of bytes and words.
#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define HMP_WIDE 1
#else
#define HMP_WIDE 0
#endif

HMP_INLINE int64_t whole_groups(int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }
// Batches that the products are compiled for.
HMP_INLINE int64_t whole_batch(int64_t batch) { return batch <= 2 ? batch : batch <= 4 ? 4 : 8; }

// Vectors in the form that a coding of weight multiplies fastest; (batch, padded) of each, padded with 0. A view of
// memory that the caller has.
struct Vectors {
  int64_t batch = 0, padded = 0;
  float* floats = nullptr;        // as they came
  uint16_t* high = nullptr;       // bfloat16: high + low is the float to 16 bits
  uint16_t* low = nullptr;
  int8_t* bytes = nullptr;        // int8: floats rounded to scale * byte in groups of kGroup
  int32_t* corrections = nullptr; // (batch, groups, 16): -128 x the sums of four bytes, as weights come with 128 added
  float* scales = nullptr;        // (batch, groups)

  static int64_t memory(int64_t batch, int64_t columns) { return 3 * whole_batch(batch) * whole_groups(columns); }

  HMP_INLINE Vectors(int64_t count, int64_t columns, float* at) : batch(whole_batch(count)), padded(whole_groups(columns)) {
    floats = at;
    float* rest = at + batch * padded;
    high = reinterpret_cast<uint16_t*>(rest);
    low = high + batch * padded;
    bytes = reinterpret_cast<int8_t*>(rest);
    corrections = reinterpret_cast<int32_t*>(bytes + batch * padded);
    scales = reinterpret_cast<float*>(corrections + batch * padded / kGroup * 16);
  }

  HMP_INLINE void clear() { std::memset(floats, 0, batch * padded * sizeof(float)); }

  // Once `floats` is filled.
  HMP_INLINE void prepare(Coding coding) {
#if HMP_WIDE
    if (coding == Coding::kBFloat16) split();
    if (coding == Coding::kInt8) round_to_bytes();
#else
    (void)coding;
#endif
  }

 private:
#if HMP_WIDE
  HMP_INLINE void split() {
    for (int64_t i = 0; i < batch * padded; i += kLanes) {
      const Floats x = load(floats + i);
      store_bf16(high + i, x);
      store_bf16(low + i, x - load_bf16(high + i));
    }
  }
  HMP_INLINE void round_to_bytes() {
    for (int64_t group = 0; group < batch * padded / kGroup; ++group) {
      const float* x = floats + group * kGroup;
      __m512 largest = _mm512_setzero_ps();
      for (int i = 0; i < kGroup; i += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
      const float most = _mm512_reduce_max_ps(largest);
      scales[group] = most / 127.0f;
      const __m512 inverse = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
      int8_t* to = bytes + group * kGroup;
      for (int i = 0; i < kGroup; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtsepi32_epi8(whole));
      }
      const __m512i ones = _mm512_set1_epi8(1);
      __m512i sums = _mm512_setzero_si512();
      for (int i = 0; i < kGroup; i += 64) sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(to + i));
      sums = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
      _mm512_storeu_si512(corrections + group * 16, sums);
    }
  }
#endif
};

// The sums over the lanes of (Batch, kBand) vectors.
template <int Batch>
HMP_INLINE void add_lanes(Floats (*parts)[kBand], float* sums) {
  for (int b = 0; b < Batch; ++b) {
    for (int row = 0; row < kBand; row += kLanes) store(sums + b * kBand + row, row_sums(parts[b] + row));
  }
}

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

template <bool Dense, int Batch>
void band_by_words(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  Walker<Coding::kBFloat16, Dense> weights(m, first);
  const char* values = weights.values;
  const uint64_t* masks = weights.masks;
  Floats parts[Batch][kBand] = {};
  for (int row = 0; row < count; ++row) {
    __m512 high[Batch], low[Batch];
    for (int b = 0; b < Batch; ++b) high[b] = low[b] = _mm512_setzero_ps();
    for (int64_t column = 0; column < m.columns; column += 32) {
      __m512i w;
      if constexpr (Dense) {
        const int64_t left = m.columns - column;
        w = left >= 32 ? _mm512_loadu_si512(values) : _mm512_maskz_loadu_epi16((1u << left) - 1, values);
        values += 2 * (left >= 32 ? 32 : left);
      } else {
        const __mmask32 bits = static_cast<__mmask32>(masks[column / 64] >> column % 64);
        w = _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(values));
        values += 2 * _mm_popcnt_u32(bits);
      }
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const int64_t at = b * v.padded + column;
        high[b] = _mm512_dpbf16_ps(high[b], (__m512bh)w, (__m512bh)_mm512_loadu_si512(v.high + at));
        low[b] = _mm512_dpbf16_ps(low[b], (__m512bh)w, (__m512bh)_mm512_loadu_si512(v.low + at));
      }
    }
    if constexpr (!Dense) masks += m.words();
    for (int b = 0; b < Batch; ++b) parts[b][row] = (Floats)_mm512_add_ps(high[b], low[b]);
  }
  add_lanes<Batch>(parts, sums);
}

// `Rows` rows at once, neighbours: they share what is read of the vectors.
template <bool Dense, int Batch, int Rows>
struct ByteRows {
  const char* values[Rows];
  const uint64_t* masks[Rows];

  HMP_INLINE ByteRows(const PackedMatrix& m, int64_t first) {
    for (int r = 0; r < Rows; ++r) {
      const Walker<Coding::kInt8, Dense> weights(m, first + r);
      values[r] = weights.values;
      masks[r] = weights.masks;
    }
  }

  // The 64 weights from `column` on with 128 added.
  HMP_INLINE __m512i next(const PackedMatrix& m, int64_t column, int r) {
    __m512i w;
    if constexpr (Dense) {
      const int64_t left = m.columns - column;
      w = left >= 64 ? _mm512_loadu_si512(values[r]) : _mm512_maskz_loadu_epi8((uint64_t{1} << left) - 1, values[r]);
      values[r] += left >= 64 ? 64 : left;
    } else {
      const uint64_t bits = masks[r][column / 64];
      w = _mm512_maskz_expand_epi8(bits, _mm512_loadu_si512(values[r]));
      values[r] += _mm_popcnt_u64(bits);
    }
    return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80)));
  }

  HMP_INLINE void multiply(const PackedMatrix& m, const Vectors& v, int row, Floats (*parts)[kBand]) {
    __m512 sum[Rows][Batch];
    for (int r = 0; r < Rows; ++r) {
      for (int b = 0; b < Batch; ++b) sum[r][b] = _mm512_setzero_ps();
    }
    const int64_t groups = v.padded / kGroup;
    for (int64_t group = 0; group < groups; ++group) {
      __m512i part[Rows][Batch];
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const __m512i correction = _mm512_loadu_si512(v.corrections + (b * groups + group) * 16);
        for (int r = 0; r < Rows; ++r) part[r][b] = correction;
      }
#pragma GCC unroll 4
      for (int chunk = 0; chunk < kGroup / 64; ++chunk) {
        const int64_t column = group * kGroup + chunk * 64;
        __m512i w[Rows];
        for (int r = 0; r < Rows; ++r) {
          w[r] = column < m.columns ? next(m, column, r) : _mm512_set1_epi8(static_cast<char>(0x80));
        }
#pragma GCC unroll 8
        for (int b = 0; b < Batch; ++b) {
          const __m512i x = _mm512_loadu_si512(v.bytes + b * v.padded + column);
          for (int r = 0; r < Rows; ++r) part[r][b] = _mm512_dpbusd_epi32(part[r][b], w[r], x);
        }
      }
#pragma GCC unroll 8
      for (int b = 0; b < Batch; ++b) {
        const __m512 scale = _mm512_set1_ps(v.scales[b * groups + group]);
        for (int r = 0; r < Rows; ++r) sum[r][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][b]), scale, sum[r][b]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int b = 0; b < Batch; ++b) parts[b][row + r] = (Floats)sum[r][b];
    }
  }
};

// Two rows at once are faster from bitmasks; dense rows are faster one by one, as a single stream from memory.
template <bool Dense, int Batch>
void band_by_bytes(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  Floats parts[Batch][kBand] = {};
  int row = 0;
  if constexpr (!Dense) {
    for (; row + 1 < count; row += 2) ByteRows<false, Batch, 2>(m, first + row).multiply(m, v, row, parts);
  }
  for (; row < count; ++row) ByteRows<Dense, Batch, 1>(m, first + row).multiply(m, v, row, parts);
  add_lanes<Batch>(parts, sums);
}

#endif

template <bool Dense, int Batch>
void band_of(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
#if HMP_WIDE
  if (m.coding == Coding::kBFloat16) return band_by_words<Dense, Batch>(m, first, count, v, sums);
  if (m.coding == Coding::kInt8) return band_by_bytes<Dense, Batch>(m, first, count, v, sums);
#endif
  switch (m.coding) {
    case Coding::kFloat32: return band_by_lanes<Coding::kFloat32, Dense, Batch>(m, first, count, v, sums);
    case Coding::kBFloat16: return band_by_lanes<Coding::kBFloat16, Dense, Batch>(m, first, count, v, sums);
    case Coding::kFloat16: return band_by_lanes<Coding::kFloat16, Dense, Batch>(m, first, count, v, sums);
    case Coding::kInt8: return band_by_lanes<Coding::kInt8, Dense, Batch>(m, first, count, v, sums);
  }
}

template <int Batch>
void band_in_batch(const PackedMatrix& m, int64_t first, int count, const Vectors& v, float* sums) {
  (m.masks == nullptr ? band_of<true, Batch> : band_of<false, Batch>)(m, first, count, v, sums);
  if (m.coding != Coding::kInt8) return;
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
  vectors.prepare(m.coding);
  const int64_t last = (task + 1) * kBandsOfTask < bands(m) ? (task + 1) * kBandsOfTask : bands(m);
  for (int64_t band = task * kBandsOfTask; band < last; ++band) {
    float sums[kMaxBatch * kBand];
    multiply_band(m, band * kBand, rows_of(m, band), vectors, sums);
    for (int64_t b = 0; b < p.batch; ++b) {
      std::memcpy(p.out + b * m.rows + band * kBand, sums + b * kBand, rows_of(m, band) * sizeof(float));
    }
  }
}

inline void packed_product(const PackedProduct& p, int threads) {
  parallel((bands(*p.matrix) + kBandsOfTask - 1) / kBandsOfTask, threads, product_share, &p);
}

}  // namespace HMP_ISA
}  // namespace hmp
