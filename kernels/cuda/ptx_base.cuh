// ptx_base.cuh - number types, the macro of the two bodies, and addresses in shared memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

// PTX(emulated, device...): the first argument where a host compiler builds the kernel for the emulator,
// all the others where NVIDIA's compiler does.
#ifdef GPUNN_EMULATOR
#define PTX(emulated, ...) emulated
#else
#define PTX(emulated, ...) __VA_ARGS__
#endif

namespace ptx {

// The address of shared memory as the instructions take it: bytes from the start of the shared window.
__device__ __forceinline__ uint32 shared_address(const void* pointer) {
    return PTX(emu_shared_address(pointer), static_cast<uint32>(__cvta_generic_to_shared(pointer)));
}

// Number formats of the tensor cores' operands. Sums are float32, but double for f64 and int for s8.
enum class Kind { bf16, f16, tf32, e4m3, e5m2, e4m3_e5m2, e5m2_e4m3, f64, s8 };

}  // namespace ptx
