// 14 - the grid stays, and neighbours share. C[M, N] = A[M, K] B[N, K]^T, bfloat16, sums in float32. sm_90a.
//
// Two ideas. Persistent: as many blocks as the chip has multiprocessors walk over the tiles. While the consumers
// store one tile, the producer already fetches the next one's slices. Tiles come in groups of eight rows of
// pairs, down and then to the right, so that those in work at one time form a compact patch of C, which needs
// few different rows of A and columns of B from the second-level cache. Clusters: two blocks, one tile above the
// other, need the same columns of B. Each fetches half of them and TMA delivers it to both (multicast).
//
// Who does what: as in 13 for each tile; a cluster of two owns 256 x 256 of C at a time.
// Shared memory and registers: as in 13. `empty` of a stage counts the warps of both blocks, because each
// producer writes into both blocks' stages.
//
// The limit: of the second-level cache a block takes 16 KiB of A and 16 of B a slice, 32 KiB in 1024 clocks of
// products; the products are the limit at last.
//
// M and N are multiples of 256, K is one of 64.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int ROWS = 128, COLUMNS = 256, DEPTH = 64, STAGES = 4, GROUP = 8;
constexpr int BYTES_A = ROWS * DEPTH * 2, BYTES_B = COLUMNS * DEPTH * 2, STAGE = BYTES_A + BYTES_B;

__device__ __forceinline__ uint64 describe(const unsigned char* tile) {
    return ptx::matrix_descriptor(tile, 16, 1024, ptx::Swizzle::bytes128);
}

// Where in C the pair of tiles with a number lies: of `high` x `wide` pairs, GROUP rows at a time.
__device__ __forceinline__ void locate(int pair, int high, int wide, int& row, int& column) {
    const int first = pair / (GROUP * wide) * GROUP, rows = high - first < GROUP ? high - first : GROUP;
    const int within = pair % (GROUP * wide);
    row = first + within % rows;
    column = within / rows;
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384)
    matmul(bf16* __restrict__ c, const __grid_constant__ ptx::TensorMap map_a,
           const __grid_constant__ ptx::TensorMap map_b, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char stages[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, group = t / 128, slices = K / DEPTH, rank = ptx::cluster_rank();
    const int high = M / (2 * ROWS), wide = N / COLUMNS;
    const int first_pair = blockIdx.x / 2, clusters = gridDim.x / 2;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 16);  // the consumers' warps of both blocks
        }
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_sync();  // the other block's barriers are ready, too
    int step = 0;         // slices so far, over all tiles
    if (group == 0) {
        ptx::registers_lower<40>();
        if (t == 0)
            for (int pair = first_pair; pair < high * wide; pair += clusters) {
                int row, column;
                locate(pair, high, wide, row, column);
                const int top = (row * 2 + rank) * ROWS, left = column * COLUMNS + rank * COLUMNS / 2;
                for (int slice = 0; slice < slices; slice++, step++) {
                    const int s = step % STAGES;
                    unsigned char* stage = stages + s * STAGE;
                    ptx::mbarrier_wait_cluster(&empty[s], (step / STAGES & 1) ^ 1);
                    ptx::mbarrier_arrive_expect(&full[s], STAGE);
                    ptx::tensor_load<2>(stage, &map_a, &full[s], {slice * DEPTH, top});
                    ptx::tensor_load_multicast<2>(stage + BYTES_A + rank * BYTES_B / 2, &map_b, &full[s],
                                                  {slice * DEPTH, left}, 3);
                }
            }
        __syncwarp();
    } else {
        ptx::registers_raise<232>();
        float sums[COLUMNS / 2];
        auto release = [&](int which) {  // two lanes, one for each block
            if (t % WARP < 2) ptx::mbarrier_release_remote(&empty[which % STAGES], t % WARP);
        };
        for (int pair = first_pair; pair < high * wide; pair += clusters) {
            for (int slice = 0; slice < slices; slice++, step++) {
                const int s = step % STAGES;
                const unsigned char* tile_a = stages + s * STAGE + (group - 1) * BYTES_A / 2;
                const unsigned char* tile_b = stages + s * STAGE + BYTES_A;
                ptx::mbarrier_wait(&full[s], step / STAGES & 1);
                ptx::wgmma_fence();
#pragma unroll
                for (int k = 0; k < DEPTH; k += 16)
                    ptx::wgmma<COLUMNS, ptx::Kind::bf16>(sums, describe(tile_a + k * 2), describe(tile_b + k * 2),
                                                         slice + k > 0);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
                if (slice > 0) release(step - 1);
            }
            ptx::wgmma_wait<0>();
            ptx::wgmma_hold(sums);
            release(step - 1);  // before the stores, so that the producer can go on meanwhile
            int tile_row, tile_column;
            locate(pair, high, wide, tile_row, tile_column);
            const int row = (tile_row * 2 + rank) * ROWS + (t - 128) / WARP * 16 + t % WARP / 4;
            const int column = tile_column * COLUMNS + t % 4 * 2;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    *reinterpret_cast<__nv_bfloat162*>(&c[(row + h * 8) * N + column + j * 8]) =
                        __floats2bfloat162_rn(sums[j * 4 + h * 2], sums[j * 4 + h * 2 + 1]);
        }
    }
    ptx::cluster_sync();  // the other block may still write into this one's shared memory
}
