// Correct: neighbouring bytes and half-words belong to different threads, in shared and in global memory,
// without any barrier between their writes. One 16-byte word, two threads; bools, bytes, halves; a struct
// with members of different owners.

#include <cuda_fp16.h>

struct Mixed {
    unsigned char owner;
    bool flag;
    short small;
    __half weight;
    unsigned char tail[2];
};

extern "C" __global__ void bytes(unsigned char* y, bool* flags, __half* halves, short* smalls,
                                 const unsigned char* x, int n) {
    __shared__ unsigned char reversed[256];
    __shared__ bool odd[256];
    __shared__ __half weights[256];
    __shared__ Mixed mixed[64];
    const int t = threadIdx.x;  // 256 threads, n <= 256
    reversed[t] = t < n ? x[n - 1 - t] : 0;
    odd[t] = t & 1;
    weights[t] = __int2half_rn(t);
    Mixed* const m = &mixed[t / 4];
    if (t % 4 == 0) m->owner = t / 4;
    if (t % 4 == 1) m->flag = t & 4;
    if (t % 4 == 2) m->small = -t;
    if (t % 4 == 3) m->weight = __int2half_rn(t), m->tail[0] = 1, m->tail[1] = 2;
    if (t < n) {
        y[t] = x[t] + 1;
        flags[t] = x[t] > 100;
    }
    __syncthreads();
    const Mixed& other = mixed[63 - t / 4];
    if (t < n) {
        y[t] += reversed[t];
        halves[t] = __hadd(weights[255 - t], other.weight);
        smalls[t] = other.owner + other.small + other.flag + odd[t ^ 1] + other.tail[t & 1];
    }
}
