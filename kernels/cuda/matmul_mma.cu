// matmul_mma.cu - matrix products on tensor cores for sm_80 and later: cp.async, ldmatrix, mma.sync.
#include "matmul_mma_product.cuh"
#include "matmul_order.cuh"

constexpr uint32 GROUP = 8;  // rows of tiles that are walked together

struct MmaPlace {
    int64 first_m, first_n;  // the tile's corner
    int64 matrix, part;      // where the matrix begins in `out`, and the part in `partial`
    int64 column_sums;       // where the sums of the tile's columns go
    int split;
};

// out[m, n] = finish(sum over k of a[m, k] b[k, n]), for each matrix of a batch; finish: see matmul_epilogue.cuh.
//
// Who does what: a block owns BM x BN elements of one result (or of one part of K), a warp BM / WARPS_M x
// BN / WARPS_N of them in registers. The panels of A and B for STAGES tiles of BK lie in dynamic shared memory,
// most of them still on their way. Blocks walk the tiles in groups of 8 rows, so that those that run at once
// share their panels in L2.
//
// The limit: 2 M N K operations on the tensor cores (SPLIT: six times as many, in bfloat16) and
// (M K + K N + M N) elements of memory. In the compiled loop (sm_80; a tile of BK for one warp, A along K):
//
//                                        mma  ldmatrix  cp.async  FFMA, FADD  others  registers
//   bfloat16 128 x 128 x 32, B along K    64        16         8           0      47        232
//   bfloat16 128 x 256 x 64, B along N   128        32        12           0      79        252
//   TF32     128 x 128 x 16, B along K    64        16         8          64     111        234
//   SPLIT    128 x 128 x 16, B along K    96        12         4         160     210        209
//
//   Issue slots: an mma.sync takes 8 cycles of a quarter of an sm_80 multiprocessor, which can issue 8
//   instructions in that time. For each mma the loop has 2 instructions with 16 bits, 4 with TF32, 5 with SPLIT.
//   Shared memory: a warp of 64 x 64 reads (64 + 64) x 32 bytes for 32 mma, which is 64 of the 128 bytes a
//   cycle; a warp of 64 x 32 in SPLIT takes 32. ldmatrix, cp.async and the loads of rows are free of bank
//   conflicts; single elements (STRIDED) are stored in 4 passes where their rows are neighbours in memory.
//
// TF32 rounds operands to 11 bits, ties away from zero; what rounds to infinity there is infinity.
//
// SPLIT makes float32 products that are as exact as float32 arithmetic: a number is the sum of three bfloat16
// numbers of 8 bits each, and of the nine products of two such sums the six largest are made. What is left
// out is of either sign and at most 2^-23 of the product, 2^-26 on the average. For numbers below 2^-110 the
// lowest bits fall off: an absolute error of at most 2^-134 for each of them. An infinity or NaN, and what
// rounds to infinity in bfloat16, makes NaN in all of its row or column (infinity - infinity in the split): then
// *needed is set to 1, and the caller makes the product again on the ordinary units (matmul.cu's last
// parameter). A sum that overflows does the same. BK is one step of 16: with more in sight, the compiler begins
// too much at once and has no register left.
//
// Splits: as in matmul.cu. Each of the parts of K goes to `partial`, row_sums (parts, M) likewise.
// row_sums (WEIGHT_GRADIENT): the sums over k of a[m, k], by the blocks of the first columns; one matrix only.
//
// Shared memory: STAGES (BM + BN) BK elements, 32 to 144 KiB; finished sums leave through the same bytes.
// Assumes: LOAD_A and LOAD_B fit the operands; STRIDED fits all. A stride of a dimension of 1 is 0. With `vector`
// N is a multiple of a pack of T, and so are all pointers that are written. Any M, N >= 1, K >= 0; no part of K
// longer than 2^30. A batch has two dimensions, the inner of size `inner`, each with its stride (0: broadcast).
// Why not wgmma: it is in sm_90a alone (matmul_wgmma.cu); this kernel is for what came before and after.
template <typename T, Mode MODE, int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, Load LOAD_A,
          Load LOAD_B, Pass PASS>
__global__ void __launch_bounds__(
    WARPS_M * WARPS_N * WARP,
    (MmaTile<T, MODE, BM, BN, BK, WARPS_M, WARPS_N, STAGES, LOAD_A, LOAD_B>::RESIDENT))
