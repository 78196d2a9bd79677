// Correct: flags. Between warps of a block through volatile shared memory, and between blocks through
// volatile global memory, each with a fence on both sides; and with release and acquire. Blocks take their
// order from a ticket, so that the block that is waited for runs.

#include "ptx.cuh"

extern "C" __global__ void volatile_flag(int* y, int* mail, int* mail_flags, unsigned* tickets, const int* x) {
    __shared__ int data[32];
    __shared__ volatile int ready;
    __shared__ int order;
    const int t = threadIdx.x, lane = t % 32;
    if (t == 0) {
        ready = 0;
        order = atomicAdd(tickets, 1u);
    }
    __syncthreads();
    const int me = order;
    if (t < 32) {
        data[lane] = x[me * 32 + lane];
        __syncwarp();
        if (lane == 0) {
            __threadfence_block();  // also for what the other lanes wrote before __syncwarp
            ready = 1;
        }
    } else {
        while (ready == 0) {
        }
        __threadfence_block();
        const int value = data[31 - lane];
        // A chain of blocks: each adds what the one before has sent.
        int before = 0;
        if (me > 0) {
            volatile int* flag = mail_flags + me - 1;
            while (*flag == 0) __nanosleep(20);
            __threadfence();
            before = mail[(me - 1) * 32 + lane];
        }
        mail[me * 32 + lane] = before + value;
        __syncwarp();
        if (lane == 0) {
            __threadfence();
            *const_cast<volatile int*>(mail_flags + me) = 1;
        }
        y[me * 32 + lane] = before + value;
    }
}

// The same chain with release and acquire.
extern "C" __global__ void acquire_flag(int* y, int* mail, unsigned* flags, unsigned* tickets, const int* x) {
    __shared__ int order;
    const int t = threadIdx.x;
    if (t == 0) order = atomicAdd(tickets, 1u);
    __syncthreads();
    const int me = order;
    if (me > 0) {
        if (t == 0)
            while (ptx::load_acquire(flags + me - 1) == 0) {
            }
        __syncthreads();  // thread 0 has seen the flag, the barrier tells the others
    }
    const int value = x[me * 64 + t] + (me > 0 ? mail[(me - 1) * 64 + 63 - t] : 0);
    mail[me * 64 + t] = value;
    y[me * 64 + t] = value;
    __syncthreads();
    if (t == 0) ptx::store_release(flags + me, 1u);  // the block's writes: barrier, then release
}
