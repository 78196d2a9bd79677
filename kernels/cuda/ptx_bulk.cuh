// ptx_bulk.cuh - bulk copies: one thread starts them, the chip's copy engine makes them. All from sm_90 on.
//
// Addresses and sizes are multiples of 16 bytes. Loads report to an mbarrier that expects their bytes;
// stores are counted in groups of the thread that started them.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// Global to shared memory; the bytes are reported to the barrier.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, int bytes, uint64* barrier) {
    PTX(emu_bulk_load(shared, global, bytes, barrier, 0),
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier))
                     : "memory"));
}

// The same to every block of the cluster whose bit is set in `mask`, at the same place in each, where
// the barrier at the same place is told.
__device__ __forceinline__ void bulk_load_multicast(void* shared, const void* global, int bytes,
                                                    uint64* barrier, uint16 mask) {
    PTX(emu_bulk_load(shared, global, bytes, barrier, mask),
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1], %2, [%3], %4;"
                     :: "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)),
                        "h"(mask) : "memory"));
}

// Shared to global memory, in this thread's open group.
__device__ __forceinline__ void bulk_store(void* global, const void* shared, int bytes) {
    PTX(emu_bulk_store(global, shared, bytes, 0),
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                     :: "l"(global), "r"(shared_address(shared)), "r"(bytes) : "memory"));
}

// Adds shared to global memory, element by element and atomically, in this thread's open group.
#define PTX_BULK_ADD(TYPE)                                                                               \
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add." TYPE " [%0], [%1], %2;"       \
                 :: "l"(global), "r"(shared_address(shared)), "r"(bytes) : "memory")
__device__ __forceinline__ void bulk_add(float* global, const float* shared, int bytes) {
    PTX(emu_bulk_store(global, shared, bytes, 1), PTX_BULK_ADD("f32"));
}
__device__ __forceinline__ void bulk_add(__half* global, const __half* shared, int bytes) {
    PTX(emu_bulk_store(global, shared, bytes, 2), PTX_BULK_ADD("noftz.f16"));
}
__device__ __forceinline__ void bulk_add(__nv_bfloat16* global, const __nv_bfloat16* shared, int bytes) {
    PTX(emu_bulk_store(global, shared, bytes, 3), PTX_BULK_ADD("noftz.bf16"));
}

// From this block's shared memory (`source`) to that of block `rank` of the cluster, to the place that
// `shared` has here; the barrier at the place of `barrier` over there is told.
__device__ __forceinline__ void bulk_to_peer(void* shared, const void* source, int bytes, uint64* barrier,
                                             int rank) {
    PTX(emu_bulk_to_peer(shared, source, bytes, barrier, rank),
        asm volatile("{\n.reg .b32 target, told;\n"
                     "mapa.shared::cluster.u32 target, %0, %4;\nmapa.shared::cluster.u32 told, %3, %4;\n"
                     "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
                     " [target], [%1], %2, [told];\n}"
                     :: "r"(shared_address(shared)), "r"(shared_address(source)), "r"(bytes),
                        "r"(shared_address(barrier)), "r"(rank) : "memory"));
}

// Closes the group of this thread's bulk and tensor stores.
__device__ __forceinline__ void bulk_commit() {
    PTX(emu_bulk_commit(), asm volatile("cp.async.bulk.commit_group;" ::: "memory"));
}

// Waits until at most KEEP of this thread's latest groups are unfinished.
template <int KEEP> __device__ __forceinline__ void bulk_wait() {
    PTX(emu_bulk_wait(KEEP, 0), asm volatile("cp.async.bulk.wait_group %0;" :: "n"(KEEP) : "memory"));
}

// The same, but only until the groups have read their shared memory, which may then be written again.
template <int KEEP> __device__ __forceinline__ void bulk_wait_read() {
    PTX(emu_bulk_wait(KEEP, 1), asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(KEEP) : "memory"));
}

}  // namespace ptx
