// Runs every kernel of every instruction set over a table of shapes, for the sanitizers: each tensor is a heap block of
// exactly its size, so that a read or write beyond it is caught.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "dispatch/dispatch.h"
#include "packed/packed_model.h"

using namespace hmp;

namespace {

class Tensors {
 public:
  float* floats(int64_t count) {
    blocks_.push_back(std::make_unique<std::vector<float>>(count));
    for (float& value : *blocks_.back()) value = next();
    return blocks_.back()->data();
  }
  // A (batch, length, channels) view; bf16 halves are filled with the upper halves of floats.
  View view(int64_t batch, int64_t length, int64_t channels, bool half, bool channel_major = false) {
    const int64_t count = batch * length * channels;
    View made;
    if (half) {
      halves_.push_back(std::make_unique<std::vector<uint16_t>>(count));
      for (uint16_t& value : *halves_.back()) value = static_cast<uint16_t>(next() > 0 ? 0x3e80 : 0xbf00);
      made.data = reinterpret_cast<char*>(halves_.back()->data());
      made.coding = Coding::kBFloat16;
    } else {
      made.data = reinterpret_cast<char*>(floats(count));
    }
    made.batch_stride = length * channels;
    made.length_stride = channel_major ? 1 : channels;
    made.channel_stride = channel_major ? length : 1;
    return made;
  }
  // A packed matrix of about a third of its weights, or a dense one; kReadable bytes stand behind the values.
  PackedMatrix packed(int64_t rows, int64_t columns, Coding coding, bool masked) {
    constexpr int kBytes[] = {4, 2, 2, 1};
    PackedMatrix m;
    m.rows = rows, m.columns = columns, m.coding = coding;
    words_.push_back(std::make_unique<std::vector<uint64_t>>(rows * m.words()));
    starts_.push_back(std::make_unique<std::vector<uint32_t>>(rows));
    uint32_t kept = 0;
    for (int64_t row = 0; row < rows; ++row) {
      (*starts_.back())[row] = kept;
      for (int64_t column = 0; column < columns; ++column) {
        if (masked && (row == 1 || next() < 0.4f) && row != 2) continue;
        (*words_.back())[row * m.words() + column / 64] |= uint64_t{1} << column % 64;
        ++kept;
      }
    }
    bytes_.push_back(std::make_unique<std::vector<char>>(kept * kBytes[static_cast<int>(coding)] + kReadable));
    for (uint32_t i = 0; i < kept; ++i) {
      const float value = next();
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t half = coding == Coding::kBFloat16 ? bits >> 16 : 0x3400 | (bits >> 20 & 0x83ff);
      char* to = bytes_.back()->data() + i * kBytes[static_cast<int>(coding)];
      if (coding == Coding::kFloat32) std::memcpy(to, &value, 4);
      if (coding == Coding::kInt8) *to = static_cast<char>(value * 127);
      if (coding == Coding::kBFloat16 || coding == Coding::kFloat16) std::memcpy(to, &half, 2);
    }
    m.values = bytes_.back()->data();
    if (masked) m.masks = words_.back()->data(), m.starts = starts_.back()->data();
    if (coding == Coding::kInt8) m.scales = floats(rows);
    return m;
  }
  // Random codes: of widths by row without masks, or of the coding's under them.
  PackedMatrix coded(int64_t rows, int64_t columns, Coding coding) {
    PackedMatrix m;
    m.rows = rows, m.columns = columns, m.coding = coding;
    const std::vector<char>& levels = random_bytes(kLevels, 63);
    for (char& level : *bytes_.back()) level = static_cast<char>(level - kLevelOffset);
    m.levels = reinterpret_cast<const int8_t*>(levels.data());
    m.scales = floats(rows);
    if (columns % 2 == 0) m.column_scales = floats(columns);
    int64_t bytes = 0;
    if (coding == Coding::kMixed) {
      bytes_.push_back(std::make_unique<std::vector<char>>(rows));
      words_.push_back(std::make_unique<std::vector<uint64_t>>(rows));
      m.row_bits = reinterpret_cast<const uint8_t*>(bytes_.back()->data()), m.row_starts = words_.back()->data();
      for (int64_t row = 0; row < rows; ++row) {
        (*bytes_.back())[row] = static_cast<char>(row % 7);
        (*words_.back())[row] = bytes;
        bytes += m.row_bytes(static_cast<int>(row % 7));
      }
    } else {
      m.masks = code_masks(m);
      m.starts = starts_.back()->data();
      const int64_t kept = starts_.back()->back();
      m.plane_bytes = (kept + 63) / 64 * 8;
      bytes = m.plane_bytes * row_of(coding).bits;
    }
    m.values = random_bytes(bytes + kReadable, 255).data();
    return m;
  }
  bool finite() const {
    for (const auto& block : blocks_) {
      for (float value : *block) {
        if (!std::isfinite(value)) return false;
      }
    }
    return true;
  }

