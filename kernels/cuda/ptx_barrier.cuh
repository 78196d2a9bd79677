// ptx_barrier.cuh - named barriers, barriers in shared memory (mbarrier), fences, and small controls.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// ---- named barriers: 16 a block, number 0 is __syncthreads -------------------------------------------

// Waits until `threads` threads (a multiple of 32, those that only arrive included) have come to barrier
// `id`. By whole warps.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
    PTX(emu_named_barrier(id, threads, 1),
        asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"));
}

// Comes to barrier `id` and goes on. By whole warps.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    PTX(emu_named_barrier(id, threads, 0),
        asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"));
}

// ---- mbarrier: 8 aligned bytes of shared memory that count arrivals and bytes, phase after phase --------
//
// A phase is complete when `count` arrivals were made and all expected bytes came; the next begins at
// once. Phases have parity 0, 1, 0, 1 …: waiting for parity 0 first is waiting for the first phase.

// By one thread, before any use; a fence_mbarrier_init and a block (or cluster) barrier follow.
__device__ __forceinline__ void mbarrier_init(uint64* barrier, int count) {
    PTX(emu_mbarrier_init(barrier, count),
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                     :: "r"(shared_address(barrier)), "r"(count) : "memory"));
}

// Ends the barrier's life, so that its memory may be used for something else. By one thread.
__device__ __forceinline__ void mbarrier_invalidate(uint64* barrier) {
    PTX(emu_mbarrier_invalidate(barrier),
        asm volatile("mbarrier.inval.shared::cta.b64 [%0];" :: "r"(shared_address(barrier)) : "memory"));
}

// One arrival.
__device__ __forceinline__ void mbarrier_arrive(uint64* barrier) {
    PTX(emu_mbarrier_arrive(barrier, 0, -1),
        asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}"
                     :: "r"(shared_address(barrier)) : "memory"));
}

// One arrival that also lets the phase wait for `bytes` bytes of asynchronous copies. From sm_90 on.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64* barrier, int bytes) {
    PTX(emu_mbarrier_arrive(barrier, bytes, -1),
        asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}"
                     :: "r"(shared_address(barrier)), "r"(bytes) : "memory"));
}

// Lets the phase wait for more bytes, without an arrival. From sm_90 on.
__device__ __forceinline__ void mbarrier_expect(uint64* barrier, int bytes) {
    PTX(emu_mbarrier_expect(barrier, bytes),
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
                     :: "r"(shared_address(barrier)), "r"(bytes) : "memory"));
}

// Whether the phase of this parity is complete; does not wait.
__device__ __forceinline__ bool mbarrier_test(uint64* barrier, int parity) {
    uint32 done;
    PTX(done = static_cast<uint32>(emu_mbarrier_test(barrier, parity)),
        asm volatile("{\n.reg .pred done;\n"
                     "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, done;\n}"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory"));
    return done != 0;
}

#ifndef GPUNN_EMULATOR
// One look at the barrier, which may let the thread sleep for a while first where the chip can (sm_90).
__device__ __forceinline__ bool mbarrier_look(uint64* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
    uint32 done;
    asm volatile("{\n.reg .pred done;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.b32 %0, 1, 0, done;\n}"
                 : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return done != 0;
#else
    return mbarrier_test(barrier, parity);
#endif
}
#endif

// Waits until the phase of this parity is complete. Each thread that reads the data waits itself, or
// passes a block barrier behind one that did.
__device__ __forceinline__ void mbarrier_wait(uint64* barrier, int parity) {
    PTX(emu_mbarrier_wait(barrier, parity), while (!mbarrier_look(barrier, parity)) {});
}

// One arrival at the barrier at the same place in block `rank` of the cluster. From sm_90 on.
__device__ __forceinline__ void mbarrier_arrive_remote(uint64* barrier, int rank) {
    PTX(emu_mbarrier_arrive(barrier, 0, rank),
        asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                     "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}"
                     :: "r"(shared_address(barrier)), "r"(rank) : "memory"));
}

// The same without ordering this thread's ordinary reads and writes before it: for a place that was read by
// wgmma alone and is to be written by tensor copies. The ordering above is a fence for the whole GPU, hundreds
// of cycles. From sm_90 on.
__device__ __forceinline__ void mbarrier_release_remote(uint64* barrier, int rank) {
    PTX(emu_mbarrier_arrive(barrier, 0, rank),
        asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [there];\n}"
                     :: "r"(shared_address(barrier)), "r"(rank) : "memory"));
}

