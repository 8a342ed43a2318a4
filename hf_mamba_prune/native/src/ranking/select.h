// Histograms and masks over the magnitudes of a flat tensor, at the speed of memory. The key of a value is the bit
// pattern of float32(|value|): keys are in the order of magnitudes.
#pragma once
#include "dispatch/lanes.h"
#include "threads/pool.h"

namespace hmp {
namespace HMP_ISA {

constexpr int64_t kChunk = int64_t{1} << 19;  // values a task
constexpr uint32_t kMagnitude = 0x7fffffffu;

using Bytes = uint8_t __attribute__((vector_size(kLanes)));

// One bit a lane of a comparison's result.
HMP_INLINE uint32_t lane_bits(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

// One bit a lane where a < b, and where a == b. With AVX-512 a comparison leaves just that.
HMP_INLINE uint32_t bits_less(Words a, Words b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epu32_mask((__m512i)a, (__m512i)b);
#else
  return lane_bits(a < b);
#endif
}
HMP_INLINE uint32_t bits_equal(Words a, Words b) {
#if defined(__AVX512F__)
  return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
#else
  return lane_bits(a == b);
#endif
}

// fp16 keys: the exponent is moved by a multiplication, which is exact and gets denormals right.
HMP_INLINE Words half_keys(Words half) {
  const Words magnitude = half & 0x7fffu;
  const Words scaled = to_bits(from_bits(magnitude << 13) * 0x1p112f);
  return magnitude >= 0x7c00u ? (magnitude << 13 | 0x7f800000u) : scaled;
}

template <Coding Type>
HMP_INLINE Words load_keys(const char* data, int64_t at) {
  if (Type == Coding::kFloat32) return load_as<Words>(data + 4 * at) & kMagnitude;
  const Words halves = __builtin_convertvector(load_as<Halves>(data + 2 * at), Words);
  return Type == Coding::kBFloat16 ? (halves << 16) & kMagnitude : half_keys(halves);
}

// Calls visit(keys, position, lanes) for each vector of values in [first, last); the last one may be partly filled.
template <Coding Type, typename Visit>
HMP_INLINE void visit_keys(const char* data, int64_t first, int64_t last, Visit visit) {
  constexpr int kBytes = Type == Coding::kFloat32 ? 4 : 2;
  int64_t at = first;
#pragma GCC unroll 4
  for (; at + kLanes <= last; at += kLanes) {
    __builtin_prefetch(data + kBytes * at + 1024);
    visit(load_keys<Type>(data, at), at, kLanes);
  }
  if (at < last) {
    char rest[kLanes * 4] = {};
    std::memcpy(rest, data + kBytes * at, kBytes * (last - at));
    visit(load_keys<Type>(rest, 0), at, static_cast<int>(last - at));
  }
}

template <Coding Value>
struct Kind {
  static constexpr Coding value = Value;
};
template <typename Run>
auto with_kind(Coding coding, Run run) {
  if (coding == Coding::kFloat32) return run(Kind<Coding::kFloat32>{});
  if (coding == Coding::kBFloat16) return run(Kind<Coding::kBFloat16>{});
  return run(Kind<Coding::kFloat16>{});
}

struct Chunk {
  int64_t first, last;
  Chunk(const Values& values, int64_t task)
      : first(task * kChunk), last(first + kChunk < values.count ? first + kChunk : values.count) {}
};
HMP_INLINE int64_t chunks(const Values& values) { return (values.count + kChunk - 1) / kChunk; }

struct Histogram {
  const Values& values;
  uint32_t low;
  int shift;
  int64_t bins, stripes;
  int64_t* counts;  // below, (bins), above

  template <Coding Type>
  void run(int64_t stripe) const {
    // Two tables in turn: neighbours often fall in one bin, and an addition must not wait for the one before.
    uint32_t* table = reinterpret_cast<uint32_t*>(scratch(2 * bins));
    std::memset(table, 0, 2 * bins * sizeof(uint32_t));
    int64_t below = 0, above = 0;
    for (int64_t task = stripe; task < chunks(values); task += stripes) {
      const Chunk chunk(values, task);
      visit_keys<Type>(values.data, chunk.first, chunk.last, [&](Words keys, int64_t, int lanes) {
        const uint32_t real = (1u << lanes) - 1;
        const Words bin = (keys - low) >> shift;
        const uint32_t under = bits_less(keys, Words{} + low) & real;
        uint32_t inside = bits_less(bin, Words{} + static_cast<uint32_t>(bins)) & real & ~under;
        below += __builtin_popcount(under);
        above += lanes - __builtin_popcount(under) - __builtin_popcount(inside);
        if (inside == 0) return;
        uint32_t each[kLanes];
        store_as(each, bin);
        if (inside == (1u << kLanes) - 1) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) ++table[(i & 1) * bins + each[i]];
        } else {
          for (; inside != 0; inside &= inside - 1) ++table[each[__builtin_ctz(inside)]];
        }
      });
    }
    __atomic_fetch_add(&counts[0], below, __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts[bins + 1], above, __ATOMIC_RELAXED);
    for (int64_t i = 0; i < bins; ++i) {
      const int64_t sum = static_cast<int64_t>(table[i]) + table[bins + i];
      if (sum != 0) __atomic_fetch_add(&counts[i + 1], sum, __ATOMIC_RELAXED);
    }
  }
};

inline void range_histogram(const Values& values, uint32_t low, int shift, int64_t bins, int64_t* counts,
                            int threads) {
  // A task reads many chunks into one table: clearing and adding a table per chunk would cost more than the chunk.
  const int64_t wanted = threads > 1 ? 2 * static_cast<int64_t>(threads) : 1, there = chunks(values);
  const Histogram histogram{values, low, shift, bins, wanted < there ? wanted : there, counts};
  parallel(histogram.stripes, threads, [](const void* context, int64_t stripe) {
    const Histogram& h = *static_cast<const Histogram*>(context);
    with_kind(h.values.coding, [&](auto kind) { h.run<decltype(kind)::value>(stripe); });
  }, &histogram);
}

struct Mask {
  const Values& values;
  uint32_t threshold;
  uint8_t* keep;
  int64_t* ties;

