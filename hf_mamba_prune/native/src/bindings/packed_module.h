// The part of the Python module that runs packed models.
#pragma once
#include <nanobind/nanobind.h>

void define_packed(nanobind::module_& module);
