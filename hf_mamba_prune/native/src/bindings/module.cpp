// The Python module: tensors come as (address, dtype, strides), checked by the Python side; the GIL is let go.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "dispatch/dispatch.h"
#include "bindings/packed_module.h"
#include "threads/pool.h"

namespace nb = nanobind;
using namespace hmp;

namespace {

using Address = std::optional<uintptr_t>;
using Strided = std::optional<std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>>;
using Flat = std::tuple<uintptr_t, int, int64_t>;
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, float, float>;

View view(const Strided& from) {
  if (!from) return {};
  const auto& [data, dtype, batch, length, channel] = *from;
  return {reinterpret_cast<char*>(data), static_cast<Dtype>(dtype), batch, length, channel};
}

float* floats(const Address& from) { return from ? reinterpret_cast<float*>(*from) : nullptr; }

Values values(const Flat& from) {
  const auto& [data, dtype, count] = from;
  return {reinterpret_cast<char*>(data), static_cast<Dtype>(dtype), count};
}

ScanShape scan_shape(const ShapeTuple& from) {
  ScanShape s;
  std::tie(s.batch, s.length, s.heads, s.head_dim, s.groups, s.states, s.per_head, s.softplus, s.step_min,
           s.step_max) = from;
  return s;
}

using ScanInputs = std::tuple<Strided, Strided, Strided, Strided, Strided, Address, Address, Address, Address>;

ScanForward scan_inputs(const ShapeTuple& shape, const ScanInputs& from) {
  const auto& [u, delta, z, B, C, A, D, bias, initial] = from;
  ScanForward f;
  f.shape = scan_shape(shape);
  f.u = view(u);
  f.delta = view(delta);
  f.z = view(z);
  f.B = view(B);
  f.C = view(C);
  f.A = floats(A);
  f.D = floats(D);
  f.bias = floats(bias);
  f.initial = floats(initial);
  return f;
}

Conv conv(const std::tuple<int64_t, int64_t, int64_t, int64_t, bool>& shape, const Strided& x, const Address& weight,
          const Address& bias) {
  Conv c;
  std::tie(c.batch, c.length, c.channels, c.width, c.silu) = shape;
  c.x = view(x);
  c.weight = floats(weight);
  c.bias = floats(bias);
  return c;
}

// What is about to be written as a whole. Fresh memory is mapped as it is touched, a page at a time; with huge pages
// that is one fault where it would be 512, which on small models costs as much as the arithmetic.
void announce(const View& out, int64_t batch, int64_t length, int64_t channels) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  if (!out || out.channel_stride != 1) return;
  const uintptr_t from = reinterpret_cast<uintptr_t>(out.data);
  const uintptr_t bytes = batch * length * channels * (out.dtype == Dtype::kFloat32 ? 4 : 2);
  const uintptr_t first = (from + kHuge - 1) & ~(kHuge - 1), last = (from + bytes) & ~(kHuge - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

void announce(const View& out, const ScanShape& shape) { announce(out, shape.batch, shape.length, shape.channels()); }
void announce(const View& out, const Conv& c) { announce(out, c.batch, c.length, c.channels); }

}  // namespace

NB_MODULE(_kernels, module) {
  using ConvShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;
  hmp::notice_forks();

  module.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const KernelTable* table : supported_tables()) names.emplace_back(table->name);
    return names;
  });
  module.def("lanes", [](const std::string& isa) { return table_named(isa).lanes; });
  module.def("scan_sizes", [](const std::string& isa, const ShapeTuple& shape) {
    const ScanSizes sizes = table_named(isa).scan_sizes(scan_shape(shape));
    return std::make_tuple(sizes.tile, sizes.tiles, sizes.blocks, sizes.shares, sizes.padded_states);
  });
  module.def("scan_forward",
             [](const std::string& isa, int threads, const ShapeTuple& shape, const ScanInputs& inputs,
                const Strided& out, const Address& last, const Address& checkpoints) {
               ScanForward f = scan_inputs(shape, inputs);
               f.out = view(out);
               f.last = floats(last);
               f.checkpoints = floats(checkpoints);
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               announce(f.out, f.shape);
               table.scan_forward(f, threads);
             }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none());
  module.def("scan_backward",
             [](const std::string& isa, int threads, const ShapeTuple& shape, const ScanInputs& inputs,
                uintptr_t checkpoints, const std::tuple<Strided, Address>& outer,
                const std::tuple<Strided, Strided, Strided, Strided, Strided>& strided,
                const std::tuple<Address, Address, Address, Address, Address, Address>& flat) {
               ScanBackward g;
               g.forward = scan_inputs(shape, inputs);
               g.forward.checkpoints = reinterpret_cast<float*>(checkpoints);
               g.dout = view(std::get<0>(outer));
               g.dlast = floats(std::get<1>(outer));
               const auto& [du, ddelta, dz, dB, dC] = strided;
               g.du = view(du);
               g.ddelta = view(ddelta);
               g.dz = view(dz);
               g.dB = view(dB);
               g.dC = view(dC);
               const auto& [dA, dD, dbias, dinitial, dstep, dBC] = flat;
               g.dA = floats(dA);
               g.dD = floats(dD);
               g.dbias = floats(dbias);
               g.dinitial = floats(dinitial);
               g.dstep = floats(dstep);
               g.dBC = floats(dBC);
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               for (const View* out : {&g.du, &g.ddelta, &g.dz}) {
                 if (out != &g.ddelta || !g.forward.shape.per_head) announce(*out, g.forward.shape);
               }
               table.scan_backward(g, threads);
             });
  module.def("conv_forward",
             [](const std::string& isa, int threads, const ConvShape& shape, const Strided& x, uintptr_t weight,
                const Address& bias, const Strided& out) {
               Conv c = conv(shape, x, weight, bias);
               c.out = view(out);
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               announce(c.out, c);
               table.conv_forward(c, threads);
             }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  module.def("conv_backward",
             [](const std::string& isa, int threads, const ConvShape& shape, const Strided& x, uintptr_t weight,
                const Address& bias, const Strided& dout, const Strided& dx, uintptr_t dweight, uintptr_t dbias) {
               Conv c = conv(shape, x, weight, bias);
               c.dout = view(dout);
               c.dx = view(dx);
               c.dweight = reinterpret_cast<float*>(dweight);
               c.dbias = reinterpret_cast<float*>(dbias);
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               announce(c.dx, c);
               table.conv_backward(c, threads);
             }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg());
  module.def("state_step",
             [](const std::string& isa, int threads, const ShapeTuple& shape, const ScanInputs& inputs,
                uintptr_t state, const Strided& out) {
               const ScanForward f = scan_inputs(shape, inputs);
               const StateStep s{f.shape, reinterpret_cast<float*>(state), f.u, f.delta, f.z, f.B, f.C, view(out),
                                 f.A, f.D, f.bias};
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               table.state_step(s, threads);
             });
  module.def("conv_step",
             [](const std::string& isa, const std::tuple<int64_t, int64_t, int64_t, int64_t, bool>& shape,
                const Strided& state, const Strided& x, const Strided& out, uintptr_t weight, const Address& bias) {
               ConvStep c;
               std::tie(c.batch, c.channels, c.width, c.kept, c.silu) = shape;
               c.state = view(state);
               c.x = view(x);
               c.out = view(out);
               c.weight = floats(weight);
               c.bias = floats(bias);
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               table.conv_step(c);
             }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  module.def("range_histogram",
             [](const std::string& isa, int threads, const Flat& from, uint32_t low, int shift, int64_t bins,
                uintptr_t counts) {
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               table.range_histogram(values(from), low, shift, bins, reinterpret_cast<int64_t*>(counts), threads);
             });
  module.def("keep_above", [](const std::string& isa, int threads, const Flat& from, uint32_t threshold,
                              uintptr_t keep) {
    const KernelTable& table = table_named(isa);
    nb::gil_scoped_release release;
    return table.keep_above(values(from), threshold, reinterpret_cast<uint8_t*>(keep), threads);
  });
  module.def("between", [](const std::string& isa, int threads, const Flat& from, uint32_t low, uint32_t high,
                           uintptr_t positions, uintptr_t keys, int64_t room) {
    const KernelTable& table = table_named(isa);
    nb::gil_scoped_release release;
    const BetweenCounts counts = table.between(values(from), low, high, reinterpret_cast<int64_t*>(positions),
                                               reinterpret_cast<int32_t*>(keys), room, threads);
    return std::make_tuple(counts.below, counts.found);
  });
  define_packed(module);
}
