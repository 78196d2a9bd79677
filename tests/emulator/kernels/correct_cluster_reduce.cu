// Correct: softmax of rows that a cluster of four blocks shares. Maximum and sum are pushed into every
// peer's shared memory (distributed shared memory), each with one cluster barrier: two arrays take turns,
// so no second one is needed before the next use. The barrier's halves stand apart, with work between that
// needs no peer.

#include "ptx.cuh"

__device__ float block_reduce(float value, float* scratch, bool sum) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, offset);
        value = sum ? value + other : fmaxf(value, other);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    const float other = scratch[1];
    value = sum ? scratch[0] + other : fmaxf(scratch[0], other);
    __syncthreads();
    return value;
}

extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_softmax(float* y, const float* x, int columns) {
    __shared__ float scratch[2], maxima[4], sums[4];
    const int t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
    const int part = columns / size, start = blockIdx.x / size * columns + rank * part;
    ptx::cluster_arrive();  // says: this block has started
    float most = -1e30f;
    for (int i = t; i < part; i += blockDim.x) most = fmaxf(most, x[start + i]);
    most = block_reduce(most, scratch, false);
    ptx::cluster_wait();
    if (t < size) *ptx::map_shared(&maxima[rank], t) = most;
    ptx::cluster_sync();
    for (int k = 0; k < size; k++) most = fmaxf(most, maxima[k]);
    float sum = 0.f;
    for (int i = t; i < part; i += blockDim.x) sum += expf(x[start + i] - most);
    sum = block_reduce(sum, scratch, true);
    if (t < size) *ptx::map_shared(&sums[rank], t) = sum;
    // The last access to a peer is behind: after the barrier everyone reads its own shared memory, and may leave.
    ptx::cluster_sync();
    sum = 0.f;
    for (int k = 0; k < size; k++) sum += sums[k];
    for (int i = t; i < part; i += blockDim.x) y[start + i] = expf(x[start + i] - most) / sum;
}

// Rounds of reading from the neighbour, double-buffered: one barrier a round.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_shift(int* y, const int* x, int rounds) {
    __shared__ int values[2][64];
    const int t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
    int value = x[blockIdx.x * 64 + t];
    for (int round = 0; round < rounds; round++) {
        values[round % 2][t] = value;
        ptx::cluster_sync();
        value += ptx::map_shared(values[round % 2], (rank + 1) % size)[63 - t];
    }
    y[blockIdx.x * 64 + t] = value;
    ptx::cluster_sync();  // the neighbour may still read the last round
}
