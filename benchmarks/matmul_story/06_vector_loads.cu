// 06 - four numbers by one instruction, and no two lanes in one bank. C[M, N] = A[M, K] B[K, N], float32.
//
// The idea: 16-byte loads everywhere. From global memory they need a quarter of the instructions; from
// shared memory they need A's numbers of one k side by side, so A is turned over on its way in: tile_a is
// [k][row]. A thread's 8 x 8 elements become four blocks of 4 x 4, 64 apart: the lanes of a warp then read
// 16 packs of B that follow one another, where in 05 they lay two packs apart.
//
// Who does what: a block of 256 threads owns 128 x 128 of C; thread (x, y) of 16 x 16 owns rows
// 4 y … 4 y + 3 and those 64 below, columns 4 x … 4 x + 3 and those 64 further right.
// Shared memory: 8 x 128 of A (4 more a row, so that the four rows which a pack of A is scattered over lie
// in different banks) and 8 x 128 of B, 8.1 KiB.
//
// The limit: per warp and k two packs of A (2 addresses, 1 wavefront each) and two of B (16 packs of 16
// bytes, 2 wavefronts each): 6 wavefronts in the time of 16 clocks of multiply-adds. Now arithmetic is the
// limit: 64 of 68 instructions multiply.
//
// M and N are multiples of 128, K is one of 8.

#include "common.cuh"

constexpr int TILE = 128, DEPTH = 8, HALF = TILE / 2, THREADS = 256, PITCH = TILE + 4;

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    __shared__ __align__(16) float tile_a[DEPTH][PITCH], tile_b[DEPTH][TILE];
    const int t = threadIdx.x, x = t % 16 * 4, y = t / 16 * 4;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int row_a = t / 2, k_a = t % 2 * 4, k_b = t / 32, column_b = t % 32 * 4;  // what it fetches
    const float* next_a = a + (top + row_a) * K + k_a;
    const float* next_b = b + k_b * N + left + column_b;
    float sums[8][8] = {};
    for (int start = 0; start < K; start += DEPTH) {
        const Pack<float, 4> pack = load_pack<float, 4>(next_a);
#pragma unroll
        for (int i = 0; i < 4; i++) tile_a[k_a + i][row_a] = pack.item[i];
        store_pack(&tile_b[k_b][column_b], load_pack<float, 4>(next_b));
        next_a += DEPTH;
        next_b += DEPTH * N;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            Pack<float, 4> from_a[2], from_b[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                from_a[h] = load_pack<float, 4>(&tile_a[k][y + h * HALF]);
                from_b[h] = load_pack<float, 4>(&tile_b[k][x + h * HALF]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] += from_a[i / 4].item[i % 4] * from_b[j / 4].item[j % 4];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float* s = &sums[i][h * 4];
            const Pack<float, 4> pack = {{s[0], s[1], s[2], s[3]}};
            store_pack(&c[(top + y + i % 4 + i / 4 * HALF) * N + left + x + h * HALF], pack);
        }
}
