// Which cores the threads of one region run on.
#pragma once
#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace hmp {

struct Followers;

// Where other processes keep the cores busy, the kernel is content with both threads of a region on one core: two of
// ours there, two of theirs elsewhere is balance. The region then takes as long as one thread does, and torch's
// threads, which spin for each other, up to twenty times as long. So a thread that finds its core taken moves.
class Cores {
 public:
  // By the thread that begins the region, before the others come. Threads that once moved out of its way do so again
  // if it has gone to another core since.
  void begin();
  // By each of the others when it comes, while the first one is there. A thread that moved stays away from the cores
  // that were taken then: without that it would be woken on the same core after torch's next product.
  void come();

 private:
  std::atomic<uint64_t> taken_{0};  // one bit for each of the first 64 cores
  std::atomic<pthread_t> first_{};  // runs wherever the process may run
  std::atomic<Followers*> followers_{nullptr};
};

// How many of them the calling thread may run on.
int allowed_cores();

}  // namespace hmp
