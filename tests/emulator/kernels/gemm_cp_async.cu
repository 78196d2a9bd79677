// C[rows, columns] (float32) = A[rows, depth] @ B[depth, columns], bfloat16: cp.async, ldmatrix, mma.sync.
//
// A block of 4 warps owns a 64 x 64 tile of C, a warp 32 x 32. Three slots in dynamic shared memory hold
// slices of 32 in depth: while one is multiplied, two are on their way. rows, columns: multiples of 64;
// depth: a multiple of 32.

#include <cuda_bf16.h>

#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 64, DEPTH = 32, STAGES = 3;
constexpr int PITCH_B = TILE + 8;
#ifdef BUG_PITCH_NOT_ALIGNED
constexpr int PITCH_A = DEPTH + 4;  // rows of 72 bytes
#else
constexpr int PITCH_A = DEPTH + 8;  // rows of 80 bytes: 16-byte aligned, and 8 rows meet 32 banks
#endif

extern "C" __global__ void __launch_bounds__(128)
    gemm_cp_async(float* c, const bf16* a, const bf16* b, int rows, int columns, int depth) {
    extern __shared__ __align__(16) unsigned char shared[];
    typedef bf16 SlotA[TILE][PITCH_A];
    typedef bf16 SlotB[DEPTH][PITCH_B];
    SlotA* slots_a = reinterpret_cast<SlotA*>(shared);
    SlotB* slots_b = reinterpret_cast<SlotB*>(shared + STAGES * sizeof(SlotA));
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32, slices = depth / DEPTH;

    // 256 pieces of 16 bytes of A and of B: two of each a thread.
    auto load = [&](int slice, int slot) {
        const int start = slice * DEPTH;
        for (int k = t; k < 256; k += 128) {
            const int row = k / 4, part = k % 4 * 8;
            const bf16* from = a + (top + row) * depth + start + part;
            // FAULT: BUG_PITCH_NOT_ALIGNED, BUG_LOAD_BEFORE_BARRIER, BUG_PREFETCH_BEYOND_END
            // FAULT: BUG_NOT_WAITED_AT_EXIT
            ptx::copy_async<16>(&slots_a[slot][row][part], from);
        }
        for (int k = t; k < 256; k += 128) {
            const int row = k / 8, part = k % 8 * 8;
            const bf16* from = b + (start + row) * columns + left + part;
            // FAULT: BUG_LOAD_BEFORE_BARRIER, BUG_PREFETCH_BEYOND_END, BUG_NOT_WAITED_AT_EXIT
            ptx::copy_async<16>(&slots_b[slot][row][part], from);
        }
    };

    float sums[2][4][4] = {};
    for (int slice = 0; slice < STAGES - 1; slice++) {
        if (slice < slices) load(slice, slice);
        ptx::copy_async_commit();
    }
    for (int slice = 0; slice < slices; slice++) {
        const int next = slice + STAGES - 1;
#ifdef BUG_LOAD_BEFORE_BARRIER
        if (next < slices) load(next, next % STAGES);
        ptx::copy_async_commit();
        ptx::copy_async_wait<STAGES - 1>();
        __syncthreads();
#else
#if defined(BUG_WAIT_COUNT)
        ptx::copy_async_wait<STAGES - 1>();
        __syncthreads();
#elif defined(BUG_NO_WAIT)
        __syncthreads();
#elif defined(BUG_NO_BARRIER_AFTER_WAIT)
        ptx::copy_async_wait<STAGES - 2>();
#elif defined(BUG_WAIT_AFTER_BARRIER)
        __syncthreads();
        ptx::copy_async_wait<STAGES - 2>();
#else
        ptx::copy_async_wait<STAGES - 2>();
        __syncthreads();  // all have waited: the slice is here; all have left the slot that is filled next
#endif
#if defined(BUG_PREFETCH_BEYOND_END)
        load(next, next % STAGES);
#elif defined(BUG_NOT_WAITED_AT_EXIT)
        load(min(next, slices - 1), next % STAGES);
#else
        if (next < slices) load(next, next % STAGES);
#endif
        // FAULT: BUG_NOT_WAITED_AT_EXIT
        ptx::copy_async_commit();  // perhaps an empty group, so that the count stays in step
#endif
        const int slot = slice % STAGES;
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned part_a[2][4], part_b[2][4];
            for (int i = 0; i < 2; i++) {
                const bf16* from = &slots_a[slot][warp_row + i * 16 + lane % 16][k + lane / 16 * 8];
                // FAULT: BUG_NO_WAIT, BUG_WAIT_COUNT, BUG_NO_BARRIER_AFTER_WAIT, BUG_WAIT_AFTER_BARRIER
                // FAULT: BUG_PITCH_NOT_ALIGNED, BUG_LOAD_BEFORE_BARRIER
                ptx::load_matrix<4>(part_a[i], from);
            }
            for (int j = 0; j < 2; j++) {
                const bf16* from = &slots_b[slot][k + lane % 16][warp_column + j * 16 + lane / 16 * 8];
                // FAULT: BUG_NO_WAIT, BUG_WAIT_COUNT, BUG_NO_BARRIER_AFTER_WAIT, BUG_WAIT_AFTER_BARRIER
                // FAULT: BUG_LOAD_BEFORE_BARRIER
                ptx::load_matrix_transposed<4>(part_b[j], from);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) {
                    const unsigned pair[2] = {part_b[j / 2][j % 2 * 2], part_b[j / 2][j % 2 * 2 + 1]};
                    ptx::mma<ptx::Kind::bf16>(sums[i][j], part_a[i], pair);
                }
        }
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) {
            const int row = top + warp_row + i * 16 + lane / 4, column = left + warp_column + j * 8 + lane % 4 * 2;
            c[row * columns + column] = sums[i][j][0];
            c[row * columns + column + 1] = sums[i][j][1];
            c[(row + 8) * columns + column] = sums[i][j][2];
            c[(row + 8) * columns + column + 1] = sums[i][j][3];
        }
}
