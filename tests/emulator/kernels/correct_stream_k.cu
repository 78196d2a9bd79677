// Correct: stream-K. `rows` sums over `depth` elements are cut into equal shares over the blocks, wherever
// the cuts fall. Who begins a row in the middle leaves a partial sum and raises a flag (release); who holds
// the row's beginning waits for the helpers' flags (acquire) and adds their partial sums in a fixed order.
// Helpers have higher shares, so shares are given out from the last to the first: nobody waits for one who
// has not started.

#include "ptx.cuh"

extern "C" __global__ void stream_k(float* sums, float* partial, unsigned* flags, unsigned* tickets,
                                    const float* x, int rows, int depth, int share) {
    __shared__ float scratch[2];
    __shared__ int number;
    const int t = threadIdx.x, blocks = gridDim.x, total = rows * depth;
    if (t == 0) number = blocks - 1 - atomicAdd(tickets, 1u);
    __syncthreads();
    const int me = number;
    int begin = me * share;
    const int end = min(begin + share, total);
    while (begin < end) {
        const int row = begin / depth, row_end = min((row + 1) * depth, end);
        float sum = 0.f;
        for (int i = begin + t; i < row_end; i += blockDim.x) sum += x[i];
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        if (t % 32 == 0) scratch[t / 32] = sum;
        __syncthreads();
        if (t == 0) {
            sum = scratch[0] + scratch[1];
            if (begin > row * depth) {
                partial[me] = sum;
                ptx::store_release(flags + me, 1u);
            } else {
                for (int helper = me + 1; helper < blocks && helper * share < (row + 1) * depth; helper++) {
                    while (ptx::load_acquire(flags + helper) == 0) {
                    }
                    sum += partial[helper];
                }
                sums[row] = sum;
            }
        }
        __syncthreads();
        begin = row_end;
    }
}
