// Phases of work that several threads go through together: the next phase begins when each piece of this one is done.
#pragma once
#include <cstdint>

namespace hmp {

struct Phases {
  int64_t count = 0;
  // How many pieces a phase has.
  int64_t (*pieces)(const void* context, int64_t phase) = nullptr;
  // Called by each thread before its first piece of a phase; the pointer goes to its pieces.
  void* (*prepare)(const void* context, int64_t phase) = nullptr;
  void (*piece)(const void* context, int64_t phase, int64_t piece, void* prepared) = nullptr;
};

// Pieces are taken by whoever is free, so that any number of threads, one too, comes to the end.
void in_phases(const Phases& phases, int threads, const void* context);

}  // namespace hmp
