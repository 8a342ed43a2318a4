// Weights of a few bits times many vectors that were rounded to int8: a band's levels are read once for all of them.
#pragma once
#include <memory>

#include "packed/multiply.h"

namespace hmp {
namespace HMP_ISA {

#if HMP_BYTES

constexpr int kTileTokens = 4, kTileRows = 2;  // of the sums that registers hold at once
constexpr int64_t kTokensOfTask = 128;         // whose bytes stay in the second cache while bands pass by
constexpr int64_t kBandsOfManyTask = 4;

// Vectors as bytes, in groups of kGroup with a scale each; `count` is padded to whole tiles, with zeros.
struct ManyVectors {
  int64_t count, padded, groups;
  std::unique_ptr<int8_t[]> bytes;         // (count, padded)
  std::unique_ptr<int32_t[]> corrections;  // (count, groups, 8), as in `Vectors`
  std::unique_ptr<float[]> scales;         // (count, groups)

  ManyVectors(int64_t batch, int64_t columns)
      : count((batch + kTileTokens - 1) / kTileTokens * kTileTokens),
        padded(whole_groups(columns)),
        groups(padded / kGroup),
        bytes(new int8_t[count * padded]),
        corrections(new int32_t[count * groups * 8]),
        scales(new float[count * groups]) {}
};

struct ManyProduct {
  const PackedProduct& product;
  ManyVectors& vectors;

