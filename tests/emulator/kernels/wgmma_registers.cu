// y[64, 64] = relu(x[64, depth]) @ w[64, depth]^T + bias, bfloat16 in, float32 out: wgmma with A from
// registers.
//
// One warpgroup. Each slice of 64 in depth of w is written by ordinary stores into the 128-byte swizzled
// layout, then read by the asynchronous proxy; each thread keeps its fragment of relu(x) in four registers
// a step of 16.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int SIZE = 64, DEPTH = 64;

__device__ unsigned relu_pair(const bf16* pair) {
    const float low = __bfloat162float(pair[0]), high = __bfloat162float(pair[1]);
    const __nv_bfloat162 both = __floats2bfloat162_rn(low > 0.f ? low : 0.f, high > 0.f ? high : 0.f);
    return *reinterpret_cast<const unsigned*>(&both);
}

extern "C" __global__ void __launch_bounds__(128)
    wgmma_registers(float* y, const bf16* x, const bf16* w, const float* bias, int depth) {
    __shared__ __align__(1024) bf16 slice_w[SIZE * DEPTH];
    const int t = threadIdx.x, lane = t % 32, row = t / 32 * 16 + lane / 4;
    float sums[SIZE / 2];
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++) sums[i] = 0.f;
    for (int start = 0; start < depth; start += DEPTH) {
        // 16-byte piece p of row r lies at piece p ^ (r % 8).
        for (int k = t; k < SIZE * DEPTH / 8; k += 128) {
            const int r = k / 8, p = k % 8;
            const uint4 piece = *reinterpret_cast<const uint4*>(w + r * depth + start + p * 8);
            // FAULT: BUG_NO_BARRIER, BUG_SLICE_NOT_WAITED_FOR
            *reinterpret_cast<uint4*>(slice_w + r * DEPTH + (p ^ r % 8) * 8) = piece;
        }
#ifndef BUG_NO_PROXY_FENCE
        ptx::fence_proxy_async();
#endif
#ifndef BUG_NO_BARRIER
        __syncthreads();
#endif
        unsigned parts[DEPTH / 16][4];
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            const bf16* from = x + row * depth + start + k * 16 + lane % 4 * 2;
#ifdef BUG_ONE_FRAGMENT_FOR_ALL
            unsigned(&part)[4] = parts[0];
#else
            unsigned(&part)[4] = parts[k];
#endif
            part[0] = relu_pair(from);  // FAULT: BUG_ONE_FRAGMENT_FOR_ALL, BUG_SLICE_NOT_WAITED_FOR
            part[1] = relu_pair(from + 8 * depth);
            part[2] = relu_pair(from + 8);
            part[3] = relu_pair(from + 8 * depth + 8);
#ifdef BUG_ONE_FRAGMENT_FOR_ALL
            ptx::wgmma_fence();
            const uint64 b = ptx::matrix_descriptor(slice_w + k * 16, 16, 1024, ptx::Swizzle::bytes128);
            ptx::wgmma<SIZE, ptx::Kind::bf16>(sums, part, b);
        }
#else
        }
#ifndef BUG_NO_WGMMA_FENCE
        ptx::wgmma_fence();  // the registers written above
#endif
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            const uint64 b = ptx::matrix_descriptor(slice_w + k * 16, 16, 1024, ptx::Swizzle::bytes128);
            // FAULT: BUG_NO_WGMMA_FENCE, BUG_NO_PROXY_FENCE, BUG_NO_BARRIER
            ptx::wgmma<SIZE, ptx::Kind::bf16>(sums, parts[k], b);
        }
#endif
#ifdef BUG_NO_COMMIT
        if (start + DEPTH < depth) ptx::wgmma_commit();
#else
        ptx::wgmma_commit();
#endif
        if (start + DEPTH >= depth) {
#ifdef BUG_BIAS_IN_FLIGHT
#pragma unroll
            // FAULT: BUG_BIAS_IN_FLIGHT
            for (int i = 0; i < SIZE / 2; i++) sums[i] += bias[i / 4 * 8 + lane % 4 * 2 + i % 2];
            ptx::wgmma_wait<0>();
#else
            ptx::wgmma_wait<0>();
#pragma unroll
            // FAULT: BUG_NO_COMMIT
            for (int i = 0; i < SIZE / 2; i++) sums[i] += bias[i / 4 * 8 + lane % 4 * 2 + i % 2];
#endif
        } else {
#ifndef BUG_SLICE_NOT_WAITED_FOR
            ptx::wgmma_wait<0>();
#endif
        }
        __syncthreads();  // all four warps have read the slice
    }
#pragma unroll
    for (int j = 0; j < SIZE / 8; j++) {
        float* target = y + row * SIZE + j * 8 + lane % 4 * 2;
        target[0] = sums[j * 4];
        target[1] = sums[j * 4 + 1];
        target[8 * SIZE] = sums[j * 4 + 2];
        target[8 * SIZE + 1] = sums[j * 4 + 3];
    }
}
