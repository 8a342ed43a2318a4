// The selective scan, forward: h = exp(dt A) h + dt u B; y = C h + D u; out = y silu(z).
#pragma once
#include "threads/pool.h"
#include "scan/scan_cut.h"

namespace hmp {
namespace HMP_ISA {

// One tile of one block, `Count` states in registers. With PerHead `decay` holds exp(dt A) of each moment; without it
// `rates` holds A in units of log2.
template <int Count, bool PerHead>
void advance(int steps, int64_t padded, const float* dt, const float* dtu, const float* decay, const float* rates,
             const float* B, const float* C, float* state, float* y) {
  Floats h[Count];
#pragma GCC unroll 16
  for (int n = 0; n < Count; ++n) h[n] = load(state + n * kLanes);
  for (int t = 0; t < steps; ++t) {
    const Floats step = load((PerHead ? decay : dt) + t * kLanes), x = load(dtu + t * kLanes);
    const float* b = B + t * padded;
    const float* c = C + t * padded;
    Floats sums[4] = {load(y + t * kLanes)};
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      const Floats keep = PerHead ? step : exp2(step * load(rates + n * kLanes));
      h[n] = keep * h[n] + x * b[n];
      sums[n % 4] += h[n] * c[n];
    }
    store(y + t * kLanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
#pragma GCC unroll 16
  for (int n = 0; n < Count; ++n) store(state + n * kLanes, h[n]);
}

template <bool PerHead>
void advance_all(int steps, int64_t padded, const float* dt, const float* dtu, const float* decay, const float* rates,
                 const float* B, const float* C, float* state, float* y) {
  for (int64_t n = 0; n < padded;) {
    const int count = set_size(padded - n);
    auto set = count == kLanes ? advance<kLanes, PerHead>
                               : (count == 1 ? advance<1, PerHead> : advance<kLanes / 2, PerHead>);
    set(steps, padded, dt, dtu, decay, PerHead ? rates : rates + n * kLanes, B + n, C + n, state + n * kLanes, y);
    n += count;
  }
}

struct alignas(64) ForwardTiles {
  float u[kTile * kLanes], dt[kTile * kLanes], dtu[kTile * kLanes], decay[kTile * kLanes], z[kTile * kLanes],
      y[kTile * kLanes];
};

inline void forward_block(const ScanForward& f, const Cut& cut, const Place& at, const Block& block,
                          const float* rates, const float* B, const float* C, float* state, ForwardTiles& tiles) {
  const ScanShape& s = f.shape;
  read_tile(f.u, at, tiles.u);
  read_steps(f, at, block, tiles.dt, nullptr);
  const Floats skip = per_channel(s, f.D, block);
  for (int i = 0; i < at.steps * kLanes; i += kLanes) {
    const Floats u = load(tiles.u + i), dt = load(tiles.dt + i);
    store(tiles.dtu + i, u * dt);
    store(tiles.y + i, u * skip);
    if (s.per_head) store(tiles.decay + i, exp2(dt * load(rates)));
  }
  (s.per_head ? advance_all<true> : advance_all<false>)(at.steps, cut.padded, tiles.dt, tiles.dtu, tiles.decay, rates,
                                                        B, C, state, tiles.y);
  if (f.z) {
    read_tile(f.z, at, tiles.z);
    for (int i = 0; i < at.steps * kLanes; i += kLanes) {
      const Floats z = load(tiles.z + i);
      store(tiles.y + i, load(tiles.y + i) * (z * sigmoid(z)));
    }
  }
  write_tile(f.out, at, tiles.y);
}

inline void forward_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const ScanForward& f = *static_cast<const ScanForward*>(context);
  const ScanShape& s = f.shape;
  const Cut cut(s);
  const Share share(s, cut, task);
  const int64_t block_states = cut.padded * kLanes, count = share.last - share.first;
  const int64_t channels = share.channels(s, cut);
  float* rates = scratch(2 * count * block_states + 2 * kTile * cut.padded);
  float* state = rates + count * block_states;
  float* B = state + count * block_states;
  float* C = B + kTile * cut.padded;
  ForwardTiles tiles;

  for (int64_t k = 0; k < count; ++k) {
    const Block block = share.block(s, cut, share.first + k);
    read_rates(s, f.A, block, cut.padded, rates + k * block_states);
    float* own = state + k * block_states;
    if (f.initial != nullptr) {
      const float* from = f.initial + (share.batch * s.channels() + block.channel) * s.states;
      read_states(from, s.states, cut.padded, block.lanes, own);
    } else {
      std::memset(own, 0, block_states * sizeof(float));
    }
  }
  for (int64_t tile = 0; tile < cut.tiles; ++tile) {
    Place at{share.batch, tile * kTile, share.group * s.states,
             static_cast<int>(smaller(kTile, s.length - tile * kTile)), 0};
    read_rows(f.B, at, s.states, cut.padded, B);
    read_rows(f.C, at, s.states, cut.padded, C);
    for (int64_t k = 0; k < count; ++k) {
      const Block block = share.block(s, cut, share.first + k);
      float* own = state + k * block_states;
      if (f.checkpoints != nullptr) {
        const int64_t row = (share.batch * cut.tiles + tile) * s.channels() + block.channel;
        write_states(f.checkpoints + row * s.states, s.states, block.lanes, own);
      }
      at.channel = block.channel;
      at.lanes = block.lanes;
      const Place ahead = share.part_ahead(s, cut, tile + 1, k);
      fetch_rows(f.u, ahead, channels);
      if (!s.per_head) fetch_rows(f.delta, ahead, channels);
      if (f.z) fetch_rows(f.z, ahead, channels);
      fetch_rows<true>(f.out, ahead, channels);
      forward_block(f, cut, at, block, rates + k * block_states, B, C, own, tiles);
    }
  }
  if (f.last == nullptr) return;
  for (int64_t k = 0; k < count; ++k) {
    const Block block = share.block(s, cut, share.first + k);
    float* to = f.last + (share.batch * s.channels() + block.channel) * s.states;
    write_states(to, s.states, block.lanes, state + k * block_states);
  }
}

inline void scan_forward(const ScanForward& f, int threads) {
  parallel(Cut(f.shape).tasks, threads, forward_share, &f);
}

inline ScanSizes scan_sizes(const ScanShape& s) {
  const Cut cut(s);
  return {kTile, cut.tiles, cut.blocks, cut.shares, cut.padded};
}

}  // namespace HMP_ISA
}  // namespace hmp
