// The causal convolution, forward, backward and one step at a time.
#include "bindings/bindings.h"

namespace hmp {
namespace {

Conv conv(bool silu, int64_t width, const Strided& x, const Buffer& weight, const Buffer* bias) {
  Conv c;
  c.batch = x.shape[0], c.length = x.shape[1], c.channels = x.shape[2], c.width = width, c.silu = silu;
  c.x = view("x", &x, x.shape);
  c.weight = given<float>("weight", &weight, {c.channels, width});
  c.bias = given<float>("bias", bias, {c.channels});
  return c;
}

void conv_forward(const std::string& isa, int threads, bool silu, int64_t width, const Strided& x,
                  const Buffer& weight, const Buffer* bias, const Strided& out) {
  const KernelTable& table = table_named(isa);
  Conv c = conv(silu, width, x, weight, bias);
  c.out = view("out", &out, x.shape);
  threads_of(threads);
  nb::gil_scoped_release release;
  announce(c.out, c.batch * c.length * c.channels);
  table.conv_forward(c, threads);
}

void conv_backward(const std::string& isa, int threads, bool silu, int64_t width, const Strided& x,
                   const Buffer& weight, const Buffer* bias, const Strided& dout, const Strided& dx,
                   const Buffer& dweight, const Buffer& dbias) {
  const KernelTable& table = table_named(isa);
  Conv c = conv(silu, width, x, weight, bias);
  c.dout = view("dout", &dout, x.shape);
  c.dx = view("dx", &dx, x.shape);
  c.dweight = given<float>("dweight", &dweight, {c.batch, c.channels, width});
  c.dbias = given<float>("dbias", &dbias, {c.batch, c.channels});
  threads_of(threads);
  nb::gil_scoped_release release;
  announce(c.dx, c.batch * c.length * c.channels);
  table.conv_backward(c, threads);
}

void conv_step(const std::string& isa, bool silu, int64_t width, const Strided& state, const Strided& x,
               const Strided& out, const Buffer& weight, const Buffer* bias) {
  const KernelTable& table = table_named(isa);
  ConvStep c;
  c.batch = state.shape[0], c.kept = state.shape[1], c.channels = state.shape[2], c.width = width, c.silu = silu;
  if (c.kept < width - 1) {
    refuse("state keeps " + std::to_string(c.kept) + " inputs, a convolution of width " + std::to_string(width) +
           " needs " + std::to_string(width - 1));
  }
  c.state = view("state", &state, state.shape);
  c.x = view("x", &x, {c.batch, 1, c.channels});
  c.out = view("out", &out, {c.batch, 1, c.channels});
  c.weight = given<float>("weight", &weight, {c.channels, width});
  c.bias = given<float>("bias", bias, {c.channels});
  nb::gil_scoped_release release;
  table.conv_step(c);
}

}  // namespace

void bind_conv(nb::module_& module) {
  module.def("conv_forward", &conv_forward, nb::kw_only(), "isa"_a, "threads"_a, "silu"_a, "width"_a, "x"_a, "weight"_a,
             optional("bias"), "out"_a);
  module.def("conv_backward", &conv_backward, nb::kw_only(), "isa"_a, "threads"_a, "silu"_a, "width"_a, "x"_a,
             "weight"_a, optional("bias"), "dout"_a, "dx"_a, "dweight"_a, "dbias"_a);
  module.def("conv_step", &conv_step, nb::kw_only(), "isa"_a, "silu"_a, "width"_a, "state"_a, "x"_a, "out"_a,
             "weight"_a, optional("bias"));
}

}  // namespace hmp
