// sums[block] = sum of x[256 * block ... 256 * block + 255], the last block perhaps short.
//
// One thread an element. The tree runs in shared memory: between warps with __syncthreads down to 64 values,
// then within warp 0 with __syncwarp.

constexpr int THREADS = 256;

extern "C" __global__ void block_sum(float* sums, const float* x, int n) {
    __shared__ float partial[THREADS];
    const int t = threadIdx.x, i = blockIdx.x * THREADS + t;
#ifdef BUG_SHORT_BLOCK_UNFILLED
    if (i < n) partial[t] = x[i];
#else
    partial[t] = i < n ? x[i] : 0.f;
#endif
    __syncthreads();
    for (int half = THREADS / 2; half >= 64; half /= 2) {
        // FAULT: BUG_NO_BARRIER_IN_TREE, BUG_SHORT_BLOCK_UNFILLED
        if (t < half) partial[t] += partial[t + half];
#ifndef BUG_NO_BARRIER_IN_TREE
        __syncthreads();
#endif
    }
    if (t < 32) {
        for (int half = 32; half > 0; half /= 2) {
            // FAULT: BUG_NO_SYNCWARP_BEFORE_WRITE, BUG_NO_SYNCWARP_AFTER_WRITE, BUG_NO_BARRIER_IN_TREE
            const float sum = partial[t] + partial[t + half];
#ifndef BUG_NO_SYNCWARP_BEFORE_WRITE
            __syncwarp();
#endif
            // FAULT: BUG_NO_SYNCWARP_BEFORE_WRITE, BUG_NO_SYNCWARP_AFTER_WRITE, BUG_NO_BARRIER_IN_TREE
            partial[t] = sum;
#ifndef BUG_NO_SYNCWARP_AFTER_WRITE
            __syncwarp();
#endif
        }
        if (t == 0) sums[blockIdx.x] = partial[0];  // FAULT: LAUNCH_NULL_POINTER
    }
}
