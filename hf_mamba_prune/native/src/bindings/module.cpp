// The Python module. What it works on is Python's memory; the GIL is let go while it does.
#include "bindings/bindings.h"
#include "threads/pool.h"

NB_MODULE(_kernels, module) {
  // What a program still holds when it ends, a model in a global for instance, is no fault that its user should read of.
  nanobind::set_leak_warnings(false);
  hmp::notice_forks();
  module.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const hmp::KernelTable* table : hmp::supported_tables()) names.emplace_back(table->name);
    return names;
  });
  hmp::bind_buffers(module);
  hmp::bind_scan(module);
  hmp::bind_conv(module);
  hmp::bind_ranking(module);
  hmp::bind_matrix(module);
  hmp::bind_model(module);
  hmp::bind_memory(module);
}
