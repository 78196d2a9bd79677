// matmul_wgmma.cu - matrix products on the tensor cores of sm_90a (H100, H200): TMA and wgmma.
#include "matmul_wgmma_run.cuh"

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
    const Stages<S> stages(ring);
    const Work work = {M, N, K, batch, inner, a_near, a_far, b_near, b_far, part, parts};
    const int rank = CLUSTER > 1 ? ptx::cluster_rank() : 0;
    const uint32 first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
    open_ring<S, T>(ring, stages);
    if (threadIdx.x < WARPGROUP) {
        if (CONSUMERS > 1) ptx::registers_lower<40>();
        if (threadIdx.x == 0) {
            ptx::prefetch_tensor_map(&map_a);
            ptx::prefetch_tensor_map(&map_b);
            keep_loading<S, PLANES>(ring, stages.full, stages.empty, &map_a, &map_b, work, first, step, rank);
        }
        __syncwarp();
        if (SPLIT) ptx::cluster_sync();  // the tiles are in shared memory
    } else {
        if (CONSUMERS > 1) ptx::registers_raise<232>();
        const Epilogue<Out, ENDING == BACKWARD> epilogue = {bias,       saved, residual, out, preactivation,
                                                            activation, alpha, scale};
        multiply_units<S, PLANES, Out>(ring, stages, work, first, step, rank, &map_out, epilogue, partial, column_sums,
                                       vector, row_sums);
    }
    // Nobody leaves while another block of the cluster may still write or read here.
    if (CLUSTER > 1) ptx::cluster_meet();
}