 private:
  const std::vector<char>& random_bytes(int64_t count, uint32_t mask) {
    bytes_.push_back(std::make_unique<std::vector<char>>(count));
    for (char& byte : *bytes_.back()) next(), byte = static_cast<char>(seed_ >> 16 & mask);
    return *bytes_.back();
  }
  // Masks in the order of codes; the numbers of the rows' first weights, and behind them that of all, become the last
  // of `starts_`.
  const uint64_t* code_masks(const PackedMatrix& m) {
    words_.push_back(std::make_unique<std::vector<uint64_t>>(m.rows * m.words()));
    starts_.push_back(std::make_unique<std::vector<uint32_t>>());
    uint32_t kept = 0;
    for (int64_t row = 0; row < m.rows; ++row) {
      starts_.back()->push_back(kept);
      for (int64_t place = 0; place < m.words() * 64; ++place) {
        const int64_t column = place / 64 * 64 + column_of_bit(static_cast<int>(place % 64));
        if (column >= m.columns || row == 2 || (row != 1 && next() < 0.2f)) continue;
        (*words_.back())[row * m.words() + place / 64] |= uint64_t{1} << place % 64;
        ++kept;
      }
    }
    starts_.back()->push_back(kept);
    return words_.back()->data();
  }
  float next() {
    seed_ = seed_ * 1664525u + 1013904223u;
    return static_cast<float>(seed_ >> 8) / (1 << 23) - 1.0f;
  }
  uint32_t seed_ = 1;
  std::vector<std::unique_ptr<std::vector<float>>> blocks_;
  std::vector<std::unique_ptr<std::vector<uint16_t>>> halves_;
  std::vector<std::unique_ptr<std::vector<uint64_t>>> words_;
  std::vector<std::unique_ptr<std::vector<uint32_t>>> starts_;
  std::vector<std::unique_ptr<std::vector<char>>> bytes_;
};

bool run_scan(const KernelTable& table, const ScanShape& s, bool half, bool channel_major) {
  Tensors own;
  const int64_t b = s.batch, l = s.length, d = s.channels(), n = s.states, bc = s.groups * n;
  const int64_t steps = s.per_head ? s.heads : d;
  const ScanSizes sizes = table.scan_sizes(s);
  auto view = [&](int64_t channels) { return own.view(b, l, channels, half, channel_major); };
  ScanForward f;
  f.shape = s;
  f.u = view(d), f.delta = view(steps), f.B = view(bc), f.C = view(bc), f.out = view(d);
  if (!s.per_head) f.z = view(d);
  float* A = own.floats(s.per_head ? s.heads : d * n);
  for (int64_t i = 0; i < (s.per_head ? s.heads : d * n); ++i) A[i] = -std::fabs(A[i]);
  f.A = A, f.D = own.floats(steps), f.bias = own.floats(steps), f.initial = own.floats(b * d * n);
  f.last = own.floats(b * d * n), f.checkpoints = own.floats(b * sizes.tiles * d * n);
  table.scan_forward(f, 2);

  ScanBackward g;
  g.forward = f;
  g.dout = view(d), g.du = view(d), g.dB = view(bc), g.dC = view(bc);
  if (!s.per_head) g.ddelta = view(d), g.dz = view(d);
  g.dlast = own.floats(b * d * n), g.dinitial = own.floats(b * d * n), g.dD = own.floats(b * d);
  g.dA = own.floats(s.per_head ? b * sizes.blocks : b * d * n);
  g.dbias = own.floats(s.per_head ? b * sizes.blocks : b * d);
  if (s.per_head) g.dstep = own.floats(b * l * sizes.blocks);
  g.dBC = own.floats(b * s.groups * sizes.shares * l * 2 * sizes.padded_states);
  table.scan_backward(g, 2);

  const StateStep step{s, f.last, f.u, f.delta, f.z, f.B, f.C, f.out, f.A, f.D, f.bias};
  table.state_step(step, 2);
  return own.finite();
}

bool run_conv(const KernelTable& table, int64_t b, int64_t l, int64_t d, int64_t width, bool half) {
  Tensors own;
  Conv c;
  c.batch = b, c.length = l, c.channels = d, c.width = width, c.silu = true;
  c.x = own.view(b, l, d, half), c.out = own.view(b, l, d, half), c.dout = own.view(b, l, d, half);
  c.dx = own.view(b, l, d, half), c.weight = own.floats(d * width), c.bias = own.floats(d);
  c.dweight = own.floats(b * d * width), c.dbias = own.floats(b * d);
  table.conv_forward(c, 2);
  table.conv_backward(c, 2);
  ConvStep step;
  step.batch = b, step.channels = d, step.width = width, step.kept = width, step.silu = true;
  step.state = own.view(b, width, d, half), step.x = c.x, step.out = c.out;
  step.weight = c.weight, step.bias = c.bias;
  table.conv_step(step);
  return own.finite();
}

bool run_select(const KernelTable& table, int64_t count, Coding coding) {
  Tensors own;
  std::vector<uint16_t> halves(count, 0x3c12);
  float* floats = own.floats(count);
  const Values values{coding == Coding::kFloat32 ? reinterpret_cast<char*>(floats) : reinterpret_cast<char*>(halves.data()),
                      coding, count};
  std::vector<int64_t> counts(1000 + 2), positions(count);
  std::vector<int32_t> keys(count);
  std::vector<uint8_t> keep(count);
  table.range_histogram(values, 0x3c000000u, 14, 1000, counts.data(), 2);
  table.keep_above(values, 0x3f000000u, keep.data(), 2);
  const BetweenCounts hits = table.between(values, 0x3c000000u, 0x3f000000u, positions.data(), keys.data(), count, 2);
  const BetweenCounts more = table.between(values, 0, 0x7fffffffu, positions.data(), keys.data(), count / 2, 2);
  int64_t sum = 0;
  for (int64_t bin : counts) sum += bin;
  return sum == count && hits.below + hits.found <= count && more.found == count;
}

bool run_packed(const KernelTable& table, int64_t rows, int64_t columns, Coding coding, bool masked) {
  Tensors own;
  const PackedMatrix m = is_code(coding) ? own.coded(rows, columns, coding) : own.packed(rows, columns, coding, masked);
  for (const int64_t batch : {int64_t{1}, int64_t{4}, kMaxBatch, 2 * kMaxBatch + 1}) {
    const PackedProduct product{&m, batch, own.floats(batch * columns), own.floats(batch * rows)};
    table.packed_product(product, 2);
  }
  std::vector<uint16_t> halves(rows * columns);
  const std::vector<int64_t> chosen{rows - 1, 0, rows / 2};
  table.packed_rows({&m, nullptr, rows / 2, rows - rows / 2, false,
                     reinterpret_cast<char*>(own.floats((rows - rows / 2) * columns))}, 2);
  table.packed_rows({&m, nullptr, 0, rows, true, reinterpret_cast<char*>(halves.data())}, 2);
  table.packed_rows({&m, chosen.data(), 0, 3, false, reinterpret_cast<char*>(own.floats(3 * columns))}, 2);
  return own.finite();
}

bool run_token(const KernelTable& table, bool mamba2, int64_t d_model, int64_t batch, int threads) {
  Tensors own;
  PackedModel model;
  model.d_model = d_model, model.d_inner = 2 * d_model, model.states = mamba2 ? 20 : 16, model.conv_width = mamba2 ? 3 : 4;
  model.rank = mamba2 ? 0 : 5, model.heads = mamba2 ? 4 : 0, model.groups = mamba2 ? 2 : 1;
  model.norm_eps = 1e-5f, model.mixer_eps = batch == 1 ? 1e-6f : 0.0f;
  const int64_t heads = mamba2 ? model.heads : model.d_inner, channels = model.conv_channels();
  std::vector<float*> windows, states;
  for (int layer = 0; layer < 3; ++layer) {
    PackedLayer l;
    const Coding coding = static_cast<Coding>(layer + 1);
    l.in_proj = layer == 0 ? own.packed(model.in_rows(), model.d_model, coding, true)
                           : own.coded(model.in_rows(), model.d_model, layer == 1 ? Coding::kMixed : Coding::kInt2);
    if (!mamba2) l.x_proj = own.packed(model.small_rows(), model.d_inner, coding, layer > 0);
    if (!mamba2) l.dt_proj = own.packed(model.d_inner, model.rank, coding, true);
    l.out_proj = layer == 1 ? own.coded(model.d_model, model.d_inner, Coding::kMixed)
                            : own.packed(model.d_model, model.d_inner, coding, true);
    l.norm = own.floats(model.d_model), l.in_bias = own.floats(model.in_rows());
    l.conv_weight = own.floats(channels * model.conv_width), l.conv_bias = own.floats(channels);
    l.dt_bias = own.floats(heads), l.D = own.floats(heads), l.out_bias = own.floats(model.d_model);
    float* A = own.floats(mamba2 ? heads : heads * model.states);
    for (int64_t i = 0; i < (mamba2 ? heads : heads * model.states); ++i) A[i] = -std::fabs(A[i]);
    l.A = A;
    if (mamba2) l.gate_norm = own.floats(model.d_inner);
    model.layers.push_back(l);
    windows.push_back(own.floats(batch * channels * model.conv_width));
    states.push_back(own.floats(batch * model.d_inner * model.states));
  }
  model.final_norm = own.floats(model.d_model);
  model.embeddings = model.head = own.coded(70, model.d_model, Coding::kMixed);
  const std::vector<int64_t> tokens(batch, 69);
  const TokenStep step{&model,       batch, tokens.data(), windows.data(), states.data(), own.floats(batch * 70),
                       own.floats(model.memory(batch)), threads};
  for (int i = 0; i < 5; ++i) table.token_step(step);
  return own.finite();
}

}  // namespace

