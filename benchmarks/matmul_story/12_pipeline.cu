// 12 - a ring of slices. C[M, N] = A[M, K] B[N, K]^T, bfloat16, sums in float32. sm_90a.
//
// The idea: four slices of room, each with two barriers. `full` says that the bytes have come; `empty` that all
// four warps are done with them. The copies run up to four slices ahead, and the products of one slice
// are waited for only after the next slice's have been queued (wgmma_wait<1>): the tensor cores never run dry.
//
// Who does what: as in 11. Thread 0 also refills each slice's room once it is empty.
// Shared memory: 4 stages of 32 KiB. Registers: 128 sums.
//
// The limit: as in 11, but reached by one block alone. Room that 11 needs for three blocks, three times 128 sums
// for each thread, becomes free for a bigger tile (13).
//
// M and N are multiples of 128, K is one of 64.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 64, BYTES = TILE * DEPTH * 2, STAGES = 4;

__device__ __forceinline__ uint64 describe(const unsigned char* tile) {
    return ptx::matrix_descriptor(tile, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(128)
    matmul(bf16* __restrict__ c, const __grid_constant__ ptx::TensorMap map_a,
           const __grid_constant__ ptx::TensorMap map_b, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char stages[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, top = blockIdx.y * TILE, left = blockIdx.x * TILE, slices = K / DEPTH;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 4);  // the warps
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    auto fetch = [&](int slice) {  // by one thread
        const int s = slice % STAGES;
        unsigned char* stage = stages + s * 2 * BYTES;
        ptx::mbarrier_arrive_expect(&full[s], 2 * BYTES);
        ptx::tensor_load<2>(stage, &map_a, &full[s], {slice * DEPTH, top});
        ptx::tensor_load<2>(stage + BYTES, &map_b, &full[s], {slice * DEPTH, left});
    };

    if (t == 0)
        for (int slice = 0; slice < STAGES && slice < slices; slice++) fetch(slice);
    float sums[2][TILE / 2];
    for (int slice = 0; slice < slices; slice++) {
        const int s = slice % STAGES;
        const unsigned char *tile_a = stages + s * 2 * BYTES, *tile_b = tile_a + BYTES;
        __syncwarp();
        ptx::mbarrier_wait(&full[s], slice / STAGES & 1);  // the parity changes each time around
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16)
#pragma unroll
            for (int half = 0; half < 2; half++)
                ptx::wgmma<TILE, ptx::Kind::bf16>(sums[half], describe(tile_a + half * BYTES / 2 + k * 2),
                                                  describe(tile_b + k * 2), slice + k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();  // the slice before this one is done
        if (slice == 0) continue;
        const int before = slice - 1, free = before % STAGES;
        if (t % WARP == 0) ptx::mbarrier_arrive(&empty[free]);
        if (t == 0 && before + STAGES < slices) {
            ptx::mbarrier_wait(&empty[free], before / STAGES & 1);
            fetch(before + STAGES);
        }
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++) ptx::wgmma_hold(sums[half]);
    const int row = top + t / WARP * 16 + t % WARP / 4, column = left + t % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<__nv_bfloat162*>(&c[(row + half * 64 + h * 8) * N + column + j * 8]) =
                    __floats2bfloat162_rn(sums[half][j * 4 + h * 2], sums[half][j * 4 + h * 2 + 1]);
}
