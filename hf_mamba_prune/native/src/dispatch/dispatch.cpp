#include "dispatch/dispatch.h"

#include <stdexcept>

namespace hmp {

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
      tables.push_back(&kAvx512Bf16);
    }
    tables.push_back(&kAvx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    tables.push_back(&kAvx2);
  }
#endif
  tables.push_back(&kPortable);
  return tables;
}

const KernelTable& table_named(const std::string& name) {
  std::string known;
  for (const KernelTable* table : supported_tables()) {
    if (name == table->name) return *table;
    known += known.empty() ? table->name : std::string(", ") + table->name;
  }
  throw std::invalid_argument("no kernels for the instruction set '" + name + "' here; this machine runs: " + known);
}

}  // namespace hmp
