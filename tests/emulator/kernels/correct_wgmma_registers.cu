// Correct: y = relu(x @ w1^T) @ w2, half in, float32 out, 64 x 64 each: the sums of the first product
// become, without touching shared memory, the operand of the second one (A from registers, B with
// contiguous columns).

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int SIZE = 64;

__device__ unsigned relu_pair(float low, float high) {
    const __half2 both = __floats2half2_rn(fmaxf(low, 0.f), fmaxf(high, 0.f));
    return *reinterpret_cast<const unsigned*>(&both);
}

__device__ uint64 describe(const __half* operand) {
    return ptx::matrix_descriptor(operand, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(128)
    wgmma_registers(float* y, const __grid_constant__ ptx::TensorMap map_x,
                    const __grid_constant__ ptx::TensorMap map_w1, const __grid_constant__ ptx::TensorMap map_w2) {
    __shared__ __align__(1024) __half tile_x[SIZE * SIZE], tile_w1[SIZE * SIZE], tile_w2[SIZE * SIZE];
    __shared__ __align__(8) uint64 first_landed, second_landed;
    const int t = threadIdx.x, lane = t % 32, row = t / 32 * 16 + lane / 4;
    if (t == 0) {
        ptx::mbarrier_init(&first_landed, 1);
        ptx::mbarrier_init(&second_landed, 1);
        ptx::fence_mbarrier_init();
        const int at[2] = {0, 0};  // the thread that made the barriers may use them at once
        ptx::mbarrier_arrive_expect(&first_landed, 2 * sizeof(tile_x));
        ptx::tensor_load(tile_x, &map_x, &first_landed, at);
        ptx::tensor_load(tile_w1, &map_w1, &first_landed, at);
        ptx::mbarrier_arrive_expect(&second_landed, sizeof(tile_w2));
        ptx::tensor_load(tile_w2, &map_w2, &second_landed, at);
    }
    __syncthreads();
    float sums[SIZE / 2], result[SIZE / 2];
    ptx::mbarrier_wait(&first_landed, 0);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < SIZE; k += 16)
        ptx::wgmma<SIZE, ptx::Kind::f16>(sums, describe(tile_x + k), describe(tile_w1 + k), k > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    unsigned parts[SIZE / 16][4];
#pragma unroll
    for (int k = 0; k < SIZE / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) parts[k][i] = relu_pair(sums[k * 8 + i * 2], sums[k * 8 + i * 2 + 1]);
    ptx::mbarrier_wait(&second_landed, 0);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < SIZE / 16; k++) {
        // 16 rows of w2, 64 columns side by side: two groups of 8 lines, 1024 bytes apart.
        const uint64 b = describe(tile_w2 + k * 16 * SIZE);
        ptx::wgmma<SIZE, ptx::Kind::f16, true>(result, parts[k], b, k > 0);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++)
        y[(row + i / 2 % 2 * 8) * SIZE + i / 4 * 8 + lane % 4 * 2 + i % 2] = result[i];
}
