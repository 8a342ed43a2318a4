// The selective scan, backward: each tile is recomputed from the state in front of it, last tile first.
#pragma once
#include "threads/pool.h"
#include "scan/scan_retreat.h"

namespace hmp {
namespace HMP_ISA {

// What a block carries from tile to tile.
struct Carried {
  float *rates, *dstate, *dA;
  Floats dD, dbias;
};

inline void read_inputs(const ScanForward& f, const View& dout, const Place& at, const Block& block,
                        const float* rates, BackwardTiles& tiles) {
  const ScanShape& s = f.shape;
  read_tile(f.u, at, tiles.u);
  read_tile(dout, at, tiles.dout);
  if (f.z) read_tile(f.z, at, tiles.z);
  read_steps(f, at, block, tiles.dt, tiles.raw);
  const Floats skip = per_channel(s, f.D, block);
  for (int i = 0; i < at.steps * kLanes; i += kLanes) {
    const Floats u = load(tiles.u + i), dt = load(tiles.dt + i), z = load(tiles.z + i);
    store(tiles.dtu + i, u * dt);
    store(tiles.y + i, u * skip);
    store(tiles.dy + i, f.z ? load(tiles.dout + i) * (z * sigmoid(z)) : load(tiles.dout + i));
    if (s.per_head) store(tiles.decay + i, exp2(dt * load(rates)));
    store(tiles.ddt + i, Floats{});
    store(tiles.ddtu + i, Floats{});
  }
}

// The derivative of the step by delta + bias.
HMP_INLINE Floats step_slope(const ScanShape& s, Floats raw) {
  Floats slope = s.softplus ? sigmoid(raw) : splat(1.0f);
  if (s.step_max > 0) {
    const Floats step = s.softplus ? softplus(raw) : raw;
    slope = step < s.step_min ? Floats{} : slope;
    slope = step > s.step_max ? Floats{} : slope;
  }
  return slope;
}

inline void write_gradients(const ScanBackward& g, const Cut& cut, const Place& at, const Block& block,
                            Carried& carried, BackwardTiles& tiles) {
  const ScanShape& s = g.forward.shape;
  const Floats skip = per_channel(s, g.forward.D, block);
  for (int t = 0; t < at.steps; ++t) {
    const int i = t * kLanes;
    const Floats u = load(tiles.u + i), dy = load(tiles.dy + i), ddtu = load(tiles.ddtu + i);
    const Floats ddelta = (load(tiles.ddt + i) + ddtu * u) * step_slope(s, load(tiles.raw + i));
    carried.dD += dy * u;
    carried.dbias += ddelta;
    if (s.per_head) {
      g.dstep[(at.batch * s.length + at.start + t) * cut.blocks + block.index] = sum_lanes(ddelta);
    }
    store(tiles.ddt + i, ddelta);
    store(tiles.ddtu + i, ddtu * load(tiles.dt + i) + dy * skip);
    if (g.forward.z) {
      const Floats z = load(tiles.z + i), gate = sigmoid(z);
      store(tiles.z + i, load(tiles.dout + i) * load(tiles.y + i) * (gate * (1.0f + z * (1.0f - gate))));
    }
  }
  write_tile(g.du, at, tiles.ddtu);
  if (!s.per_head) write_tile(g.ddelta, at, tiles.ddt);
  if (g.forward.z) write_tile(g.dz, at, tiles.z);
}

inline void write_sums(const ScanBackward& g, const Cut& cut, int64_t batch, const Block& block,
                       const Carried& carried) {
  const ScanShape& s = g.forward.shape;
  const int64_t row = batch * s.channels() + block.channel;
  if (g.dD != nullptr) write_lanes(g.dD + row, block.lanes, carried.dD);
  if (g.dinitial != nullptr) write_states(g.dinitial + row * s.states, s.states, block.lanes, carried.dstate);
  if (s.per_head) {
    g.dA[batch * cut.blocks + block.index] = sum_lanes(load(carried.dA));
    g.dbias[batch * cut.blocks + block.index] = sum_lanes(carried.dbias);
  } else {
    write_states(g.dA + row * s.states, s.states, block.lanes, carried.dA);
    write_lanes(g.dbias + row, block.lanes, carried.dbias);
  }
}

inline void fetch_before(const ScanBackward& g, const Place& at, int64_t channels) {
  const ScanForward& f = g.forward;
  fetch_rows(f.u, at, channels);
  fetch_rows(g.dout, at, channels);
  fetch_rows<true>(g.du, at, channels);
  if (!f.shape.per_head) {
    fetch_rows(f.delta, at, channels);
    fetch_rows<true>(g.ddelta, at, channels);
  }
  if (f.z) {
    fetch_rows(f.z, at, channels);
    fetch_rows<true>(g.dz, at, channels);
  }
}

inline void backward_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const ScanBackward& g = *static_cast<const ScanBackward*>(context);
  const ScanForward& f = g.forward;
  const ScanShape& s = f.shape;
  const Cut cut(s);
  const Share share(s, cut, task);
  const int64_t size = cut.padded * kLanes, count = share.last - share.first, channels = share.channels(s, cut);
  const int64_t tile_floats = sizeof(BackwardTiles) / sizeof(float);
  float* memory = scratch(tile_floats + (3 * count + 1) * size + 2 * count * kLanes + 2 * kTile * cut.padded);
  BackwardTiles& tiles = *reinterpret_cast<BackwardTiles*>(memory);
  float* B = memory + tile_floats;
  float* C = B + kTile * cut.padded;
  float* before = C + kTile * cut.padded;
  float* carried_states = before + size;
  float* carried_sums = carried_states + 3 * count * size;
  float* dBC = g.dBC + task * s.length * 2 * cut.padded;

