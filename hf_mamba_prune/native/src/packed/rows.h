// Rows of a packed matrix as dense ones: tiles for products with many tokens, and embeddings.
#pragma once
#include "packed/multiply_many.h"

namespace hmp {
namespace HMP_ISA {

template <Coding coding, bool Dense>
void write_row(const PackedRows& r, int64_t row, int64_t place) {
  const PackedMatrix& m = *r.matrix;
  Walker<coding, Dense> weights(m, row);
  const Floats scale = splat(coding == Coding::kInt8 ? m.scales[row] : 1.0f);
  float* floats = reinterpret_cast<float*>(r.out) + place * m.columns;
  uint16_t* halves = reinterpret_cast<uint16_t*>(r.out) + place * m.columns;
  for (int64_t column = 0; column < m.columns; column += kLanes) {
    Floats w = weights.next(column);
    if (coding == Coding::kInt8) w *= scale;
    const int64_t left = m.columns - column;
    if (left >= kLanes && r.bfloat16) {
      store_bf16(halves + column, w);
    } else if (left >= kLanes) {
      store(floats + column, w);
    }
    for (int i = 0; left < kLanes && i < left; ++i) {
      if (r.bfloat16) {
        halves[column + i] = float_to_bf16(w[i]);
      } else {
        floats[column + i] = w[i];
      }
    }
  }
}

// Levels of a few bits times the scales of row and column, in that order.
struct RowOfCodes {
  const PackedRows& r;
  int64_t row, place;
  template <int kBits, bool Dense>
  void of() const {
    const PackedMatrix& m = *r.matrix;
    LevelWalker<kBits, Dense> weights(m, row);
    for (int64_t column = 0; column < m.columns; column += 64) {
      uint8_t bytes[64];
      float w[64];
      weights.next(bytes);
      for (int i = 0; i < 64; ++i) w[i] = static_cast<float>(bytes[i] - kLevelOffset) * m.scales[row];
      const int64_t left = smaller(m.columns - column, 64), at = place * m.columns + column;
      for (int64_t i = 0; m.column_scales != nullptr && i < left; ++i) w[i] *= m.column_scales[column + i];
      if (!r.bfloat16) {
        std::memcpy(reinterpret_cast<float*>(r.out) + at, w, left * sizeof(float));
        continue;
      }
      uint16_t halves[64];
      for (int i = 0; i < 64; i += kLanes) store_bf16(halves + i, load(w + i));
      std::memcpy(reinterpret_cast<uint16_t*>(r.out) + at, halves, left * sizeof(uint16_t));
    }
  }
};

inline void write_codes(const PackedRows& r, int64_t row, int64_t place) {
  const PackedMatrix& m = *r.matrix;
  const int bits = m.masks == nullptr ? m.row_bits[row] : row_of(m.coding).bits;
  if (bits > 0) return with_bits(bits, m.masks == nullptr, RowOfCodes{r, row, place});
  const int64_t bytes = r.bfloat16 ? 2 : 4;
  std::memset(r.out + place * m.columns * bytes, 0, m.columns * bytes);
}

#if HMP_WIDE

// bfloat16 as it is: nothing is converted.
inline void write_words(const PackedRows& r, int64_t row, int64_t place) {
  const PackedMatrix& m = *r.matrix;
  const Walker<Coding::kBFloat16, false> weights(m, row);
  const char* values = weights.values;
  uint16_t* to = reinterpret_cast<uint16_t*>(r.out) + place * m.columns;
  for (int64_t column = 0; column < m.columns; column += 32) {
    const __mmask32 bits = static_cast<__mmask32>(weights.masks[column / 64] >> column % 64);
    const __m512i words = _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(values));
    values += 2 * _mm_popcnt_u32(bits);
    const int64_t left = m.columns - column;
    if (left >= 32) {
      _mm512_storeu_si512(to + column, words);
    } else {
      _mm512_mask_storeu_epi16(to + column, (1u << left) - 1, words);
    }
  }
}

inline __m512 scaled_bytes(__m128i bytes, __m512 scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
}

// int8 times its scale as bfloat16, 64 columns at a time.
inline void write_bytes(const PackedRows& r, int64_t row, int64_t place) {
  const PackedMatrix& m = *r.matrix;
  const Walker<Coding::kInt8, false> weights(m, row);
  const char* values = weights.values;
  const __m512 scale = _mm512_set1_ps(m.scales[row]);
  uint16_t* to = reinterpret_cast<uint16_t*>(r.out) + place * m.columns;
  for (int64_t column = 0; column < m.columns; column += 64) {
    const uint64_t bits = weights.masks[column / 64];
    const __m512i bytes = _mm512_maskz_expand_epi8(bits, _mm512_loadu_si512(values));
    values += _mm_popcnt_u64(bits);
    const __m512 first = scaled_bytes(_mm512_castsi512_si128(bytes), scale);
    const __m512 second = scaled_bytes(_mm512_extracti32x4_epi32(bytes, 1), scale);
    const __m512 third = scaled_bytes(_mm512_extracti32x4_epi32(bytes, 2), scale);
    const __m512 fourth = scaled_bytes(_mm512_extracti32x4_epi32(bytes, 3), scale);
    const int64_t left = m.columns - column;
    const uint64_t held = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    _mm512_mask_storeu_epi16(to + column, static_cast<__mmask32>(held), (__m512i)_mm512_cvtne2ps_pbh(second, first));
    _mm512_mask_storeu_epi16(to + column + 32, static_cast<__mmask32>(held >> 32),
                             (__m512i)_mm512_cvtne2ps_pbh(fourth, third));
  }
}

#endif

template <bool Dense>
void write_row_of(const PackedRows& r, int64_t row, int64_t place) {
  if (is_code(r.matrix->coding)) return write_codes(r, row, place);
#if HMP_WIDE
  if (!Dense && r.bfloat16 && r.matrix->coding == Coding::kBFloat16) return write_words(r, row, place);
  if (!Dense && r.bfloat16 && r.matrix->coding == Coding::kInt8) return write_bytes(r, row, place);
#endif
  switch (r.matrix->coding) {
    case Coding::kFloat32: return write_row<Coding::kFloat32, Dense>(r, row, place);
    case Coding::kBFloat16: return write_row<Coding::kBFloat16, Dense>(r, row, place);
    case Coding::kFloat16: return write_row<Coding::kFloat16, Dense>(r, row, place);
    case Coding::kInt8: return write_row<Coding::kInt8, Dense>(r, row, place);
    default: return;
  }
}

constexpr int64_t kRowsOfTask = 64;

inline void rows_share(const void* context, int64_t task) {
  const PackedRows& r = *static_cast<const PackedRows*>(context);
  const int64_t last = (task + 1) * kRowsOfTask < r.count ? (task + 1) * kRowsOfTask : r.count;
  for (int64_t i = task * kRowsOfTask; i < last; ++i) {
    const int64_t row = r.rows == nullptr ? r.first + i : r.rows[i];
    (r.matrix->masks == nullptr ? write_row_of<true> : write_row_of<false>)(r, row, i);
  }
}

inline void packed_rows(const PackedRows& r, int threads) {
  parallel((r.count + kRowsOfTask - 1) / kRowsOfTask, threads, rows_share, &r);
}

}  // namespace HMP_ISA
}  // namespace hmp
