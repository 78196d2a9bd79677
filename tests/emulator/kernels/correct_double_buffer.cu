// Correct: a row of blocks of 96 floats comes in by cp.async, two buffers; while one is used the other
// fills. Every thread reads what other threads have copied: its own wait AND a barrier stand before. Empty
// groups keep the count in step, and elements that do not exist are filled with zeros (valid = false).

#include "ptx.cuh"

constexpr int THREADS = 32, CHUNK = 96;

extern "C" __global__ void double_buffer(float* y, const float* x, int n) {
    __shared__ __align__(16) float buffers[2][CHUNK];
    const int t = threadIdx.x, chunks = (n + CHUNK - 1) / CHUNK;
    auto load = [&](int chunk) {
        if (chunk < chunks && t < CHUNK / 4) {
            const int i = chunk * CHUNK + t * 4;  // n is a multiple of 4
            ptx::copy_async<16>(&buffers[chunk % 2][t * 4], i < n ? x + i : x, i < n);
        }
        ptx::copy_async_commit();
    };
    load(0);
    float sum = 0.f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        load(chunk + 1);
        ptx::copy_async_wait<1>();
        __syncthreads();
        for (int k = t; k < CHUNK; k += THREADS) sum += (k + 1) * buffers[chunk % 2][CHUNK - 1 - k];
        __syncthreads();
    }
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (t == 0) *y = sum;
}
