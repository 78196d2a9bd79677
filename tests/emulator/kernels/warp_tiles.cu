// c = a @ b^T for tiles of 16 x 16 with depth 16, bfloat16 in, float32 out: a warp does a tile, its
// operands go through its own patch of shared memory, ordered by __syncwarp alone.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

extern "C" __global__ void __launch_bounds__(64) warp_tiles(float* c, const bf16* a, const bf16* b, int tiles) {
    __shared__ __align__(16) bf16 patches[2][2][16][24];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 2, part = lane % 2 * 8;
    bf16(*patch)[16][24] = patches[warp];
    for (int tile = warp; tile < tiles; tile += 2) {
        const int from = tile * 256 + row * 16 + part;
        // FAULT: BUG_NO_SYNCWARP, BUG_SHUFFLE_FOR_BARRIER, BUG_NO_SYNCWARP_BEFORE_REFILL
        *reinterpret_cast<uint4*>(&patch[0][row][part]) = *reinterpret_cast<const uint4*>(a + from);
        // FAULT: BUG_NO_SYNCWARP, BUG_SHUFFLE_FOR_BARRIER, BUG_NO_SYNCWARP_BEFORE_REFILL
        *reinterpret_cast<uint4*>(&patch[1][row][part]) = *reinterpret_cast<const uint4*>(b + from);
#if defined(BUG_SHUFFLE_FOR_BARRIER)
        __shfl_sync(0xffffffffu, lane, 0);  // shuffles do not order memory
#elif !defined(BUG_NO_SYNCWARP)
        __syncwarp();
#endif
        unsigned part_a[4], part_b[4];
        // FAULT: BUG_NO_SYNCWARP, BUG_SHUFFLE_FOR_BARRIER, BUG_NO_SYNCWARP_BEFORE_REFILL
        ptx::load_matrix<4>(part_a, &patch[0][lane % 16][lane / 16 * 8]);
        // FAULT: BUG_NO_SYNCWARP, BUG_SHUFFLE_FOR_BARRIER, BUG_NO_SYNCWARP_BEFORE_REFILL
        ptx::load_matrix<4>(part_b, &patch[1][lane % 16][lane / 16 * 8]);
#ifndef BUG_NO_SYNCWARP_BEFORE_REFILL
        __syncwarp();
#endif
        float sums[2][4] = {};
        const unsigned left[2] = {part_b[0], part_b[2]}, right[2] = {part_b[1], part_b[3]};
        ptx::mma<ptx::Kind::bf16>(sums[0], part_a, left);
        ptx::mma<ptx::Kind::bf16>(sums[1], part_a, right);
        float* target = c + tile * 256 + lane / 4 * 16 + lane % 4 * 2;
        for (int i = 0; i < 8; i++) target[i / 2 % 2 * 8 * 16 + i / 4 * 8 + i % 2] = sums[i / 4][i % 4];
    }
}
