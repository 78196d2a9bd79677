// matmul_wgmma.cu - matrix products on the tensor cores of sm_90a (H100, H200): TMA and wgmma.
#include "matmul_wgmma_store.cuh"

// C = finish(sum over k of A[m, k] B[k, n]) for each matrix of a batch; `finish` is matmul_epilogue.cuh's.
//
// T is the operands' type: __nv_bfloat16 or __half, float for TF32 (K contiguous), or with PLANES 2 or 3
// __nv_bfloat16 for float32 operands that matmul_prepare.cu has split. Sums are float32.
//
// Who does what: warpgroup 0 loads: one thread of it keeps a ring of STAGES stages full with tensor copies (TMA)
// of the next k blocks' tiles of A and B, and gives its registers away. CONSUMERS warpgroups multiply: each
// waits for a stage, makes 64 rows x BN columns x 32 bytes of K an instruction out of shared memory (wgmma),
// and releases it. A grid that fills the chip walks over the tiles, so the loader is already at the next tile
// while this one is stored. The consumers share a tile (each BM / CONSUMERS rows), or with PINGPONG each has a
// tile of its own and they take turns: one stores while the other multiplies.
// Clusters: CLUSTER blocks, one above the other, share the tile of B: each loads a part of it for all (multicast).
//   With SPLIT they share the tile of C instead, each sums a part of K, and the parts are added through
//   distributed shared memory in the order of the blocks: for products with too few tiles to fill the chip.
//   Where that is not enough, `parts` > 1 leaves sums in `partial` for matmul_combine.
// SWAPPED: the launch code has exchanged the operands (C^T = B^T A^T), so that a small M lies along the N of the
//   instruction, which may be as short as 8; C is stored transposed on the way through shared memory.
// Layouts: K contiguous, or with ROWS_* the rows of A / columns of B; the hardware transposes on reading.
//   What TMA cannot address (odd pitches, other strides, unaligned) matmul_prepare.cu copies first.
//
// Shared memory: the ring (128 x 256 x 64 bf16: 48 KB a stage), then a place for finished tiles, then 2 STAGES
// barriers. Everything is swizzled by the tensor copies as wgmma wants it, so nothing conflicts.
// The limit: a k block of 128 x 256 x 64 is 2.1 M multiply-adds: 1024 cycles at the 2048 a cycle of one
// multiprocessor; it needs 48 KB of loads, 32 KB with a cluster of 2: 32 bytes a cycle, about what L2 gives. Smaller
// tiles load more for each multiply-add: 128 x 128 needs 48. Hence large tiles, as long as there are enough of them.
// Why so: sums of 64 x 256 in 128 registers of 128 threads, and the operands not in registers at all, is what
// leaves the tensor cores as the only thing that anyone waits for. See docs/kernels/matmul.md for the way here.
// Assumes: M, N, K < 2^31, K >= 1; maps with the boxes of gpunn/primitives/matmul_wgmma.py; `vector` as in Epilogue.
template <typename T, typename Out, int PLANES, int BM, int BN, int CONSUMERS, bool PINGPONG, int STAGES, int CLUSTER,
          bool SPLIT, bool SWAPPED, bool ROWS_A, bool ROWS_B, Ending ENDING>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WARPGROUP * (1 + CONSUMERS), RESIDENT_BLOCKS<CONSUMERS, PLANES, BN>)
