// counts[bin] += number of values of x in each of 64 equal bins of [0, 1].
//
// Each block counts into its own 64 counters in shared memory with atomics and adds them to the global ones.

constexpr int BINS = 64;

extern "C" __global__ void histogram(int* counts, const float* x, int n) {
    __shared__ int bins[BINS];
    const int t = threadIdx.x;
#ifndef BUG_NO_CLEAR
    for (int k = t; k < BINS; k += blockDim.x) bins[k] = 0;  // FAULT: BUG_NO_BARRIER_AFTER_CLEAR
#endif
#ifdef BUG_CLEARED_BY_FIRST_BLOCK
    if (blockIdx.x == 0 && t < BINS) counts[t] = 0;  // FAULT: BUG_CLEARED_BY_FIRST_BLOCK
#endif
#ifndef BUG_NO_BARRIER_AFTER_CLEAR
    __syncthreads();
#endif
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) {
#ifdef BUG_ONE_FALLS_OUTSIDE
        const int bin = static_cast<int>(x[i] * BINS);
#else
        const int bin = min(static_cast<int>(x[i] * BINS), BINS - 1);
#endif
#ifdef BUG_PLAIN_INCREMENT
        bins[bin]++;  // FAULT: BUG_PLAIN_INCREMENT
#else
        // FAULT: BUG_NO_CLEAR, BUG_NO_BARRIER_AFTER_CLEAR, BUG_NO_BARRIER_BEFORE_MERGE, BUG_ONE_FALLS_OUTSIDE
        atomicAdd(&bins[bin], 1);
#endif
    }
#ifndef BUG_NO_BARRIER_BEFORE_MERGE
    __syncthreads();
#endif
    for (int k = t; k < BINS; k += blockDim.x) {
#ifdef BUG_PLAIN_MERGE
        counts[k] += bins[k];  // FAULT: BUG_PLAIN_MERGE
#else
        atomicAdd(&counts[k], bins[k]);  // FAULT: BUG_NO_BARRIER_BEFORE_MERGE, BUG_CLEARED_BY_FIRST_BLOCK
#endif
    }
}
