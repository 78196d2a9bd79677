// pipeline.cu - tensor copies and wgmma together: what a copy's swizzle writes must be what a descriptor reads.
// out (64 x 128, float) = A (64 x K) B, K a multiple of 64, over two stages in turn. 128 threads and one warp.
#include "ptx.cuh"

constexpr int STAGES = 2, TILE_A = 64 * 64 * 2, TILE_B = 64 * 128 * 2;

// ROWS_A: A comes as K x 64, its rows contiguous, else as 64 x K. ROWS_B: B as K x 128, else as 128 x K.
template <bool ROWS_A, bool ROWS_B>
__global__ void __launch_bounds__(160) multiply_tiles(const __grid_constant__ ptx::TensorMap map_a,
                                                      const __grid_constant__ ptx::TensorMap map_b, int k_size,
                                                      float* out) {
    extern __shared__ __align__(1024) unsigned char tiles[];
    __shared__ uint64 full[STAGES], empty[STAGES];
    const int thread = threadIdx.x, steps = k_size / 64;
    if (thread == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 1);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (thread >= 128) {
        if (thread > 128) return;
        for (int step = 0; step < steps; step++) {
            const int s = step % STAGES, k = step * 64;
            unsigned char *a = tiles + s * (TILE_A + TILE_B), *b = a + TILE_A;
            ptx::mbarrier_wait(&empty[s], (step / STAGES & 1) ^ 1);
            ptx::mbarrier_arrive_expect(&full[s], TILE_A + TILE_B);
            const int at_a[2] = {ROWS_A ? 0 : k, ROWS_A ? k : 0};
            ptx::tensor_load<2>(a, &map_a, &full[s], at_a);
            // A box is 128 bytes wide: B's 128 columns are two boxes where they are contiguous.
            for (int half = 0; half < 2; half++) {
                const int at_b[2] = {ROWS_B ? 64 * half : k, ROWS_B ? k : 64 * half};
                ptx::tensor_load<2>(b + half * TILE_B / 2, &map_b, &full[s], at_b);
            }
        }
        return;
    }
    float d[64];
    for (int step = 0; step < steps; step++) {
        const int s = step % STAGES;
        const unsigned char *a = tiles + s * (TILE_A + TILE_B), *b = a + TILE_A;
        ptx::mbarrier_wait(&full[s], step / STAGES & 1);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {  // 16 k each: 32 bytes along a line, or two groups of 8 lines
            const uint64 from_a = ptx::matrix_descriptor(a + k * (ROWS_A ? 2048 : 32), TILE_A, 1024,
                                                         ptx::Swizzle::bytes128);
            const uint64 from_b = ptx::matrix_descriptor(b + k * (ROWS_B ? 2048 : 32), TILE_B / 2, 1024,
                                                         ptx::Swizzle::bytes128);
            ptx::wgmma<128, ptx::Kind::bf16, ROWS_A, ROWS_B>(d, from_a, from_b, step + k > 0);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::wgmma_hold(d);
        ptx::barrier_sync(1, 128);
        if (thread == 0) ptx::mbarrier_arrive(&empty[s]);
    }
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; i++) out[(row + 8 * (i / 2 % 2)) * 128 + i / 4 * 8 + column + i % 2] = d[i];
}
