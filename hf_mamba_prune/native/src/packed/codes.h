// Weights of a few bits, 64 columns at a time: codes from their planes of bits, and the levels that they stand for.
//
// Without masks each row has codes of its own width, and is a run of words of 64 columns; narrow matrices have narrower
// ones. A word is a plane of 4 bits (byte l: columns l and 32 + l), of 2 (columns l, 16 + l, 32 + l, 48 + l) and of 1
// (columns l, 8 + l, ... 56 + l), the widest first, as far as the bits of the code need them; the first holds the
// lowest bits. With masks there is a plane of single bits for each bit of a code, a stream over the kept weights of the
// whole matrix: the mask of a word has the order of a plane of 1 of 64 columns, and the streams follow it.
#pragma once
#include <type_traits>

#include "packed/expand.h"

namespace hmp {
namespace HMP_ISA {

HMP_INLINE const uint8_t* first_word(const PackedMatrix& m, int64_t row) {
  return reinterpret_cast<const uint8_t*>(m.values) + m.row_starts[row];
}

// The code of one column of an unmasked word of `width` columns.
inline int code_at(const uint8_t* word, int bits, int64_t column, int64_t width) {
  int code = 0, low = 0;
  for (int plane = 4; plane > 0; plane /= 2) {
    if ((bits & plane) == 0) continue;
    const int64_t bytes = width * plane / 8;
    code |= (word[column % bytes] >> column / bytes * plane & ((1 << plane) - 1)) << low;
    low += plane;
    word += bytes;
  }
  return code;
}

HMP_INLINE uint8_t level_byte(const PackedMatrix& m, int bits, int code) {
  return static_cast<uint8_t>(levels_of(bits) == 0 ? code + kLevelOffset - (1 << bits) / 2
                                                   : m.levels[first_level(bits) + code] + kLevelOffset);
}

// The codes of a narrow word, eight bytes of a plane at a time; `to` has kNarrowBytes.
constexpr int64_t kNarrowBytes = 128;
inline void narrow_codes(const uint8_t* word, int bits, int64_t width, uint8_t* to) {
  std::memset(to, 0, kNarrowBytes);
  int low = 0;
  for (int plane = 4; plane > 0; plane /= 2) {
    if ((bits & plane) == 0) continue;
    const int64_t bytes = width * plane / 8;
    const uint64_t mask = 0x0101010101010101u * ((1u << plane) - 1);
    for (int64_t at = 0; at < bytes; at += 8) {
      uint64_t packed, codes;
      std::memcpy(&packed, word + at, 8);  // what is behind the plane is readable, and masked away
      const uint64_t own = bytes - at >= 8 ? mask : mask & ((uint64_t{1} << 8 * (bytes - at)) - 1);
      for (int field = 0; field < 8 / plane; ++field) {
        uint8_t* place = to + field * bytes + at;
        std::memcpy(&codes, place, 8);
        codes |= (packed >> plane * field & own) << low;
        std::memcpy(place, &codes, 8);
      }
    }
    low += plane;
    word += bytes;
  }
}

#if defined(__AVX2__)

// A byte in all places, kept where it is: GCC would make it anew for each word, through the one port that moves integers
// to vectors.
template <int kByte>
HMP_INLINE __m256i all_bytes() {
  __m256i bytes = _mm256_set1_epi8(static_cast<char>(kByte));
  __asm__("" : "+x"(bytes));
  return bytes;
}

HMP_INLINE __m256i all_words_one() {
  __m256i ones = _mm256_set1_epi16(1);
  __asm__("" : "+x"(ones));
  return ones;
}

// 64 unsigned bytes: columns 0 to 31 and 32 to 63.
struct LevelBytes {
  __m256i low, high;
};

HMP_INLINE LevelBytes plane_of_four(const uint8_t* at) {
  const __m256i both = load_as<__m256i>(at), mask = all_bytes<15>();
  return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}
// A plane's bits in bytes, moved up by `Low`; what a shift brings over from neighbours is masked away.
template <int Low>
HMP_INLINE LevelBytes plane_of_two(const uint8_t* at) {
  static_assert(Low == 0 || Low == 4);
  const __m256i all = _mm256_broadcastsi128_si256(load_as<__m128i>(at)), mask = all_bytes<3 << Low>();
  if constexpr (Low == 4) {
    return {_mm256_and_si256(_mm256_sllv_epi32(all, _mm256_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2)), mask),
            _mm256_and_si256(_mm256_srlv_epi32(all, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), mask)};
  }
  return {_mm256_and_si256(_mm256_srlv_epi32(all, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), mask),
          _mm256_and_si256(_mm256_srlv_epi32(all, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), mask)};
}
template <int Low>
HMP_INLINE LevelBytes plane_of_one(uint64_t bits, __m256i mask) {
  static_assert(Low <= 4 || Low == 7);
  const __m256i all = _mm256_set1_epi64x(static_cast<int64_t>(bits));
  if constexpr (Low == 7) {
    return {_mm256_and_si256(_mm256_sllv_epi64(all, _mm256_setr_epi64x(7, 6, 5, 4)), mask),
            _mm256_and_si256(_mm256_sllv_epi64(all, _mm256_setr_epi64x(3, 2, 1, 0)), mask)};
  }
  return {_mm256_and_si256(_mm256_srlv_epi64(_mm256_slli_epi64(all, Low), _mm256_setr_epi64x(0, 1, 2, 3)), mask),
          _mm256_and_si256(_mm256_srlv_epi64(all, _mm256_setr_epi64x(4 - Low, 5 - Low, 6 - Low, 7 - Low)), mask)};
}
template <int Low>
HMP_INLINE LevelBytes plane_of_one(const uint8_t* at) {
  return plane_of_one<Low>(static_cast<uint64_t>(load_as<int64_t>(at)), all_bytes<1 << Low>());
}
HMP_INLINE LevelBytes operator|(LevelBytes a, LevelBytes b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

template <int kBits>
HMP_INLINE LevelBytes codes_of_word(const uint8_t* at) {
  if constexpr (kBits == 1) return plane_of_one<0>(at);
  if constexpr (kBits == 2) return plane_of_two<0>(at);
  if constexpr (kBits == 3) return plane_of_two<0>(at) | plane_of_one<2>(at + 16);
  if constexpr (kBits == 4) return plane_of_four(at);
  if constexpr (kBits == 5) return plane_of_four(at) | plane_of_one<4>(at + 32);
  return plane_of_four(at) | plane_of_two<4>(at + 32);
}

// The levels of a matrix as a shuffle reads them, sixteen in each half; what lies behind those of the width is never
// asked for.
template <int kBits, bool Dense>
HMP_INLINE __m256i level_table(const PackedMatrix& m) {
  if constexpr (levels_of(kBits) == 0) return _mm256_setzero_si256();
  static_assert(first_level(5) + 32 == kLevels, "as many levels as a table holds can be read from the first one of each width");
  if constexpr (kBits == 5) {
    return _mm256_add_epi8(load_as<__m256i>(m.levels + first_level(5)), _mm256_set1_epi8(kLevelOffset));
  }
  const __m128i offset = _mm_set1_epi8(kLevelOffset);
  const __m128i levels = _mm_add_epi8(load_as<__m128i>(m.levels + first_level(kBits)), offset);
  // Under masks the offset is put on after the shuffle has made 0 of what is masked.
  return _mm256_broadcastsi128_si256(Dense ? levels : _mm_xor_si128(levels, offset));
}

// Levels of 32 codes of unmasked words.
template <int kBits>
HMP_INLINE __m256i levels_of_codes(__m256i table, __m256i codes) {
  if constexpr (levels_of(kBits) == 0) return codes;
  if constexpr (kBits < 5) return _mm256_shuffle_epi8(table, codes);
  const __m256i lower = _mm256_shuffle_epi8(_mm256_permute2x128_si256(table, table, 0x00), codes);
  const __m256i upper = _mm256_shuffle_epi8(_mm256_permute2x128_si256(table, table, 0x11), codes);
  return _mm256_blendv_epi8(lower, upper, _mm256_slli_epi16(codes, 3));  // a byte's highest bit decides
}

// `count` bits of a stream from bit `next` on, at most 64; what stands above them is of no meaning.
HMP_INLINE uint64_t bits_of_stream(const char* stream, uint64_t next, int count) {
  const char* at = stream + (next >> 3);
  const int first = static_cast<int>(next & 7);
  uint64_t bits = static_cast<uint64_t>(load_as<int64_t>(at)) >> first;
  if (__builtin_expect(count > 57, 0)) bits |= uint64_t{static_cast<uint8_t>(at[8])} << (63 - first) << 1;
  return bits;
}

// The words of a row under a mask, one after the other.
template <int kBits>
class MaskedWords {
 public:
  HMP_INLINE MaskedWords(const PackedMatrix& m, int64_t row, __m256i table)
      : masks_(m.masks + row * m.words()), stream_(m.values), plane_bytes_(m.plane_bytes), next_(m.starts[row]),
        table_(table), highest_(all_bytes<0x80>()), offset_(all_bytes<kLevelOffset>()) {
    places_[0] = all_bytes<1>(), places_[1] = all_bytes<2>(), places_[2] = all_bytes<4>(), places_[3] = all_bytes<8>();
  }

  HMP_INLINE LevelBytes next() {
    const uint64_t mask = *masks_++;
    const int count = __builtin_popcountll(mask);
    // A shuffle gives 0 where the highest bit is set.
    const LevelBytes codes = plane_of_one<7>(~mask, highest_) | codes_from<0>(mask, count);
    next_ += static_cast<uint32_t>(count);
    return {_mm256_xor_si256(_mm256_shuffle_epi8(table_, codes.low), offset_),
            _mm256_xor_si256(_mm256_shuffle_epi8(table_, codes.high), offset_)};
  }

 private:
  template <int kPlane>
  HMP_INLINE LevelBytes codes_from(uint64_t mask, int count) const {
    const uint64_t bits = _pdep_u64(bits_of_stream(stream_ + kPlane * plane_bytes_, next_, count), mask);
    const LevelBytes own = plane_of_one<kPlane>(bits, places_[kPlane]);
    if constexpr (kPlane + 1 < kBits) return own | codes_from<kPlane + 1>(mask, count);
    return own;
  }

  const uint64_t* masks_;
  const char* stream_;
  int64_t plane_bytes_;
  uint64_t next_;
  __m256i table_, highest_, offset_, places_[4];
};

// The next unmasked word.
template <int kBits, bool Narrow>
HMP_INLINE LevelBytes level_bytes(const PackedMatrix& m, __m256i table, const uint8_t*& word) {
  LevelBytes codes;
  if constexpr (Narrow) {
    uint8_t bytes[kNarrowBytes];
    narrow_codes(word, kBits, m.word_columns(), bytes);
    codes = {load_as<__m256i>(bytes), load_as<__m256i>(bytes + 32)};
  } else {
    codes = codes_of_word<kBits>(word);
  }
  word += (Narrow ? m.word_columns() : 64) / 8 * kBits;
  return {levels_of_codes<kBits>(table, codes.low), levels_of_codes<kBits>(table, codes.high)};
}

// Those of a row without one.
template <int kBits>
class WholeWords {
 public:
  HMP_INLINE WholeWords(const PackedMatrix& m, int64_t row, __m256i table)
      : m_(m), word_(first_word(m, row)), table_(table) {}

  HMP_INLINE LevelBytes next() {
    return m_.columns <= kNarrow ? level_bytes<kBits, true>(m_, table_, word_)
                                 : level_bytes<kBits, false>(m_, table_, word_);
  }

 private:
  const PackedMatrix& m_;
  const uint8_t* word_;
  __m256i table_;
};

#else

// Where a walk over the words of a row has come to.
struct CodePlace {
  const uint8_t* word = nullptr;    // without masks
  const uint64_t* masks = nullptr;  // with them
  uint64_t next = 0;                // and the number of the next kept weight

  HMP_INLINE CodePlace(const PackedMatrix& m, int64_t row) {
    if (m.masks == nullptr) {
      word = first_word(m, row);
    } else {
      masks = m.masks + row * m.words();
      next = m.starts[row];
    }
  }
};

// 64 levels, moved up by kLevelOffset. The place moves on.
inline void next_levels(const PackedMatrix& m, int bits, CodePlace& place, uint8_t* to) {
  std::memset(to, kLevelOffset, 64);
  if (m.masks == nullptr) {
    const int64_t width = m.word_columns();
    for (int64_t column = 0; column < width; ++column) {
      to[column] = level_byte(m, bits, code_at(place.word, bits, column, width));
    }
    place.word += width / 8 * bits;
    return;
  }
  const uint64_t mask = *place.masks++;
  for (int bit = 0; bit < 64; ++bit) {
    if ((mask >> bit & 1) == 0) continue;
    int code = 0;
    for (int plane = 0; plane < bits; ++plane) {
      const char* stream = m.values + plane * m.plane_bytes;
      code |= (static_cast<uint8_t>(stream[place.next >> 3]) >> (place.next & 7) & 1) << plane;
    }
    to[column_of_bit(bit)] = level_byte(m, bits, code);
    ++place.next;
  }
}

#endif

// Walks over the words of a row: 64 levels at a time, moved up by kLevelOffset.
template <int kBits, bool Dense>
struct LevelWalker {
#if defined(__AVX2__)
  std::conditional_t<Dense, WholeWords<kBits>, MaskedWords<kBits>> words;

  HMP_INLINE LevelWalker(const PackedMatrix& m, int64_t row) : words(m, row, level_table<kBits, Dense>(m)) {}
  HMP_INLINE void next(uint8_t* to) {
    const LevelBytes found = words.next();
    store_as(to, found.low);
    store_as(to + 32, found.high);
  }
#else
  const PackedMatrix& m;
  CodePlace place;

  HMP_INLINE LevelWalker(const PackedMatrix& matrix, int64_t row) : m(matrix), place(matrix, row) {}
  HMP_INLINE void next(uint8_t* to) { next_levels(m, kBits, place, to); }
#endif
};

// Calls `run` with the bits of codes, and whether there are masks, as constants; not at all with 0 bits.
template <typename Run>
HMP_INLINE void with_bits(int bits, bool dense, Run run) {
  switch (bits) {
    case 1: return dense ? run.template of<1, true>() : run.template of<1, false>();
    case 2: return dense ? run.template of<2, true>() : run.template of<2, false>();
    case 3: return dense ? run.template of<3, true>() : run.template of<3, false>();
    case 4: return dense ? run.template of<4, true>() : run.template of<4, false>();
    case 5: return run.template of<5, true>();  // there are none under masks
    case 6: return run.template of<6, true>();
    default: return;
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
