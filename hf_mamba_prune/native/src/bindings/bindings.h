// The parts of the Python module. Everything goes over by keyword; what does not fit is refused as ValueError.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/buffers.h"
#include "dispatch/dispatch.h"

namespace hmp {

namespace nb = nanobind;
using namespace nanobind::literals;

void bind_buffers(nb::module_& module);
void bind_scan(nb::module_& module);
void bind_conv(nb::module_& module);
void bind_ranking(nb::module_& module);
void bind_matrix(nb::module_& module);
void bind_model(nb::module_& module);
void bind_memory(nb::module_& module);

// What may be left out.
inline auto optional(const char* name) { return nb::arg(name).none() = nb::none(); }

}  // namespace hmp