  template <Coding Type>
  void run(int64_t task) const {
    const Chunk chunk(values, task);
    int64_t equal = 0;
    visit_keys<Type>(values.data, chunk.first, chunk.last, [&](Words keys, int64_t at, int lanes) {
      // Both are below 2^31, so the sign of the difference is the answer.
      const Bytes flags = __builtin_convertvector((threshold - keys) >> 31, Bytes);
      if (lanes == kLanes) {
        store_as(keep + at, flags);
      } else {
        for (int i = 0; i < lanes; ++i) keep[at + i] = flags[i];
      }
      equal += __builtin_popcount(bits_equal(keys, Words{} + threshold) & ((1u << lanes) - 1));
    });
    __atomic_fetch_add(ties, equal, __ATOMIC_RELAXED);
  }
};

// keep[i] = key > threshold; returns how many keys equal it.
inline int64_t keep_above(const Values& values, uint32_t threshold, uint8_t* keep, int threads) {
  int64_t ties = 0;
  const Mask mask{values, threshold, keep, &ties};
  parallel(chunks(values), threads, [](const void* context, int64_t task) {
    const Mask& m = *static_cast<const Mask*>(context);
    with_kind(m.values.coding, [&](auto kind) { m.run<decltype(kind)::value>(task); });
  }, &mask);
  return ties;
}

struct Between {
  const Values& values;
  uint32_t low, high;
  int64_t room;
  int64_t* positions;
  int32_t* found_keys;
  int64_t* below;
  int64_t* found;

  template <Coding Type>
  void run(int64_t task) const {
    constexpr int kBuffer = 1024;
    int64_t at_hits[kBuffer];
    uint32_t key_hits[kBuffer];
    int hits = 0;
    int64_t under = 0;
    const auto flush = [&] {
      const int64_t start = __atomic_fetch_add(found, hits, __ATOMIC_RELAXED);
      if (start + hits <= room) {
        std::memcpy(positions + start, at_hits, hits * sizeof(int64_t));
        std::memcpy(found_keys + start, key_hits, hits * sizeof(int32_t));
      }
      hits = 0;
    };
    const Chunk chunk(values, task);
    visit_keys<Type>(values.data, chunk.first, chunk.last, [&](Words keys, int64_t at, int lanes) {
      const uint32_t real = (1u << lanes) - 1;
      under += __builtin_popcount(bits_less(keys, Words{} + low) & real);
      uint32_t inside = bits_less(keys - low, Words{} + (high - low + 1)) & real;
      if (inside == 0) return;
      if (hits > kBuffer - kLanes) flush();
      uint32_t each[kLanes];
      store_as(each, keys);
      for (; inside != 0; inside &= inside - 1, ++hits) {
        const int lane = __builtin_ctz(inside);
        at_hits[hits] = at + lane;
        key_hits[hits] = each[lane];
      }
    });
    flush();
    __atomic_fetch_add(below, under, __ATOMIC_RELAXED);
  }
};

// Positions and keys of the values whose key is in [low, high], in no order. Nothing is written past `room`; when more
// are found than that, what is written is not complete.
inline BetweenCounts between(const Values& values, uint32_t low, uint32_t high, int64_t* positions, int32_t* keys,
                             int64_t room, int threads) {
  BetweenCounts counts{0, 0};
  const Between run{values, low, high, room, positions, keys, &counts.below, &counts.found};
  parallel(chunks(values), threads, [](const void* context, int64_t task) {
    const Between& b = *static_cast<const Between*>(context);
    with_kind(b.values.coding, [&](auto kind) { b.run<decltype(kind)::value>(task); });
  }, &run);
  return counts;
}

}  // namespace HMP_ISA
}  // namespace hmp
