// Correct: a warp computes 16 x 16 tiles of a @ b^T with ldmatrix and mma from its own patch of shared
// memory, ordered by __syncwarp alone, and writes them back over the operands with stmatrix; other warps
// are elsewhere.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

extern "C" __global__ void __launch_bounds__(64) ldmatrix_tiles(bf16* c, const bf16* a, const bf16* b, int tiles) {
    __shared__ __align__(16) bf16 patches[2][2][16][24];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bf16(*patch)[16][24] = patches[warp];
    for (int tile = warp; tile < tiles; tile += 2) {
        const int row = lane / 2, part = lane % 2 * 8;
        const int from = tile * 256 + row * 16 + part;
        uint4 *here_a = reinterpret_cast<uint4*>(&patch[0][row][part]), *here_b = here_a + 16 * 24 / 8;
        *here_a = *reinterpret_cast<const uint4*>(a + from);
        *here_b = *reinterpret_cast<const uint4*>(b + from);
        __syncwarp();
        unsigned part_a[4], part_b[4];
        ptx::load_matrix<4>(part_a, &patch[0][lane % 16][lane / 16 * 8]);
        ptx::load_matrix<4>(part_b, &patch[1][lane % 16][lane / 16 * 8]);
        // Matrices of b: rows 0-7 and 8-15 of depth 0-7, then of depth 8-15.
        float sums[2][4] = {};
        const unsigned left[2] = {part_b[0], part_b[2]}, right[2] = {part_b[1], part_b[3]};
        ptx::mma<ptx::Kind::bf16>(sums[0], part_a, left);
        ptx::mma<ptx::Kind::bf16>(sums[1], part_a, right);
        unsigned packed[4];
        for (int i = 0; i < 4; i++) {
            const __nv_bfloat162 both = __floats2bfloat162_rn(sums[i / 2][i % 2 * 2], sums[i / 2][i % 2 * 2 + 1]);
            packed[i] = *reinterpret_cast<const unsigned*>(&both);
        }
        __syncwarp();  // the operands have been read by all lanes
        ptx::store_matrix<4>(&patch[0][lane % 16][lane / 16 * 8], packed);
        __syncwarp();
        *reinterpret_cast<uint4*>(c + from) = *here_a;
        __syncwarp();
    }
}
