// interface.h - what the code of a kernel calls in the runtime. C linkage, host pointers.
//
// The shim (CUDA's built-in functions) and kernels/cuda/ptx_*.cuh (our wrappers of PTX) are written on
// these functions alone; runtime.cpp implements them. `rank` is a block's rank in its cluster, -1 for
// "the address is already the one to use".
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emu {
struct Index3 {
    unsigned x, y, z;
};
// The part of a thread's state that kernels read directly: threadIdx, blockIdx, blockDim, gridDim.
struct Context {
    Index3 thread, block, block_size, grid_size;
    int lane, warp, linear;
};
// Runs once, when every lane of `mask` has come to the operation; arguments[lane] is what it brought.
typedef void (*CollectiveFunction)(void** arguments, unsigned mask);
}  // namespace emu

extern "C" {
extern __thread emu::Context* emu_current __attribute__((tls_model("initial-exec")));

// ---- threads of a warp and of a block
void emu_collective(unsigned mask, void* argument, emu::CollectiveFunction function, const char* what);
// The same from a function that is not inlined into the kernel: `place` is its own return address.
void emu_collective_at(unsigned mask, void* argument, emu::CollectiveFunction function, const char* what, void* place);
void emu_syncwarp(unsigned mask);
unsigned emu_activemask();
void emu_block_barrier();
int emu_block_barrier_reduce(int predicate, int operation);  // 0 count, 1 and, 2 or
void emu_named_barrier(int id, int threads, int wait);
void emu_grid_sync();
void emu_nanosleep();
void emu_trap(const char* text);

// ---- memory order
void emu_atomic_begin(void* address, int bytes, void* place);  // around an atomic read-modify-write
void emu_atomic_end();
void emu_thread_fence(int scope);  // 0 block, 1 GPU, 2 system
unsigned emu_load_acquire32(const void* address);
uint64_t emu_load_acquire64(const void* address);
void emu_store_release32(void* address, unsigned value);
void emu_store_release64(void* address, uint64_t value);

// ---- tensor cores; the kinds are those of ptx::Kind
void emu_ldmatrix(uint32_t* registers, const void* row, int count, int transposed);
void emu_stmatrix(const uint32_t* registers, void* row, int count, int transposed);
void emu_mma(void* d, const uint32_t* a, const uint32_t* b, const void* c, int kind);
void emu_wgmma(float* d, int n, int kind, const uint32_t* a_registers, uint64_t descriptor_a, uint64_t descriptor_b,
               int accumulate, int transpose_a, int transpose_b);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(int keep);

// ---- asynchronous copies
void emu_copy_async(void* shared, const void* global, int bytes, int source_bytes);
void emu_copy_async_commit();
void emu_copy_async_wait(int keep);
void emu_copy_async_arrive(void* mbarrier, int noinc);
void emu_mbarrier_init(void* mbarrier, int count);
void emu_mbarrier_invalidate(void* mbarrier);
void emu_mbarrier_arrive(void* mbarrier, int expect_bytes, int rank);
void emu_mbarrier_expect(void* mbarrier, int bytes);
void emu_mbarrier_wait(void* mbarrier, int parity);
int emu_mbarrier_test(void* mbarrier, int parity);
void emu_fence_proxy_async();
void emu_fence_mbarrier_init();
void emu_bulk_load(void* shared, const void* global, int bytes, void* mbarrier, int multicast);
void emu_bulk_store(void* global, const void* shared, int bytes, int reduce);  // 0 copy, add 1 f32 2 f16 3 bf16
void emu_bulk_to_peer(void* shared_like, const void* source, int bytes, void* mbarrier_like, int rank);
void emu_tensor_load(void* shared, const void* map, void* mbarrier, int dimensions, const int* at,
                     const uint16_t* im2col_offsets, int multicast);
void emu_tensor_store(const void* map, const void* shared, int dimensions, const int* at, int reduce);
void emu_bulk_commit();
void emu_bulk_wait(int keep, int read_only);
void emu_store_async(void* shared_like, const void* value, int bytes, void* mbarrier_like, int rank);

// ---- shared memory and clusters
uint32_t emu_shared_address(const void* pointer);
int emu_is_shared(const void* pointer);
int emu_cluster_rank();
int emu_cluster_size();
void* emu_map_shared(const void* pointer, int rank);
void emu_cluster_arrive();
void emu_cluster_wait();
}
