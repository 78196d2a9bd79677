// y[i] = sum over chunks of x[chunk][i] * x[chunk][95 - i], chunks of 96 floats: a ring of two slots
// between warps.
//
// Warp 0 produces with cp.async, which arrives at full[s] when its copies have landed: 32 arrivals. Warps 1
// ... 3 consume and arrive at empty[s]: 96 arrivals.

#include "ptx.cuh"

constexpr int CHUNK = 96, STAGES = 2;

extern "C" __global__ void __launch_bounds__(128) ring_mbarrier(float* y, const float* x, int chunks) {
    __shared__ __align__(16) float slots[STAGES][CHUNK];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x;
    if (t == 0)
        for (int s = 0; s < STAGES; s++) {
#if defined(BUG_FULL_COUNT_TOO_HIGH)
            ptx::mbarrier_init(&full[s], 33);
#elif defined(BUG_FULL_COUNT_TOO_LOW)
            ptx::mbarrier_init(&full[s], 24);
#else
            ptx::mbarrier_init(&full[s], 32);
#endif
            ptx::mbarrier_init(&empty[s], CHUNK);
        }
    __syncthreads();
    if (t < 32) {
        for (int chunk = 0; chunk < chunks; chunk++) {
            const int s = chunk % STAGES, round = chunk / STAGES;
#ifndef BUG_NO_EMPTY_WAIT
            ptx::mbarrier_wait(&empty[s], (round & 1) ^ 1);  // FAULT: BUG_FULL_COUNT_TOO_HIGH
#endif
            for (int k = t; k < CHUNK; k += 32)
                // FAULT: BUG_NO_EMPTY_WAIT, BUG_RELEASED_BEFORE_READ, BUG_ARRIVES_BEFORE_DATA
                // FAULT: BUG_PARITY_NEVER_FLIPS, BUG_FULL_COUNT_TOO_LOW
                ptx::copy_async<4>(&slots[s][k], &x[chunk * CHUNK + k]);
#ifdef BUG_ARRIVES_BEFORE_DATA
            ptx::mbarrier_arrive(&full[s]);
#else
            ptx::copy_async_arrive(&full[s]);  // FAULT: BUG_NO_EMPTY_WAIT
#endif
        }
#ifdef BUG_ARRIVES_BEFORE_DATA
        ptx::copy_async_commit();
        ptx::copy_async_wait<0>();
#endif
        return;
    }
    const int i = t - 32;
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int s = chunk % STAGES, round = chunk / STAGES;
#ifdef BUG_PARITY_NEVER_FLIPS
        ptx::mbarrier_wait(&full[s], 0);
#else
        ptx::mbarrier_wait(&full[s], round & 1);  // FAULT: BUG_FULL_COUNT_TOO_HIGH
#endif
#ifdef BUG_RELEASED_BEFORE_READ
        ptx::mbarrier_arrive(&empty[s]);
#endif
        // FAULT: BUG_NO_EMPTY_WAIT, BUG_RELEASED_BEFORE_READ, BUG_ARRIVES_BEFORE_DATA
        // FAULT: BUG_PARITY_NEVER_FLIPS, BUG_FULL_COUNT_TOO_LOW
        sum += slots[s][i] * slots[s][CHUNK - 1 - i];
#ifndef BUG_RELEASED_BEFORE_READ
        ptx::mbarrier_arrive(&empty[s]);
#endif
    }
    y[i] = sum;
}
