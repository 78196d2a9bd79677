// Correct: a producer warp and three consumer warps share a ring of three slots through mbarriers, with
// ordinary stores and loads. No thread passes a block barrier after the start, and the warps end at
// different times.

#include "ptx.cuh"

constexpr int CHUNK = 64, STAGES = 3;

extern "C" __global__ void __launch_bounds__(128) mbarrier_ring(float* y, const float* x, int chunks) {
    __shared__ float slots[STAGES][CHUNK];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, lane = t % 32;
    if (t < STAGES) {
        ptx::mbarrier_init(&full[t], 32);
        ptx::mbarrier_init(&empty[t], 3);
    }
    __syncthreads();
    if (t < 32) {
        for (int chunk = 0; chunk < chunks; chunk++) {
            const int s = chunk % STAGES, round = chunk / STAGES;
            ptx::mbarrier_wait(&empty[s], (round & 1) ^ 1);
            slots[s][lane] = x[chunk * CHUNK + lane];
            slots[s][lane + 32] = x[chunk * CHUNK + lane + 32];
            ptx::mbarrier_arrive(&full[s]);  // each lane for its own stores
        }
        return;
    }
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int s = chunk % STAGES, round = chunk / STAGES;
        while (!ptx::mbarrier_test(&full[s], round & 1)) {
        }
        sum += slots[s][lane] * slots[s][CHUNK - 1 - lane] * (t / 32);
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&empty[s]);  // one lane for the whole warp, behind __syncwarp
    }
    y[t - 32] = sum;
}
