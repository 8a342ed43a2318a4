// Work on several threads: those of torch's own OpenMP runtime where the process has one (two sets of threads would
// fight over the cores), otherwise a small pool that also works in a forked child.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hmp {

using Task = void (*)(const void* context, int64_t task);

// From now on a forked child knows that it is one. To be called once, before anything else.
void notice_forks();

// Runs task(context, i) for i in [0, tasks), on at most `threads` threads, the caller's included.
// Which thread runs which task is not fixed, so a task may only write what no other task reads or writes.
// What a task throws comes out of this call, after the other tasks.
// `patient`: on the runtime's threads even when they came late of late; for work that goes on without them.
void parallel(int64_t tasks, int threads, Task task, const void* context, bool patient = false);

// Scratch memory of the calling thread, aligned to 64 bytes; valid until its next call on the same thread.
float* scratch(size_t floats);

}  // namespace hmp
