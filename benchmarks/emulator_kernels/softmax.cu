// p = softmax of each row of x, and the cross-entropy of one label a row. One block of 256 threads owns a row; the
// maximum and the sum go thread -> warp (shuffles) -> block (32 floats of shared memory).

struct Maximum {
    static __device__ float apply(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
    static __device__ float apply(float a, float b) { return a + b; }
};

template <class Operation> __device__ __forceinline__ float block_reduce(float value, float* scratch, float identity) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int o = 16; o > 0; o /= 2) value = Operation::apply(value, __shfl_xor_sync(0xffffffffu, value, o));
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = lane < warps ? scratch[lane] : identity;
    for (int o = 16; o > 0; o /= 2) value = Operation::apply(value, __shfl_xor_sync(0xffffffffu, value, o));
    __syncthreads();  // the scratch is used again by the next call
    return value;
}

extern "C" __global__ void __launch_bounds__(256)
    softmax(float* __restrict__ p, float* __restrict__ loss, const float* __restrict__ x,
            const int* __restrict__ label, int columns) {
    __shared__ float scratch[32];
    const float lowest = __int_as_float(0xff800000);
    const float* row = x + static_cast<long>(blockIdx.x) * columns;
    float most = lowest, sum = 0.f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) most = fmaxf(most, row[i]);
    most = block_reduce<Maximum>(most, scratch, lowest);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(row[i] - most);
    sum = block_reduce<Sum>(sum, scratch, 0.f);
    const float scale = 1.f / sum;
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        p[static_cast<long>(blockIdx.x) * columns + i] = __expf(row[i] - most) * scale;
    if (threadIdx.x == 0) loss[blockIdx.x] = __logf(sum) + most - row[label[blockIdx.x]];
}
