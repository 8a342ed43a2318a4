#include "cores.h"

#include <sched.h>

namespace hmp {

namespace {

constexpr int kCores = 64;

}  // namespace

#if defined(__linux__)

namespace {

uint64_t here() {
  const int core = sched_getcpu();
  return core < 0 || core >= kCores ? 0 : uint64_t{1} << core;
}

}  // namespace

void Cores::begin() {
  first_ = pthread_self();
  taken_.store(here(), std::memory_order_relaxed);
}

void Cores::come() {
  const uint64_t core = here();
  const uint64_t taken = taken_.fetch_or(core, std::memory_order_relaxed);
  if ((taken & core) == 0) return;
  cpu_set_t free;
  if (pthread_getaffinity_np(first_, sizeof free, &free) != 0) return;
  for (int i = 0; i < kCores; ++i) {
    if (taken >> i & 1) CPU_CLR(i, &free);
  }
  if (CPU_COUNT(&free) == 0 || pthread_setaffinity_np(pthread_self(), sizeof free, &free) != 0) return;
  taken_.fetch_or(here(), std::memory_order_relaxed);
}

int allowed_cores() {
  cpu_set_t allowed;
  return pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : kCores;
}

#else

void Cores::begin() {}
void Cores::come() {}
int allowed_cores() { return kCores; }

#endif

}  // namespace hmp
