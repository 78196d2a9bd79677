// y[i] = sum over chunks of x[chunk][i] * x[chunk][63 - i], chunks of 64 floats: a ring of two slots, named
// barriers.
//
// Warp 0 produces with ordinary stores, warps 1 and 2 consume. Barrier 1 + s says that slot s is full,
// barrier 3 + s that it is empty: the side that tells arrives, the side that needs it waits, 96 threads
// together.

#include "ptx.cuh"

constexpr int CHUNK = 64, STAGES = 2, ALL = 96;
#ifdef BUG_NO_SUCH_BARRIER
constexpr int EMPTY = 15;  // the second would be 16
#else
constexpr int EMPTY = 3;
#endif

extern "C" __global__ void __launch_bounds__(ALL) ring_named(float* y, const float* x, int chunks) {
    __shared__ float slots[STAGES][CHUNK];
    const int t = threadIdx.x;
    if (t < 32) {
        for (int chunk = 0; chunk < chunks; chunk++) {
            const int s = chunk % STAGES;
            // FAULT: BUG_CONSUMER_LEFT, BUG_NO_SUCH_BARRIER
            if (chunk >= STAGES) ptx::barrier_sync(EMPTY + s, ALL);
#ifdef BUG_ARRIVES_BEFORE_WRITE
            ptx::barrier_arrive(1 + s, ALL);
#endif
            for (int k = t; k < CHUNK; k += 32)
                // FAULT: BUG_RELEASED_BEFORE_READ, BUG_ARRIVES_BEFORE_WRITE, BUG_ARRIVES_WHERE_IT_WAITS
                slots[s][k] = x[chunk * CHUNK + k];
#ifdef BUG_COUNTS_DIFFER
            ptx::barrier_arrive(1 + s, 64);  // FAULT: BUG_COUNTS_DIFFER
#elif !defined(BUG_ARRIVES_BEFORE_WRITE)
            ptx::barrier_arrive(1 + s, ALL);
#endif
        }
        return;
    }
#ifdef BUG_CONSUMER_LEFT
    if (t >= 64) return;
#endif
    const int i = t - 32;
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int s = chunk % STAGES;
#if defined(BUG_COUNT_IS_NO_MULTIPLE_OF_32)
        ptx::barrier_sync(1 + s, 65);  // FAULT: BUG_COUNT_IS_NO_MULTIPLE_OF_32
#elif defined(BUG_ARRIVES_WHERE_IT_WAITS)
        ptx::barrier_arrive(1 + s, ALL);
#else
        ptx::barrier_sync(1 + s, ALL);  // FAULT: BUG_COUNTS_DIFFER, BUG_CONSUMER_LEFT
#endif
#ifdef BUG_RELEASED_BEFORE_READ
        if (chunk + STAGES < chunks) ptx::barrier_arrive(EMPTY + s, ALL);
#endif
        // FAULT: BUG_RELEASED_BEFORE_READ, BUG_ARRIVES_BEFORE_WRITE, BUG_ARRIVES_WHERE_IT_WAITS
        sum += slots[s][i] * slots[s][CHUNK - 1 - i];
#ifndef BUG_RELEASED_BEFORE_READ
        if (chunk + STAGES < chunks) ptx::barrier_arrive(EMPTY + s, ALL);  // FAULT: BUG_NO_SUCH_BARRIER
#endif
    }
    y[i] = sum;
}
