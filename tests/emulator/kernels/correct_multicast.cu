// Correct: y[block] = x[block's rows] @ w^T, clusters of two: both blocks need the same slices of w, each
// loads half of a slice and sends it to both; x comes by ordinary TMA loads. Three slots; a slot is free
// when the warps of both blocks have arrived, at both blocks' barriers. Bytes may arrive at a barrier
// before its own producer has said how many.

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int ROWS = 16, SIZE = 32, STAGES = 3;  // x: 16 rows a block; slices of 32 in depth; w: 32 rows
constexpr int BYTES_W = SIZE * SIZE * 2, BYTES_X = ROWS * SIZE * 2;

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(96)
    multicast_gemm(float* y, const __grid_constant__ ptx::TensorMap map_x,
                   const __grid_constant__ ptx::TensorMap map_w, int slices) {
    __shared__ __align__(128) __half slots_w[STAGES][SIZE][SIZE], slots_x[STAGES][ROWS][SIZE];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, rank = ptx::cluster_rank();
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 4);  // two warps of each block
        }
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_sync();
    if (t >= 64) {
        if (ptx::elect_one())
            for (int slice = 0; slice < slices; slice++) {
                const int s = slice % STAGES;
                ptx::mbarrier_wait_cluster(&empty[s], (slice / STAGES & 1) ^ 1);
                const int at_w[2] = {slice * SIZE, rank * SIZE / 2};
                const int at_x[2] = {slice * SIZE, static_cast<int>(blockIdx.x) * ROWS};
                ptx::mbarrier_arrive_expect(&full[s], BYTES_W + BYTES_X);
                ptx::tensor_load_multicast(slots_w[s][rank * SIZE / 2], &map_w, &full[s], at_w, 3);
                ptx::tensor_load(slots_x[s], &map_x, &full[s], at_x);
            }
    } else {
        const int column = t % SIZE, top = t / SIZE * 8;
        float sums[8] = {};
        for (int slice = 0; slice < slices; slice++) {
            const int s = slice % STAGES;
            ptx::mbarrier_wait(&full[s], slice / STAGES & 1);
            for (int k = 0; k < SIZE; k++)
                for (int r = 0; r < 8; r++)
                    sums[r] += __half2float(slots_x[s][top + r][k]) * __half2float(slots_w[s][column][k]);
            __syncwarp();
            if (t % 32 < 2) ptx::mbarrier_arrive_remote(&empty[s], t % 32);  // one lane for each block
        }
        for (int r = 0; r < 8; r++) y[(blockIdx.x * ROWS + top + r) * SIZE + column] = sums[r];
    }
    __syncwarp();  // the producer's lanes come together again
    ptx::cluster_sync();
}
