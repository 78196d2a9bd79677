// Correct: cp.async tells an mbarrier when its bytes have landed (two producing warps, 64 arrivals), so
// that the producers never wait for their own copies; two consuming warps give the slot back by mbarrier
// too. One block, no __syncthreads after the start. The data come from an address that is only 4-byte
// aligned.

#include "ptx.cuh"

constexpr int CHUNK = 64, STAGES = 2;

extern "C" __global__ void __launch_bounds__(128) copy_async_barrier(float* y, const float* x, int chunks) {
    __shared__ float slots[STAGES][CHUNK];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x;
    if (t == 0)
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 64);
            ptx::mbarrier_init(&empty[s], 64);
        }
    __syncthreads();
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int s = chunk % STAGES, round = chunk / STAGES & 1;
        if (t < 64) {
            ptx::mbarrier_wait(&empty[s], round ^ 1);
            ptx::copy_async<4>(&slots[s][t], &x[1 + chunk * CHUNK + t]);
            ptx::copy_async_arrive(&full[s]);
        } else {
            ptx::mbarrier_wait(&full[s], round);
            sum += slots[s][127 - t] + 2.f * slots[s][t - 64];
            ptx::mbarrier_arrive(&empty[s]);
        }
    }
    if (t >= 64) y[t - 64] = sum;
}
