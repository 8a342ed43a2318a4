#include "threads/crew.h"

#include <sched.h>

#include <atomic>
#include <memory>

#include "threads/pool.h"

namespace hmp {
namespace {

constexpr int kPolls = 2000;  // a few microseconds to a few tens; then the core is left to whom it belongs

struct alignas(64) Progress {
  std::atomic<int64_t> taken{0}, done{0};
};

struct Crew {
  const Phases& phases;
  const void* context;
  std::unique_ptr<Progress[]> progress;
  mutable std::atomic<bool> failed{false};  // a piece threw: nobody waits for it
};

void wait_for(const std::atomic<int64_t>& done, int64_t pieces, const std::atomic<bool>& failed) {
  for (int polls = 0; done.load(std::memory_order_acquire) < pieces && !failed.load(); ++polls) {
    if (polls > kPolls) {
      sched_yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

void go_through(const Crew& crew) {
  for (int64_t phase = 0; phase < crew.phases.count && !crew.failed.load(); ++phase) {
    Progress& progress = crew.progress[phase];
    const int64_t pieces = crew.phases.pieces(crew.context, phase);
    void* prepared = nullptr;
    bool ready = false;
    while (progress.taken.load(std::memory_order_relaxed) < pieces) {
      const int64_t piece = progress.taken.fetch_add(1, std::memory_order_relaxed);
      if (piece >= pieces) break;
      if (!ready) prepared = crew.phases.prepare(crew.context, phase);
      ready = true;
      crew.phases.piece(crew.context, phase, piece, prepared);
      progress.done.fetch_add(1, std::memory_order_acq_rel);
    }
    wait_for(progress.done, pieces, crew.failed);
  }
}

void member(const void* from, int64_t) {
  const Crew& crew = *static_cast<const Crew*>(from);
  try {
    go_through(crew);
  } catch (...) {
    crew.failed.store(true);
    throw;
  }
}

}  // namespace

void in_phases(const Phases& phases, int threads, const void* context) {
  const Crew crew{phases, context, std::make_unique<Progress[]>(phases.count)};
  if (threads <= 1) {
    member(&crew, 0);
  } else {
    parallel(threads, threads, member, &crew, true);
  }
}

}  // namespace hmp
