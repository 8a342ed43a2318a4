// One token through a whole packed model: the projections from their bitmasks, convolution, state, norms and head.
//
// A layer is a few phases, each cut into bands of rows. What a phase needs of its whole input (norms, rounding) each
// thread works out for itself: it is little, and saves a phase.
#pragma once
#include "threads/crew.h"
#include "packed/rows.h"
#include "scan/step.h"

namespace hmp {
namespace HMP_ISA {

enum class Part { kEmbed, kIn, kSmall, kState, kOut, kHead };

struct Phase {
  Part part;
  int64_t layer;

  static int64_t parts(const PackedModel& m) { return m.mamba2() ? 3 : 4; }
  static int64_t count(const PackedModel& m) { return 2 + static_cast<int64_t>(m.layers.size()) * parts(m); }

  Phase(const PackedModel& m, int64_t index) : part(Part::kEmbed), layer(0) {
    if (index == 0) return;
    const int64_t count = parts(m);
    layer = (index - 1) / count;
    if (layer == static_cast<int64_t>(m.layers.size())) {
      part = Part::kHead;
      return;
    }
    constexpr Part kFour[] = {Part::kIn, Part::kSmall, Part::kState, Part::kOut};
    constexpr Part kThree[] = {Part::kIn, Part::kState, Part::kOut};
    const int64_t place = index - 1 - layer * count;
    part = m.mamba2() ? kThree[place] : kFour[place];
  }
};

// The activations that phases hand on, (batch, width) each.
struct Activations {
  float *residual, *gate, *mixed, *conv, *small;

  explicit Activations(const TokenStep& s) {
    const PackedModel& m = *s.model;
    residual = s.memory;
    gate = residual + s.batch * m.d_model;
    mixed = gate + s.batch * m.d_inner;
    conv = mixed + s.batch * m.d_inner;
    small = conv + s.batch * m.conv_channels();
  }
};

// to = x / rms(x) * weight, over `count` values.
inline void rms_norm(const float* x, const float* weight, int64_t count, float eps, float* to) {
  Floats squares{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats part = read_lanes(x + i, static_cast<int>(smaller(kLanes, count - i)));
    squares += part * part;
  }
  const float factor = 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(count) + eps);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = static_cast<int>(smaller(kLanes, count - i));
    Floats part = read_lanes(x + i, lanes) * factor;
    if (weight != nullptr) part *= read_lanes(weight + i, lanes);
    write_lanes(to + i, lanes, part);
  }
}

// B and C of a phase kState, (batch, groups, padded) each, and in Mamba-1 the vectors of dt_proj in front of them.
struct StateInputs {
  Vectors vectors;
  int64_t padded;
  float *B, *C;

  static int64_t width(const PackedModel& m) { return (m.states + kLanes - 1) / kLanes * kLanes; }
  static int64_t memory(const TokenStep& s) {
    return Vectors::memory(s.batch, s.model->rank) + 2 * s.batch * s.model->groups * width(*s.model);
  }
  StateInputs(const TokenStep& s, float* at)
      : vectors(s.batch, s.model->rank, at),
        padded(width(*s.model)),
        B(at + Vectors::memory(s.batch, s.model->rank)),
        C(B + s.batch * s.model->groups * padded) {}
};

inline const PackedMatrix& matrix_of(const PackedModel& m, const Phase& phase) {
  const PackedLayer* layer = m.layers.data() + phase.layer;
  switch (phase.part) {
    case Part::kIn: return layer->in_proj;
    case Part::kSmall: return layer->x_proj;
    case Part::kState: return layer->dt_proj;
    case Part::kOut: return layer->out_proj;
    default: return m.head;
  }
}

constexpr int64_t kPiecesOfThread = 4;

// Bands that a piece takes: few enough for the threads to end together, many enough for memory to be read in long runs.
HMP_INLINE int64_t bands_of_piece(const TokenStep& s, int64_t all) {
  const int64_t pieces = kPiecesOfThread * s.threads;
  return (all + pieces - 1) / pieces;
}

