// 07 - a warp's tile nearly square, and the next slice on its way. C[M, N] = A[M, K] B[K, N], float32.
//
// Two ideas. First: in 06 a warp owned a strip of 16 rows by 128 columns. Here its 32 lanes lie 8 x 4, so
// that the warp owns 64 x 32: the packs of A and of B that it reads at one k are one wavefront each. Second: while
// a slice is multiplied, the next one is already loading into registers; it is put into the other of two
// buffers afterwards, so that one barrier a slice is enough and no warp waits for memory.
//
// Who does what: a block of 8 warps (2 x 4) owns 128 x 128 of C. Lane (x, y) of 4 x 8 owns rows 4 y … 4 y + 3
// and those 32 below, columns 4 x … 4 x + 3 and those 16 further right.
// Shared memory: two buffers of 8 x 132 of A and 8 x 128 of B, 16.3 KiB. Registers: 64 sums, 16 numbers of the
// present k, 8 of the next slice.
//
// The limit: 4 wavefronts in 16 clocks of multiply-adds; what is left are the instructions that are none.
//
// M and N are multiples of 128, K is one of 8.

#include "common.cuh"

constexpr int TILE = 128, DEPTH = 8, THREADS = 256, PITCH = TILE + 4;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    __shared__ __align__(16) float tile_a[2][DEPTH][PITCH], tile_b[2][DEPTH][TILE];
    const int t = threadIdx.x, warp = t / WARP, lane = t % WARP;
    const int y = warp / 4 * 64 + lane / 4 * 4, x = warp % 4 * 32 + lane % 4 * 4;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int row_a = t / 2, k_a = t % 2 * 4, k_b = t / 32, column_b = t % 32 * 4;
    const float* next_a = a + (top + row_a) * K + k_a;
    const float* next_b = b + k_b * N + left + column_b;

    Pack<float, 4> coming_a = load_pack<float, 4>(next_a), coming_b = load_pack<float, 4>(next_b);
    auto arrive = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < 4; i++) tile_a[buffer][k_a + i][row_a] = coming_a.item[i];
        store_pack(&tile_b[buffer][k_b][column_b], coming_b);
    };
    arrive(0);
    __syncthreads();
    float sums[8][8] = {};
    for (int start = 0, buffer = 0; start < K; start += DEPTH, buffer ^= 1) {
        const bool more = start + DEPTH < K;
        if (more) {
            coming_a = load_pack<float, 4>(next_a += DEPTH);
            coming_b = load_pack<float, 4>(next_b += DEPTH * N);
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            Pack<float, 4> from_a[2], from_b[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                from_a[h] = load_pack<float, 4>(&tile_a[buffer][k][y + h * 32]);
                from_b[h] = load_pack<float, 4>(&tile_b[buffer][k][x + h * 16]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] += from_a[i / 4].item[i % 4] * from_b[j / 4].item[j % 4];
        }
        if (more) arrive(buffer ^ 1);  // read last before the barrier that this slice began with
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float* s = &sums[i][h * 4];
            const Pack<float, 4> pack = {{s[0], s[1], s[2], s[3]}};
            store_pack(&c[(top + y + i % 4 + i / 4 * 32) * N + left + x + h * 16], pack);
        }
}
