// A whole packed model and the cache of its tokens: sizes are compared once, when each is made.
#include "bindings/bindings.h"
#include "packed/packed_model.h"

namespace hmp {
namespace {

constexpr int64_t kMostSize = int64_t{1} << 24;  // of a width of a model: sums of products of two stay far below 2^63

void check_size(const char* name, int64_t size, int64_t least = 1) {
  if (size < least || size > kMostSize) {
    refuse(std::string(name) + " is " + std::to_string(size) + ", expected " + std::to_string(least) + " to " +
           std::to_string(kMostSize));
  }
}

void check_matrix(const char* name, const PackedMatrix& m, int64_t rows, int64_t columns) {
  if (m.rows != rows || m.columns != columns) {
    refuse(std::string(name) + " is (" + std::to_string(m.rows) + ", " + std::to_string(m.columns) + "), expected (" +
           std::to_string(rows) + ", " + std::to_string(columns) + ") from the sizes of the model");
  }
}

PackedMatrix only_in_mamba1(const char* name, const PackedModel& model, const PackedMatrix* m, int64_t rows,
                            int64_t columns) {
  if ((m == nullptr) != model.mamba2()) {
    refuse(std::string(name) + " must " + (model.mamba2() ? "not be given: Mamba-2 has none" : "be given in Mamba-1"));
  }
  if (m == nullptr) return {};
  check_matrix(name, *m, rows, columns);
  return *m;
}

void check_sizes(const PackedModel& m) {
  check_size("d_model", m.d_model);
  check_size("d_inner", m.d_inner);
  check_size("states", m.states);
  check_size("conv_width", m.conv_width);
  check_size("heads", m.heads, 0);
  check_size("groups", m.groups);
  check_size("rank", m.rank, m.mamba2() ? 0 : 1);
  if (m.mamba2() ? m.rank != 0 : m.groups != 1) refuse("a model has either heads and groups or a rank");
  if (m.mamba2() && (m.d_inner % m.heads != 0 || m.heads % m.groups != 0)) {
    refuse(std::to_string(m.groups) + " groups must divide " + std::to_string(m.heads) + " heads, and these d_inner, " +
           std::to_string(m.d_inner));
  }
  if (!(m.norm_eps >= 0.0f && m.mixer_eps >= 0.0f)) refuse("norm_eps and mixer_eps must not be below 0");
  if (!(m.step_max <= 0.0f || m.step_min <= m.step_max)) refuse("step_min is above step_max");
}

void make_model(PackedModel* self, int64_t d_model, int64_t d_inner, int64_t states, int64_t conv_width, int64_t rank,
                int64_t heads, int64_t groups, float norm_eps, float mixer_eps, float step_min, float step_max,
                const PackedMatrix& embeddings, const PackedMatrix& head, const Buffer& final_norm) {
  PackedModel m;
  m.d_model = d_model, m.d_inner = d_inner, m.states = states, m.conv_width = conv_width;
  m.rank = rank, m.heads = heads, m.groups = groups;
  m.norm_eps = norm_eps, m.mixer_eps = mixer_eps, m.step_min = step_min, m.step_max = step_max;
  check_sizes(m);
  check_matrix("embeddings", embeddings, head.rows, d_model);
  check_matrix("head", head, head.rows, d_model);
  m.embeddings = embeddings;
  m.head = head;
  m.final_norm = given<float>("final_norm", &final_norm, {d_model});
  new (self) PackedModel(std::move(m));
}

void add_layer(PackedModel& m, const PackedMatrix& in_proj, const PackedMatrix* x_proj, const PackedMatrix* dt_proj,
               const PackedMatrix& out_proj, const Buffer& norm, const Buffer* in_bias, const Buffer& conv_weight,
               const Buffer* conv_bias, const Buffer* dt_bias, const Buffer& A, const Buffer& D,
               const Buffer* gate_norm, const Buffer* out_bias) {
  PackedLayer layer;
  check_matrix("in_proj", in_proj, m.in_rows(), m.d_model);
  check_matrix("out_proj", out_proj, m.d_model, m.d_inner);
  layer.in_proj = in_proj;
  layer.x_proj = only_in_mamba1("x_proj", m, x_proj, m.small_rows(), m.d_inner);
  layer.dt_proj = only_in_mamba1("dt_proj", m, dt_proj, m.d_inner, m.rank);
  layer.out_proj = out_proj;
  if ((gate_norm != nullptr) != m.mamba2()) refuse("gate_norm must be given in Mamba-2 and only there");
  const int64_t steps = m.mamba2() ? m.heads : m.d_inner;
  layer.norm = given<float>("norm", &norm, {m.d_model});
  layer.in_bias = given<float>("in_bias", in_bias, {m.in_rows()});
  layer.conv_weight = given<float>("conv_weight", &conv_weight, {m.conv_channels(), m.conv_width});
  layer.conv_bias = given<float>("conv_bias", conv_bias, {m.conv_channels()});
  layer.dt_bias = given<float>("dt_bias", dt_bias, {steps});
  layer.A = given<float>("A", &A, {steps, m.mamba2() ? 1 : m.states});
  layer.D = given<float>("D", &D, {steps});
  layer.gate_norm = given<float>("gate_norm", gate_norm, {m.d_inner});
  layer.out_bias = given<float>("out_bias", out_bias, {m.d_model});
  m.layers.push_back(layer);
}

int64_t batch_of(int64_t batch) {
  if (batch < 1 || batch > kMaxBatch) {
    refuse("a step takes " + std::to_string(batch) + " sequences, expected 1 to MAX_BATCH: " + std::to_string(kMaxBatch));
  }
  return batch;
}

// Where the windows and states of all layers are; as long as they are there.
struct TokenCache {
  int64_t batch = 0, window = 0, state = 0;  // floats of one sequence
  std::vector<float*> windows, states;

