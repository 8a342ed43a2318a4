// Tensors as Python hands them over: an address and the size of what is there, which every use is checked against.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "dispatch/kernel_table.h"

namespace hmp {

// The memory of a contiguous tensor.
struct Buffer {
  uintptr_t address = 0;
  int64_t bytes = 0;
};

// A (batch, length, channels) tensor of any strides, counted in elements.
struct Strided {
  uintptr_t address = 0;
  Coding coding = Coding::kFloat32;
  std::array<int64_t, 3> shape{}, strides{};
};

// Throws std::invalid_argument, which Python sees as ValueError.
[[noreturn]] void refuse(const std::string& text);

// The product of sizes. Refuses sizes that are not positive, and products that 63 bits do not hold.
int64_t product(const char* name, std::initializer_list<int64_t> sizes);

// The coding that a number of `CODINGS` stands for.
Coding coding_of(int code);

// Refuses fewer than one thread.
int threads_of(int threads);

// What `name` points to: as many values as the product of the sizes, or null where it is not given.
template <typename T>
T* given(const char* name, const Buffer* from, std::initializer_list<int64_t> sizes) {
  if (from == nullptr) return nullptr;
  const int64_t expected = product(name, sizes);
  if (expected > INT64_MAX / static_cast<int64_t>(sizeof(T)) || from->bytes != expected * static_cast<int64_t>(sizeof(T))) {
    refuse(std::string(name) + " has " + std::to_string(from->bytes) + " bytes, expected " + std::to_string(expected) +
           " values of " + std::to_string(sizeof(T)) + " bytes each");
  }
  return reinterpret_cast<T*>(from->address);
}
// The same where it must be given.
template <typename T>
T* needed(const char* name, const Buffer* from, std::initializer_list<int64_t> sizes) {
  if (from == nullptr) refuse(std::string(name) + " is missing");
  return given<T>(name, from, sizes);
}

// A tensor of that shape as the kernels read it, or an empty view where it is not given.
View view(const char* name, const Strided* from, const std::array<int64_t, 3>& shape);
// The same where it must be given.
View needed_view(const char* name, const Strided* from, const std::array<int64_t, 3>& shape);

// What is about to be written as a whole. Fresh memory is mapped as it is touched, a page at a time; with huge pages
// that is one fault where it would be 512, which on small models costs as much as the arithmetic.
void announce(const View& out, int64_t values);

}  // namespace hmp
