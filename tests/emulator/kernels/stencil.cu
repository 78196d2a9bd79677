// next[i] = now[i - 1] + 2 now[i] + now[i + 1], zero outside. One thread an element; the block's elements
// and one neighbour on each side lie in dynamic shared memory: (threads + 2) floats.

__constant__ float weights[3] = {1.f, 2.f, 1.f};

extern "C" __global__ void stencil(float* next, float* now, int n) {
    extern __shared__ float tile[];
    const int t = threadIdx.x, threads = blockDim.x;
    const int i = blockIdx.x * threads + t;
    tile[t + 1] = i < n ? now[i] : 0.f;  // FAULT: BUG_NO_BARRIER
#ifdef BUG_LEFT_EDGE
    if (t == 0) tile[0] = now[i - 1];  // FAULT: BUG_LEFT_EDGE
#else
    if (t == 0) tile[0] = i > 0 ? now[i - 1] : 0.f;  // FAULT: BUG_IN_PLACE, LAUNCH_OUTPUT_IS_INPUT
#endif
#ifndef BUG_NO_RIGHT_NEIGHBOUR
    // FAULT: BUG_IN_PLACE, LAUNCH_OUTPUT_IS_INPUT, LAUNCH_TOO_LITTLE_SHARED
    if (t == threads - 1) tile[threads + 1] = i + 1 < n ? now[i + 1] : 0.f;
#endif
#ifndef BUG_NO_BARRIER
    __syncthreads();
#endif
    if (i < n) {
        float sum = 0.f;
#if defined(BUG_TILE_TOO_FAR)
        for (int k = 0; k < 3; k++) sum += weights[k] * tile[t + k + 1];  // FAULT: BUG_TILE_TOO_FAR
#elif defined(BUG_FOURTH_WEIGHT)
        for (int k = 0; k <= 3; k++) sum += weights[k] * tile[t + k % 3];  // FAULT: BUG_FOURTH_WEIGHT
#else
        // FAULT: BUG_NO_BARRIER, BUG_NO_RIGHT_NEIGHBOUR
        for (int k = 0; k < 3; k++) sum += weights[k] * tile[t + k];
#endif
#if defined(BUG_IN_PLACE)
        now[i] = sum;  // FAULT: BUG_IN_PLACE
        next[i] = sum;
#elif defined(BUG_BLOCKS_OVERLAP)
        next[blockIdx.x * (threads - 1) + t] = sum;  // FAULT: BUG_BLOCKS_OVERLAP
#else
        next[i] = sum;  // FAULT: LAUNCH_OUTPUT_IS_INPUT
#endif
    }
}
