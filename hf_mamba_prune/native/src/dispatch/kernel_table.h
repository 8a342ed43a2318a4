// What the Python door calls: one table of kernels per instruction set, and the arguments each takes.
#pragma once
#include <cstdint>

#include "dispatch/codings.h"

namespace hmp {

// A (batch, length, channel) tensor of any strides, counted in elements, float32 or bfloat16. A null pointer: not given.
struct View {
  char* data = nullptr;
  Coding coding = Coding::kFloat32;
  int64_t batch_stride = 0;
  int64_t length_stride = 0;
  int64_t channel_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

// The selective scan of both Mamba generations. Channels come in `heads` runs of `head_dim`; `groups` sets of
// heads share their B and C. Mamba-1: one head as wide as the layer, one group, `per_head` false, so every channel
// has its own step and every state its own decay. Mamba-2: `per_head` true, step, A, D and bias once per head.
struct ScanShape {
  int64_t batch = 0, length = 0, heads = 1, head_dim = 0, groups = 1, states = 0;
  bool per_head = false;
  bool softplus = false;
  float step_min = 0.0f, step_max = 0.0f;  // limits of the step, used when step_max > 0

  int64_t channels() const { return heads * head_dim; }
};

struct ScanForward {
  ScanShape shape;
  View u, delta, z, B, C, out;  // B and C: channel = group * states + state
  const float* A = nullptr;     // (channels, states), or (heads) with per_head
  const float* D = nullptr;     // (channels), or (heads)
  const float* bias = nullptr;  // (channels), or (heads)
  const float* initial = nullptr;  // (batch, channels, states)
  float* last = nullptr;           // (batch, channels, states)
  float* checkpoints = nullptr;    // (batch, tiles, channels, states): the state in front of each tile
};

struct ScanBackward {
  ScanForward forward;  // `out` and `last` unused, `checkpoints` filled by the forward
  View dout;
  const float* dlast = nullptr;
  View du, ddelta, dz;
  float* dinitial = nullptr;
  float* dA = nullptr;     // (batch, channels, states), or (batch, blocks) with per_head: summed by the caller
  float* dD = nullptr;     // (batch, channels)
  float* dbias = nullptr;  // (batch, channels), or (batch, blocks) with per_head
  float* dstep = nullptr;  // (batch, length, blocks), with per_head only
  float* dBC = nullptr;    // (batch, groups, shares, length, 2, padded states)
  View dB, dC;
};

struct Conv {
  int64_t batch = 0, length = 0, channels = 0, width = 0;
  bool silu = false;
  View x, out;
  const float* weight = nullptr;  // (channels, width)
  const float* bias = nullptr;
  View dout, dx;
  float* dweight = nullptr;  // (batch, channels, width): summed by the caller
  float* dbias = nullptr;    // (batch, channels)
};

struct StateStep {
  ScanShape shape;
  float* state = nullptr;  // (batch, channels, states), updated
  View u, delta, z, B, C, out;
  const float* A = nullptr;
  const float* D = nullptr;
  const float* bias = nullptr;
};

struct ConvStep {
  int64_t batch = 0, channels = 0, width = 0, kept = 0;
  bool silu = false;
  View state;  // (batch, kept, channels) by strides, updated
  View x, out;
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// float32, bfloat16 or float16.
struct Values {
  char* data = nullptr;
  Coding coding = Coding::kFloat32;
  int64_t count = 0;
};

struct BetweenCounts {
  int64_t below, found;
};

// Sizes of the scratch tensors that the caller allocates; they depend on the width of the vectors.
struct ScanSizes {
  int64_t tile, tiles, blocks, shares, padded_states;
};

struct TokenStep;
struct PackedProduct;
struct PackedRows;

struct KernelTable {
  const char* name;
  int lanes;
  ScanSizes (*scan_sizes)(const ScanShape&);
  void (*scan_forward)(const ScanForward&, int threads);
  void (*scan_backward)(const ScanBackward&, int threads);
  void (*conv_forward)(const Conv&, int threads);
  void (*conv_backward)(const Conv&, int threads);
  void (*state_step)(const StateStep&, int threads);
  void (*conv_step)(const ConvStep&);
  void (*range_histogram)(const Values&, uint32_t low, int shift, int64_t bins, int64_t* counts, int threads);
  int64_t (*keep_above)(const Values&, uint32_t threshold, uint8_t* keep, int threads);
  BetweenCounts (*between)(const Values&, uint32_t low, uint32_t high, int64_t* positions, int32_t* keys, int64_t room,
                           int threads);
  void (*packed_product)(const PackedProduct&, int threads);
  void (*packed_rows)(const PackedRows&, int threads);
  void (*token_step)(const TokenStep&);
};

extern const KernelTable kPortable;
#if defined(__x86_64__)
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
extern const KernelTable kAvx512Bf16;
#endif

}  // namespace hmp
