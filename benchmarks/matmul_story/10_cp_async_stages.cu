// 10 - copies that nobody waits for. C[M, N] = A[M, K] B[N, K]^T, bfloat16. sm_80 and later.
//
// The idea: cp.async copies from global to shared memory without passing through registers, and the thread
// goes on. With four slices of room the copies run three slices ahead of the products, so that memory's delay
// has the time of three slices to pass. One barrier a slice: it says both that the slice which is needed now
// has come for all threads and that all are done with the one whose room is filled next.
//
// Who does what and registers: as in 09. Shared memory: 4 stages of 16 KiB, dynamic because it is more than 48.
//
// The limit: the pieces pass the load path once (in 08 and 09 twice, into registers and out again) and shared
// memory still is it: 24 wavefronts a step and warp for 16 clocks of products. A bigger warp tile would be the
// next thing for this chip generation; on sm_90 the tensor cores read shared memory themselves (11).
//
// M and N are multiples of 128, K is one of 32.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 32, THREADS = 256, STAGES = 4;

__device__ __forceinline__ int place(int row, int k) { return row * DEPTH + ((k / 8) ^ (row / 2 % 4)) * 8; }

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul(bf16* __restrict__ c, const bf16* __restrict__ a, const bf16* __restrict__ b, int M, int N, int K) {
    extern __shared__ __align__(128) bf16 stages[];
    const int t = threadIdx.x, warp = t / WARP, lane = t % WARP, slices = K / DEPTH;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;

    auto fetch = [&](int slice) {
        bf16 *tile_a = stages + slice % STAGES * 2 * TILE * DEPTH, *tile_b = tile_a + TILE * DEPTH;
        const int start = slice * DEPTH;
#pragma unroll
        for (int i = 0; i < TILE * DEPTH / 8 / THREADS; i++) {  // 16-byte pieces, four a row
            const int piece = t + i * THREADS, row = piece / 4, k = piece % 4 * 8;
            ptx::copy_async<16>(&tile_a[place(row, k)], &a[(top + row) * K + start + k]);
            ptx::copy_async<16>(&tile_b[place(row, k)], &b[(left + row) * K + start + k]);
        }
    };

#pragma unroll
    for (int slice = 0; slice < STAGES - 1; slice++) {
        if (slice < slices) fetch(slice);
        ptx::copy_async_commit();  // an empty group keeps the count right
    }
    float sums[4][4][4] = {};
    for (int slice = 0; slice < slices; slice++) {
        ptx::copy_async_wait<STAGES - 2>();  // this slice's group is done; two may be under way
        __syncthreads();
        if (slice + STAGES - 1 < slices) fetch(slice + STAGES - 1);
        ptx::copy_async_commit();
        const bf16 *tile_a = stages + slice % STAGES * 2 * TILE * DEPTH, *tile_b = tile_a + TILE * DEPTH;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32 from_a[4][4], from_b[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ptx::load_matrix<4>(from_a[i], &tile_a[place(warp_row + i * 16 + lane % 16, k + lane / 16 * 8)]);
#pragma unroll
            for (int j = 0; j < 2; j++)
                ptx::load_matrix<4>(from_b[j], &tile_b[place(warp_column + j * 16 + lane / 16 * 8 + lane % 8,
                                                             k + lane / 8 % 2 * 8)]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    ptx::mma<ptx::Kind::bf16>(sums[i][j], from_a[i],
                                              {from_b[j / 2][j % 2 * 2], from_b[j / 2][j % 2 * 2 + 1]});
        }
    }
    ptx::copy_async_wait<0>();
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