inline int64_t token_pieces(const void* context, int64_t index) {
  const TokenStep& s = *static_cast<const TokenStep*>(context);
  const Phase phase(*s.model, index);
  if (phase.part == Part::kEmbed) return 1;
  if (phase.part == Part::kState && s.model->mamba2()) return s.batch * s.model->heads;
  const int64_t all = bands(matrix_of(*s.model, phase)), piece = bands_of_piece(s, all);
  return (all + piece - 1) / piece;
}

// The input of a projection, normed where it must be, in the form that its weights multiply.
inline void gather(const TokenStep& s, const Phase& phase, Vectors& to) {
  const PackedModel& m = *s.model;
  const Activations a(s);
  const PackedLayer* layer = m.layers.data() + phase.layer;
  for (int64_t b = 0; b < s.batch; ++b) {
    float* x = to.floats + b * to.padded;
    if (phase.part == Part::kIn || phase.part == Part::kHead) {
      const float* norm = phase.part == Part::kIn ? layer->norm : m.final_norm;
      rms_norm(a.residual + b * m.d_model, norm, m.d_model, m.norm_eps, x);
    } else if (phase.part == Part::kSmall) {
      std::memcpy(x, a.conv + b * m.d_inner, m.d_inner * sizeof(float));
    } else if (layer->gate_norm != nullptr) {
      const int64_t size = m.d_inner / m.groups;
      for (int64_t at = 0; at < m.d_inner; at += size) {
        rms_norm(a.mixed + b * m.d_inner + at, layer->gate_norm + at, size, m.norm_eps, x + at);
      }
    } else {
      std::memcpy(x, a.mixed + b * m.d_inner, m.d_inner * sizeof(float));
    }
  }
  to.prepare(matrix_of(m, phase));
}

inline void gather_state(const TokenStep& s, const Phase& phase, StateInputs& to) {
  const PackedModel& m = *s.model;
  const Activations a(s);
  for (int64_t b = 0; b < s.batch; ++b) {
    const float* small = a.small + b * m.small_rows();
    const float* B = m.mamba2() ? a.conv + b * m.conv_channels() + m.d_inner : small + m.rank;
    const float* C = B + m.groups * m.states;
    float* dt = to.vectors.floats + b * to.vectors.padded;
    if (!m.mamba2()) std::memcpy(dt, small, m.rank * sizeof(float));
    for (int64_t group = 0; group < m.groups; ++group) {
      float* rows[] = {to.B + (b * m.groups + group) * to.padded, to.C + (b * m.groups + group) * to.padded};
      const float* from[] = {B + group * m.states, C + group * m.states};
      for (int i = 0; i < 2; ++i) {
        std::memset(rows[i], 0, to.padded * sizeof(float));
        std::memcpy(rows[i], from[i], m.states * sizeof(float));
        if (m.mixer_eps > 0.0f) rms_norm(from[i], nullptr, m.states, m.mixer_eps, rows[i]);
      }
    }
    if (m.mixer_eps > 0.0f) rms_norm(small, nullptr, m.rank, m.mixer_eps, dt);
  }
  if (!m.mamba2()) to.vectors.prepare(m.layers[phase.layer].dt_proj);
}

inline void* token_prepare(const void* context, int64_t index) {
  const FlushDenormals flush;
  const TokenStep& s = *static_cast<const TokenStep*>(context);
  const Phase phase(*s.model, index);
  if (phase.part == Part::kEmbed) return nullptr;
  if (phase.part == Part::kState) {
    float* memory = scratch(StateInputs::memory(s));
    StateInputs inputs(s, memory);
    inputs.vectors.clear();
    gather_state(s, phase, inputs);
    return memory;
  }
  const int64_t columns = matrix_of(*s.model, phase).columns;
  float* memory = scratch(Vectors::memory(s.batch, columns));
  Vectors vectors(s.batch, columns, memory);
  vectors.clear();
  gather(s, phase, vectors);
  return memory;
}