int main() {
  int cases = 0, wrong = 0;
  auto count = [&](bool fine) { ++cases, wrong += fine ? 0 : 1; };
  for (const KernelTable* table : supported_tables()) {
    for (int64_t l : {1, 2, 7, 63, 64, 65, 513}) {
      for (int64_t d : {1, 15, 16, 48}) {
        for (int64_t n : {1, 8, 16, 64, 128}) {
          ScanShape s;
          s.batch = n == 8 ? 3 : 1, s.length = l, s.head_dim = d, s.states = n, s.softplus = true;
          count(run_scan(*table, s, n == 16, l == 63));
          s.heads = 4, s.groups = 2, s.per_head = true, s.step_max = 0.5f;
          count(run_scan(*table, s, n == 16, l == 63));
        }
        count(run_conv(*table, 2, l, d, d == 15 ? 3 : 4, l == 64));
      }
      for (Coding coding : {Coding::kFloat32, Coding::kBFloat16, Coding::kFloat16}) {
        count(run_select(*table, l == 513 ? 1100001 : l, coding));
      }
    }
    for (int64_t columns : {1, 5, 24, 63, 64, 65, 129, 200, 600}) {
      for (int64_t rows : {3, 16, 37}) {
        for (int coding = 0; coding < 8; ++coding) {
          count(run_packed(*table, rows, columns, static_cast<Coding>(coding / 2), coding % 2 == 0));
        }
        for (Coding coding : {Coding::kMixed, Coding::kInt1, Coding::kInt2, Coding::kInt3, Coding::kInt4}) {
          count(run_packed(*table, rows, columns, coding, coding != Coding::kMixed));
        }
      }
    }
    for (int64_t batch : {1, 3, 8}) {
      for (int threads : {1, 3}) {
        for (int64_t d_model : {24, 96}) {
          count(run_token(*table, false, d_model, batch, threads));
          count(run_token(*table, true, d_model, batch, threads));
        }
      }
    }
  }
  std::printf("%d cases, %s\n", cases, wrong == 0 ? "all finite" : "some not finite");
  return wrong == 0 ? 0 : 1;
}
