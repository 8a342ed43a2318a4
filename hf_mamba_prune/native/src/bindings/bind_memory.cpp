// How the process holds its memory.
#include "bindings/bindings.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>

#include <climits>
#endif

namespace hmp {

void bind_memory(nb::module_& module) {
  module.def("prefer_huge_pages", [](const Buffer& memory) {
#if defined(__linux__)
    madvise(reinterpret_cast<void*>(memory.address), memory.bytes, MADV_HUGEPAGE);
#else
    (void)memory;
#endif
  }, nb::kw_only(), "memory"_a);
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
  }, nb::kw_only(), "keep"_a);
}

}  // namespace hmp
