// Vectors as wide as the instruction set this file is compiled for, through the compiler's vector extension: the
// same source serves AVX-512, AVX2, SSE2 and NEON. Nothing here may be shared between instruction sets, so all of it
// lives in a namespace of the instruction set's own and no standard template is used.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch/kernel_table.h"

#define HMP_INLINE inline __attribute__((always_inline))

namespace hmp {
namespace HMP_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Floats = float __attribute__((vector_size(kLanes * 4)));
using Ints = int32_t __attribute__((vector_size(kLanes * 4)));
using Words = uint32_t __attribute__((vector_size(kLanes * 4)));
using Halves = uint16_t __attribute__((vector_size(kLanes * 2)));

HMP_INLINE Floats splat(float value) { return value - Floats{}; }
HMP_INLINE Words splat_bits(uint32_t value) { return value + Words{}; }

template <typename Vector, typename Scalar>
HMP_INLINE Vector load_as(const Scalar* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
template <typename Vector, typename Scalar>
HMP_INLINE void store_as(Scalar* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}
HMP_INLINE Floats load(const float* from) { return load_as<Floats>(from); }
HMP_INLINE void store(float* to, Floats vector) { store_as(to, vector); }

HMP_INLINE Floats from_bits(Words bits) { return (Floats)bits; }
HMP_INLINE Words to_bits(Floats vector) { return (Words)vector; }

HMP_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
HMP_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
HMP_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// bfloat16 <-> float: the upper half of the bits, rounded to nearest even, NaN kept.
HMP_INLINE float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
HMP_INLINE uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
HMP_INLINE Floats load_bf16(const uint16_t* from) {
  return from_bits(__builtin_convertvector(load_as<Halves>(from), Words) << 16);
}
HMP_INLINE void store_bf16(uint16_t* to, Floats vector) {
#if defined(__AVX512BF16__)
  store_as(to, _mm512_cvtneps_pbh((__m512)vector));  // rounds in the same way; denormals become 0
#else
  const Words bits = to_bits(vector);
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Words chosen = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded;
  store_as(to, __builtin_convertvector(chosen, Halves));
#endif
}

// 2^x to about one unit in the last place; 0 far below, infinity or a huge number far above.
HMP_INLINE Floats exp2_poly(Floats f) {
  Floats p = splat(1.3264727e-3f);
  p = p * f + 9.671513e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  return p * f + 1.0f;
}
HMP_INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
  return (Floats)_mm512_scalef_ps((__m512)exp2_poly(x - (Floats)whole), whole);
#else
  x = minimum(maximum(x, splat(-126.0f)), splat(127.0f));
  const Floats shifted = x + 12582912.0f;  // 1.5 * 2^23: the whole part lands in the low bits
  const Floats p = exp2_poly(x - (shifted - 12582912.0f));
  return from_bits(to_bits(p) + (to_bits(shifted) << 23));
#endif
}
constexpr float kLog2E = 1.44269504088896341f;

// 1 / x to about one unit in the last place, for magnitudes from 2^-126 to 2^126. Dividing takes AVX-512 16 cycles.
HMP_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats near = (Floats)_mm512_rcp14_ps((__m512)x);
  return near + near * (1.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// The bound keeps NaN, as `minimum` returns its second operand then.
HMP_INLINE Floats sigmoid(Floats x) { return reciprocal(1.0f + exp2(minimum(splat(126.0f), x * -kLog2E))); }

// log(1 + e^x), accurate relative to its value: log1p(e) = 2 atanh(e / (2 + e)), and the series of atanh converges
// fast because its argument is at most 1/3.
HMP_INLINE Floats softplus(Floats x) {
  const Floats magnitude = x < 0.0f ? x : -x;
  const Floats e = exp2(magnitude * kLog2E);
  const Floats s = e / (2.0f + e);
  const Floats q = s * s;
  Floats p = splat(1.0f / 15);
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  const Floats log1p = 2.0f * (s * (q * p) + s);
  return maximum(x, Floats{}) + log1p;
}

template <int... Index>
struct Order {};
template <int Count, int... Index>
struct Counting : Counting<Count - 1, Count - 1, Index...> {};
template <int... Index>
struct Counting<0, Index...> {
  using type = Order<Index...>;
};
using AllLanes = typename Counting<kLanes>::type;

#if defined(__clang__) || __GNUC__ >= 12
#define HMP_SHUFFLE(a, b, index) __builtin_shufflevector(a, b, (index)...)
#else
#define HMP_SHUFFLE(a, b, index) __builtin_shuffle(a, b, Ints{(index)...})
#endif

// One step of a transposition: swaps the halves of 2 x 2 squares of `Step` lanes between two rows.
template <int Step, int... I>
HMP_INLINE void exchange(Floats& a, Floats& b, Order<I...>) {
  const Floats low = HMP_SHUFFLE(a, b, (I & Step) ? kLanes + (I ^ Step) : I);
  const Floats high = HMP_SHUFFLE(a, b, (I & Step) ? kLanes + I : (I ^ Step));
  a = low;
  b = high;
}
template <int Step>
HMP_INLINE void transpose_steps(Floats* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & Step) == 0) exchange<Step>(rows[i], rows[i + Step], AllLanes{});
  }
  if constexpr (Step > 1) transpose_steps<Step / 2>(rows);
}
// Transposes a square of kLanes vectors in place.
HMP_INLINE void transpose(Floats* rows) { transpose_steps<kLanes / 2>(rows); }

