// y = softmax of each row of x. One block of 128 threads owns one row; thread t holds columns t, t + 128, …
// in passes over global memory. Maximum and sum go thread -> warp (shuffles) -> block (4 floats of shared
// memory).

constexpr unsigned FULL = 0xffffffffu;

struct Maximum {
    static __device__ float apply(float a, float b) { return a > b ? a : b; }
};
struct Sum {
    static __device__ float apply(float a, float b) { return a + b; }
};

template <class Operation> __device__ float warp_reduce(float value) {
    for (int offset = 16; offset > 0; offset /= 2)
        // FAULT: BUG_BARRIER_IN_ONE_LANE
        value = Operation::apply(value, __shfl_xor_sync(FULL, value, offset));
    return value;
}

// Every thread gets the result. `identity` fills the lanes that stand for no warp.
template <class Operation> __device__ float block_reduce(float value, float* scratch, float identity) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_reduce<Operation>(value);
#ifdef BUG_BARRIER_IN_ONE_LANE
    if (lane == 0) {
        scratch[warp] = value;
        __syncthreads();  // FAULT: BUG_BARRIER_IN_ONE_LANE
    }
#else
    if (lane == 0) scratch[warp] = value;  // FAULT: BUG_NO_BARRIER_AFTER_SCRATCH, BUG_NO_BARRIER_BEFORE_REUSE
#ifndef BUG_NO_BARRIER_AFTER_SCRATCH
    __syncthreads();
#endif
#endif
#ifdef BUG_SCRATCH_OVERREAD
    value = lane <= warps ? scratch[lane] : identity;  // FAULT: BUG_SCRATCH_OVERREAD
#else
    // FAULT: BUG_NO_BARRIER_AFTER_SCRATCH, BUG_NO_BARRIER_BEFORE_REUSE
    value = lane < warps ? scratch[lane] : identity;
#endif
    value = warp_reduce<Operation>(value);
#ifndef BUG_NO_BARRIER_BEFORE_REUSE
    __syncthreads();  // the scratch is used again by the next call
#endif
    return value;
}

extern "C" __global__ void __launch_bounds__(128) softmax(float* y, const float* x, int columns) {
    __shared__ float scratch[4];
    const float* row = x + blockIdx.x * columns;
    const float lowest = __int_as_float(0xff800000);
    float most = lowest;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) most = Maximum::apply(most, row[i]);
    most = block_reduce<Maximum>(most, scratch, lowest);
    float sum = 0.f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(row[i] - most);
    sum = block_reduce<Sum>(sum, scratch, 0.f);
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        y[blockIdx.x * columns + i] = expf(row[i] - most) / sum;
}
