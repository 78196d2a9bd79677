// A chain of blocks, in the order of a ticket: each adds its row of x to what the block before has left in
// `totals` and leaves the sum for the next, by a bulk store. y = the running sums, reversed.
//
// What a bulk store has written may only be read by others when bulk_wait (not bulk_wait_read) has
// returned.

#include "ptx.cuh"

constexpr int COUNT = 64;

extern "C" __global__ void handoff(float* y, float* totals, unsigned* flags, unsigned* tickets, const float* x) {
    __shared__ __align__(128) float sums[COUNT];
    __shared__ int number;
    const int t = threadIdx.x;
    if (t == 0) number = atomicAdd(tickets, 1u);
    __syncthreads();
    const int me = number;
#ifndef BUG_FLAG_NOT_AWAITED
    if (t == 0 && me > 0)
        while (ptx::load_acquire(&flags[me - 1]) == 0) __nanosleep(20);
#endif
    __syncthreads();
    sums[t] = x[me * COUNT + t];
    // FAULT: BUG_FLAG_NOT_AWAITED, BUG_WAITED_FOR_READ_ONLY, BUG_FLAG_BEFORE_WAIT
    if (me > 0) sums[t] += totals[(me - 1) * COUNT + t];
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        // FAULT: BUG_FLAG_NOT_AWAITED, BUG_WAITED_FOR_READ_ONLY, BUG_FLAG_BEFORE_WAIT
        ptx::bulk_store(&totals[me * COUNT], sums, sizeof(sums));
        ptx::bulk_commit();
#ifdef BUG_FLAG_BEFORE_WAIT
        ptx::store_release(&flags[me], 1u);  // FAULT: BUG_FLAG_BEFORE_WAIT
        ptx::bulk_wait<0>();
#else
#ifdef BUG_WAITED_FOR_READ_ONLY
        ptx::bulk_wait_read<0>();
#else
        ptx::bulk_wait<0>();
#endif
        ptx::store_release(&flags[me], 1u);  // FAULT: BUG_WAITED_FOR_READ_ONLY
#endif
    }
    y[me * COUNT + COUNT - 1 - t] = sums[t];
}