  static std::vector<float*> places(const char* name, const std::vector<Buffer>& from, const PackedModel& model,
                                    int64_t batch, int64_t size) {
    if (from.size() != model.layers.size()) {
      refuse(std::string(name) + " are of " + std::to_string(from.size()) + " layers, the model has " +
             std::to_string(model.layers.size()));
    }
    std::vector<float*> to;
    for (const Buffer& buffer : from) to.push_back(given<float>(name, &buffer, {batch, size}));
    return to;
  }

  TokenCache(const PackedModel& model, int64_t sequences, const std::vector<Buffer>& window_buffers,
             const std::vector<Buffer>& state_buffers)
      : batch(sequences),
        window(product("a window", {model.conv_channels(), model.conv_width})),
        state(product("a state", {model.d_inner, model.states})),
        windows(places("windows", window_buffers, model, batch, window)),
        states(places("states", state_buffers, model, batch, state)) {}

  bool fits(const PackedModel& m) const {
    return windows.size() == m.layers.size() && window == m.conv_channels() * m.conv_width &&
           state == m.d_inner * m.states;
  }
};

std::vector<float*> moved(const std::vector<float*>& from, int64_t by) {
  std::vector<float*> to(from);
  for (float*& at : to) at += by;
  return to;
}

void step(const PackedModel& model, const std::string& isa, int threads, const Buffer& tokens, const TokenCache& cache,
          int64_t first, const Buffer& logits, const Buffer& memory) {
  const KernelTable& table = table_named(isa);
  const int64_t batch = batch_of(tokens.bytes / static_cast<int64_t>(sizeof(int64_t)));
  if (!cache.fits(model)) refuse("the cache was made for a model of other sizes");
  if (first < 0 || first > cache.batch - batch) {
    refuse("sequences " + std::to_string(first) + " to " + std::to_string(first + batch - 1) +
           " are not all among the " + std::to_string(cache.batch) + " of the cache");
  }
  const int64_t* ids = given<int64_t>("tokens", &tokens, {batch});
  for (int64_t i = 0; i < batch; ++i) {
    if (ids[i] < 0 || ids[i] >= model.head.rows) {
      throw std::out_of_range("token " + std::to_string(ids[i]) + " is not among " + std::to_string(model.head.rows));
    }
  }
  const std::vector<float*> windows = moved(cache.windows, first * cache.window);
  const std::vector<float*> states = moved(cache.states, first * cache.state);
  const TokenStep own{&model,        batch,         ids,
                      windows.data(), states.data(), given<float>("logits", &logits, {batch, model.head.rows}),
                      given<float>("memory", &memory, {model.memory(batch)}), threads_of(threads)};
  nb::gil_scoped_release release;
  table.token_step(own);
}

}  // namespace

void bind_model(nb::module_& module) {
  nb::class_<PackedModel>(module, "PackedModel")
      .def("__init__", &make_model, nb::kw_only(), "d_model"_a, "d_inner"_a, "states"_a, "conv_width"_a, "rank"_a = 0,
           "heads"_a = 0, "groups"_a = 1, "norm_eps"_a, "mixer_eps"_a = 0.0f, "step_min"_a = 0.0f, "step_max"_a = 0.0f,
           "embeddings"_a, "head"_a, "final_norm"_a)
      .def("add_layer", &add_layer, nb::kw_only(), "in_proj"_a, optional("x_proj"), optional("dt_proj"), "out_proj"_a,
           "norm"_a, optional("in_bias"), "conv_weight"_a, optional("conv_bias"), optional("dt_bias"), "A"_a, "D"_a,
           optional("gate_norm"), optional("out_bias"))
      .def_prop_ro("window", [](const PackedModel& model) { return model.conv_channels() * model.conv_width; })
      .def_prop_ro("state", [](const PackedModel& model) { return model.d_inner * model.states; })
      .def("memory", [](const PackedModel& model, int64_t batch) { return model.memory(batch_of(batch)); },
           nb::kw_only(), "batch"_a)
      .def("step", &step, nb::kw_only(), "isa"_a, "threads"_a, "tokens"_a, "cache"_a, "first"_a = 0, "logits"_a,
           "memory"_a);
  nb::class_<TokenCache>(module, "TokenCache")
      .def(nb::init<const PackedModel&, int64_t, const std::vector<Buffer>&, const std::vector<Buffer>&>(),
           nb::kw_only(), "model"_a, "batch"_a, "windows"_a, "states"_a);
}

}  // namespace hmp