// The windows of `count` channels take a value each; to = what the convolution makes of them, before its activation.
inline void convolve_windows(float* windows, const float* weights, const float* values, int count, int64_t width,
                             float* to) {
  using Four = float __attribute__((vector_size(16)));
  for (int i = 0; i < count; ++i, windows += width, weights += width) {
    if (width == 4) {  // the only width in use
      const Four old = load_as<Four>(windows), weight = load_as<Four>(weights);
      const Four moved = {old[1], old[2], old[3], values[i]};
      store_as(windows, moved);
      const Four product = moved * weight;
      to[i] += (product[0] + product[1]) + (product[2] + product[3]);
      continue;
    }
    for (int64_t j = 0; j + 1 < width; ++j) {
      windows[j] = windows[j + 1];
      to[i] += weights[j] * windows[j];
    }
    windows[width - 1] = values[i];
    to[i] += weights[width - 1] * values[i];
  }
}

inline void write_silu(const float* from, int count, float* to) {
  for (int i = 0; i < count; i += kLanes) {
    const int lanes = static_cast<int>(smaller(kLanes, count - i));
    const Floats x = read_lanes(from + i, lanes);
    write_lanes(to + i, lanes, x * sigmoid(x));
  }
}

// Rows of in_proj [first, first + count) -> what they are: gates, inputs of the convolution, or steps.
inline void finish_in(const TokenStep& s, const Phase& phase, int64_t b, int64_t first, int count,
                      const float* products) {
  const PackedModel& m = *s.model;
  const PackedLayer& layer = m.layers[phase.layer];
  const Activations a(s);
  const int64_t channels = m.conv_channels(), gates = m.mamba2() ? 0 : channels;
  const int64_t inputs = m.mamba2() ? m.d_inner : 0, steps = m.mamba2() ? inputs + channels : 2 * m.d_inner;
  float values[kBand], sums[kBand];
  for (int i = 0; i < count; ++i) values[i] = products[i] + (layer.in_bias == nullptr ? 0.0f : layer.in_bias[first + i]);
  for (int done = 0; done < count;) {
    const int64_t row = first + done;
    const float* from = values + done;
    int64_t left = count - done;
    if (row >= steps) {
      std::memcpy(a.small + b * m.heads + row - steps, from, left * sizeof(float));
    } else if (row >= inputs && row < inputs + channels) {
      const int64_t channel = row - inputs;
      left = smaller(left, channels - channel);
      for (int i = 0; i < left; ++i) sums[i] = layer.conv_bias == nullptr ? 0.0f : layer.conv_bias[channel + i];
      convolve_windows(s.conv[phase.layer] + (b * channels + channel) * m.conv_width,
                       layer.conv_weight + channel * m.conv_width, from, static_cast<int>(left), m.conv_width, sums);
      write_silu(sums, static_cast<int>(left), a.conv + b * channels + channel);
    } else {
      left = smaller(left, gates + m.d_inner - row);
      write_silu(from, static_cast<int>(left), a.gate + b * m.d_inner + row - gates);
    }
    done += static_cast<int>(left);
  }
}

// Channels [first, first + count) of one sequence: their states move on, and `mixed` is what comes out, gated.
inline void finish_state(const TokenStep& s, const Phase& phase, const StateInputs& inputs, int64_t b, int64_t first,
                         int count, const float* raw) {
  const PackedModel& m = *s.model;
  const PackedLayer& layer = m.layers[phase.layer];
  const Activations a(s);
  for (int at = 0; at < count; at += kLanes) {
    const int lanes = static_cast<int>(smaller(kLanes, count - at));
    const int64_t channel = first + at;
    const int64_t head = m.mamba2() ? channel / (m.d_inner / m.heads) : 0;
    const int64_t row = b * m.groups + (m.mamba2() ? head / (m.heads / m.groups) : 0);
    Floats step = m.mamba2() ? splat(raw[0]) : read_lanes(raw + at, lanes);
    if (layer.dt_bias != nullptr) {
      step += m.mamba2() ? splat(layer.dt_bias[head]) : read_lanes(layer.dt_bias + channel, lanes);
    }
    step = softplus(step);
    if (m.step_max > 0.0f) step = minimum(maximum(step, splat(m.step_min)), splat(m.step_max));
    const float* u = a.conv + b * m.conv_channels() + channel;
    const float rate = m.mamba2() ? layer.A[head] * kLog2E : 0.0f;
    Floats parts[kLanes] = {};
    for (int i = 0; i < lanes; ++i) {
      float* state = s.states[phase.layer] + (b * m.d_inner + channel + i) * m.states;
      const float* rates = m.mamba2() ? nullptr : layer.A + (channel + i) * m.states;
      parts[i] = step_channel(state, rates, rate, step[i], step[i] * u[i], inputs.B + row * inputs.padded,
                              inputs.C + row * inputs.padded, m.states);
    }
    const Floats skip = m.mamba2() ? splat(layer.D[head]) : read_lanes(layer.D + channel, lanes);
    const int64_t place = b * m.d_inner + channel;
    const Floats y = row_sums(parts) + skip * read_lanes(u, lanes);
    write_lanes(a.mixed + place, lanes, y * read_lanes(a.gate + place, lanes));
  }
}

