// *total = sum of x, in one launch: each block adds up its share, and the block that finishes last adds the
// blocks' sums up. `finished` counts blocks and is left at zero for the next launch.

extern "C" __global__ void last_block_sum(float* total, float* sums, unsigned* finished, const float* x, int n) {
    __shared__ float scratch[2];
    __shared__ bool last;
    const int t = threadIdx.x, lane = t % 32;
    float sum = 0.f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) scratch[t / 32] = sum;
    __syncthreads();
    if (t == 0) {
        sums[blockIdx.x] = scratch[0] + scratch[1];  // FAULT: BUG_NO_THREADFENCE, BUG_FENCE_OF_THE_BLOCK
#if defined(BUG_FENCE_OF_THE_BLOCK)
        __threadfence_block();
#elif !defined(BUG_NO_THREADFENCE)
        __threadfence();
#endif
#ifdef BUG_PLAIN_COUNTER
        const unsigned before = *finished;  // FAULT: BUG_PLAIN_COUNTER
        *finished = before + 1;             // FAULT: BUG_PLAIN_COUNTER
#else
        const unsigned before = atomicAdd(finished, 1u);
#endif
        last = before == gridDim.x - 1;  // FAULT: BUG_NO_BARRIER_BEFORE_BRANCH
    }
#ifndef BUG_NO_BARRIER_BEFORE_BRANCH
    __syncthreads();
#endif
    if (!last) return;  // FAULT: BUG_NO_BARRIER_BEFORE_BRANCH
    if (t < 32) {
        float value = 0.f;
        // FAULT: BUG_NO_THREADFENCE, BUG_FENCE_OF_THE_BLOCK
        for (int k = t; k < gridDim.x; k += 32) value += sums[k];
        for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
        if (t == 0) {
            *total = value;
            *finished = 0;
        }
    }
}
