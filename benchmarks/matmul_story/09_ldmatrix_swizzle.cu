// 09 - operands from shared memory without conflicts. C[M, N] = A[M, K] B[N, K]^T, bfloat16. sm_80 and later.
//
// Two ideas that belong together. ldmatrix: a warp reads four 8 x 8 matrices at once, each lane names one row
// of 16 bytes, and every lane gets just the pairs that mma.sync wants of it. Swizzle: the 16-byte pieces of
// a row change places depending on the row, piece p of row r lies at place p XOR (r / 2 mod 4). Eight rows of
// the same piece, which ldmatrix reads together, then lie in eight different groups of banks. No byte of
// padding is spent.
//
// Who does what, shared memory and registers: as in 08.
//
// The limit: a step of 16 k reads 6 times 512 bytes: 24 wavefronts instead of 96, for 16 clocks of products. As
// each warp's 64 x 32 needs (64 + 32) x 16 numbers of 2 bytes, 24 wavefronts are the least for this tile.
//
// M and N are multiples of 128, K is one of 32.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 32, THREADS = 256;

// The place of element (row, k) in a tile; k is a multiple of 8.
__device__ __forceinline__ int place(int row, int k) { return row * DEPTH + ((k / 8) ^ (row / 2 % 4)) * 8; }

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul(bf16* __restrict__ c, const bf16* __restrict__ a, const bf16* __restrict__ b, int M, int N, int K) {
    __shared__ __align__(128) bf16 tile_a[TILE * DEPTH], tile_b[TILE * DEPTH];
    const int t = threadIdx.x, warp = t / WARP, lane = t % WARP;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    float sums[4][4][4] = {};
    for (int start = 0; start < K; start += DEPTH) {
#pragma unroll
        for (int i = 0; i < TILE * DEPTH / 8 / THREADS; i++) {  // 16-byte pieces, four a row
            const int piece = t + i * THREADS, row = piece / 4, k = piece % 4 * 8;
            store_pack(&tile_a[place(row, k)], load_pack<bf16, 8>(&a[(top + row) * K + start + k]));
            store_pack(&tile_b[place(row, k)], load_pack<bf16, 8>(&b[(left + row) * K + start + k]));
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32 from_a[4][4], from_b[2][4];  // of B two products' worth a load
#pragma unroll
            for (int i = 0; i < 4; i++)  // matrices: rows 0-7, rows 8-15, then the same 8 k further on
                ptx::load_matrix<4>(from_a[i], &tile_a[place(warp_row + i * 16 + lane % 16, k + lane / 16 * 8)]);
#pragma unroll
            for (int j = 0; j < 2; j++)  // matrices: columns 0-7, the same 8 k further on, then columns 8-15
                ptx::load_matrix<4>(from_b[j], &tile_b[place(warp_column + j * 16 + lane / 16 * 8 + lane % 8,
                                                             k + lane / 8 % 2 * 8)]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    ptx::mma<ptx::Kind::bf16>(sums[i][j], from_a[i],
                                              {from_b[j / 2][j % 2 * 2], from_b[j / 2][j % 2 * 2 + 1]});
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<__nv_bfloat162*>(&c[(top + warp_row + i * 16 + h * 8 + lane / 4) * N + left +
                                                      warp_column + j * 8 + lane % 4 * 2]) =
                    __floats2bfloat162_rn(sums[i][j][h * 2], sums[i][j][h * 2 + 1]);
}
