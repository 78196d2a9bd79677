// C[64, 64] = A[64, 16] @ B[16, 64], bfloat16, B given as [64, 16]: mma.sync, stmatrix, TMA store.
//
// Four warps, 16 rows each. The sums, rounded to bfloat16, go to a tile in dynamic shared memory (8 KiB) by
// stmatrix, four 8 x 8 matrices at a time; one thread sends the tile off.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int SIZE = 64, DEPTH = 16;

__device__ unsigned pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
}
__device__ unsigned pair_at(const bf16* p) { return *reinterpret_cast<const unsigned*>(p); }

extern "C" __global__ void __launch_bounds__(128)
    epilogue_stmatrix(const __grid_constant__ ptx::TensorMap map_c, const bf16* a, const bf16* b) {
    extern __shared__ __align__(128) bf16 tile[];
    const int t = threadIdx.x, lane = t % 32, top = t / 32 * 16;
    const bf16* row_a = a + (top + lane / 4) * DEPTH + lane % 4 * 2;
    const unsigned part_a[4] = {pair_at(row_a), pair_at(row_a + 8 * DEPTH), pair_at(row_a + 8),
                                pair_at(row_a + 8 * DEPTH + 8)};
    for (int j = 0; j < SIZE; j += 16) {
        float sums[2][4] = {};
        for (int n = 0; n < 2; n++) {
            const bf16* row_b = b + (j + n * 8 + lane / 4) * DEPTH + lane % 4 * 2;
            const unsigned part_b[2] = {pair_at(row_b), pair_at(row_b + 8)};
            ptx::mma<ptx::Kind::bf16>(sums[n], part_a, part_b);
        }
        const unsigned packed[4] = {pack(sums[0][0], sums[0][1]), pack(sums[0][2], sums[0][3]),
                                    pack(sums[1][0], sums[1][1]), pack(sums[1][2], sums[1][3])};
        // Lane l names row l % 8 of matrix l / 8: rows 0-7 and 8-15 of the left half, then of the right half.
#if defined(BUG_COLUMN_NOT_ALIGNED)
        bf16* row = tile + (top + lane % 16) * SIZE + j + lane / 16 * 4;
#elif defined(BUG_ROW_TOO_LOW)
        bf16* row = tile + (top + lane % 16 + 1) * SIZE + j + lane / 16 * 8;
#else
        bf16* row = tile + (top + lane % 16) * SIZE + j + lane / 16 * 8;
#endif
        ptx::store_matrix<4>(row, packed);  // FAULT: BUG_COLUMN_NOT_ALIGNED, BUG_ROW_TOO_LOW, BUG_NO_BARRIER
    }
#ifndef BUG_NO_PROXY_FENCE
    ptx::fence_proxy_async();
#endif
#ifndef BUG_NO_BARRIER
    __syncthreads();
#endif
    if (t == 0) {
        const int at[2] = {0, 0};
        ptx::tensor_store(&map_c, tile, at);  // FAULT: BUG_NO_PROXY_FENCE, BUG_NO_BARRIER, BUG_NO_COMMIT
#ifndef BUG_NO_COMMIT
        ptx::bulk_commit();
#endif
        ptx::bulk_wait<0>();
    }
}
