// Correct: structs in shared memory with padding between the members. Members are written one by one, the
// struct is read as a whole (the padding with it, which nobody has written); half2 words whose halves come
// from two threads.

#include <cuda_fp16.h>

struct Best {
    float value;
    unsigned char label;  // 3 bytes of padding follow
};
struct alignas(16) Wide {
    double sum;
    short count;  // 6 bytes of padding
};

extern "C" __global__ void structs(float* values, int* labels, double* sums, __half2* pairs, const float* x) {
    __shared__ Best best[64];
    __shared__ Wide wide[64];
    __shared__ __half2 words[32];
    const int t = threadIdx.x;  // 64 threads
    best[t].value = x[t];
    best[t].label = t;
    wide[t].sum = x[t];
    wide[t].count = 1;
    (t % 2 ? words[t / 2].y : words[t / 2].x) = __float2half(x[t]);
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) {
            const Best other = best[t + half];
            if (other.value > best[t].value) best[t] = other;
            Wide mine = wide[t];
            const Wide theirs = wide[t + half];
            mine.sum += theirs.sum;
            mine.count += theirs.count;
            wide[t] = mine;
        }
        __syncthreads();
    }
    if (t < 32) pairs[t] = words[31 - t];
    if (t == 0) {
        *values = best[0].value;
        *labels = best[0].label;
        *sums = wide[0].sum * 100 + wide[0].count;
    }
}