// Sums of neighbours, in patterns every instruction set has: the four-lane steps first, then whole quarters.
template <int... I>
HMP_INLINE Floats add_pairs_1(Floats a, Floats b, Order<I...>) {
  return HMP_SHUFFLE(a, b, (I & ~3) + (I % 4) / 2 + (I & 1 ? kLanes : 0)) +
         HMP_SHUFFLE(a, b, (I & ~3) + (I % 4) / 2 + 2 + (I & 1 ? kLanes : 0));
}
template <int... I>
HMP_INLINE Floats add_pairs_2(Floats a, Floats b, Order<I...>) {
  return HMP_SHUFFLE(a, b, (I & ~3) + (I & 1) + (I & 2 ? kLanes : 0)) +
         HMP_SHUFFLE(a, b, (I & ~3) + (I & 1) + 2 + (I & 2 ? kLanes : 0));
}
template <int... I>
HMP_INLINE Floats add_quarters(Floats a, Floats b, Order<I...>) {
  return HMP_SHUFFLE(a, b, (2 * I - (I & 3)) % (2 * kLanes)) + HMP_SHUFFLE(a, b, (2 * I - (I & 3) + 4) % (2 * kLanes));
}
// Lane i of the result is the sum over the lanes of rows[i]; the order of the additions is fixed.
HMP_INLINE Floats row_sums(Floats* rows) {
  int count = kLanes;
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) rows[i] = add_pairs_1(rows[2 * i], rows[2 * i + 1], AllLanes{});
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / 4; ++i) rows[i] = add_pairs_2(rows[2 * i], rows[2 * i + 1], AllLanes{});
  for (count = kLanes / 4; count > 1; count /= 2) {
#pragma GCC unroll 2
    for (int i = 0; i < count / 2; ++i) rows[i] = add_quarters(rows[2 * i], rows[2 * i + 1], AllLanes{});
  }
  return rows[0];
}
HMP_INLINE float sum_lanes(Floats vector) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += vector[i];
  return sum;
}

HMP_INLINE float max_lanes(Floats vector) {
  float most = vector[0];
  for (int i = 1; i < kLanes; ++i) most = vector[i] > most ? vector[i] : most;
  return most;
}

// Denormal numbers cost a hundred cycles each and mean nothing in a decaying state: flush them while a kernel runs.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_ = 0;
#else
  FlushDenormals() {}
#endif
};

}  // namespace HMP_ISA
}  // namespace hmp
