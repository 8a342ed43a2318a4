// kLanes weights of a packed row at a time, as floats: from their kept values and their bits of the mask.
#pragma once
#include "dispatch/lanes.h"
#include "packed/packed_model.h"

namespace hmp {
namespace HMP_ISA {

HMP_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  uint32_t bits;
  float value;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {
    const float tiny = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  std::memcpy(&value, &bits, 4);
  return value;
}

template <Coding coding>
HMP_INLINE float read_value(const char* from) {
  if constexpr (coding == Coding::kFloat32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  } else if constexpr (coding == Coding::kInt8) {
    return static_cast<float>(static_cast<int8_t>(*from));
  } else {
    uint16_t half;
    std::memcpy(&half, from, 2);
    return coding == Coding::kBFloat16 ? bf16_to_float(half) : half_to_float(half);
  }
}

// Where the kept values of a row end is known only once its masks are read, so a core asks for little of what comes
// next on its own: reading ahead doubles the speed of weights that come from memory, and helps dense rows too.
constexpr int64_t kAhead = 8192;
HMP_INLINE void fetch_ahead(const char* values) { __builtin_prefetch(values + kAhead); }

#if defined(__AVX512F__)

template <Coding coding>
HMP_INLINE __m512i raw_lanes(const char* from) {
  if constexpr (coding == Coding::kFloat32) return _mm512_loadu_si512(from);
  if constexpr (coding == Coding::kInt8) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
template <Coding coding>
HMP_INLINE Floats to_floats(__m512i raw) {
  if constexpr (coding == Coding::kFloat32) return (Floats)raw;
  if constexpr (coding == Coding::kInt8) return (Floats)_mm512_cvtepi32_ps(raw);
  if constexpr (coding == Coding::kBFloat16) return (Floats)_mm512_slli_epi32(raw, 16);
  return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(raw));
}
template <Coding coding>
HMP_INLINE Floats all_lanes(const char* values) {
  return to_floats<coding>(raw_lanes<coding>(values));
}
template <Coding coding>
HMP_INLINE Floats masked_lanes(const char* values, uint32_t bits) {
  return to_floats<coding>(_mm512_maskz_expand_epi32(static_cast<__mmask16>(bits), raw_lanes<coding>(values)));
}

#elif defined(__AVX2__)

// For each mask of 8 bits: which value goes to each lane, 0x80 where none does.
struct Places {
  uint8_t bytes[256][8];
  constexpr Places() : bytes() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 8; ++lane) bytes[mask][lane] = mask >> lane & 1 ? next++ : 0x80;
    }
  }
};
alignas(64) constexpr Places kPlaces;

// The same for bfloat16 values, as bytes of each half of a vector of floats: a value is the upper half of its float.
struct FloatPlaces {
  uint8_t bytes[256][32];
  constexpr FloatPlaces() : bytes() {
    const Places places;
    for (int mask = 0; mask < 256; ++mask) {
      for (int byte = 0; byte < 32; ++byte) {
        const uint8_t place = places.bytes[mask][byte / 4];
        bytes[mask][byte] = byte % 4 < 2 || place == 0x80 ? 0x80 : static_cast<uint8_t>(2 * place + byte % 2);
      }
    }
  }
};
alignas(64) constexpr FloatPlaces kFloatPlaces;

