// How a scan is cut up: into blocks of kLanes channels that never cross a head, shares of blocks that are the tasks of
// the pool, tiles of kTile moments, and sets of states that fit the registers. The cut depends on the shape and the
// instruction set alone, never on the number of threads, and so does every sum.
#pragma once
#include "scan/tile.h"

namespace hmp {
namespace HMP_ISA {

constexpr int kTile = 32;
constexpr int64_t kShares = 16;

HMP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// States taken at once when `left` are left: as many as a vector has lanes, half of that, or one.
HMP_INLINE int set_size(int64_t left) {
  if (left == 1) return 1;
  return left <= kLanes / 2 ? kLanes / 2 : kLanes;
}
inline int64_t padded_states(int64_t states) {
  int64_t padded = 0;
  while (padded < states) padded += set_size(states - padded);
  return padded;
}

struct Block {
  int64_t index, head, channel;
  int lanes;
};

struct Cut {
  int64_t blocks_per_head, blocks_per_group, blocks, shares, tasks, tiles, padded;

  explicit Cut(const ScanShape& s)
      : blocks_per_head(ceil_div(s.head_dim, kLanes)),
        blocks_per_group(s.heads / s.groups * blocks_per_head),
        blocks(s.heads * blocks_per_head),
        shares(smaller(blocks_per_group, ceil_div(kShares, s.groups))),
        tasks(s.batch * s.groups * shares),
        tiles(ceil_div(s.length, kTile)),
        padded(padded_states(s.states)) {}
};

// One task: the blocks [first, last) of one group in one sequence.
struct Share {
  int64_t batch, group, index, first, last;

  Share(const ScanShape& s, const Cut& cut, int64_t task) {
    index = task % cut.shares;
    group = task / cut.shares % s.groups;
    batch = task / cut.shares / s.groups;
    first = cut.blocks_per_group * index / cut.shares;
    last = cut.blocks_per_group * (index + 1) / cut.shares;
  }

  Block block(const ScanShape& s, const Cut& cut, int64_t in_group) const {
    const int64_t head = group * (s.heads / s.groups) + in_group / cut.blocks_per_head;
    const int64_t inside = in_group % cut.blocks_per_head * kLanes;
    return {group * cut.blocks_per_group + in_group, head, head * s.head_dim + inside,
            static_cast<int>(smaller(kLanes, s.head_dim - inside))};
  }

  // From the first channel of the first block to the last of the last.
  int64_t channels(const ScanShape& s, const Cut& cut) const {
    const Block end = block(s, cut, last - 1);
    return end.channel + end.lanes - block(s, cut, first).channel;
  }
  // The rows of a tile that are to be asked for while the k-th block goes through the tile before; none where there is
  // no such tile.
  Place part_ahead(const ScanShape& s, const Cut& cut, int64_t tile, int64_t k) const {
    const int64_t start = tile * kTile, count = last - first;
    const int64_t steps = start < 0 || start >= s.length ? 0 : smaller(kTile, s.length - start);
    const int64_t from = steps * k / count, to = steps * (k + 1) / count;
    return {batch, start + from, block(s, cut, first).channel, static_cast<int>(to - from), kLanes};
  }
};

// (lanes, states) rows of a (channels, states) tensor -> (padded, kLanes), and back. Padding is 0.
inline void read_states(const float* from, int64_t states, int64_t padded, int lanes, float* to) {
  int64_t start = 0;
  if (lanes == kLanes) {
    for (; start + kLanes <= states; start += kLanes) {
      Floats rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * states + start);
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(to + (start + i) * kLanes, rows[i]);
    }
  }
  std::memset(to + start * kLanes, 0, (padded - start) * kLanes * sizeof(float));
  for (; start < states; ++start) {
    for (int i = 0; i < lanes; ++i) to[start * kLanes + i] = from[i * states + start];
  }
}
inline void write_states(float* to, int64_t states, int lanes, const float* from) {
  int64_t start = 0;
  if (lanes == kLanes) {
    for (; start + kLanes <= states; start += kLanes) {
      Floats rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = load(from + (start + i) * kLanes);
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(to + i * states + start, rows[i]);
    }
  }
  for (; start < states; ++start) {
    for (int i = 0; i < lanes; ++i) to[i * states + start] = from[start * kLanes + i];
  }
}

// The decay rates of a block in units of log2: (padded, kLanes), or one vector with per_head.
inline void read_rates(const ScanShape& s, const float* A, const Block& block, int64_t padded, float* rates) {
  int64_t count = 1;
  if (s.per_head) {
    store(rates, splat(A[block.head]));
  } else {
    read_states(A + block.channel * s.states, s.states, padded, block.lanes, rates);
    count = padded;
  }
  for (int64_t i = 0; i < count; ++i) store(rates + i * kLanes, load(rates + i * kLanes) * kLog2E);
}

HMP_INLINE Floats per_channel(const ScanShape& s, const float* values, const Block& block) {
  if (values == nullptr) return Floats{};
  return s.per_head ? splat(values[block.head]) : read_lanes(values + block.channel, block.lanes);
}

// delta -> the step sizes: bias, softplus and limits applied. `raw` keeps delta + bias when it is not null.
inline void read_steps(const ScanForward& f, const Place& at, const Block& block, float* steps, float* raw) {
  const ScanShape& s = f.shape;
  if (s.per_head) {
    read_broadcast(f.delta, at, block.head, steps);
  } else {
    read_tile(f.delta, at, steps);
  }
  const Floats bias = per_channel(s, f.bias, block);
  const Floats low = splat(s.step_min), high = splat(s.step_max);
  for (int t = 0; t < at.steps; ++t) {
    Floats x = load(steps + t * kLanes) + bias;
    if (raw != nullptr) store(raw + t * kLanes, x);
    if (s.softplus) x = softplus(x);
    if (s.step_max > 0) x = minimum(maximum(x, low), high);
    store(steps + t * kLanes, x);
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
