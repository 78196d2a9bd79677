// y[r] = x[r] * x[r][0]: one block walks over rows; thread 0 reads the row's first element and tells all
// threads through one word of shared memory.

extern "C" __global__ void broadcast(float* y, const float* x, int rows) {
    __shared__ float factor;
    const int t = threadIdx.x, columns = blockDim.x;
    for (int r = 0; r < rows; r++) {
        // FAULT: BUG_WARP_BARRIER_BEFORE_REUSE, BUG_WARP_BARRIER_BEFORE_USE
        if (t == 0) factor = x[r * columns];
#ifdef BUG_WARP_BARRIER_BEFORE_USE
        __syncwarp();
#else
        __syncthreads();
#endif
        // FAULT: BUG_WARP_BARRIER_BEFORE_REUSE, BUG_WARP_BARRIER_BEFORE_USE
        y[r * columns + t] = x[r * columns + t] * factor;
#ifdef BUG_WARP_BARRIER_BEFORE_REUSE
        __syncwarp();
#else
        __syncthreads();
#endif
    }
}
