// The inner loops of the scan's backward: through one tile of one block, forward to recompute, then backward.
#pragma once
#include "scan/scan_cut.h"

namespace hmp {
namespace HMP_ISA {

// What both loops read and write for one block and tile; every row is kLanes wide.
struct alignas(64) BackwardTiles {
  float u[kTile * kLanes], raw[kTile * kLanes], dt[kTile * kLanes], dtu[kTile * kLanes], decay[kTile * kLanes];
  float z[kTile * kLanes], dout[kTile * kLanes], dy[kTile * kLanes], y[kTile * kLanes];
  float ddt[kTile * kLanes], ddtu[kTile * kLanes];
  float history[(kTile + 1) * kLanes * kLanes];  // the state in front of each moment, and after the last
  float keep[kTile * kLanes * kLanes];           // exp(dt A), not used with PerHead
};

// The rows of one set of states.
struct SetRows {
  int64_t padded;
  const float *rates, *B, *C;  // B and C: (steps, padded)
  const float* before;         // the state in front of the tile
  float* dstate;               // gradient of the state: after the tile on entry, in front of it on return
  float* dA;                   // (Count, kLanes), or one vector with PerHead
  float* dBC;                  // (steps, 2, padded)
};

template <int Count, bool PerHead>
void recompute(int steps, const SetRows& set, BackwardTiles& tiles) {
  Floats h[Count];
#pragma GCC unroll 16
  for (int n = 0; n < Count; ++n) {
    h[n] = load(set.before + n * kLanes);
    store(tiles.history + n * kLanes, h[n]);
  }
  for (int t = 0; t < steps; ++t) {
    const Floats step = load((PerHead ? tiles.decay : tiles.dt) + t * kLanes), x = load(tiles.dtu + t * kLanes);
    const float* b = set.B + t * set.padded;
    const float* c = set.C + t * set.padded;
    float* history = tiles.history + (t + 1) * Count * kLanes;
    Floats sums[4] = {load(tiles.y + t * kLanes)};
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      const Floats keep = PerHead ? step : exp2(step * load(set.rates + n * kLanes));
      if (!PerHead) store(tiles.keep + (t * Count + n) * kLanes, keep);
      h[n] = keep * h[n] + x * b[n];
      store(history + n * kLanes, h[n]);
      sums[n % 4] += h[n] * c[n];
    }
    store(tiles.y + t * kLanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

// to[i] += the sum over the lanes of rows[i].
template <int Count>
HMP_INLINE void add_row_sums(float* to, Floats* rows) {
  if constexpr (Count == 1) {
    *to += sum_lanes(rows[0]);
  } else {
#pragma GCC unroll 16
    for (int n = Count; n < kLanes; ++n) rows[n] = Floats{};
    const Floats sums = row_sums(rows);
    if constexpr (Count == kLanes) {
      store(to, load(to) + sums);
    } else {
      for (int n = 0; n < Count; ++n) to[n] += sums[n];
    }
  }
}

template <int Count, bool PerHead>
void retreat(int steps, const SetRows& set, BackwardTiles& tiles) {
  Floats dh[Count];
#pragma GCC unroll 16
  for (int n = 0; n < Count; ++n) dh[n] = load(set.dstate + n * kLanes);
  for (int t = steps - 1; t >= 0; --t) {
    const Floats g = load(tiles.dy + t * kLanes), x = load(tiles.dtu + t * kLanes), dt = load(tiles.dt + t * kLanes);
    const Floats decay = load(tiles.decay + t * kLanes);
    const float* b = set.B + t * set.padded;
    const float* c = set.C + t * set.padded;
    const float* before = tiles.history + t * Count * kLanes;
    Floats ddt[2] = {}, ddtu[2] = {}, rows[kLanes];
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) rows[n] = g * load(before + (Count + n) * kLanes);
    add_row_sums<Count>(set.dBC + (2 * t + 1) * set.padded, rows);
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      const Floats d = dh[n] + g * c[n];
      rows[n] = d * x;
      ddtu[n % 2] += d * b[n];
      dh[n] = d * (PerHead ? decay : load(tiles.keep + (t * Count + n) * kLanes));
      const Floats exponent = dh[n] * load(before + n * kLanes);
      if (PerHead) {
        ddt[n % 2] += exponent;
      } else {
        ddt[n % 2] += exponent * load(set.rates + n * kLanes);
        store(set.dA + n * kLanes, load(set.dA + n * kLanes) + exponent * dt);
      }
    }
    add_row_sums<Count>(set.dBC + 2 * t * set.padded, rows);
    const Floats total = ddt[0] + ddt[1];
    if (PerHead) store(set.dA, load(set.dA) + total * dt);
    // The rates are in units of log2, so what they multiply comes out 1 / ln 2 too large.
    const Floats rate = PerHead ? load(set.rates) : splat(1.0f);
    store(tiles.ddt + t * kLanes, load(tiles.ddt + t * kLanes) + total * rate * (1.0f / kLog2E));
    store(tiles.ddtu + t * kLanes, load(tiles.ddtu + t * kLanes) + (ddtu[0] + ddtu[1]));
  }
#pragma GCC unroll 16
  for (int n = 0; n < Count; ++n) store(set.dstate + n * kLanes, dh[n]);
}

template <int Count, bool PerHead>
void through_set(int steps, const SetRows& set, BackwardTiles& tiles) {
  recompute<Count, PerHead>(steps, set, tiles);
  retreat<Count, PerHead>(steps, set, tiles);
}

template <bool PerHead>
void through_states(int steps, SetRows set, BackwardTiles& tiles) {
  for (int64_t n = 0; n < set.padded;) {
    const int count = set_size(set.padded - n);
    auto through = count == kLanes ? through_set<kLanes, PerHead>
                                   : (count == 1 ? through_set<1, PerHead> : through_set<kLanes / 2, PerHead>);
    through(steps, set, tiles);
    n += count;
    set.B += count;
    set.C += count;
    set.dBC += count;
    set.before += count * kLanes;
    set.dstate += count * kLanes;
    if (!PerHead) set.rates += count * kLanes;
    if (!PerHead) set.dA += count * kLanes;
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
