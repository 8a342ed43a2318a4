// The vectors that packed weights multiply, each in the form that its coding of weight multiplies fastest.
#pragma once
#include "dispatch/lanes.h"
#include "packed/packed_model.h"

namespace hmp {
namespace HMP_ISA {

// AVX-512 with VBMI2, VNNI and BF16 expands, multiplies and rounds whole vectors of bytes and words.
#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define HMP_WIDE 1
#else
#define HMP_WIDE 0
#endif
// Whole vectors of int8 are multiplied: with VNNI, or by AVX2's products of neighbouring bytes.
#if defined(__AVX2__)
#define HMP_BYTES 1
#else
#define HMP_BYTES 0
#endif

HMP_INLINE int64_t whole_groups(int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }
// Batches that the products are compiled for.
HMP_INLINE int64_t whole_batch(int64_t batch) { return batch <= 2 ? batch : batch <= 4 ? 4 : 8; }

// Vectors in the form that a coding of weight multiplies fastest; (batch, padded) of each, padded with 0. A view of
// memory that the caller has.
struct Vectors {
  int64_t batch = 0, padded = 0;
  float* floats = nullptr;        // as they came
  float* pairs = nullptr;         // bfloat16: of each 32 floats first those of even places, then the others
  int8_t* bytes = nullptr;        // int8: floats rounded to scale * byte in groups of kGroup
  int32_t* corrections = nullptr; // (batch, groups, 16): -offset x the sums of four bytes, as weights come with it added
  float* scales = nullptr;        // (batch, groups)

  static int64_t memory(int64_t batch, int64_t columns) { return 2 * whole_batch(batch) * whole_groups(columns); }

  HMP_INLINE Vectors(int64_t count, int64_t columns, float* at) : batch(whole_batch(count)), padded(whole_groups(columns)) {
    floats = at;
    pairs = at + batch * padded;
    bytes = reinterpret_cast<int8_t*>(pairs);
    corrections = reinterpret_cast<int32_t*>(bytes + batch * padded);
    scales = reinterpret_cast<float*>(corrections + batch * padded / kGroup * 16);
  }

  HMP_INLINE void clear() { std::memset(floats, 0, batch * padded * sizeof(float)); }

  // Once `floats` is filled.
  HMP_INLINE void prepare(const PackedMatrix& m) {
    const Coding coding = m.coding;
    if (m.column_scales != nullptr) scale_columns(m.column_scales, m.columns);
#if HMP_WIDE
    if (coding == Coding::kBFloat16) part_neighbours();
#endif
#if HMP_BYTES
    if (coding == Coding::kInt8) round_to_bytes(HMP_WIDE ? Correction::kWeights : Correction::kNone);
    if (is_code(coding)) round_to_bytes(Correction::kLevels);
#endif
    (void)coding;
  }

 private:
  HMP_INLINE void scale_columns(const float* by, int64_t columns) {
    for (int64_t b = 0; b < batch; ++b) {
      float* x = floats + b * padded;
      for (int64_t i = 0; i < columns; ++i) x[i] *= by[i];
    }
  }
#if HMP_WIDE
  HMP_INLINE void part_neighbours() {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t i = 0; i < batch * padded; i += 32) {
      const __m512 first = _mm512_loadu_ps(floats + i), second = _mm512_loadu_ps(floats + i + 16);
      _mm512_storeu_ps(pairs + i, _mm512_permutex2var_ps(first, even, second));
      _mm512_storeu_ps(pairs + i + 16, _mm512_permutex2var_ps(first, odd, second));
    }
  }
#endif
#if HMP_BYTES
  enum class Correction { kNone, kWeights, kLevels };

  HMP_INLINE void round_to_bytes(Correction correction) {
    for (int64_t group = 0; group < batch * padded / kGroup; ++group) {
      const float* x = floats + group * kGroup;
      Floats largest{};
      for (int i = 0; i < kGroup; i += kLanes) largest = maximum(largest, maximum(load(x + i), -load(x + i)));
      const float most = max_lanes(largest);
      scales[group] = most / 127.0f;
      const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
      int8_t* to = bytes + group * kGroup;
      for (int i = 0; i < kGroup; i += 32) round_bytes(x + i, inverse, to + i);
      if (correction == Correction::kLevels) correct_levels(to, corrections + group * 16);
#if HMP_WIDE
      if (correction != Correction::kWeights) continue;
      const __m512i ones = _mm512_set1_epi8(1);
      __m512i sums = _mm512_setzero_si512();
      for (int i = 0; i < kGroup; i += 64) sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(to + i));
      sums = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
      _mm512_storeu_si512(corrections + group * 16, sums);
#endif
    }
  }
  // -kLevelOffset x the sums of four bytes, in 8 lanes.
  HMP_INLINE void correct_levels(const int8_t* bytes, int32_t* to) {
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < kGroup; i += 32) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_as<__m256i>(bytes + i));
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(-kLevelOffset)));
    }
    store_as(to, sums);
  }
  // 32 floats times a factor, to the nearest whole numbers.
  HMP_INLINE void round_bytes(const float* x, float factor, int8_t* to) {
    __m256i parts[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      parts[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor)));
    }
    const __m256i words[] = {_mm256_packs_epi32(parts[0], parts[1]), _mm256_packs_epi32(parts[2], parts[3])};
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work in halves of their own
    store_as(to, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order));
  }
#endif
};

}  // namespace HMP_ISA
}  // namespace hmp
