// C[M, N] = A[M, K] B[N, K]^T, bfloat16: TMA with 128-byte swizzle, a ring of three mbarriers, wgmma m64n128k16. Of the
// three warpgroups of a block the first loads, the others own 64 rows each of a 128 x 128 tile of C; slices are 64 deep.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 64, STAGES = 3, SLOT = TILE * DEPTH * 2;

__device__ __forceinline__ uint64 describe(const unsigned char* operand) {
    return ptx::matrix_descriptor(operand, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(384)
    gemm_wgmma(const __grid_constant__ ptx::TensorMap map_a, const __grid_constant__ ptx::TensorMap map_b,
               bf16* __restrict__ c, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    unsigned char *slots_a = shared, *slots_b = shared + STAGES * SLOT;
    const int t = threadIdx.x, group = t / 128, slices = (K + DEPTH - 1) / DEPTH;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 8);  // a warp of the two groups each
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (group == 0) {
        ptx::registers_lower<40>();
        if (t == 0)
            for (int slice = 0; slice < slices; slice++) {
                const int s = slice % STAGES;
                ptx::mbarrier_wait(&empty[s], (slice / STAGES & 1) ^ 1);
                ptx::mbarrier_arrive_expect(&full[s], 2 * SLOT);
                ptx::tensor_load<2>(slots_a + s * SLOT, &map_a, &full[s], {slice * DEPTH, top});
                ptx::tensor_load<2>(slots_b + s * SLOT, &map_b, &full[s], {slice * DEPTH, left});
            }
        return;
    }
    ptx::registers_raise<232>();
    float sums[64];
#pragma unroll
    for (int i = 0; i < 64; i++) sums[i] = 0.f;
    for (int slice = 0; slice < slices; slice++) {
        const int s = slice % STAGES;
        ptx::mbarrier_wait(&full[s], slice / STAGES & 1);
        const unsigned char* from_a = slots_a + s * SLOT + (group - 1) * SLOT / 2;
        const unsigned char* from_b = slots_b + s * SLOT;
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++)
            ptx::wgmma<TILE, ptx::Kind::bf16>(sums, describe(from_a + k * 32), describe(from_b + k * 32));
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (t % 32 == 0) ptx::mbarrier_arrive(&empty[s]);
    }
    const int lane = t % 32, row = top + (group - 1) * 64 + t % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int column = left + j * 8 + lane % 4 * 2;
            if (row + h * 8 < M && column < N)
                *reinterpret_cast<__nv_bfloat162*>(c + static_cast<long>(row + h * 8) * N + column) =
                    __floats2bfloat162_rn(sums[j * 4 + h * 2], sums[j * 4 + h * 2 + 1]);
        }
}