// The same as mbarrier_arrive_remote, and lets that barrier's phase wait for `bytes` bytes. From sm_90 on.
__device__ __forceinline__ void mbarrier_arrive_expect_remote(uint64* barrier, int bytes, int rank) {
    PTX(emu_mbarrier_arrive(barrier, bytes, rank),
        asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                     "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [there], %2;\n}"
                     :: "r"(shared_address(barrier)), "r"(rank), "r"(bytes) : "memory"));
}

// Like mbarrier_wait, for a barrier at which other blocks of the cluster arrive after they wrote to or
// read from this block's shared memory with ordinary instructions. From sm_90 on.
__device__ __forceinline__ void mbarrier_wait_cluster(uint64* barrier, int parity) {
    PTX(emu_mbarrier_wait(barrier, parity), uint32 done = 0; while (!done) {
        asm volatile("{\n.reg .pred done;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, done;\n}"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    });
}

// ---- fences ----------------------------------------------------------------------------------------

// Makes initialised barriers known to the cluster and to asynchronous copies. From sm_90 on.
__device__ __forceinline__ void fence_mbarrier_init() {
    PTX(emu_fence_mbarrier_init(), asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"));
}

// Between this thread's ordinary writes to shared memory and their reading by bulk copies, tensor copies
// or wgmma; before the barrier, where another thread starts those. From sm_90 on.
__device__ __forceinline__ void fence_proxy_async() {
    PTX(emu_fence_proxy_async(), asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}

// ---- controls ----------------------------------------------------------------------------------------

// True in one lane of the warp, the same each time. By all lanes of the warp. From sm_90 on.
#ifdef GPUNN_EMULATOR
EMU_NOSAN inline void elect_first(void** lanes, unsigned mask) {
    *static_cast<bool*>(lanes[__builtin_ctz(mask)]) = true;
}
__device__ __forceinline__ bool elect_one() {
    bool chosen = false;
    emu_collective(0xffffffffu, &chosen, elect_first, "elect.sync");
    return chosen;
}
#else
__device__ __forceinline__ bool elect_one() {
    uint32 chosen;
    asm volatile("{\n.reg .pred chosen;\nelect.sync _|chosen, 0xffffffff;\nselp.b32 %0, 1, 0, chosen;\n}"
                 : "=r"(chosen));
    return chosen != 0;
}
#endif

// Raises / lowers the registers of each thread to R (24 … 256 by 8). By all warps of a warpgroup, in a
// kernel whose __launch_bounds__ names its threads; a raise waits until registers are free. sm_90a.
template <int R> __device__ __forceinline__ void registers_raise() {
    static_assert(R >= 24 && R <= 256 && R % 8 == 0, "setmaxnreg takes 24 to 256 in steps of 8");
    PTX((void)0, asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(R)));
}
template <int R> __device__ __forceinline__ void registers_lower() {
    static_assert(R >= 24 && R <= 256 && R % 8 == 0, "setmaxnreg takes 24 to 256 in steps of 8");
    PTX((void)0, asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(R)));
}

// Programmatic launch: lets the kernel that depends on this one start / waits until the kernels that this
// one depends on are complete and their writes visible. Nothing in an ordinary launch. From sm_90 on.
__device__ __forceinline__ void launch_dependents() {
    PTX((void)0, asm volatile("griddepcontrol.launch_dependents;" ::: "memory"));
}
__device__ __forceinline__ void wait_for_dependencies() {
    PTX((void)0, asm volatile("griddepcontrol.wait;" ::: "memory"));
}

}  // namespace ptx