  int64_t token_tasks() const { return (vectors.count + kTokensOfTask - 1) / kTokensOfTask; }
};

// A task: kMaxBatch vectors, rounded.
inline void round_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const ManyProduct& own = *static_cast<const ManyProduct*>(context);
  const PackedMatrix& m = *own.product.matrix;
  ManyVectors& to = own.vectors;
  const int64_t first = task * kMaxBatch, count = smaller(kMaxBatch, to.count - first);
  Vectors vectors(kMaxBatch, m.columns, scratch(Vectors::memory(kMaxBatch, m.columns)));
  vectors.clear();
  for (int64_t b = 0; b < smaller(count, own.product.batch - first); ++b) {
    const float* from = own.product.vectors + (first + b) * m.columns;
    std::memcpy(vectors.floats + b * vectors.padded, from, m.columns * sizeof(float));
  }
  vectors.prepare(m);
  std::memcpy(to.bytes.get() + first * to.padded, vectors.bytes, count * to.padded);
  std::memcpy(to.scales.get() + first * to.groups, vectors.scales, count * to.groups * sizeof(float));
  for (int64_t i = 0; i < count * to.groups; ++i) {
    std::memcpy(to.corrections.get() + (first * to.groups + i) * 8, vectors.corrections + i * 16, 8 * sizeof(int32_t));
  }
}

// The levels of a row, moved up by kLevelOffset, to `bytes` of whole groups.
struct LevelsOfRow {
  const PackedMatrix& m;
  int64_t row;
  uint8_t* bytes;
  template <int kBits, bool Dense>
  HMP_INLINE void of() const {
    LevelWalker<kBits, Dense> weights(m, row);
    for (int64_t word = 0; word < m.words(); ++word) weights.next(bytes + word * 64);
  }
};

// parts[token][row]: sums in lanes of kTileTokens vectors with kTileRows rows of bytes.
HMP_INLINE void multiply_tile(const uint8_t* weights, const ManyVectors& v, int64_t token, int64_t words,
                              FloatSums (*parts)[kTileRows]) {
  const __m256i ones = all_words_one();
  for (int64_t group = 0; group < v.groups; ++group) {
    const int64_t place = token * v.groups + group;
    WholeSums part[kTileTokens][kTileRows];
#pragma GCC unroll 4
    for (int b = 0; b < kTileTokens; ++b) {
      const WholeSums correction = whole_sums(v.corrections.get() + (place + b * v.groups) * 8);
#pragma GCC unroll 2
      for (int r = 0; r < kTileRows; ++r) part[b][r] = correction;
    }
    const int64_t first = group * kGroup, last = smaller(words * 64, first + kGroup);
    for (int64_t column = first; column < last; column += 64) {
      LevelBytes w[kTileRows];
#pragma GCC unroll 2
      for (int r = 0; r < kTileRows; ++r) {
        const uint8_t* from = weights + r * v.padded + column;
        w[r] = {load_as<__m256i>(from), load_as<__m256i>(from + 32)};
      }
      const int8_t* x = v.bytes.get() + token * v.padded + column;
#pragma GCC unroll 4
      for (int b = 0; b < kTileTokens; ++b) {
#pragma GCC unroll 2
        for (int r = 0; r < kTileRows; ++r) part[b][r] = add_products(part[b][r], w[r], x + b * v.padded, ones);
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < kTileTokens; ++b) {
      const float scale = v.scales[place + b * v.groups];
#pragma GCC unroll 2
      for (int r = 0; r < kTileRows; ++r) parts[b][r] = add_scaled(parts[b][r], part[b][r], scale);
    }
  }
}

// One band with the vectors [first, last).
inline void many_of_band(const ManyProduct& own, int64_t band, int64_t first, int64_t last, uint8_t* levels) {
  const PackedProduct& p = own.product;
  const PackedMatrix& m = *p.matrix;
  const ManyVectors& v = own.vectors;
  const int count = rows_of(m, band);
  std::memset(levels, kLevelOffset, kBand * v.padded);
  for (int row = 0; row < count; ++row) {
    const int64_t at = band * kBand + row;
    const int bits = m.masks == nullptr ? m.row_bits[at] : row_of(m.coding).bits;
    with_bits(bits, m.masks == nullptr, LevelsOfRow{m, at, levels + row * v.padded});
  }
  for (int64_t token = first; token < last; token += kTileTokens) {
    Floats parts[kTileTokens][kBand] = {};
    for (int row = 0; row < count; row += kTileRows) {
      FloatSums tile[kTileTokens][kTileRows] = {};
      multiply_tile(levels + row * v.padded, v, token, m.words(), tile);
      for (int b = 0; b < kTileTokens; ++b) {
        for (int r = 0; r < kTileRows; ++r) parts[b][row + r] = whole_lanes(tile[b][r]);
      }
    }
    float sums[kTileTokens * kBand];
    add_lanes<kTileTokens>(parts, sums);
    for (int64_t b = 0; b < smaller(kTileTokens, p.batch - token); ++b) {
      float* out = p.out + (token + b) * m.rows + band * kBand;
      for (int row = 0; row < count; ++row) out[row] = sums[b * kBand + row] * m.scales[band * kBand + row];
    }
  }
}

// A task: a few bands with some of the vectors.
inline void many_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const ManyProduct& own = *static_cast<const ManyProduct*>(context);
  const int64_t all = bands(*own.product.matrix), first = task % own.token_tasks() * kTokensOfTask;
  const int64_t band = task / own.token_tasks() * kBandsOfManyTask;
  uint8_t* levels = reinterpret_cast<uint8_t*>(scratch(kBand * own.vectors.padded / 4));
  for (int64_t i = band; i < smaller(all, band + kBandsOfManyTask); ++i) {
    many_of_band(own, i, first, smaller(own.vectors.count, first + kTokensOfTask), levels);
  }
}

inline void many_by_codes(const PackedProduct& p, int threads) {
  ManyVectors vectors(p.batch, p.matrix->columns);
  const ManyProduct own{p, vectors};
  parallel((vectors.count + kMaxBatch - 1) / kMaxBatch, threads, round_share, &own);
  const int64_t tasks = (bands(*p.matrix) + kBandsOfManyTask - 1) / kBandsOfManyTask;
  parallel(tasks * own.token_tasks(), threads, many_share, &own);
}

#endif

// Products with as many vectors as there are.
inline void packed_product(const PackedProduct& p, int threads) {
#if HMP_BYTES
  if (p.batch > kMaxBatch && is_code(p.matrix->coding)) return many_by_codes(p, threads);
#endif
  for (int64_t first = 0; first < p.batch; first += kMaxBatch) {
    const PackedProduct part{p.matrix, smaller(kMaxBatch, p.batch - first), p.vectors + first * p.matrix->columns,
                             p.out + first * p.matrix->rows};
    parallel((bands(*p.matrix) + kBandsOfTask - 1) / kBandsOfTask, threads, product_share, &part);
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