HMP_INLINE __m128i places_of(uint32_t bits) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.bytes[bits]));
}
// The same for values of two bytes.
HMP_INLINE __m128i word_places_of(uint32_t bits) {
  const __m128i places = places_of(bits);
  const __m128i twice = _mm_add_epi8(places, places);  // 0x80 doubled is 0: marked again below
  const __m128i low = _mm_or_si128(twice, _mm_and_si128(places, _mm_set1_epi8(static_cast<char>(0x80))));
  const __m128i high = _mm_or_si128(_mm_add_epi8(twice, _mm_set1_epi8(1)),
                                    _mm_and_si128(places, _mm_set1_epi8(static_cast<char>(0x80))));
  return _mm_unpacklo_epi8(low, high);
}
template <Coding coding>
HMP_INLINE Floats from_words(__m128i words) {
  if constexpr (coding == Coding::kFloat16) return (Floats)_mm256_cvtph_ps(words);
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16);
}
template <Coding coding>
HMP_INLINE Floats all_lanes(const char* values) {
  if constexpr (coding == Coding::kFloat32) return load_as<Floats>(values);
  if constexpr (coding == Coding::kInt8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  return from_words<coding>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
template <Coding coding>
HMP_INLINE Floats masked_lanes(const char* values, uint32_t bits) {
  if constexpr (coding == Coding::kFloat32) {
    const __m256i places = _mm256_cvtepi8_epi32(places_of(bits));
    const __m256i found = _mm256_permutevar8x32_epi32(load_as<__m256i>(values), places);
    return (Floats)_mm256_andnot_si256(_mm256_srai_epi32(places, 31), found);
  }
  if constexpr (coding == Coding::kInt8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_shuffle_epi8(bytes, places_of(bits))));
  }
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  if constexpr (coding == Coding::kBFloat16) {
    return (Floats)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(words), load_as<__m256i>(kFloatPlaces.bytes[bits]));
  }
  return from_words<coding>(_mm_shuffle_epi8(words, word_places_of(bits)));
}

#else

template <Coding coding>
HMP_INLINE Floats all_lanes(const char* values) {
  Floats found{};
  for (int i = 0; i < kLanes; ++i) found[i] = read_value<coding>(values + i * value_bytes(coding));
  return found;
}
template <Coding coding>
HMP_INLINE Floats masked_lanes(const char* values, uint32_t bits) {
  Floats found{};
  for (int i = 0; i < kLanes; ++i) {
    if ((bits >> i & 1) == 0) continue;
    found[i] = read_value<coding>(values);
    values += value_bytes(coding);
  }
  return found;
}

#endif

// Walks over the weights of consecutive rows.
template <Coding coding, bool Dense>
struct Walker {
  const char* values;
  const uint64_t* masks;
  int64_t columns;

  HMP_INLINE Walker(const PackedMatrix& m, int64_t row) : columns(m.columns) {
    if constexpr (Dense) {
      values = m.values + row * m.columns * value_bytes(coding);
      masks = nullptr;
    } else {
      values = m.values + int64_t{m.starts[row]} * value_bytes(coding);
      masks = m.masks + row * m.words();
    }
  }

  // The weights from `column` on, which must be the next ones; 0 behind the last column, up to a multiple of 64.
  HMP_INLINE Floats next(int64_t column) {
    if constexpr (Dense) {
      const int64_t left = columns - column;
      if (left >= kLanes) {
        const Floats found = all_lanes<coding>(values);
        values += kLanes * value_bytes(coding);
        return found;
      }
      Floats found{};
      for (int i = 0; i < left; ++i) found[i] = read_value<coding>(values + i * value_bytes(coding));
      if (left > 0) values += left * value_bytes(coding);
      return found;
    } else {
      const uint32_t bits = mask_bits(column);
      const Floats found = masked_lanes<coding>(values, bits);
      values += static_cast<uint32_t>(__builtin_popcount(bits) * value_bytes(coding));
      return found;
    }
  }
  // The mask of kLanes columns; the bytes of the masks are in the order of the columns.
  HMP_INLINE uint32_t mask_bits(int64_t column) const {
    const char* at = reinterpret_cast<const char*>(masks) + (column >> 3);
    if constexpr (kLanes == 16) {
      uint16_t bits;
      std::memcpy(&bits, at, 2);
      return bits;
    }
    const uint32_t byte = *reinterpret_cast<const uint8_t*>(at);
    return kLanes == 8 ? byte : byte >> (column & 4) & 15;
  }
  HMP_INLINE void end_row() {
    if constexpr (!Dense) masks += (columns + 63) / 64;
  }
};

}  // namespace HMP_ISA
}  // namespace hmp
