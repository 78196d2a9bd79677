// x /= sum of x, in place, in one cooperative launch: block sums, a barrier of the whole grid, then the
// division.

#include <cooperative_groups.h>

extern "C" __global__ void __launch_bounds__(64) grid_normalise(float* x, float* sums, int n) {
    __shared__ float of_warps[2];
    const int t = threadIdx.x, first = blockIdx.x * blockDim.x + t, step = gridDim.x * blockDim.x;
    float sum = 0.f;
    for (int i = first; i < n; i += step) sum += x[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (t % 32 == 0) of_warps[t / 32] = sum;
    __syncthreads();
    if (t == 0) sums[blockIdx.x] = of_warps[0] + of_warps[1];  // FAULT: BUG_BLOCK_BARRIER_ONLY
#ifdef BUG_BLOCK_BARRIER_ONLY
    __syncthreads();
#else
    cooperative_groups::this_grid().sync();
#endif
    float total = 0.f;
    for (int k = 0; k < gridDim.x; k++) total += sums[k];  // FAULT: BUG_BLOCK_BARRIER_ONLY
    for (int i = first; i < n; i += step) x[i] /= total;
}
