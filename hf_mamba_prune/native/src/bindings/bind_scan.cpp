// The selective scan, forward, backward and one step at a time.
#include "bindings/bindings.h"

namespace hmp {
namespace {

void check(const ScanShape& s) {
  product("a scan", {s.batch, s.length, s.heads, s.head_dim, s.states, 2 * value_bytes(Coding::kFloat32)});
  product("B", {s.batch, s.length, s.groups, s.states});
  if (s.heads % s.groups != 0) {
    refuse(std::to_string(s.groups) + " groups do not divide " + std::to_string(s.heads) + " heads");
  }
  if (!s.per_head && (s.heads != 1 || s.groups != 1)) {
    refuse("a scan with a step for each channel has one head and one group, not " + std::to_string(s.heads) + " and " +
           std::to_string(s.groups));
  }
  if (!(s.step_max <= 0.0f || s.step_min <= s.step_max)) refuse("step_min is above step_max");
}

std::array<int64_t, 3> activations(const ScanShape& s) { return {s.batch, s.length, s.channels()}; }
std::array<int64_t, 3> steps(const ScanShape& s) { return {s.batch, s.length, s.per_head ? s.heads : s.channels()}; }
std::array<int64_t, 3> states(const ScanShape& s) { return {s.batch, s.length, s.groups * s.states}; }

void bind_shapes(nb::module_& module) {
  nb::class_<ScanShape>(module, "ScanShape")
      .def("__init__",
           [](ScanShape* self, int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t groups,
              int64_t states, bool per_head, bool softplus, float step_min, float step_max) {
             const ScanShape shape{batch, length, heads, head_dim, groups, states, per_head, softplus, step_min, step_max};
             check(shape);
             new (self) ScanShape(shape);
           }, nb::kw_only(), "batch"_a, "length"_a, "heads"_a, "head_dim"_a, "groups"_a, "states"_a, "per_head"_a,
           "softplus"_a, "step_min"_a = 0.0f, "step_max"_a = 0.0f)
      .def_ro("batch", &ScanShape::batch)
      .def_ro("length", &ScanShape::length)
      .def_ro("heads", &ScanShape::heads)
      .def_ro("head_dim", &ScanShape::head_dim)
      .def_ro("groups", &ScanShape::groups)
      .def_ro("states", &ScanShape::states)
      .def_ro("per_head", &ScanShape::per_head)
      .def_prop_ro("channels", &ScanShape::channels);
  nb::class_<ScanSizes>(module, "ScanSizes")
      .def_ro("tiles", &ScanSizes::tiles)
      .def_ro("blocks", &ScanSizes::blocks)
      .def_ro("shares", &ScanSizes::shares)
      .def_ro("padded_states", &ScanSizes::padded_states);
  module.def("scan_sizes", [](const std::string& isa, const ScanShape& shape) {
    return table_named(isa).scan_sizes(shape);
  }, nb::kw_only(), "isa"_a, "shape"_a);
}

void bind_inputs(nb::module_& module) {
  nb::class_<ScanForward>(module, "ScanInputs")
      .def("__init__",
           [](ScanForward* self, const ScanShape& s, const Strided& u, const Strided& delta, const Strided* z,
              const Strided& B, const Strided& C, const Buffer& A, const Buffer* D, const Buffer* bias,
              const Buffer* initial) {
             ScanForward f;
             f.shape = s;
             f.u = view("u", &u, activations(s));
             f.delta = view("delta", &delta, steps(s));
             f.z = view("z", z, activations(s));
             f.B = view("B", &B, states(s));
             f.C = view("C", &C, states(s));
             f.A = s.per_head ? given<float>("A", &A, {s.heads}) : given<float>("A", &A, {s.channels(), s.states});
             f.D = given<float>("D", D, {steps(s)[2]});
             f.bias = given<float>("bias", bias, {steps(s)[2]});
             f.initial = given<float>("initial", initial, {s.batch, s.channels(), s.states});
             new (self) ScanForward(f);
           }, nb::kw_only(), "shape"_a, "u"_a, "delta"_a, optional("z"), "B"_a, "C"_a, "A"_a, optional("D"),
           optional("bias"), optional("initial"));
}

void scan_forward(const std::string& isa, int threads, const ScanForward& inputs, const Strided& out,
                  const Buffer* last, const Buffer* checkpoints) {
  const KernelTable& table = table_named(isa);
  ScanForward f = inputs;
  const ScanShape& s = f.shape;
  f.out = view("out", &out, activations(s));
  f.last = given<float>("last", last, {s.batch, s.channels(), s.states});
  const int64_t tiles = table.scan_sizes(s).tiles;
  f.checkpoints = given<float>("checkpoints", checkpoints, {s.batch, tiles, s.channels(), s.states});
  threads_of(threads);
  nb::gil_scoped_release release;
  announce(f.out, s.batch * s.length * s.channels());
  table.scan_forward(f, threads);
}

// What the gradients are summed in, by the caller, has a shape that depends on how the work was cut.
void place_sums(ScanBackward& g, const ScanSizes& sizes, const Buffer& dA, const Buffer* dD, const Buffer& dbias,
                const Buffer* dstep, const Buffer& dBC) {
  const ScanShape& s = g.forward.shape;
  g.dA = s.per_head ? given<float>("dA", &dA, {s.batch, sizes.blocks})
                    : given<float>("dA", &dA, {s.batch, s.channels(), s.states});
  g.dbias = given<float>("dbias", &dbias, {s.batch, s.per_head ? sizes.blocks : s.channels()});
  g.dD = given<float>("dD", dD, {s.batch, s.channels()});
  if (s.per_head) g.dstep = needed<float>("dstep", dstep, {s.batch, s.length, sizes.blocks});
  g.dBC = given<float>("dBC", &dBC, {s.batch, s.groups, sizes.shares, s.length, 2, sizes.padded_states});
}

void scan_backward(const std::string& isa, int threads, const ScanForward& inputs, const Buffer& checkpoints,
                   const Strided& dout, const Buffer* dlast, const Strided& du, const Strided* ddelta,
                   const Strided* dz, const Strided& dB, const Strided& dC, const Buffer& dA, const Buffer* dD,
                   const Buffer& dbias, const Buffer* dinitial, const Buffer* dstep, const Buffer& dBC) {
  const KernelTable& table = table_named(isa);
  ScanBackward g;
  g.forward = inputs;
  const ScanShape& s = g.forward.shape;
  const ScanSizes sizes = table.scan_sizes(s);
  if ((dz == nullptr) != !inputs.z || (dD == nullptr) != (inputs.D == nullptr) ||
      (dinitial == nullptr) != (inputs.initial == nullptr)) {
    refuse("dz, dD and dinitial must be given where z, D and initial are, and nowhere else");
  }
  g.forward.checkpoints = given<float>("checkpoints", &checkpoints, {s.batch, sizes.tiles, s.channels(), s.states});
  g.dout = view("dout", &dout, activations(s));
  g.dlast = given<float>("dlast", dlast, {s.batch, s.channels(), s.states});
  g.du = view("du", &du, activations(s));
  if (!s.per_head) g.ddelta = needed_view("ddelta", ddelta, steps(s));
  g.dz = view("dz", dz, activations(s));
  g.dB = view("dB", &dB, states(s));
  g.dC = view("dC", &dC, states(s));
  g.dinitial = given<float>("dinitial", dinitial, {s.batch, s.channels(), s.states});
  place_sums(g, sizes, dA, dD, dbias, dstep, dBC);
  threads_of(threads);
  nb::gil_scoped_release release;
  for (const View* out : {&g.du, &g.ddelta, &g.dz}) announce(*out, s.batch * s.length * s.channels());
  table.scan_backward(g, threads);
}

void state_step(const std::string& isa, int threads, const ScanForward& inputs, const Buffer& state,
                const Strided& out) {
  const KernelTable& table = table_named(isa);
  const ScanForward& f = inputs;
  const ScanShape& s = f.shape;
  if (s.length != 1 || f.initial != nullptr) refuse("a step is of length 1 and starts from its state");
  const StateStep step{s,   given<float>("state", &state, {s.batch, s.channels(), s.states}),
                       f.u, f.delta, f.z, f.B, f.C, view("out", &out, activations(s)),
                       f.A, f.D, f.bias};
  threads_of(threads);
  nb::gil_scoped_release release;
  table.state_step(step, threads);
}

}  // namespace

void bind_scan(nb::module_& module) {
  bind_shapes(module);
  bind_inputs(module);
  module.def("scan_forward", &scan_forward, nb::kw_only(), "isa"_a, "threads"_a, "inputs"_a, "out"_a, optional("last"),
             optional("checkpoints"));
  module.def("scan_backward", &scan_backward, nb::kw_only(), "isa"_a, "threads"_a, "inputs"_a, "checkpoints"_a,
             "dout"_a, optional("dlast"), "du"_a, optional("ddelta"), optional("dz"), "dB"_a, "dC"_a, "dA"_a,
             optional("dD"), "dbias"_a, optional("dinitial"), optional("dstep"), "dBC"_a);
  module.def("state_step", &state_step, nb::kw_only(), "isa"_a, "threads"_a, "inputs"_a, "state"_a, "out"_a);
}

}  // namespace hmp
