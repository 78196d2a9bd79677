// y = x / sum of its row. A cluster of two blocks owns a row, each block of 64 threads one half of it.
//
// The blocks' sums are read from each other's shared memory (distributed shared memory).

#include "ptx.cuh"

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_normalise(float* y, const float* x, int columns) {
    __shared__ float of_warps[2];
    __shared__ float of_block;
    const int t = threadIdx.x, rank = ptx::cluster_rank(), half = columns / 2;
    const int start = blockIdx.x / 2 * columns + rank * half;
    float sum = 0.f;
    for (int i = t; i < half; i += blockDim.x) sum += x[start + i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (t % 32 == 0) of_warps[t / 32] = sum;
    __syncthreads();
#ifndef BUG_WRITTEN_AFTER_ARRIVAL
    // FAULT: BUG_BLOCK_BARRIER_ONLY, BUG_ARRIVES_WITHOUT_WAIT
    if (t == 0) of_block = of_warps[0] + of_warps[1];
#endif
#if defined(BUG_BLOCK_BARRIER_ONLY)
    __syncthreads();
#elif defined(BUG_CLUSTER_BARRIER_BY_ONE_THREAD)
    if (t == 0) ptx::cluster_sync();  // FAULT: BUG_CLUSTER_BARRIER_BY_ONE_THREAD
    __syncthreads();                  // FAULT: BUG_CLUSTER_BARRIER_BY_ONE_THREAD
#elif defined(BUG_ARRIVES_WITHOUT_WAIT)
    ptx::cluster_arrive();  // FAULT: BUG_ARRIVES_WITHOUT_WAIT
#elif defined(BUG_WRITTEN_AFTER_ARRIVAL)
    ptx::cluster_arrive();
    if (t == 0) of_block = of_warps[0] + of_warps[1];  // FAULT: BUG_WRITTEN_AFTER_ARRIVAL
    ptx::cluster_wait();
#else
    ptx::cluster_sync();
#endif
#ifdef BUG_NO_SUCH_RANK
    const float total = of_block + *ptx::map_shared(&of_block, rank + 1);  // FAULT: BUG_NO_SUCH_RANK
#else
    // FAULT: BUG_BLOCK_BARRIER_ONLY, BUG_ARRIVES_WITHOUT_WAIT, BUG_PEER_MAY_HAVE_EXITED
    // FAULT: BUG_WRITTEN_AFTER_ARRIVAL
    const float total = of_block + *ptx::map_shared(&of_block, rank ^ 1);
#endif
#ifndef BUG_PEER_MAY_HAVE_EXITED
    ptx::cluster_sync();  // the peer may still be reading // FAULT: BUG_ARRIVES_WITHOUT_WAIT
#endif
    for (int i = t; i < half; i += blockDim.x) y[start + i] = x[start + i] / total;
}
