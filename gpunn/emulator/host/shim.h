// shim.h - makes the host compiler read CUDA C++. Included before a .cu by the compiler's -include.
//
// Types come from NVIDIA's own headers (vector_types.h, cuda_fp16.h, cuda_bf16.h), which also compile on
// a host. A block runs on one thread of the operating system, its CUDA threads take turns on it; so
// __shared__ is thread-local storage, and the storage of this object is exactly its shared memory.
#pragma once
#define GPUNN_EMULATOR 1
#include "interface.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#if __has_include(<cuda_fp8.h>)
#include <cuda_fp8.h>
#endif

// ---- the language --------------------------------------------------------------------------------

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __managed__
#define __constant__
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
// For code that looks at other threads' variables on their behalf: the checker must not see it.
#define EMU_CALLER __builtin_return_address(0)
#define EMU_NOSAN __attribute__((no_sanitize("thread"), no_sanitize("alignment")))

#define threadIdx (reinterpret_cast<const uint3&>(::emu_current->thread))
#define blockIdx (reinterpret_cast<const uint3&>(::emu_current->block))
#define blockDim (reinterpret_cast<const dim3&>(::emu_current->block_size))
#define gridDim (reinterpret_cast<const dim3&>(::emu_current->grid_size))
#define warpSize 32

// ---- barriers and fences -------------------------------------------------------------------------

inline void __syncthreads() { emu_block_barrier(); }
inline int __syncthreads_count(int predicate) { return emu_block_barrier_reduce(predicate != 0, 0); }
inline int __syncthreads_and(int predicate) { return emu_block_barrier_reduce(predicate != 0, 1); }
inline int __syncthreads_or(int predicate) { return emu_block_barrier_reduce(predicate != 0, 2); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_syncwarp(mask); }
inline void __threadfence_block() { emu_thread_fence(0); }
inline void __threadfence() { emu_thread_fence(1); }
inline void __threadfence_system() { emu_thread_fence(2); }
inline void __nanosleep(unsigned) { emu_nanosleep(); }
inline unsigned __activemask() { return emu_activemask(); }
#define __trap() emu_trap("__trap()")
#define __brkpt() ((void)0)
#include <assert.h>

// CUDA takes alignas between the specifiers of a declaration, where C++ does not; the attribute may stand there.
namespace emu {
template <class T> constexpr size_t alignment() { return alignof(T); }
template <size_t N> constexpr size_t alignment() { return N; }
}  // namespace emu
#define alignas(...) __attribute__((aligned(emu::alignment<__VA_ARGS__>())))

#include "shim_warp.h"
#include "shim_atomic.h"
#include "shim_math.h"
#include "shim_half.h"
#include "shim_launch.h"
