// ptx_memory.cuh - moves between registers, shared and global memory that a warp or a thread makes itself.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// ---- 8x8 matrices of 16-bit elements, by a whole warp ------------------------------------------------

#define PTX_LOAD_MATRIX(TRANSPOSE)                                                                       \
    if constexpr (N == 1)                                                                                \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" TRANSPOSE ".shared.b16 {%0}, [%1];"                 \
                     : "=r"(r[0]) : "r"(shared_address(row)) : "memory");                                \
    else if constexpr (N == 2)                                                                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" TRANSPOSE ".shared.b16 {%0, %1}, [%2];"             \
                     : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");                    \
    else                                                                                                 \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANSPOSE ".shared.b16 {%0, %1, %2, %3}, [%4];"     \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                    \
                     : "r"(shared_address(row)) : "memory")

// Loads N matrices: lane 8 i + j names row j of matrix i (16 bytes, aligned), the other lanes' pointers
// are not used. Lane l gets in r[i] the elements (l / 4, l % 4 * 2) and the one right of it of matrix i.
// By all lanes of the warp.
template <int N> __device__ __forceinline__ void load_matrix(uint32 (&r)[N], const void* row) {
    static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
    PTX(emu_ldmatrix(r, row, N, 0), PTX_LOAD_MATRIX(""));
}

// The same of the transposed matrices: lane l gets the elements (l % 4 * 2, l / 4) and the one below it.
template <int N> __device__ __forceinline__ void load_matrix_transposed(uint32 (&r)[N], const void* row) {
    static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
    PTX(emu_ldmatrix(r, row, N, 1), PTX_LOAD_MATRIX(".trans"));
}

#define PTX_STORE_MATRIX(TRANSPOSE)                                                                      \
    if constexpr (N == 1)                                                                                \
        asm volatile("stmatrix.sync.aligned.m8n8.x1" TRANSPOSE ".shared.b16 [%0], {%1};"                 \
                     :: "r"(shared_address(row)), "r"(r[0]) : "memory");                                 \
    else if constexpr (N == 2)                                                                           \
        asm volatile("stmatrix.sync.aligned.m8n8.x2" TRANSPOSE ".shared.b16 [%0], {%1, %2};"             \
                     :: "r"(shared_address(row)), "r"(r[0]), "r"(r[1]) : "memory");                      \
    else                                                                                                 \
        asm volatile("stmatrix.sync.aligned.m8n8.x4" TRANSPOSE ".shared.b16 [%0], {%1, %2, %3, %4};"     \
                     :: "r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])             \
                     : "memory")

// The reverse of load_matrix: lanes name rows and hold elements in the same way. From sm_90 on.
template <int N> __device__ __forceinline__ void store_matrix(void* row, const uint32 (&r)[N]) {
    static_assert(N == 1 || N == 2 || N == 4, "stmatrix stores 1, 2 or 4 matrices");
    PTX(emu_stmatrix(r, row, N, 0), PTX_STORE_MATRIX(""));
}

// The reverse of load_matrix_transposed. From sm_90 on.
template <int N> __device__ __forceinline__ void store_matrix_transposed(void* row, const uint32 (&r)[N]) {
    static_assert(N == 1 || N == 2 || N == 4, "stmatrix stores 1, 2 or 4 matrices");
    PTX(emu_stmatrix(r, row, N, 1), PTX_STORE_MATRIX(".trans"));
}

// ---- cp.async: a thread's copies from global to shared memory that it does not wait for ---------------

// Copies BYTES (4, 8 or 16; both addresses aligned to as much), or writes zeros if not valid: then
// `global` is not read.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    PTX(emu_copy_async(shared, global, BYTES, valid ? BYTES : 0),
        if constexpr (BYTES == 16)  // past the first-level cache, which only this size can
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                         :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                         :: "r"(shared_address(shared)), "l"(global), "n"(BYTES), "r"(valid ? BYTES : 0)
                         : "memory"));
}

// Closes the group of this thread's copies since the last commit (it may be empty).
__device__ __forceinline__ void copy_async_commit() {
    PTX(emu_copy_async_commit(), asm volatile("cp.async.commit_group;" ::: "memory"));
}

// Waits until at most KEEP of this thread's latest groups are in flight. Other threads see the data
// after a barrier that follows.
template <int KEEP> __device__ __forceinline__ void copy_async_wait() {
    PTX(emu_copy_async_wait(KEEP), asm volatile("cp.async.wait_group %0;" :: "n"(KEEP) : "memory"));
}

// Arrives at the barrier when all copies that this thread has begun are done. The arrival is one of
// those that the barrier was initialised for.
__device__ __forceinline__ void copy_async_arrive(uint64* barrier) {
    PTX(emu_copy_async_arrive(barrier, 1),
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
                     :: "r"(shared_address(barrier)) : "memory"));
}

// ---- flags in global memory, between the blocks of a grid -------------------------------------------

// Reads a flag; what its writer wrote before store_release is visible afterwards.
__device__ __forceinline__ uint32 load_acquire(const uint32* flag) {
    uint32 value;
    PTX(value = emu_load_acquire32(flag),
        asm volatile("ld.acquire.gpu.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory"));
    return value;
}
__device__ __forceinline__ uint64 load_acquire(const uint64* flag) {
    uint64 value;
    PTX(value = emu_load_acquire64(flag),
        asm volatile("ld.acquire.gpu.b64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory"));
    return value;
}

// Writes a flag after all that this thread wrote, or saw written, before.
__device__ __forceinline__ void store_release(uint32* flag, uint32 value) {
    PTX(emu_store_release32(flag, value),
        asm volatile("st.release.gpu.b32 [%0], %1;" :: "l"(flag), "r"(value) : "memory"));
}
__device__ __forceinline__ void store_release(uint64* flag, uint64 value) {
    PTX(emu_store_release64(flag, value),
        asm volatile("st.release.gpu.b64 [%0], %1;" :: "l"(flag), "l"(value) : "memory"));
}

}  // namespace ptx
