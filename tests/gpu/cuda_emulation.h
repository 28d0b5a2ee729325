// CUDA C++ as plain C++20: the kernels of this project run on the CPU, one block after the other, each CUDA thread as a fiber.
//
// A fiber runs until it meets __syncthreads(); then the next one runs. Threads are taken in ascending or in descending order
// (EMULATED_ORDER of a launch): a missing barrier makes the two differ. A barrier that not all threads of a block reach ends in
// an error. Dynamic shared memory starts as NaN in every block.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>

using std::isnan;
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }
template <class T> T atomicAdd(T* p, T v) { T old = *p; *p += v; return old; }
template <class T> T atomicMax(T* p, T v) { T old = *p; *p = max(old, v); return old; }
template <class T> T __ldg(const T* p) { return *p; }

namespace emulation {

enum class Fate { unborn, waiting, finished };
struct Fiber {
  ucontext_t birth;
  jmp_buf place;
  std::vector<char> stack;
  Fate fate = Fate::unborn;
  dim3 index;
};
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline Fiber* running = nullptr;
inline void (*body)(void*) = nullptr;
inline void* arguments = nullptr;
inline std::vector<float> shared;
constexpr std::size_t STACK = 1 << 16;

// Not inlined: a kernel's own variables stay untouched by the jumps.
[[gnu::noinline]] inline void yield(Fate fate) {
  Fiber* self = running;
  self->fate = fate;
  if (_setjmp(self->place) == 0) _longjmp(scheduler, 1);
  threadIdx = self->index;
}

inline void live() {
  body(arguments);
  yield(Fate::finished);
}

[[gnu::noinline]] inline void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.fate == Fate::waiting) _longjmp(fiber.place, 1);
  getcontext(&fiber.birth);
  fiber.stack.resize(STACK);
  fiber.birth.uc_stack.ss_sp = fiber.stack.data();
  fiber.birth.uc_stack.ss_size = STACK;
  fiber.birth.uc_link = nullptr;
  makecontext(&fiber.birth, live, 0);
  setcontext(&fiber.birth);
}

// 0: done; 1: a barrier was not reached by all threads of a block.
inline int run(void (*kernel)(void*), void* kernel_arguments, dim3 grid, dim3 block, unsigned shared_bytes, bool descending) {
  body = kernel;
  arguments = kernel_arguments;
  gridDim = grid;
  blockDim = block;
  const unsigned count = block.x * block.y * block.z;
  if (fibers.size() < count) fibers.resize(count);
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = dim3{b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    shared.assign((shared_bytes + 3) / 4, NAN);
    for (unsigned t = 0; t < count; ++t) {
      fibers[t].fate = Fate::unborn;
      fibers[t].index = dim3{t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    unsigned finished = 0;
    while (finished < count) {
      finished = 0;
      for (unsigned i = 0; i < count; ++i) {
        Fiber& fiber = fibers[descending ? count - 1 - i : i];
        resume(fiber);
        finished += fiber.fate == Fate::finished;
      }
      if (finished && finished < count) return 1;
    }
  }
  return 0;
}

}  // namespace emulation

inline void __syncthreads() { emulation::yield(emulation::Fate::waiting); }
