// Correct: CUDA's own pipeline primitives over cp.async, two slots. A thread reads only what it has copied
// itself: its own wait is enough, no barrier anywhere.

#include <cuda_pipeline.h>

extern "C" __global__ void pipeline(float* y, const float* x, int rounds) {
    __shared__ __align__(16) float4 slots[2][32];
    const int t = threadIdx.x;
    const float4* from = reinterpret_cast<const float4*>(x) + t;
    __pipeline_memcpy_async(&slots[0][t], from, 16);
    __pipeline_commit();
    float sum = 0.f;
    for (int round = 0; round < rounds; round++) {
        if (round + 1 < rounds) __pipeline_memcpy_async(&slots[(round + 1) % 2][t], from + (round + 1) * 32, 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        const float4 v = slots[round % 2][t];
        sum += v.x + 2.f * v.y + 3.f * v.z + 4.f * v.w;
    }
    y[t] = sum;
}
