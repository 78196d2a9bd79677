// C[M, N] = A[M, K] B[K, N], bfloat16: cp.async in three stages, ldmatrix, mma.sync. A block of 8 warps owns a 128 x 128
// tile of C, a warp 64 x 32; the slices are 32 deep. M and N: multiples of 128, K: of 32.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 32, STAGES = 3, PITCH_A = DEPTH + 8, PITCH_B = TILE + 8;

extern "C" __global__ void __launch_bounds__(256)
    gemm_mma(bf16* __restrict__ c, const bf16* __restrict__ a, const bf16* __restrict__ b, int M, int N, int K) {
    extern __shared__ __align__(16) unsigned char shared[];
    bf16* slots_a = reinterpret_cast<bf16*>(shared);
    bf16* slots_b = slots_a + STAGES * TILE * PITCH_A;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE, slices = (K + DEPTH - 1) / DEPTH;

    auto load = [&](int slice) {
        const int slot = slice % STAGES, start = slice * DEPTH;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int piece = t + i * 256, row = piece / 4, k = piece % 4 * 8;
            const bool inside = top + row < M && start + k < K;
            ptx::copy_async<16>(slots_a + (slot * TILE + row) * PITCH_A + k,
                                inside ? a + static_cast<long>(top + row) * K + start + k : a, inside);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int piece = t + i * 256, row = piece / 16, n = piece % 16 * 8;
            const bool inside = start + row < K && left + n < N;
            ptx::copy_async<16>(slots_b + (slot * DEPTH + row) * PITCH_B + n,
                                inside ? b + static_cast<long>(start + row) * N + left + n : b, inside);
        }
    };

    float sums[4][4][4] = {};
#pragma unroll
    for (int slice = 0; slice < STAGES - 1; slice++) {
        if (slice < slices) load(slice);
        ptx::copy_async_commit();
    }
    for (int slice = 0; slice < slices; slice++) {
        ptx::copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (slice + STAGES - 1 < slices) load(slice + STAGES - 1);
        ptx::copy_async_commit();
        const bf16* from_a = slots_a + slice % STAGES * TILE * PITCH_A;
        const bf16* from_b = slots_b + slice % STAGES * DEPTH * PITCH_B;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32 part_a[4][4], part_b[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ptx::load_matrix<4>(part_a[i], from_a + (warp_row + i * 16 + lane % 16) * PITCH_A + k + lane / 16 * 8);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32 r[4];
                ptx::load_matrix_transposed<4>(
                    r, from_b + (k + lane % 16) * PITCH_B + warp_column + j * 8 + lane / 16 * 8);
                part_b[j][0] = r[0], part_b[j][1] = r[1], part_b[j + 1][0] = r[2], part_b[j + 1][1] = r[3];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) ptx::mma<ptx::Kind::bf16>(sums[i][j], part_a[i], part_b[j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = top + warp_row + i * 16 + lane / 4 + h * 8;
                const int column = left + warp_column + j * 8 + lane % 4 * 2;
                if (row < M && column < N)
                    *reinterpret_cast<__nv_bfloat162*>(c + static_cast<long>(row) * N + column) =
                        __floats2bfloat162_rn(sums[i][j][h * 2], sums[i][j][h * 2 + 1]);
            }
}
