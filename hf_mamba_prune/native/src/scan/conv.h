// Causal depthwise convolution over time, with its bias and SiLU: out[t] = act(bias + sum_j w[j] x[t - width + 1 + j]).
#pragma once
#include "threads/pool.h"
#include "scan/scan_cut.h"

namespace hmp {
namespace HMP_ISA {

// Moments [start, start + steps) of one block; those in front of the sequence and behind it are 0.
inline void read_window(const View& view, const Place& at, int64_t length, float* rows) {
  Place inside = at;
  int missing = 0;
  if (inside.start < 0) {
    missing = static_cast<int>(smaller(-inside.start, inside.steps));
    std::memset(rows, 0, missing * kLanes * sizeof(float));
    inside.start = 0;
    inside.steps -= missing;
  }
  const int present = static_cast<int>(inside.start >= length ? 0 : smaller(inside.steps, length - inside.start));
  std::memset(rows + (missing + present) * kLanes, 0, (inside.steps - present) * kLanes * sizeof(float));
  inside.steps = present;
  if (present > 0) read_tile(view, inside, rows + missing * kLanes);
}

// weight rows (width, kLanes) of a block, then its bias.
inline void read_weights(const Conv& c, const Block& block, float* weight) {
  std::memset(weight, 0, (c.width + 1) * kLanes * sizeof(float));
  for (int i = 0; i < block.lanes; ++i) {
    for (int64_t j = 0; j < c.width; ++j) weight[j * kLanes + i] = c.weight[(block.channel + i) * c.width + j];
    if (c.bias != nullptr) weight[c.width * kLanes + i] = c.bias[block.channel + i];
  }
}

// Width 4, the only one in use, is unrolled.
template <int Width>
HMP_INLINE Floats convolve(const float* x, const float* weight, int64_t width) {
  const int64_t taps = Width > 0 ? Width : width;
  Floats sum = load(weight + taps * kLanes);
#pragma GCC unroll 4
  for (int64_t j = 0; j < taps; ++j) sum += load(x + j * kLanes) * load(weight + j * kLanes);
  return sum;
}

struct ConvTask {
  ScanShape shape;
  Cut cut;
  Share share;
  ConvTask(const Conv& c, int64_t task) : shape(shape_of(c)), cut(shape), share(shape, cut, task) {}

