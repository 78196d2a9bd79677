// Correct: one piece of shared memory is floats, then integers, then bytes (a union), with a barrier at
// each change; and dynamic shared memory carved into arrays of several types, each at its own alignment.

#include "ptx.cuh"

union Scratch {
    float values[64];
    int counts[64];
    unsigned char letters[256];
};

extern "C" __global__ void reuse(float* y, const float* x) {
    __shared__ Scratch scratch;
    const int t = threadIdx.x;
    scratch.values[t] = x[t];
    __syncthreads();
    const float other = scratch.values[63 - t];
    __syncthreads();
    scratch.counts[t] = static_cast<int>(other) * 3;
    __syncthreads();
    const int count = scratch.counts[t ^ 1];
    __syncthreads();
    for (int k = 0; k < 4; k++) scratch.letters[k * 64 + t] = t + k;
    __syncthreads();
    y[t] = other + count + scratch.letters[255 - t];
}

// The bytes of an mbarrier are used for data when it has served, and for an mbarrier of another count again.
extern "C" __global__ void recycle(int* y, const int* x) {
    __shared__ __align__(8) int words[2];
    uint64* barrier = reinterpret_cast<uint64*>(words);
    const int t = threadIdx.x;
    int sum = 0;
    for (int round = 0; round < 3; round++) {
        if (t == 0) ptx::mbarrier_init(barrier, round == 1 ? 32 : 64);
        __syncthreads();
        if (round != 1 || t < 32) {
            ptx::mbarrier_arrive(barrier);
            ptx::mbarrier_wait(barrier, 0);
        }
        __syncthreads();
        if (t == 0) ptx::mbarrier_invalidate(barrier);
        __syncthreads();
        if (t < 2) words[t] = x[t] + round;
        __syncthreads();
        sum += words[0] * 10 + words[1];
        __syncthreads();
    }
    y[t] = sum;
}

extern "C" __global__ void carve(float* y, const float* x, int n) {
    extern __shared__ __align__(16) unsigned char memory[];
    double* sums = reinterpret_cast<double*>(memory);             // n
    float* values = reinterpret_cast<float*>(sums + n);           // n
    uint64* barrier = reinterpret_cast<uint64*>(values + n);      // 1; n is even
    short* order = reinterpret_cast<short*>(barrier + 1);         // n
    unsigned char* marks = reinterpret_cast<unsigned char*>(order + n);  // n
    const int t = threadIdx.x;
    if (t == 0) ptx::mbarrier_init(barrier, n);
    sums[t] = 2. * x[t];
    values[t] = x[t] + 1.f;
    order[t] = n - 1 - t;
    marks[t] = t % 5;
    __syncthreads();
    const int from = order[t];
    const float result = values[from] + static_cast<float>(sums[from]) + marks[from];
    ptx::mbarrier_arrive(barrier);
    ptx::mbarrier_wait(barrier, 0);
    values[t] = result;  // all have read
    __syncwarp();
    y[t] = values[t ^ 1];
}
