// Kernels of neural networks with half precision, warp and block reductions, wmma. Typed anew.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

// half2 multiply-add over pairs, the odd one at the end by hand.
extern "C" __global__ void haxpy(int n, half a, const half* x, half* y) {
    int start = threadIdx.x + blockDim.x * blockIdx.x;
    int stride = blockDim.x * gridDim.x;
    int n2 = n / 2;
    half2* x2 = (half2*)x;
    half2* y2 = (half2*)y;
    for (int i = start; i < n2; i += stride) y2[i] = __hfma2(__halves2half2(a, a), x2[i], y2[i]);
    if (start == 0 && (n % 2)) y[n - 1] = __hfma(a, x[n - 1], y[n - 1]);
}

// Milakov & Gimelshein, "Online normalizer calculation for softmax": maximum and sum in one pass, one block a row.
struct __align__(8) MD {
    float m, d;
};
__device__ __forceinline__ MD combine(MD a, MD b) {
    bool a_bigger = a.m > b.m;
    MD bigger = a_bigger ? a : b, smaller = a_bigger ? b : a;
    MD res;
    res.d = bigger.d + smaller.d * __expf(smaller.m - bigger.m);
    res.m = bigger.m;
    return res;
}
template <int THREADS>
__global__ void online_softmax(const float* __restrict__ x, float* __restrict__ y, int V) {
    x += (size_t)blockIdx.x * V;
    y += (size_t)blockIdx.x * V;
    __shared__ MD partial[THREADS / 32], total;
    MD mine = {-3.402823466e+38f, 0.f};
    for (int i = threadIdx.x; i < V; i += THREADS) {
        MD one;
        one.m = x[i];
        one.d = 1.f;
        mine = combine(mine, one);
    }
    for (int s = 16; s; s >>= 1) {
        MD other;
        other.m = __shfl_xor_sync(0xffffffff, mine.m, s);
        other.d = __shfl_xor_sync(0xffffffff, mine.d, s);
        mine = combine(mine, other);
    }
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < THREADS / 32; w++) mine = combine(mine, partial[w]);
        total = mine;
    }
    __syncthreads();
    float inverse = __fdividef(1.f, total.d);
    for (int i = threadIdx.x; i < V; i += THREADS) y[i] = __expf(x[i] - total.m) * inverse;
}

// Layer normalization of bfloat16 rows, one warp a row, statistics in float.
extern "C" __global__ void layernorm_bf16(const __nv_bfloat16* x, const __nv_bfloat16* gamma, __nv_bfloat16* y,
                                          int rows, int columns, float eps) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float sum = 0, squares = 0;
    for (int i = lane; i < columns; i += 32) {
        float v = __bfloat162float(x[row * columns + i]);
        sum += v;
        squares += v * v;
    }
    for (int o = 16; o > 0; o /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, o);
        squares += __shfl_xor_sync(0xffffffffu, squares, o);
    }
    float mean = sum / columns, rstd = rsqrtf(squares / columns - mean * mean + eps);
    for (int i = lane; i < columns; i += 32) {
        float v = (__bfloat162float(x[row * columns + i]) - mean) * rstd;
        y[row * columns + i] = __float2bfloat16(v * __bfloat162float(gamma[i]));
    }
}

// Scatter-add of embedding gradients by atomicAdd on half2, and a running maximum by compare-and-swap on float.
extern "C" __global__ void embedding_backward(const half2* grad, const int* index, half2* table, float* largest,
                                              int tokens, int width2) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tokens * width2) return;
    half2 g = grad[i];
    atomicAdd(&table[index[i / width2] * width2 + i % width2], g);
    float size = fmaxf(fabsf(__low2float(g)), fabsf(__high2float(g)));
    int* p = (int*)largest;
    int old = *(volatile int*)p;
    while (__int_as_float(old) < size) {
        int seen = atomicCAS(p, old, __float_as_int(size));
        if (seen == old) break;
        old = seen;
    }
}

// Appleyard & Yokim, "Programming Tensor Cores in CUDA 9": one warp computes a 16 x 16 tile with wmma.
using namespace nvcuda;
extern "C" __global__ void wmma_gemm(const half* a, const half* b, float* c, int M, int N, int K, float alpha,
                                     float beta) {
    int warpM = (blockIdx.x * blockDim.x + threadIdx.x) / warpSize;
    int warpN = blockIdx.y * blockDim.y + threadIdx.y;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> a_frag;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> b_frag;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc_frag, c_frag;
    wmma::fill_fragment(acc_frag, 0.0f);
    if (warpM * 16 >= M || warpN * 16 >= N) return;
    for (int k = 0; k < K; k += 16) {
        wmma::load_matrix_sync(a_frag, a + warpM * 16 * K + k, K);
        wmma::load_matrix_sync(b_frag, b + warpN * 16 * K + k, K);
        wmma::mma_sync(acc_frag, a_frag, b_frag, acc_frag);
    }
    wmma::load_matrix_sync(c_frag, c + warpM * 16 * N + warpN * 16, N, wmma::mem_row_major);
    for (int i = 0; i < c_frag.num_elements; i++) c_frag.x[i] = alpha * acc_frag.x[i] + beta * c_frag.x[i];
    wmma::store_matrix_sync(c + warpM * 16 * N + warpN * 16, c_frag, N, wmma::mem_row_major);
}

// Attention for one query a block, keys streamed in tiles with a running softmax (Dao et al., FlashAttention).
extern "C" __global__ void attention_row(const float* q, const float* k, const float* v, float* out, int length,
                                         int head, float scale) {
    extern __shared__ float smem[];
    float* sq = smem;                // head
    float* score = smem + head;      // blockDim.x
    __shared__ float s_max, s_sum, s_scale;
    const int t = threadIdx.x, row = blockIdx.x;
    if (t < head) sq[t] = q[row * head + t];
    if (t == 0) s_max = -1e30f, s_sum = 0;
    float acc = 0;
    __syncthreads();
    for (int start = 0; start < length; start += blockDim.x) {
        int key = start + t;
        float s = -1e30f;
        if (key < length) {
            s = 0;
            for (int i = 0; i < head; i++) s += sq[i] * k[key * head + i];
            s *= scale;
        }
        score[t] = s;
        __syncthreads();
        if (t == 0) {
            float m = s_max;
            for (int i = 0; i < blockDim.x; i++) m = fmaxf(m, score[i]);
            s_scale = expf(s_max - m);
            s_max = m;
        }
        __syncthreads();
        score[t] = key < length ? expf(s - s_max) : 0.f;
        __syncthreads();
        if (t == 0) {
            float sum = s_sum * s_scale;
            for (int i = 0; i < blockDim.x; i++) sum += score[i];
            s_sum = sum;
        }
        if (t < head) {
            acc *= s_scale;
            for (int i = 0; i < blockDim.x && start + i < length; i++) acc += score[i] * v[(start + i) * head + t];
        }
        __syncthreads();
    }
    if (t < head) out[row * head + t] = acc / s_sum;
}