  auto carried_by = [&](int64_t k) {
    float* own = carried_states + 3 * k * size;
    float* sums = carried_sums + 2 * k * kLanes;
    return Carried{own, own + size, own + 2 * size, load(sums), load(sums + kLanes)};
  };
  std::memset(carried_states, 0, (3 * count * size + 2 * count * kLanes) * sizeof(float));
  for (int64_t k = 0; k < count; ++k) {
    const Block block = share.block(s, cut, share.first + k);
    const Carried carried = carried_by(k);
    read_rates(s, f.A, block, cut.padded, carried.rates);
    if (g.dlast != nullptr) {
      const float* from = g.dlast + (share.batch * s.channels() + block.channel) * s.states;
      read_states(from, s.states, cut.padded, block.lanes, carried.dstate);
    }
  }
  for (int64_t tile = cut.tiles - 1; tile >= 0; --tile) {
    Place at{share.batch, tile * kTile, share.group * s.states,
             static_cast<int>(smaller(kTile, s.length - tile * kTile)), 0};
    read_rows(f.B, at, s.states, cut.padded, B);
    read_rows(f.C, at, s.states, cut.padded, C);
    float* tile_dBC = dBC + at.start * 2 * cut.padded;
    std::memset(tile_dBC, 0, at.steps * 2 * cut.padded * sizeof(float));
    for (int64_t k = 0; k < count; ++k) {
      const Block block = share.block(s, cut, share.first + k);
      Carried carried = carried_by(k);
      at.channel = block.channel;
      at.lanes = block.lanes;
      fetch_before(g, share.part_ahead(s, cut, tile - 1, k), channels);
      read_inputs(f, g.dout, at, block, carried.rates, tiles);
      const int64_t row = (share.batch * cut.tiles + tile) * s.channels() + block.channel;
      read_states(f.checkpoints + row * s.states, s.states, cut.padded, block.lanes, before);
      const SetRows set{cut.padded, carried.rates, B, C, before, carried.dstate, carried.dA, tile_dBC};
      (s.per_head ? through_states<true> : through_states<false>)(at.steps, set, tiles);
      write_gradients(g, cut, at, block, carried, tiles);
      store(carried_sums + 2 * k * kLanes, carried.dD);
      store(carried_sums + (2 * k + 1) * kLanes, carried.dbias);
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    write_sums(g, cut, share.batch, share.block(s, cut, share.first + k), carried_by(k));
  }
}

// dB and dC of one tile: the sum over the shares, in their order.
inline void add_shares(const void* context, int64_t task) {
  const ScanBackward& g = *static_cast<const ScanBackward*>(context);
  const ScanShape& s = g.forward.shape;
  const Cut cut(s);
  const int64_t tile = task % cut.tiles, group = task / cut.tiles % s.groups, batch = task / cut.tiles / s.groups;
  const int64_t row = 2 * cut.padded, end = smaller(s.length, (tile + 1) * kTile);
  float* sums = scratch(row);
  for (int64_t t = tile * kTile; t < end; ++t) {
    const float* parts = g.dBC + ((batch * s.groups + group) * cut.shares * s.length + t) * row;
    std::memcpy(sums, parts, row * sizeof(float));
    for (int64_t share = 1; share < cut.shares; ++share) {
      const float* part = parts + share * s.length * row;
      for (int64_t i = 0; i < row; ++i) sums[i] += part[i];
    }
    for (int64_t n = 0; n < s.states; ++n) {
      const int64_t channel = group * s.states + n;
      const int64_t at_B = batch * g.dB.batch_stride + t * g.dB.length_stride + channel * g.dB.channel_stride;
      const int64_t at_C = batch * g.dC.batch_stride + t * g.dC.length_stride + channel * g.dC.channel_stride;
      write_one(g.dB, at_B, sums[n]);
      write_one(g.dC, at_C, sums[cut.padded + n]);
    }
  }
}

inline void scan_backward(const ScanBackward& g, int threads) {
  const Cut cut(g.forward.shape);
  parallel(cut.tasks, threads, backward_share, &g);
  parallel(g.forward.shape.batch * g.forward.shape.groups * cut.tiles, threads, add_shares, &g);
}

}  // namespace HMP_ISA
}  // namespace hmp
