// 13 - one warpgroup fetches, two multiply. C[M, N] = A[M, K] B[N, K]^T, bfloat16, sums in float32. sm_90a.
//
// The idea: in 12 warp 0 waited for the slowest warp before it could go on multiplying. Here a warpgroup of its
// own, the producer, waits and fetches; two consumers only multiply. Since the producer needs hardly any
// registers, it gives them away (setmaxnreg), and the consumers take them: 128 sums each for a tile of
// 128 x 256, twice the tile of 12.
//
// Who does what: warpgroup 0 is the producer, of which one thread works; warpgroups 1 and 2 own 64 rows
// each of 128 x 256 of C, by wgmma m64n256k16.
// Shared memory: 4 stages of 16 KiB of A and 32 KiB of B, 192 KiB: one block a multiprocessor.
// Registers: 40 for the producer's threads, 232 for the consumers'; (40 + 2 x 232) x 128 = 64,512 of 65,536.
//
// The limit: a slice is 1024 clocks of products; 48 KiB of the second-level cache a slice instead of 2 x 32 for
// the same work in 12. Shared memory: 4 x 2 x (2 + 8) KiB read and 48 written are 128 KiB in 1024 clocks, just
// what it can do.
//
// M is a multiple of 128, N of 256, K of 64.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int ROWS = 128, COLUMNS = 256, DEPTH = 64, STAGES = 4;
constexpr int BYTES_A = ROWS * DEPTH * 2, BYTES_B = COLUMNS * DEPTH * 2, STAGE = BYTES_A + BYTES_B;

__device__ __forceinline__ uint64 describe(const unsigned char* tile) {
    return ptx::matrix_descriptor(tile, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(384)
    matmul(bf16* __restrict__ c, const __grid_constant__ ptx::TensorMap map_a,
           const __grid_constant__ ptx::TensorMap map_b, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char stages[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, group = t / 128, slices = K / DEPTH;
    const int top = blockIdx.y * ROWS, left = blockIdx.x * COLUMNS;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 8);  // the consumers' warps
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (group == 0) {
        ptx::registers_lower<40>();
        if (t == 0)
            for (int slice = 0; slice < slices; slice++) {
                const int s = slice % STAGES;
                unsigned char* stage = stages + s * STAGE;
                ptx::mbarrier_wait(&empty[s], (slice / STAGES & 1) ^ 1);  // at first all are empty
                ptx::mbarrier_arrive_expect(&full[s], STAGE);
                ptx::tensor_load<2>(stage, &map_a, &full[s], {slice * DEPTH, top});
                ptx::tensor_load<2>(stage + BYTES_A, &map_b, &full[s], {slice * DEPTH, left});
            }
        return;
    }
    ptx::registers_raise<232>();
    float sums[COLUMNS / 2];
    for (int slice = 0; slice < slices; slice++) {
        const int s = slice % STAGES;
        const unsigned char *tile_a = stages + s * STAGE + (group - 1) * BYTES_A / 2;
        const unsigned char* tile_b = stages + s * STAGE + BYTES_A;
        ptx::mbarrier_wait(&full[s], slice / STAGES & 1);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16)
            ptx::wgmma<COLUMNS, ptx::Kind::bf16>(sums, describe(tile_a + k * 2), describe(tile_b + k * 2),
                                                 slice + k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (slice > 0 && t % WARP == 0) ptx::mbarrier_arrive(&empty[(slice - 1) % STAGES]);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_hold(sums);
    const int row = top + (t - 128) / WARP * 16 + t % WARP / 4, column = left + t % 4 * 2;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            *reinterpret_cast<__nv_bfloat162*>(&c[(row + h * 8) * N + column + j * 8]) =
                __floats2bfloat162_rn(sums[j * 4 + h * 2], sums[j * 4 + h * 2 + 1]);
}
