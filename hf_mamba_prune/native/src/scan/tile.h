// Moves tiles of up to kLanes channels by some steps in time between tensors of any strides and packed fp32 rows.
#pragma once
#include "dispatch/lanes.h"

namespace hmp {
namespace HMP_ISA {

HMP_INLINE float read_one(const View& view, int64_t offset) {
  if (view.coding == Coding::kFloat32) return reinterpret_cast<const float*>(view.data)[offset];
  return bf16_to_float(reinterpret_cast<const uint16_t*>(view.data)[offset]);
}
HMP_INLINE void write_one(const View& view, int64_t offset, float value) {
  if (view.coding == Coding::kFloat32) {
    reinterpret_cast<float*>(view.data)[offset] = value;
  } else {
    reinterpret_cast<uint16_t*>(view.data)[offset] = float_to_bf16(value);
  }
}

// Where a tile lies: `steps` moments from `start`, `lanes` channels from `channel`.
struct Place {
  int64_t batch, start, channel;
  int steps, lanes;

  HMP_INLINE int64_t offset(const View& view) const {
    return batch * view.batch_stride + start * view.length_stride + channel * view.channel_stride;
  }
};

// Asks for rows of `channels` before they are read or written, of tensors laid out by time. The rows of a tile lie
// pages apart, where the hardware does not look ahead, and memory gives neighbouring lines as fast as one.
template <bool Written = false>
HMP_INLINE void fetch_rows(const View& view, const Place& at, int64_t channels) {
  if (view.channel_stride != 1) return;
  const int64_t size = view.coding == Coding::kFloat32 ? 4 : 2;
  const char* from = view.data + at.offset(view) * size;
  for (int t = 0; t < at.steps; ++t) {
    const char* row = from + t * view.length_stride * size;
    for (int64_t byte = 0; byte < channels * size; byte += 64) __builtin_prefetch(row + byte, Written, 2);
  }
}

inline void read_any(const View& view, const Place& at, int first, float* tile) {
  const int64_t offset = at.offset(view);
  for (int t = first; t < at.steps; ++t) {
    float* row = tile + t * kLanes;
    for (int i = 0; i < at.lanes; ++i) row[i] = read_one(view, offset + t * view.length_stride + i * view.channel_stride);
    for (int i = at.lanes; i < kLanes; ++i) row[i] = 0.0f;
  }
}

// tile: (steps, kLanes), lanes beyond the last channel are 0.
inline void read_tile(const View& view, const Place& at, float* tile) {
  const int64_t offset = at.offset(view);
  int done = 0;
  if (at.lanes == kLanes && view.channel_stride == 1) {
    if (view.coding == Coding::kFloat32) {
      const float* from = reinterpret_cast<const float*>(view.data) + offset;
      for (int t = 0; t < at.steps; ++t) store(tile + t * kLanes, load(from + t * view.length_stride));
    } else {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(view.data) + offset;
      for (int t = 0; t < at.steps; ++t) store(tile + t * kLanes, load_bf16(from + t * view.length_stride));
    }
    return;
  }
  if (at.lanes == kLanes && view.length_stride == 1) {
    for (; done + kLanes <= at.steps; done += kLanes) {
      Floats rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t row = offset + done + i * view.channel_stride;
        rows[i] = view.coding == Coding::kFloat32 ? load(reinterpret_cast<const float*>(view.data) + row)
                                                : load_bf16(reinterpret_cast<const uint16_t*>(view.data) + row);
      }
      transpose(rows);
      for (int t = 0; t < kLanes; ++t) store(tile + (done + t) * kLanes, rows[t]);
    }
  }
  read_any(view, at, done, tile);
}

inline void write_tile(const View& view, const Place& at, const float* tile) {
  const int64_t offset = at.offset(view);
  if (at.lanes == kLanes && view.channel_stride == 1) {
    if (view.coding == Coding::kFloat32) {
      float* to = reinterpret_cast<float*>(view.data) + offset;
      for (int t = 0; t < at.steps; ++t) store(to + t * view.length_stride, load(tile + t * kLanes));
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(view.data) + offset;
      for (int t = 0; t < at.steps; ++t) store_bf16(to + t * view.length_stride, load(tile + t * kLanes));
    }
    return;
  }
  for (int t = 0; t < at.steps; ++t) {
    for (int i = 0; i < at.lanes; ++i) {
      write_one(view, offset + t * view.length_stride + i * view.channel_stride, tile[t * kLanes + i]);
    }
  }
}

// One value a step, the same for every lane (the step of a Mamba-2 head).
inline void read_broadcast(const View& view, const Place& at, int64_t channel, float* tile) {
  const int64_t offset = at.batch * view.batch_stride + at.start * view.length_stride + channel * view.channel_stride;
  for (int t = 0; t < at.steps; ++t) {
    store(tile + t * kLanes, splat(read_one(view, offset + t * view.length_stride)));
  }
}

// rows: (steps, padded), the `count` channels from `channel`, padding 0.
inline void read_rows(const View& view, const Place& at, int count, int padded, float* rows) {
  const int64_t offset = at.offset(view);
  for (int t = 0; t < at.steps; ++t) {
    float* row = rows + t * padded;
    const int64_t from = offset + t * view.length_stride;
    if (view.coding == Coding::kFloat32 && view.channel_stride == 1) {
      std::memcpy(row, reinterpret_cast<const float*>(view.data) + from, count * sizeof(float));
    } else {
      for (int i = 0; i < count; ++i) row[i] = read_one(view, from + i * view.channel_stride);
    }
    for (int i = count; i < padded; ++i) row[i] = 0.0f;
  }
}

// A row of `lanes` floats, padded with 0.
HMP_INLINE Floats read_lanes(const float* from, int lanes) {
  if (lanes == kLanes) return load(from);
  float padded[kLanes] = {};
  for (int i = 0; i < lanes; ++i) padded[i] = from[i];
  return load(padded);
}
HMP_INLINE void write_lanes(float* to, int lanes, Floats vector) {
  if (lanes == kLanes) {
    store(to, vector);
    return;
  }
  for (int i = 0; i < lanes; ++i) to[i] = vector[i];
}

}  // namespace HMP_ISA
}  // namespace hmp
