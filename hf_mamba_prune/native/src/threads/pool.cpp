#include "threads/pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "threads/cores.h"

namespace hmp {
namespace {

using Clock = std::chrono::steady_clock;
// Long enough to bridge the Python between two kernels, short enough to leave a busy core to others.
constexpr std::chrono::microseconds kSpin{40};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Ready>
bool spin_until(Ready ready) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return ready();
}

// What the tasks of a job throw: the first of it comes out of the job, after all threads are through.
class Failure {
 public:
  void run(Task task, const void* context, int64_t i) noexcept {
    try {
      task(context, i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void come_out() {
    if (first_) std::rethrow_exception(std::exchange(first_, nullptr));
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

class Pool {
 public:
  void run(int64_t tasks, int threads, Task task, const void* context) {
    std::unique_lock<std::mutex> busy(running_, std::try_to_lock);
    if (!busy.owns_lock()) {  // another Python thread holds the workers
      for (int64_t i = 0; i < tasks; ++i) task(context, i);
      return;
    }
    grow(threads - 1);
    task_ = task;
    context_ = context;
    cores_.begin();
    unfinished_.store(tasks, std::memory_order_relaxed);
    limit_.store(threads - 1, std::memory_order_relaxed);
    const uint64_t job = ((left_.load(std::memory_order_relaxed) >> 32) + 1) << 32 | static_cast<uint64_t>(tasks);
    left_.store(job, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    take(false);
    auto done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(done)) {
      std::unique_lock<std::mutex> lock(sleep_);
      finished_.wait(lock, done);
    }
    failure_.come_out();
  }

 private:
  // Takes tasks until none is left. The count of tasks left and the job's number share one word, so a thread that
  // slept through a job can never take a task of it by mistake. Only with a task in hand, for which the caller waits,
  // may a worker look at where the caller runs.
  void take(bool worker) {
    uint64_t left = left_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(left) != 0) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      if (worker) cores_.come();
      worker = false;
      failure_.run(task_, context_, static_cast<int64_t>(static_cast<uint32_t>(left)) - 1);
      if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        { std::lock_guard<std::mutex> lock(sleep_); }
        finished_.notify_one();
      }
      left = left_.load(std::memory_order_acquire);
    }
  }

  void grow(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread(&Pool::work, this, workers_).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: the caller and those that exist share the tasks
      }
      ++workers_;
    }
  }

  void work(int index) {
    auto ready = [this, index] {
      return static_cast<uint32_t>(left_.load(std::memory_order_seq_cst)) != 0 &&
             index < limit_.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!spin_until(ready)) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, ready);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      }
      take(true);
    }
  }

  std::mutex running_, sleep_;
  std::condition_variable wake_, finished_;
  std::atomic<uint64_t> left_{0};  // job number << 32 | tasks left to take
  std::atomic<int64_t> unfinished_{0};
  std::atomic<int> sleepers_{0}, limit_{0};
  Task task_ = nullptr;
  const void* context_ = nullptr;
  Cores cores_;
  Failure failure_;
  int workers_ = 0;
};

// Never destroyed: its threads may still sleep on it when the process ends. A forked child has none of the parent's
// threads, so it starts a pool of its own and leaves the old one untouched.
std::atomic<Pool*> pool{nullptr};

std::atomic<bool> forked{false};

void after_fork() {
  forked.store(true);
  pool.store(nullptr);
}

Pool& the_pool() {
  Pool* current = pool.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

// Threads of libgomp spin for milliseconds after each of torch's matrix products, on the cores that workers of this
// pool would need. So where the process has that runtime already, its threads do the work, at once.
struct Runtime {
  void (*region)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*team)() = nullptr;
};

template <typename Function>
void find(Function*& function, const char* name) {
  void* symbol = dlsym(RTLD_DEFAULT, name);
  if (symbol == nullptr) {
    void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library != nullptr) symbol = dlsym(library, name);
  }
  function = reinterpret_cast<Function*>(symbol);
}

// What a forked child inherits of it does not work: it gets none.
Runtime torch_runtime() {
  static const Runtime found = [] {
    Runtime runtime;
    find(runtime.region, "GOMP_parallel");
    find(runtime.team, "omp_get_num_threads");
    return runtime.team == nullptr ? Runtime{} : runtime;
  }();
  return forked.load(std::memory_order_relaxed) ? Runtime{} : found;
}

// A region ends only when each of its threads has come. Where cores are busy that can take milliseconds, and the pool
// does without a thread that is late: then it serves for a while. Not longer, as torch's threads keep meeting on one
// core while no region of ours parts them; and not where OMP_PROC_BIND ties this thread, and so the pool's, to one core.
constexpr std::chrono::microseconds kLate{500};
constexpr std::chrono::milliseconds kWithoutRegions{100};
std::atomic<Clock::rep> regions_again{0};

struct Shared {
  const Task task;
  const void* const context;
  const int64_t tasks;
  const Runtime runtime;
  const bool patient;
  const pthread_t caller = pthread_self();
  const Clock::time_point begun = Clock::now();
  std::atomic<int64_t> next{0};
  std::atomic<int> through{1};
  std::mutex sleep;
  std::condition_variable finished;
  Cores cores;
  Failure failure;
};

// One thread's part of a region. The runtime's own wait for the others would spin: the caller waits here, and leaves
// its core to them where cores are busy.
void take_part(void* data) {
  Shared& shared = *static_cast<Shared*>(data);
  const bool caller = pthread_equal(shared.caller, pthread_self());
  if (!caller) shared.cores.come();
  const auto now = Clock::now();
  if (!shared.patient && now - shared.begun > kLate) {
    regions_again.store((now + kWithoutRegions).time_since_epoch().count(), std::memory_order_relaxed);
  }
  for (int64_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.tasks;) {
    shared.failure.run(shared.task, shared.context, i);
  }
  if (!caller) {
    std::lock_guard<std::mutex> lock(shared.sleep);
    shared.through.fetch_add(1, std::memory_order_release);
    shared.finished.notify_one();
    return;
  }
  const int team = shared.runtime.team();
  auto done = [&] { return shared.through.load(std::memory_order_acquire) == team; };
  if (spin_until(done)) return;
  std::unique_lock<std::mutex> lock(shared.sleep);
  shared.finished.wait(lock, done);
}

struct Scratch {
  float* data = nullptr;
  size_t floats = 0;
  ~Scratch() { std::free(data); }
};

thread_local Scratch thread_scratch;

}  // namespace

void notice_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, after_fork); });
}

void parallel(int64_t tasks, int threads, Task task, const void* context, bool patient) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  const Runtime runtime = torch_runtime();
  const auto pool_serves = [] {
    return Clock::now().time_since_epoch().count() < regions_again.load(std::memory_order_relaxed);
  };
  if (runtime.region != nullptr && (patient || !pool_serves() || allowed_cores() < threads)) {
    Shared shared{task, context, tasks, runtime, patient};
    shared.cores.begin();
    runtime.region(take_part, &shared, static_cast<unsigned>(threads), 0);
    shared.failure.come_out();
    return;
  }
  the_pool().run(tasks, threads, task, context);
}

float* scratch(size_t floats) {
  if (floats > thread_scratch.floats) {
    std::free(thread_scratch.data);
    const size_t bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
    thread_scratch.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    thread_scratch.floats = thread_scratch.data == nullptr ? 0 : bytes / sizeof(float);
    if (thread_scratch.data == nullptr) throw std::bad_alloc();
  }
  return thread_scratch.data;
}

}  // namespace hmp