  static ScanShape shape_of(const Conv& c) {
    ScanShape shape;
    shape.batch = c.batch;
    shape.length = c.length;
    shape.head_dim = c.channels;
    shape.states = 1;
    return shape;
  }
};

template <int Width>
void conv_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const Conv& c = *static_cast<const Conv*>(context);
  const ConvTask cut(c, task);
  const int64_t count = cut.share.last - cut.share.first, size = (c.width + 1) * kLanes;
  float* weights = scratch(count * size + (kTile + c.width - 1 + kTile) * kLanes);
  float* x = weights + count * size;
  float* out = x + (kTile + c.width - 1) * kLanes;
  for (int64_t k = 0; k < count; ++k) {
    read_weights(c, cut.share.block(cut.shape, cut.cut, cut.share.first + k), weights + k * size);
  }
  const int64_t channels = cut.share.channels(cut.shape, cut.cut);
  for (int64_t start = 0; start < c.length; start += kTile) {
    const int steps = static_cast<int>(smaller(kTile, c.length - start));
    for (int64_t k = 0; k < count; ++k) {
      const Block block = cut.share.block(cut.shape, cut.cut, cut.share.first + k);
      const Place ahead = cut.share.part_ahead(cut.shape, cut.cut, start / kTile + 1, k);
      fetch_rows(c.x, ahead, channels);
      fetch_rows<true>(c.out, ahead, channels);
      const int64_t before = c.width - 1;
      read_window(c.x, {cut.share.batch, start - before, block.channel, static_cast<int>(steps + before), block.lanes},
                  c.length, x);
      for (int t = 0; t < steps; ++t) {
        const Floats sum = convolve<Width>(x + t * kLanes, weights + k * size, c.width);
        store(out + t * kLanes, c.silu ? sum * sigmoid(sum) : sum);
      }
      write_tile(c.out, {cut.share.batch, start, block.channel, steps, block.lanes}, out);
    }
  }
}

inline void conv_forward(const Conv& c, int threads) {
  parallel(ConvTask(c, 0).cut.tasks, threads, c.width == 4 ? conv_share<4> : conv_share<0>, &c);
}

// Gradient of what goes into the activation, for the `width - 1` moments behind the tile as well, and its sums.
template <int Width>
void backward_block(const Conv& c, const Place& at, const float* weight, float* memory, float* sums) {
  const int64_t after = c.width - 1;
  const int rows = static_cast<int>(at.steps + after);
  float* x = memory;
  float* dsum = x + (kTile + 2 * after) * kLanes;
  Place window = at;
  window.start -= after;
  window.steps = static_cast<int>(rows + after);
  read_window(c.x, window, c.length, x);
  window = at;
  window.steps = rows;
  read_window(c.dout, window, c.length, dsum);
  for (int t = 0; t < rows; ++t) {
    if (c.silu) {
      const Floats sum = convolve<Width>(x + t * kLanes, weight, c.width), gate = sigmoid(sum);
      store(dsum + t * kLanes, load(dsum + t * kLanes) * (gate * (1.0f + sum * (1.0f - gate))));
    }
    if (t >= at.steps) continue;
    const Floats d = load(dsum + t * kLanes);
    for (int64_t j = 0; j < c.width; ++j) {
      store(sums + j * kLanes, load(sums + j * kLanes) + d * load(x + (t + j) * kLanes));
    }
    store(sums + c.width * kLanes, load(sums + c.width * kLanes) + d);
  }
  for (int t = 0; t < at.steps; ++t) {
    Floats dx{};
    for (int64_t j = 0; j < c.width; ++j) dx += load(dsum + (t + after - j) * kLanes) * load(weight + j * kLanes);
    store(x + t * kLanes, dx);
  }
  write_tile(c.dx, at, x);
}

template <int Width>
void conv_backward_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const Conv& c = *static_cast<const Conv*>(context);
  const ConvTask cut(c, task);
  const int64_t count = cut.share.last - cut.share.first, size = (c.width + 1) * kLanes;
  float* weights = scratch(2 * count * size + (2 * kTile + 3 * c.width) * kLanes);
  float* sums = weights + count * size;
  float* memory = sums + count * size;
  std::memset(sums, 0, count * size * sizeof(float));
  for (int64_t k = 0; k < count; ++k) {
    read_weights(c, cut.share.block(cut.shape, cut.cut, cut.share.first + k), weights + k * size);
  }
  const int64_t channels = cut.share.channels(cut.shape, cut.cut);
  for (int64_t start = 0; start < c.length; start += kTile) {
    const int steps = static_cast<int>(smaller(kTile, c.length - start));
    for (int64_t k = 0; k < count; ++k) {
      const Block block = cut.share.block(cut.shape, cut.cut, cut.share.first + k);
      const Place ahead = cut.share.part_ahead(cut.shape, cut.cut, start / kTile + 1, k);
      fetch_rows(c.x, ahead, channels);
      fetch_rows(c.dout, ahead, channels);
      fetch_rows<true>(c.dx, ahead, channels);
      const Place at{cut.share.batch, start, block.channel, steps, block.lanes};
      backward_block<Width>(c, at, weights + k * size, memory, sums + k * size);
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    const Block block = cut.share.block(cut.shape, cut.cut, cut.share.first + k);
    const int64_t row = cut.share.batch * c.channels + block.channel;
    write_states(c.dweight + row * c.width, c.width, block.lanes, sums + k * size);
    write_lanes(c.dbias + row, block.lanes, load(sums + k * size + c.width * kLanes));
  }
}

inline void conv_backward(const Conv& c, int threads) {
  parallel(ConvTask(c, 0).cut.tasks, threads, c.width == 4 ? conv_backward_share<4> : conv_backward_share<0>, &c);
}

}  // namespace HMP_ISA
}  // namespace hmp
