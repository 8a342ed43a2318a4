// Codes of a few bits without masks in AVX-512: a word of 64 columns in one vector.
#pragma once
#include "packed/codes.h"
#include "packed/vectors.h"

namespace hmp {
namespace HMP_ISA {

#if HMP_WIDE

// The planes of a word, each column's bits moved to `Low`; rotation brings others beside them, which nobody reads.
HMP_INLINE __m512i wide_plane_of_four(const uint8_t* at) {
  const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
  return _mm512_srlv_epi32(_mm512_broadcast_i64x4(load_as<__m256i>(at)), places);
}
template <int Low>
HMP_INLINE __m512i wide_plane_of_two(const uint8_t* at) {
  constexpr int kFirst = (32 - Low) % 32, kSecond = (34 - Low) % 32, kThird = (36 - Low) % 32, kLast = (38 - Low) % 32;
  const __m512i places = _mm512_setr_epi32(kFirst, kFirst, kFirst, kFirst, kSecond, kSecond, kSecond, kSecond, kThird,
                                           kThird, kThird, kThird, kLast, kLast, kLast, kLast);
  return _mm512_rorv_epi32(_mm512_broadcast_i32x4(load_as<__m128i>(at)), places);
}
template <int Low>
HMP_INLINE __m512i wide_plane_of_one(const uint8_t* at) {
  const __m512i places = _mm512_setr_epi64((64 - Low) % 64, (65 - Low) % 64, (66 - Low) % 64, (67 - Low) % 64,
                                           (68 - Low) % 64, (69 - Low) % 64, (70 - Low) % 64, (71 - Low) % 64);
  return _mm512_rorv_epi64(_mm512_set1_epi64(load_as<int64_t>(at)), places);
}
// The lowest `Bits` of each byte from one, the others from another.
template <int Bits>
HMP_INLINE __m512i below_and_above(__m512i below, __m512i above) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8((1 << Bits) - 1), below, above, 0xca);
}

// 64 bytes whose lowest bits are the codes.
template <int kBits>
HMP_INLINE __m512i wide_codes_of_word(const uint8_t* at) {
  if constexpr (kBits == 1) return wide_plane_of_one<0>(at);
  if constexpr (kBits == 2) return wide_plane_of_two<0>(at);
  if constexpr (kBits == 3) return below_and_above<2>(wide_plane_of_two<0>(at), wide_plane_of_one<2>(at + 16));
  if constexpr (kBits == 4) return wide_plane_of_four(at);
  if constexpr (kBits == 5) return below_and_above<4>(wide_plane_of_four(at), wide_plane_of_one<4>(at + 32));
  return below_and_above<4>(wide_plane_of_four(at), wide_plane_of_two<4>(at + 32));
}

struct CodesOfBytes {
  uint8_t bytes[7][64];
  constexpr CodesOfBytes() : bytes() {
    for (int bits = 0; bits < 7; ++bits) {
      for (int byte = 0; byte < 64; ++byte) bytes[bits][byte] = static_cast<uint8_t>(byte & ((1 << bits) - 1));
    }
  }
};
alignas(64) constexpr CodesOfBytes kCodesOfBytes;

// The level of each byte whose lowest bits are a code, moved up by kLevelOffset; a permutation reads six bits of it.
template <int kBits>
HMP_INLINE __m512i wide_level_table(const PackedMatrix& m) {
  const __m512i codes = load_as<__m512i>(kCodesOfBytes.bytes[kBits]);
  if constexpr (levels_of(kBits) == 0) {
    return _mm512_add_epi8(codes, _mm512_set1_epi8(kLevelOffset - (1 << kBits) / 2));
  }
  const __m256i table = level_table<kBits, true>(m);
  return _mm512_permutexvar_epi8(codes, _mm512_inserti64x4(_mm512_castsi256_si512(table), table, 1));
}

#endif

}  // namespace HMP_ISA
}  // namespace hmp
