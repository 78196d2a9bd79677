// Correct: atomics on shared and global counters by all threads of all blocks, in turns with ordinary
// accesses that a barrier sets apart; several kinds of atomics on one word; half-precision and 64-bit
// atomics.

#include <cuda_fp16.h>

extern "C" __global__ void histogram(int* counts, int* extremes, unsigned long long* total, __half2* pairs,
                                     const int* x, int n) {
    __shared__ int bins[32];
    __shared__ int largest;
    const int t = threadIdx.x;
    if (t < 32) bins[t] = 0;
    if (t == 0) largest = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&bins[x[i] % 32], 1);
        atomicMax(&largest, x[i]);
        atomicMin(&extremes[0], x[i]);
        atomicAdd(total, (unsigned long long)x[i]);
        atomicAdd(pairs, __floats2half2_rn(1.f, x[i] % 2));
    }
    __syncthreads();
    if (t < 32) {
        const int count = bins[t];
        if (count > 0) atomicAdd(&counts[t], count);
        bins[t] = t == 31 ? bins[t] : count;  // ordinary again: nobody else is at this word now
    }
    if (t == 32) {
        atomicMax(&extremes[1], largest);
        atomicOr(&extremes[2], 1 << blockIdx.x);
        atomicXor(&extremes[2], 1 << 8);
    }
    __syncthreads();
    atomicSub(&bins[t % 32], 1);
}
