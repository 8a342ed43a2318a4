// Which instruction sets this build and this machine have.
#pragma once
#include <string>
#include <vector>

#include "dispatch/kernel_table.h"

namespace hmp {

// Best first; the last one runs everywhere.
std::vector<const KernelTable*> supported_tables();

// Throws std::invalid_argument when this machine or build has no such set.
const KernelTable& table_named(const std::string& name);

}  // namespace hmp
