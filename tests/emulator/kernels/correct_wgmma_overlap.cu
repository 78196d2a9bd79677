// Correct: two accumulators in flight at once, committed one after the other; wait<1> says that the older
// one is done, which is then read, scaled and multiplied again while the younger is still under way (as
// attention kernels do).
//
// y0 = 2 (x @ w^T) + x @ w^T, y1 = x @ w2^T, all 64 x 64 x 64, operands filled by ordinary stores.

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int SIZE = 64;

__device__ void fill(__half* tile, const __half* x) {  // row r, 16-byte piece p at piece p ^ (r % 8)
    for (int k = threadIdx.x; k < SIZE * SIZE / 8; k += blockDim.x) {
        const int r = k / 8, p = k % 8;
        *reinterpret_cast<uint4*>(tile + r * SIZE + (p ^ r % 8) * 8) = *reinterpret_cast<const uint4*>(x + k * 8);
    }
}

__device__ void multiply(float (&sums)[SIZE / 2], const __half* a, const __half* b, bool accumulate) {
#pragma unroll
    for (int k = 0; k < SIZE; k += 16)
        ptx::wgmma<SIZE, ptx::Kind::f16>(sums, ptx::matrix_descriptor(a + k, 16, 1024, ptx::Swizzle::bytes128),
                                         ptx::matrix_descriptor(b + k, 16, 1024, ptx::Swizzle::bytes128),
                                         accumulate || k > 0);
    ptx::wgmma_commit();
}

__device__ void write(float* y, const float (&sums)[SIZE / 2]) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++)
        y[(row + i / 2 % 2 * 8) * SIZE + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

extern "C" __global__ void __launch_bounds__(128)
    wgmma_overlap(float* y0, float* y1, const __half* x, const __half* w, const __half* w2) {
    __shared__ __align__(1024) __half tile_x[SIZE * SIZE], tile_w[SIZE * SIZE], tile_w2[SIZE * SIZE];
    fill(tile_x, x);
    fill(tile_w, w);
    fill(tile_w2, w2);
    ptx::fence_proxy_async();
    __syncthreads();
    float first[SIZE / 2], second[SIZE / 2];
    ptx::wgmma_fence();
    multiply(first, tile_x, tile_w, false);
    multiply(second, tile_x, tile_w2, false);
    ptx::wgmma_wait<1>();  // first is done, second not
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++) first[i] *= 2.f;
    ptx::wgmma_fence();
    multiply(first, tile_x, tile_w, true);
    ptx::wgmma_wait<1>();  // second is done, first is under way again
    write(y1, second);
    ptx::wgmma_wait<0>();
    write(y0, first);
}