matmul_wgmma(const __grid_constant__ ptx::TensorMap map_a, const __grid_constant__ ptx::TensorMap map_b,
             const __grid_constant__ ptx::TensorMap map_out, int M, int N, int K, uint32 batch, uint32 inner,
             int a_near, int a_far, int b_near, int b_far, int part, int parts, float* partial, const Out* bias,
             const Out* saved, const Out* residual, Out* out, Out* preactivation, float* column_sums, int activation,
             float alpha, float scale, bool vector, const int* needed, Out* row_sums) {
    if (needed != nullptr && *needed == 0) return;  // see matmul_prepare.cu
    typedef Shape<T, Out, PLANES, BM, BN, CONSUMERS, PINGPONG, STAGES, CLUSTER, SPLIT, SWAPPED, ROWS_A, ROWS_B, ENDING> S;
    extern __shared__ __align__(1024) unsigned char ring[];
    uint64* full = reinterpret_cast<uint64*>(ring + S::BARRIERS);
    uint64* empty = full + STAGES;
    const Work work = {M, N, K, batch, inner, a_near, a_far, b_near, b_far, part, parts};
    const int rank = CLUSTER > 1 ? ptx::cluster_rank() : 0;
    const uint32 first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 4 * (PINGPONG ? 1 : CONSUMERS) * S::SHARE);  // warps that release it
        }
        ptx::fence_mbarrier_init();
    }
    if (ENDING == ROW_SUMS) {
        T* ones = reinterpret_cast<T*>(ring + S::ONES);
        for (int i = threadIdx.x; i < 1024 / static_cast<int>(sizeof(T)); i += blockDim.x) ones[i] = narrow<T>(1.0f);
        ptx::fence_proxy_async();
    }
    if (CLUSTER > 1) ptx::cluster_meet();
    if (CLUSTER == 1 || ENDING == ROW_SUMS) __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        if (CONSUMERS > 1) ptx::registers_lower<40>();
        if (threadIdx.x == 0) {
            ptx::prefetch_tensor_map(&map_a);
            ptx::prefetch_tensor_map(&map_b);
            keep_loading<S, PLANES>(ring, full, empty, &map_a, &map_b, work, first, step, rank);
        }
        __syncwarp();
        if (SPLIT) ptx::cluster_sync();  // the tiles are in shared memory
    } else {
        if (CONSUMERS > 1) ptx::registers_raise<232>();
        const int consumer = threadIdx.x / WARPGROUP - 1, barrier = 1 + consumer;
        const int first_row = PINGPONG ? 0 : consumer * S::M64 * 64;
        const Epilogue<Out, ENDING == BACKWARD> epilogue = {bias,       saved, residual, out, preactivation,
                                                            activation, alpha, scale};
        const uint32 units = count_units<S>(work);
        Slot<STAGES> slot;
        for (uint32 number = first, turn = 0; number < units; number += step, turn++) {
            const Unit unit = find_unit<S>(work, number, rank);
            if (PINGPONG && static_cast<int>(turn % 2) != consumer) {
                slot.skip(unit.count);
                continue;
            }
            // Barrier 3 + c: consumer c may multiply. The first turn is consumer 0's.
            if (PINGPONG && turn > 0) ptx::barrier_sync(3 + consumer, 2 * WARPGROUP);
            const int m = unit.m + first_row;
            const int64 rows = SWAPPED ? N : M, columns = SWAPPED ? M : N, size = rows * columns;
            const Target<Out, ENDING == BACKWARD> target = {
                epilogue, partial == nullptr ? nullptr : partial + size * batch * unit.part, size * unit.matrix,
                rows,     columns,                                                          vector};
            unsigned char* staging = ring + STAGES * S::STAGE + consumer * S::STAGING;
            const Slabs<S, Out> slabs(staging, target, m, unit.n);
            if (!S::IS_DIRECT && !SPLIT) slabs.fetch(0);
            typename MultiplyFor<S, PLANES>::type product;
            product.run(ring, full, empty, ring + S::ONES, unit.n == 0, first_row, unit.count, slot);
            if (PINGPONG && number + step < units) ptx::barrier_arrive(3 + (consumer ^ 1), 2 * WARPGROUP);

            if constexpr (ENDING == ROW_SUMS) {
                const Fragment at;
#pragma unroll
                for (int b = 0; b < S::M64; b++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = m + b * 64 + at.row + 8 * half;
                        if (unit.n == 0 && at.column == 0 && row < M)
                            row_sums[row] = narrow<Out>(product.of_rows[b][2 * half]);
                    }
            }
            if constexpr (S::IS_DIRECT) {
                store_direct<S, Out>(product.sums, staging, &map_out, epilogue, m, unit.n,
                                     static_cast<int>(unit.matrix), M, N, barrier);
            } else if constexpr (SPLIT) {
                float* whole = reinterpret_cast<float*>(ring);
                ptx::barrier_sync(3, CONSUMERS * WARPGROUP);  // nobody reads the ring any more
                stage_whole<S>(product.sums, whole, first_row);
                ptx::cluster_sync();
                add_split<S, Out>(whole, target, unit.m, unit.n, rank);
            } else {
                constexpr int LINES = SWAPPED ? S::SLAB : 64;
                float* sums_here = column_sums == nullptr ? nullptr :
                    column_sums + (rows + LINES - 1) / LINES * columns * unit.matrix;
                slabs.store(product.sums, sums_here, barrier);
            }
        }
        if (S::IS_DIRECT && threadIdx.x % WARPGROUP == 0) ptx::bulk_wait<0>();
        __syncwarp();
    }
    // Nobody leaves while another block of the cluster may still write or read here.
    if (CLUSTER > 1) ptx::cluster_meet();
}
