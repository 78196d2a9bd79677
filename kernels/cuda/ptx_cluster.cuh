// ptx_cluster.cuh - blocks of a cluster: who they are, their barrier, each other's shared memory.
// All from sm_90 on.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// This block's number in its cluster, and how many blocks the cluster has (1 without clusters).
__device__ __forceinline__ int cluster_rank() {
    int rank;
    PTX(rank = emu_cluster_rank(), asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
    return rank;
}
__device__ __forceinline__ int cluster_size() {
    int size;
    PTX(size = emu_cluster_size(), asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size)));
    return size;
}

// The cluster's barrier in two halves: what was written before an arrive, by anyone in the cluster, is
// visible after the wait. By all threads of all blocks.
__device__ __forceinline__ void cluster_arrive() {
    PTX(emu_cluster_arrive(), asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"));
}
__device__ __forceinline__ void cluster_wait() {
    PTX(emu_cluster_wait(), asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"));
}
__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// The cluster's barrier without ordering ordinary reads and writes, which the two halves above do by a fence
// for the whole GPU: where it is enough that all blocks have come, behind fence_mbarrier_init or at the end.
__device__ __forceinline__ void cluster_meet() {
    PTX(emu_cluster_arrive(), asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"));
    cluster_wait();
}

// The place of `pointer` in the shared memory of block `rank`. It may be used until that block exits:
// a cluster barrier stands before the first use and before the end of the kernel.
template <typename T> __device__ __forceinline__ T* map_shared(T* pointer, int rank) {
    uint64 there;
    PTX(there = reinterpret_cast<uint64>(emu_map_shared(pointer, rank)),
        asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(pointer), "r"(rank)));
    return reinterpret_cast<T*>(there);
}

// Stores a value of 4 or 8 bytes to the place of `shared` in block `rank`, asynchronously: its bytes are
// reported to the barrier over there.
template <typename T>
__device__ __forceinline__ void store_async(T* shared, T value, uint64* barrier, int rank) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "st.async stores 4 or 8 bytes");
    PTX(emu_store_async(shared, &value, sizeof(T), barrier, rank),
        if constexpr (sizeof(T) == 4)
            asm volatile("{\n.reg .b32 target, told;\n"
                         "mapa.shared::cluster.u32 target, %0, %3;\nmapa.shared::cluster.u32 told, %2, %3;\n"
                         "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [target], %1, [told];\n}"
                         :: "r"(shared_address(shared)), "r"(*reinterpret_cast<const uint32*>(&value)),
                            "r"(shared_address(barrier)), "r"(rank) : "memory");
        else
            asm volatile("{\n.reg .b32 target, told;\n"
                         "mapa.shared::cluster.u32 target, %0, %3;\nmapa.shared::cluster.u32 told, %2, %3;\n"
                         "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [target], %1, [told];\n}"
                         :: "r"(shared_address(shared)), "l"(*reinterpret_cast<const uint64*>(&value)),
                            "r"(shared_address(barrier)), "r"(rank) : "memory"));
}

}  // namespace ptx
