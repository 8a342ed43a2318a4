#include "threads/cores.h"

#include <sched.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <mutex>
#endif

namespace hmp {
namespace {

constexpr int kCores = 64;

}  // namespace

#if defined(__linux__)

// The threads that moved out of one thread's way.
struct Followers {
  std::mutex mutex;
  std::array<pid_t, kCores> threads{};
  int count = 0;
  uint64_t core = 0;  // that they stay away from
};

namespace {

thread_local Followers own_followers;

uint64_t here() {
  const int core = sched_getcpu();
  return core < 0 || core >= kCores ? 0 : uint64_t{1} << core;
}

// What one thread may use but for some cores; false where nothing would be left.
bool allowed_but(pthread_t thread, uint64_t cores, cpu_set_t* rest) {
  if (pthread_getaffinity_np(thread, sizeof *rest, rest) != 0) return false;
  for (int i = 0; i < kCores; ++i) {
    if (cores >> i & 1) CPU_CLR(i, rest);
  }
  return CPU_COUNT(rest) > 0;
}

}  // namespace

void Cores::begin() {
  first_ = pthread_self();
  followers_ = &own_followers;
  const uint64_t core = here();
  taken_.store(core, std::memory_order_relaxed);
  if (own_followers.count == 0 || own_followers.core == core) return;
  std::lock_guard<std::mutex> lock(own_followers.mutex);
  own_followers.core = core;
  cpu_set_t rest;
  if (!allowed_but(pthread_self(), core, &rest)) return;
  int kept = 0;
  for (int i = 0; i < own_followers.count; ++i) {
    const pid_t thread = own_followers.threads[i];
    if (syscall(SYS_tgkill, getpid(), thread, 0) != 0) continue;  // it has ended
    sched_setaffinity(thread, sizeof rest, &rest);
    own_followers.threads[kept++] = thread;
  }
  own_followers.count = kept;
}

void Cores::come() {
  const uint64_t core = here();
  const uint64_t taken = taken_.fetch_or(core, std::memory_order_relaxed);
  if ((taken & core) == 0) return;
  cpu_set_t rest;
  if (!allowed_but(first_, taken, &rest)) return;
  if (pthread_setaffinity_np(pthread_self(), sizeof rest, &rest) != 0) return;
  taken_.fetch_or(here(), std::memory_order_relaxed);
  Followers& followers = *followers_.load();
  std::lock_guard<std::mutex> lock(followers.mutex);
  const pid_t self = static_cast<pid_t>(syscall(SYS_gettid));
  for (int i = 0; i < followers.count; ++i) {
    if (followers.threads[i] == self) return;
  }
  if (followers.count < kCores) followers.threads[followers.count++] = self;
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
