// Correct: the same ring with named barriers, 2 x (full, empty), where the producer is a different warp for
// even and odd chunks, and consumers give slots back by arriving without waiting.

#include "ptx.cuh"

constexpr int CHUNK = 64, STAGES = 2, ALL = 96 + 32;  // three warps that consume, one that produces the slot

extern "C" __global__ void __launch_bounds__(160) named_ring(float* y, const float* x, int chunks) {
    __shared__ float slots[STAGES][CHUNK];
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    if (warp < 2) {
        const int s = warp;
        for (int chunk = s; chunk < chunks; chunk += STAGES) {
            if (chunk >= STAGES) ptx::barrier_sync(3 + s, ALL);
            slots[s][lane] = x[chunk * CHUNK + lane];
            slots[s][lane + 32] = x[chunk * CHUNK + lane + 32];
            ptx::barrier_arrive(1 + s, ALL);
        }
        return;
    }
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int s = chunk % STAGES;
        ptx::barrier_sync(1 + s, ALL);
        sum += slots[s][CHUNK - 1 - lane] * slots[s][lane] * (warp - 1);
        if (chunk + STAGES < chunks) ptx::barrier_arrive(3 + s, ALL);
    }
    y[t - 64] = sum;
}
