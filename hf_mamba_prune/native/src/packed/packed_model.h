// A packed model as the kernels see it: matrices of kept weights under bitmasks, and what stands between them.
#pragma once
#include <cstdint>
#include <vector>

#include "dispatch/codings.h"

namespace hmp {

constexpr int kBand = 16;          // rows multiplied together
constexpr int64_t kMaxBatch = 8;   // sequences that one token's step serves at once
constexpr int64_t kGroup = 256;    // columns that share a scale when the vector is rounded to int8
constexpr int64_t kNarrow = 32;    // columns up to which words of codes are as narrow; they are slower to read
constexpr int64_t kReadable = 64;  // bytes that must be readable behind the last value, but for unmasked floats

// The column in its word of a bit of a plane of single bits, as the masks of codes are; and the bit of a column.
constexpr int column_of_bit(int bit) { return (bit & 7) << 3 | bit >> 3; }

// Weights (rows, columns). The kept values of a row follow each other, and the rows follow each other.
struct PackedMatrix {
  int64_t rows = 0, columns = 0;
  Coding coding = Coding::kFloat32;
  const uint64_t* masks = nullptr;  // (rows, words()), beyond the last column 0; null: every weight is kept
  const char* values = nullptr;
  const uint32_t* starts = nullptr; // (rows): index of the row's first value; null without masks
  const float* scales = nullptr;    // (rows), integers only
  // Of codes:
  const int8_t* levels = nullptr;        // (kLevels): what they stand for, before the row's scale
  const float* column_scales = nullptr;  // (columns); null: 1
  const uint8_t* row_bits = nullptr;     // (rows): width of the row's codes, mixed only
  const uint64_t* row_starts = nullptr;  // (rows): where the row begins in `values`, mixed only
  int64_t plane_bytes = 0;               // of each plane of bits under masks

  int64_t words() const { return (columns + 63) / 64; }
  // Columns of a word of codes: narrow matrices have narrow ones.
  int64_t word_columns() const { return columns > kNarrow ? 64 : (columns + 7) / 8 * 8; }
  int64_t row_bytes(int bits) const { return words() * word_columns() / 8 * bits; }
};

// Biases and norms are float, absent where null.
struct PackedLayer {
  PackedMatrix in_proj, x_proj, dt_proj, out_proj;  // x_proj and dt_proj are empty in Mamba-2
  const float* norm = nullptr;
  const float* in_bias = nullptr;
  const float* conv_weight = nullptr;  // (conv channels, conv_width)
  const float* conv_bias = nullptr;
  const float* dt_bias = nullptr;      // (d_inner), or (heads)
  const float* A = nullptr;            // (d_inner, states), or (heads)
  const float* D = nullptr;            // (d_inner), or (heads)
  const float* gate_norm = nullptr;    // (d_inner), Mamba-2
  const float* out_bias = nullptr;
};

struct PackedModel {
  int64_t d_model = 0, d_inner = 0, states = 0, rank = 0, conv_width = 0;
  int64_t heads = 0, groups = 1;  // heads is 0 in Mamba-1
  float norm_eps = 0.0f;
  float mixer_eps = 0.0f;  // of Falcon-Mamba's norms of dt, B and C; 0: there are none
  float step_min = 0.0f, step_max = 0.0f;  // limits of the step, used when step_max > 0
  std::vector<PackedLayer> layers;
  PackedMatrix embeddings, head;
  const float* final_norm = nullptr;

  bool mamba2() const { return heads > 0; }
  int64_t conv_channels() const { return mamba2() ? d_inner + 2 * groups * states : d_inner; }
  int64_t in_rows() const { return mamba2() ? d_inner + conv_channels() + heads : 2 * d_inner; }
  int64_t small_rows() const { return mamba2() ? heads : rank + 2 * states; }  // what decides the state's step
  // Floats that a step needs as memory shared by its threads.
  int64_t memory(int64_t batch) const { return batch * (d_model + 2 * d_inner + conv_channels() + small_rows()); }
};

// One token of up to kMaxBatch sequences. The states are updated in place.
struct TokenStep {
  const PackedModel* model = nullptr;
  int64_t batch = 0;
  const int64_t* tokens = nullptr;  // (batch)
  float* const* conv = nullptr;     // a pointer for each layer: (batch, conv channels, conv_width), oldest first
  float* const* states = nullptr;   // a pointer for each layer: (batch, d_inner, states)
  float* logits = nullptr;          // (batch, vocabulary)
  float* memory = nullptr;          // model->memory(batch) floats
  int threads = 1;
};

// Vectors (batch, columns) -> (batch, rows).
struct PackedProduct {
  const PackedMatrix* matrix = nullptr;
  int64_t batch = 0;
  const float* vectors = nullptr;
  float* out = nullptr;
};

// Rows of a matrix as dense floats or bfloat16.
struct PackedRows {
  const PackedMatrix* matrix = nullptr;
  const int64_t* rows = nullptr;  // null: from `first` on
  int64_t first = 0, count = 0;
  bool bfloat16 = false;
  char* out = nullptr;  // (count, columns)
};

}  // namespace hmp
