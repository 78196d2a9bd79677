// 08 - the tensor cores multiply. C[M, N] = A[M, K] B[N, K]^T, bfloat16, sums in float32. sm_80 and later.
//
// The idea: a warp multiplies a 16 x 16 tile by a 16 x 8 tile with one instruction, mma.sync, which on an H100
// is 16 times as many multiply-adds a clock as the ordinary units do. B now comes as Linear layers have it,
// N x K, because the instruction wants the two numbers of a register to be neighbours in k for both operands.
//
// Who does what: a block of 8 warps (2 x 4) owns 128 x 128 of C, a warp 64 x 32 = 4 x 4 products a step of 16
// k. Which lane holds which numbers of a product stands in ptx_tensor_core.cuh: lane 4 g + t has rows g and
// g + 8 and the pairs of k at 2 t and 2 t + 8.
// Shared memory: slices of 32 k, 128 x 32 of A and of B, 16 KiB. Registers: 64 sums.
//
// The limit: operands are read from shared memory as they lie, 4 bytes a lane. A row is 64 bytes long, so
// the eight rows that a warp reads at once fall on two groups of banks: every read takes 4 wavefronts instead
// of 1. A step of 16 k: 24 reads, 96 wavefronts for 16 products that would take 16 clocks.
//
// M and N are multiples of 128, K is one of 32.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 32, THREADS = 256;

__device__ __forceinline__ uint32 pair_at(const bf16* place) { return *reinterpret_cast<const uint32*>(place); }

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul(bf16* __restrict__ c, const bf16* __restrict__ a, const bf16* __restrict__ b, int M, int N, int K) {
    __shared__ __align__(16) bf16 tile_a[TILE][DEPTH], tile_b[TILE][DEPTH];
    const int t = threadIdx.x, warp = t / WARP, g = t % WARP / 4, pair = t % 4 * 2;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    float sums[4][4][4] = {};
    for (int start = 0; start < K; start += DEPTH) {
#pragma unroll
        for (int i = 0; i < TILE * DEPTH / 8 / THREADS; i++) {  // 16-byte pieces, four a row
            const int piece = t + i * THREADS, row = piece / 4, k = piece % 4 * 8;
            store_pack(&tile_a[row][k], load_pack<bf16, 8>(&a[(top + row) * K + start + k]));
            store_pack(&tile_b[row][k], load_pack<bf16, 8>(&b[(left + row) * K + start + k]));
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32 from_a[4][4], from_b[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    from_a[i][r] = pair_at(&tile_a[warp_row + i * 16 + r % 2 * 8 + g][k + r / 2 * 8 + pair]);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    from_b[j][r] = pair_at(&tile_b[warp_column + j * 8 + g][k + r * 8 + pair]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) ptx::mma<ptx::Kind::bf16>(sums[i][j], from_a[i], from_b[j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<__nv_bfloat162*>(&c[(top + warp_row + i * 16 + h * 8 + g) * N + left + warp_column +
                                                      j * 8 + pair]) =
                    __floats2bfloat162_rn(sums[i][j][h * 2], sums[i][j][h * 2 + 1]);
}
