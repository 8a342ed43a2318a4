#include "bindings/packed_module.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>

#include <climits>
#endif

#include "dispatch/dispatch.h"
#include "packed/packed_model.h"

namespace nb = nanobind;
using namespace hmp;

namespace {

using Address = std::optional<uintptr_t>;
// rows, columns, coding, masks, values, starts, scales
using MatrixTuple = std::tuple<int64_t, int64_t, int, Address, uintptr_t, Address, Address>;
using Matrix = std::optional<MatrixTuple>;
using Counts = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
using Limits = std::tuple<float, float, float, float>;

template <typename T>
const T* at(const Address& from) {
  return from ? reinterpret_cast<const T*>(*from) : nullptr;
}

PackedMatrix matrix(const Matrix& from) {
  if (!from) return {};
  const auto& [rows, columns, coding, masks, values, starts, scales] = *from;
  return {rows,           columns, static_cast<Coding>(coding), at<uint64_t>(masks), reinterpret_cast<const char*>(values),
          at<uint32_t>(starts), at<float>(scales)};
}

std::vector<float*> pointers(const std::vector<uintptr_t>& from) {
  std::vector<float*> to;
  for (const uintptr_t address : from) to.push_back(reinterpret_cast<float*>(address));
  return to;
}

}  // namespace

void define_packed(nb::module_& module) {
  nb::class_<PackedModel>(module, "PackedModel")
      .def("__init__",
           [](PackedModel* model, const Counts& counts, const Limits& limits, const Matrix& embeddings,
              const Matrix& head, uintptr_t final_norm) {
             new (model) PackedModel;
             std::tie(model->d_model, model->d_inner, model->states, model->rank, model->conv_width, model->heads,
                      model->groups) = counts;
             std::tie(model->norm_eps, model->mixer_eps, model->step_min, model->step_max) = limits;
             model->embeddings = matrix(embeddings);
             model->head = matrix(head);
             model->final_norm = reinterpret_cast<const float*>(final_norm);
           })
      .def("add_layer",
           [](PackedModel& model, const std::tuple<Matrix, Matrix, Matrix, Matrix>& matrices,
              const std::vector<Address>& vectors) {
             PackedLayer layer;
             const auto& [in_proj, x_proj, dt_proj, out_proj] = matrices;
             layer.in_proj = matrix(in_proj);
             layer.x_proj = matrix(x_proj);
             layer.dt_proj = matrix(dt_proj);
             layer.out_proj = matrix(out_proj);
             const float** places[] = {&layer.norm,    &layer.in_bias, &layer.conv_weight, &layer.conv_bias,
                                       &layer.dt_bias, &layer.A,       &layer.D,           &layer.gate_norm,
                                       &layer.out_bias};
             for (size_t i = 0; i < std::size(places); ++i) *places[i] = at<float>(vectors.at(i));
             model.layers.push_back(layer);
           })
      .def("memory", &PackedModel::memory)
      .def("step", [](const PackedModel& model, const std::string& isa, int threads, uintptr_t tokens, int64_t batch,
                      const std::vector<uintptr_t>& conv, const std::vector<uintptr_t>& states, uintptr_t logits,
                      uintptr_t memory) {
        const std::vector<float*> windows = pointers(conv), recurrent = pointers(states);
        if (windows.size() != model.layers.size() || recurrent.size() != model.layers.size()) {
          throw std::invalid_argument("one convolution window and one state for each layer");
        }
        const TokenStep step{&model,           batch,
                             reinterpret_cast<const int64_t*>(tokens), windows.data(),
                             recurrent.data(), reinterpret_cast<float*>(logits),
                             reinterpret_cast<float*>(memory), threads};
        const KernelTable& table = table_named(isa);
        nb::gil_scoped_release release;
        table.token_step(step);
      });
  module.def("packed_product", [](const std::string& isa, int threads, const MatrixTuple& from, uintptr_t vectors,
                                  int64_t batch, uintptr_t out) {
    const PackedMatrix own = matrix(from);
    const PackedProduct product{&own, batch, reinterpret_cast<const float*>(vectors), reinterpret_cast<float*>(out)};
    const KernelTable& table = table_named(isa);
    nb::gil_scoped_release release;
    table.packed_product(product, threads);
  });
  module.def("packed_rows",
             [](const std::string& isa, int threads, const MatrixTuple& from, const Address& rows, int64_t first,
                int64_t count, bool bfloat16, uintptr_t out) {
               const PackedMatrix own = matrix(from);
               const PackedRows wanted{&own,     at<int64_t>(rows), first, count, bfloat16,
                                       reinterpret_cast<char*>(out)};
               const KernelTable& table = table_named(isa);
               nb::gil_scoped_release release;
               table.packed_rows(wanted, threads);
             }, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  module.def("prefer_huge_pages", [](uintptr_t from, size_t bytes) {
#if defined(__linux__)
    madvise(reinterpret_cast<void*>(from), bytes, MADV_HUGEPAGE);
#else
    (void)from, (void)bytes;
#endif
  });
  // What was freed in many pieces stays with the process until it is asked for.
  module.def("give_memory_back", [] {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
  });
  // Whether blocks of all sizes stay with the process when they are freed, or as many as glibc keeps at most by itself.
  module.def("keep_freed_memory", [](bool keep) {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, keep ? 1 << 30 : 32 << 20);
    mallopt(M_TRIM_THRESHOLD, keep ? INT_MAX : 64 << 20);
    if (!keep) malloc_trim(0);
#else
    (void)keep;
#endif
  });
  module.attr("READABLE_BYTES") = kReadable;
  module.attr("MAX_BATCH") = kMaxBatch;
}
