// One moment of the scan and of the convolution, for decoding token by token: the state is updated in place.
#pragma once
#include "threads/pool.h"
#include "scan/scan_cut.h"

namespace hmp {
namespace HMP_ISA {

constexpr int64_t kStepChannels = 128;  // channels a task; short enough to share, long enough to be worth waking up for

// What becomes of kLanes states, `lanes` of them there, and their share of C h.
template <bool Whole>
HMP_INLINE Floats step_lanes(float* state, Floats keep, Floats added, const float* C, int lanes) {
  const Floats h = keep * (Whole ? load(state) : read_lanes(state, lanes)) + added;
  if constexpr (Whole) {
    store(state, h);
  } else {
    write_lanes(state, lanes, h);
  }
  return h * load(C);
}

// The states of one channel: vectors along n, the last one padded on the stack. C h is the sum over the lanes.
HMP_INLINE Floats step_channel(float* state, const float* rates, float rate, float dt, float dtu, const float* B,
                              const float* C, int64_t states) {
  const Floats shared = exp2(splat(dt * rate)), scale = splat(dt * kLog2E);
  Floats sum{};
  int64_t n = 0;
  for (; n + kLanes <= states; n += kLanes) {
    const Floats keep = rates == nullptr ? shared : exp2(load(rates + n) * scale);
    sum += step_lanes<true>(state + n, keep, dtu * load(B + n), C + n, kLanes);
  }
  if (n == states) return sum;
  const int lanes = static_cast<int>(states - n);
  const Floats keep = rates == nullptr ? shared : exp2(read_lanes(rates + n, lanes) * scale);
  return sum + step_lanes<false>(state + n, keep, dtu * load(B + n), C + n, lanes);
}

inline void step_block(const StateStep& s, int64_t batch, const Block& block, const float* B, const float* C) {
  const ScanShape& shape = s.shape;
  const Place at{batch, 0, block.channel, 1, block.lanes};
  alignas(64) float u[kLanes], dt[kLanes], y[kLanes], z[kLanes];
  ScanForward steps;
  steps.shape = shape;
  steps.delta = s.delta;
  steps.bias = s.bias;
  read_tile(s.u, at, u);
  read_steps(steps, at, block, dt, nullptr);
  store(y, load(u) * per_channel(shape, s.D, block));
  Floats parts[kLanes] = {};
  for (int i = 0; i < block.lanes; ++i) {
    const int64_t channel = block.channel + i;
    const float* rates = shape.per_head ? nullptr : s.A + channel * shape.states;
    const float rate = shape.per_head ? s.A[block.head] * kLog2E : 0.0f;
    float* state = s.state + (batch * shape.channels() + channel) * shape.states;
    parts[i] = step_channel(state, rates, rate, dt[i], dt[i] * u[i], B, C, shape.states);
  }
  store(y, load(y) + row_sums(parts));
  if (s.z) {
    read_tile(s.z, at, z);
    store(y, load(y) * (load(z) * sigmoid(load(z))));
  }
  write_tile(s.out, at, y);
}

inline void step_share(const void* context, int64_t task) {
  const FlushDenormals flush;
  const StateStep& s = *static_cast<const StateStep*>(context);
  const Cut cut(s.shape);
  const Share share(s.shape, cut, task);
  const int64_t width = ceil_div(s.shape.states, kLanes) * kLanes;
  float* B = scratch(2 * width);
  float* C = B + width;
  const Place at{share.batch, 0, share.group * s.shape.states, 1, 0};
  read_rows(s.B, at, static_cast<int>(s.shape.states), static_cast<int>(width), B);
  read_rows(s.C, at, static_cast<int>(s.shape.states), static_cast<int>(width), C);
  for (int64_t k = share.first; k < share.last; ++k) {
    step_block(s, share.batch, share.block(s.shape, cut, k), B, C);
  }
}

// Even a small state takes a region: it is all that parts torch's threads, should they meet on one core (see cores.h).
inline void state_step(const StateStep& s, int threads) {
  const int64_t work = s.shape.batch * s.shape.channels() * s.shape.states;
  parallel(Cut(s.shape).tasks, work < (1 << 13) ? 1 : threads, step_share, &s, true);
}

// state: the last `kept` inputs, oldest first. The window of the convolution ends with x.
inline void conv_step(const ConvStep& c) {
  for (int64_t batch = 0; batch < c.batch; ++batch) {
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      const int64_t first = batch * c.state.batch_stride + channel * c.state.channel_stride;
      const float* weight = c.weight + channel * c.width;
      float sum = c.bias == nullptr ? 0.0f : c.bias[channel];
      for (int64_t j = 1; j < c.width; ++j) {
        const int64_t past = c.kept - c.width + j;  // weight j - 1 meets the input width - j moments ago
        sum += weight[j - 1] * read_one(c.state, first + past * c.state.length_stride);
      }
      const float x = read_one(c.x, batch * c.x.batch_stride + channel * c.x.channel_stride);
      sum += weight[c.width - 1] * x;
      for (int64_t j = 0; j + 1 < c.kept; ++j) {
        write_one(c.state, first + j * c.state.length_stride, read_one(c.state, first + (j + 1) * c.state.length_stride));
      }
      write_one(c.state, first + (c.kept - 1) * c.state.length_stride, x);
      if (c.silu) sum /= 1.0f + __builtin_expf(-sum);
      write_one(c.out, batch * c.out.batch_stride + channel * c.out.channel_stride, sum);
    }
  }
}

}  // namespace HMP_ISA
}  // namespace hmp