inline void finish_band(const TokenStep& s, const Phase& phase, int64_t first, int count, const float* sums) {
  const PackedModel& m = *s.model;
  const Activations a(s);
  for (int64_t b = 0; b < s.batch; ++b) {
    const float* values = sums + b * kBand;
    if (phase.part == Part::kIn) {
      finish_in(s, phase, b, first, count, values);
    } else if (phase.part == Part::kSmall) {
      std::memcpy(a.small + b * m.small_rows() + first, values, count * sizeof(float));
    } else if (phase.part == Part::kOut) {
      const float* bias = m.layers[phase.layer].out_bias;
      float* residual = a.residual + b * m.d_model + first;
      for (int i = 0; i < count; ++i) residual[i] += values[i] + (bias == nullptr ? 0.0f : bias[first + i]);
    } else {
      std::memcpy(s.logits + b * m.head.rows + first, values, count * sizeof(float));
    }
  }
}

inline void embed(const TokenStep& s) {
  PackedRows rows;
  rows.matrix = &s.model->embeddings;
  rows.rows = s.tokens;
  rows.count = s.batch;
  rows.out = reinterpret_cast<char*>(Activations(s).residual);
  rows_share(&rows, 0);
}

// A piece of kState in Mamba-2: the channels of one head.
inline void head_state(const TokenStep& s, const Phase& phase, int64_t piece, const StateInputs& inputs) {
  const PackedModel& m = *s.model;
  const int64_t b = piece / m.heads, head = piece % m.heads, size = m.d_inner / m.heads;
  const float* step = Activations(s).small + b * m.heads + head;
  finish_state(s, phase, inputs, b, head * size, static_cast<int>(size), step);
}

inline void token_piece(const void* context, int64_t index, int64_t piece, void* prepared) {
  const FlushDenormals flush;
  const TokenStep& s = *static_cast<const TokenStep*>(context);
  const PackedModel& m = *s.model;
  const Phase phase(m, index);
  if (phase.part == Part::kEmbed) return embed(s);
  float* memory = static_cast<float*>(prepared);
  const bool state = phase.part == Part::kState;
  if (state && m.mamba2()) return head_state(s, phase, piece, StateInputs(s, memory));
  const PackedMatrix& matrix = matrix_of(m, phase);
  const Vectors vectors(s.batch, matrix.columns, memory);
  const int64_t step = bands_of_piece(s, bands(matrix));
  const int64_t last = smaller(bands(matrix), (piece + 1) * step);
  for (int64_t band = piece * step; band < last; ++band) {
    float sums[kMaxBatch * kBand];
    const int64_t first = band * kBand;
    const int count = rows_of(matrix, band);
    multiply_band(matrix, first, count, vectors, sums);
    if (!state) {
      finish_band(s, phase, first, count, sums);
      continue;
    }
    const StateInputs inputs(s, memory);
    for (int64_t b = 0; b < s.batch; ++b) finish_state(s, phase, inputs, b, first, count, sums + b * kBand);
  }
}

inline void token_step(const TokenStep& s) {
  Phases phases;
  phases.count = Phase::count(*s.model);
  phases.pieces = token_pieces;
  phases.prepare = token_prepare;
  phases.piece = token_piece;
  in_phases(phases, s.threads, &s);
}

}  // namespace HMP_ISA
}  // namespace hmp