matmul_mma(const T* a, const T* b, int64 M, int64 N, int64 K, int64 a_m, int64 a_k, int64 b_n, int64 b_k,
           uint32 batch, uint32 inner, int64 a_outer, int64 a_inner, int64 b_outer, int64 b_inner, int64 part,
           float* partial, const T* bias, const T* saved, const T* residual, T* out, T* preactivation,
           float* column_sums, int activation, float alpha, float scale, bool vector, int* needed,
           float* row_sums) {
    typedef MmaTile<T, MODE, BM, BN, BK, WARPS_M, WARPS_N, STAGES, LOAD_A, LOAD_B> S;
    constexpr bool BACKWARD = PASS == INPUT_GRADIENT, SUM_ROWS = PASS == WEIGHT_GRADIENT;
    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ MmaPlace here;  // needed again only behind the main loop, which has no register to spare

    // Which tile of which matrix, and which part of K.
    const uint32 tiles_m = static_cast<uint32>((M + BM - 1) / BM), tiles_n = static_cast<uint32>((N + BN - 1) / BN);
    const TilePlace tile = find_tile(blockIdx.x, tiles_m, tiles_n, batch, GROUP);
    const uint32 matrix = tile.matrix, split = tile.part;
    const int64 first_m = static_cast<int64>(tile.row) * BM, first_n = static_cast<int64>(tile.column) * BN;
    const int64 first_k = split * part;
    if (threadIdx.x == 0)
        here = {first_m, first_n, M * N * matrix, M * N * batch * split,
                (static_cast<int64>(matrix) * tiles_m + tile.row) * N + first_n, static_cast<int>(split)};
    const int depth = static_cast<int>(K - first_k < part ? K - first_k : part);

    a += matrix / inner * a_outer + matrix % inner * a_inner + first_m * a_m + first_k * a_k;
    b += matrix / inner * b_outer + matrix % inner * b_inner + first_n * b_n + first_k * b_k;
    typedef typename MoverFor<T, BM, BK, S::THREADS, LOAD_A>::type MoverA;
    typedef typename MoverFor<T, BN, BK, S::THREADS, LOAD_B>::type MoverB;
    MoverA move_a(a, a_m, a_k, M - first_m, depth);
    MoverB move_b(b, b_n, b_k, N - first_n, depth);

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int warp_m = warp / WARPS_N * S::WARP_M, warp_n = warp % WARPS_N * S::WARP_N;
    // One warp of each row of warps sums. Shuffled, so that the compiler knows the answer to be the warp's.
    const bool summing = SUM_ROWS && row_sums != nullptr && first_n == 0 && __shfl_sync(FULL_WARP, warp_n, 0) == 0;
    MmaProduct<S, T, MODE, BK, STAGES, MoverA, MoverB, SUM_ROWS> product(
        move_a, move_b, shared, warp_m, warp_n, summing);
    if constexpr (MODE == SPLIT)
        product.run_split(depth);
    else
        product.run_single(depth);
    if (MODE == SPLIT && product.overflowed()) *needed = 1;
    product.put_row_sums(row_sums + here.split * M + here.first_m + warp_m, M - here.first_m - warp_m);

    // Out through shared memory, 16 rows of each warp at a time, so that what goes to memory is whole packs
    // and the activation's code exists once.
    ptx::copy_async_wait<0>();
    __syncthreads();
    if (SUM_ROWS) activation = 0;  // a weight's gradient has none, and the kernel is half as long without
    const Epilogue<T, BACKWARD> epilogue = {bias, saved, residual, out, preactivation, activation, alpha, scale};
    constexpr int W = PACK<T>, PACKS = S::WARP_N / W;  // packs of a row
    static_assert(WARP % PACKS == 0, "a lane always has the same columns");
    float* slab = reinterpret_cast<float*>(shared) + warp * S::SLAB;
    const int column = lane % PACKS * W;
    float column_sum[W];
#pragma unroll
    for (int e = 0; e < W; e++) column_sum[e] = 0.f;
#pragma unroll 1
    for (int i = 0; i < S::TM; i++) {
        product.put(slab, i);
        __syncwarp();
#pragma unroll 1
        for (int row = lane / PACKS; row < 16; row += WARP / PACKS) {
            const int64 m = here.first_m + warp_m + S::ReaderA::row_of(i, row), n = here.first_n + warp_n + column;
            if (m >= M || n >= N) continue;
            float value[W];
            load_fragment<W, 4, 1>(value, slab + row * S::SLAB_PITCH + column);
            const int count = N - n < W ? static_cast<int>(N - n) : W;
            const int64 at = here.matrix + m * N + n;
            if (partial != nullptr)
                store_row<float, W>(partial + here.part + at, value, count, vector);
            else
                epilogue.template finish<W>(value, at, n, count, vector);
            if (BACKWARD) {
#pragma unroll
                for (int e = 0; e < W; e++) column_sum[e] += value[e];
            }
        }
        __syncwarp();
    }
    if (BACKWARD && column_sums != nullptr) {
        // The threads by the columns that they summed, as add_columns counts them.
        const int thread = (warp_m / S::WARP_M * (WARP / PACKS) + lane / PACKS) * (BN / W) + (warp_n + column) / W;
        add_columns<S::THREADS, BN, W>(column_sum, reinterpret_cast<float*>(shared), column_sums + here.column_sums,
                                       thread, N - here.first_n, [] { __syncthreads(); });
    }
}
