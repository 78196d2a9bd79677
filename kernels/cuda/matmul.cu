// matmul.cu - matrix products on the ordinary arithmetic units, and column sums (the gradient of a bias).
//
// Spills: matmul_combine<double, 2, true: twelve derivatives in float64, of which one divides; 16 bytes.
// Spills: matmul<float, 128, 128, 8, 8, 8, ALONG_ROWS, ALONG_ROWS, true: 8 bytes, stored and loaded again
// before the main loop.
#include "matmul.cuh"
#include "matmul_order.cuh"

constexpr uint32 GROUP = 8;  // rows of tiles that are walked together

struct BlockPlace {
    int64 first_m, first_n;  // the tile's corner
    int64 matrix, part;      // where the matrix begins in `out`, and the part in `partial`
    int64 column_sums;       // where the sums of the tile's columns go
};

// out[m, n] = f(sum over k of a[m, k] b[k, n] + bias[n]), for each matrix of a batch.
//
// Who does what: a block owns BM x BN elements of one result (or of one part of K: see splits below), a
// warp 4 TM x 8 TN of them, a thread TM x TN in registers. Tile by tile of BK the panels of A and B
// come through registers into one of two buffers in shared memory; see the panels and Product in matmul.cuh.
// Blocks walk the tiles in groups of 8 rows, so that those that run at once share their panels in L2.
//
// The limit: 2 M N K operations against (M K + K N + M N) elements. For 4096^3 in float32 that is 137
// GFLOP for 0.2 GB: 683 operations a byte, far on the side of arithmetic, so what counts is the share of
// multiply-adds among the issued instructions and the traffic with shared memory.
//   Issue slots: for one k a thread reads TM + TN numbers and makes TM TN multiply-adds. A thread tile of
//   8 x 8 makes 64 of them for four 16-byte loads; in the compiled loop (sm_90a) 1024 of 1136 instructions
//   are multiply-adds.
//   Shared memory: a warp's four loads take 8 passes over the banks (a half warp touches 32 different bytes
//   of A or 128 of B); the four warps that run at once need it for 32 of the 64 cycles of their multiply-adds.
//   Global memory: a 128 x 128 tile reads 1 KB for each k and works on it for 16384 / 128 = 128 cycles: 8
//   bytes a cycle and multiprocessor, most of them from L2.
//   Smaller products take 64 x 64 and 32 x 32, which have more blocks and a deeper BK, so that more loads
//   are under way. Float64 has half the rate and twice the bytes: 64 x 64 with 8 x 4 a thread.
//
// Shared memory (float32, large tile): 2 buffers x 8 x (132 + 132) x 4 bytes = 16.5 KiB; the finished tile goes
// out through the same bytes in slabs of one row of warps, so that stores to memory are whole rows, and
// the activation's code exists once and not TM TN times.
// Splits: where the tiles of C are too few for the chip and K is long, blocks share the tile of C, each sums
// a part of K into `partial` (splits, batch, M, N) and matmul_combine adds the parts in order:
// the result does not depend on which block was first.
//
// Assumes: LOAD_A and LOAD_B fit the operands (see matmul.cuh); STRIDED fits all. With `vector` N is a
// multiple of 16 bytes of accumulators, and so are all pointers that are written. Any M, N >= 1, K >= 0;
// no part of K longer than 2^30.
// A batch has two dimensions, the inner of size `inner`, each with its stride (0: broadcast) for A and B.
// With *needed == 0 nothing is done: the tensor cores have made this product (see matmul_prepare.cu).
template <typename T, int BM, int BN, int BK, int TM, int TN, Load LOAD_A, Load LOAD_B, bool BACKWARD>
__global__ void __launch_bounds__(BM * BN / (TM * TN), RESIDENT<T, BM * BN / (TM * TN), LOAD_A != STRIDED>)
matmul(const T* a, const T* b, int64 M, int64 N, int64 K, int64 a_m, int64 a_k, int64 b_n, int64 b_k,
       uint32 batch, uint32 inner, int64 a_outer, int64 a_inner, int64 b_outer, int64 b_inner, int64 part,
       Accumulator<T>* partial, const T* bias, const T* saved, const T* residual, T* out, T* preactivation,
       Accumulator<T>* column_sums, int activation, Accumulator<T> alpha, Accumulator<T> scale, bool vector,
       const int* needed) {
    if (needed != nullptr && *needed == 0) return;
    typedef Accumulator<T> A;
    typedef Tile<T, BM, BN, BK, TM, TN> S;
    __shared__ __align__(16) A shared[S::SHARED];
    __shared__ BlockPlace here;  // needed again only behind the main loop, which has no register to spare

    // Which tile of which matrix, and which part of K.
    const uint32 tiles_m = static_cast<uint32>((M + BM - 1) / BM), tiles_n = static_cast<uint32>((N + BN - 1) / BN);
    const TilePlace tile = find_tile(blockIdx.x, tiles_m, tiles_n, batch, GROUP);
    const uint32 matrix = tile.matrix, split = tile.part;
    const int64 first_m = static_cast<int64>(tile.row) * BM, first_n = static_cast<int64>(tile.column) * BN;
    const int64 first_k = split * part;
    if (threadIdx.x == 0)
        here = {first_m, first_n, M * N * matrix, M * N * batch * split,
                (static_cast<int64>(matrix) * tiles_m + tile.row) * N + first_n};
    const int depth = static_cast<int>(K - first_k < part ? K - first_k : part);

    a += matrix / inner * a_outer + matrix % inner * a_inner + first_m * a_m + first_k * a_k;
    b += matrix / inner * b_outer + matrix % inner * b_inner + first_n * b_n + first_k * b_k;

    const Place place;
    A sums[TM][TN];
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] = A(0);
    {
        typedef typename PanelFor<T, BM, BK, S::THREADS, LOAD_A>::type PanelA;
        typedef typename PanelFor<T, BN, BK, S::THREADS, LOAD_B>::type PanelB;
        PanelA panel_a(a, a_m, a_k, M - first_m, depth);
        PanelB panel_b(b, b_n, b_k, N - first_n, depth);
        Product<S, BK, TM, TN, PanelA, PanelB, A>(sums, panel_a, panel_b, shared, place).run(depth);
    }

    // Out through shared memory, one row of warps after the other.
    const Epilogue<T, BACKWARD> epilogue = {bias, saved, residual, out, preactivation, activation, alpha, scale};
    constexpr int W = PACK<A>;
    A column_sum[W];
#pragma unroll
    for (int e = 0; e < W; e++) column_sum[e] = A(0);
#pragma unroll 1
    for (int slab = 0; slab < S::WARPS_M; slab++) {
        __syncthreads();
        if (place.warp / S::WARPS_N == slab) {
            A* corner = shared + place.row * S::VM * S::SLAB_PITCH + place.warp % S::WARPS_N * S::WARP_N;
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j += S::VN) {
                    Pack<A, S::VN> piece;
#pragma unroll
                    for (int e = 0; e < S::VN; e++) piece.item[e] = sums[i][j + e];
                    const int row = i / S::VM * LANE_ROWS * S::VM + i % S::VM;
                    store_pack(corner + row * S::SLAB_PITCH + j * LANE_COLUMNS + place.column * S::VN, piece);
                }
        }
        __syncthreads();
#pragma unroll 1
        for (int p = threadIdx.x; p < S::WARP_M * BN / W; p += S::THREADS) {
            const int row = p / (BN / W), column = p % (BN / W) * W;
            const int64 m = here.first_m + slab * S::WARP_M + row, n = here.first_n + column;
            if (m >= M || n >= N) continue;
            A value[W];
            load_fragment<W, W, 1>(value, shared + row * S::SLAB_PITCH + column);
            const int count = N - n < W ? static_cast<int>(N - n) : W;
            const int64 at = here.matrix + m * N + n;
            if (partial != nullptr)
                store_row<A, W>(partial + here.part + at, value, count, vector);
            else
                epilogue.template finish<W>(value, at, n, count, vector);
            if (BACKWARD) {
#pragma unroll
                for (int e = 0; e < W; e++) column_sum[e] += value[e];
            }
        }
    }
    if (BACKWARD && column_sums != nullptr)
        add_columns<S::THREADS, BN, W>(column_sum, shared, column_sums + here.column_sums, threadIdx.x,
                                       N - here.first_n, [] { __syncthreads(); });
}

// The second half of a product whose K was split: adds the parts in order, then bias and activation.
//
// Who does what: a thread owns WIDTH neighbours of the result (16 bytes of a part if N and the pointers
// allow it) and walks over the parts. Reads splits x size accumulators, writes size elements (twice with
// a kept pre-activation); all from L2 for the sizes at which the launch code splits.
template <typename T, int WIDTH, bool BACKWARD>
__global__ void __launch_bounds__(256)
matmul_combine(const Accumulator<T>* partial, int64 size, int64 N, int splits, const T* bias, const T* saved,
               const T* residual, T* out, T* preactivation, int activation, Accumulator<T> alpha,
               Accumulator<T> scale, const int* needed) {
    if (needed != nullptr && *needed == 0) return;
    typedef Accumulator<T> A;
    const Epilogue<T, BACKWARD> epilogue = {bias, saved, residual, out, preactivation, activation, alpha, scale};
    for (int64 at = global_thread() * WIDTH; at < size; at += grid_threads() * WIDTH) {
        A value[WIDTH];
        load_fragment<WIDTH, WIDTH, 1>(value, partial + at);
#pragma unroll 4
        for (int s = 1; s < splits; s++) {
            A more[WIDTH];
            load_fragment<WIDTH, WIDTH, 1>(more, partial + s * size + at);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) value[e] += more[e];
        }
        epilogue.template finish<WIDTH>(value, at, at % N, WIDTH, WIDTH > 1);
    }
}

// out[block of rows, n] = sum over the rows r of the block of in[r, n]: the gradient of a bias.
//
// Who does what: a block of 256 threads is `lanes` packs wide (a power of two up to 32) and 256 / lanes rows
// high; a thread sums every (256 / lanes)-th row of its WIDTH columns, four loads under way, and the rows of
// threads are added in shared memory (256 x WIDTH numbers) by a fixed tree. blockIdx.y counts blocks of
// `part` rows. With more than one, the launch code calls the kernel again on the (blocks, N) results.
// The limit: reads rows x N elements once, one addition each: memory.
// Assumes: WIDTH > 1 only if `in` is aligned to 16 bytes and N is a multiple of WIDTH.
template <typename In, typename Out, int WIDTH>
__global__ void __launch_bounds__(256)
column_sum(const In* in, Out* out, int64 rows, int64 N, int64 part, int lanes) {
    typedef Accumulator<In> A;
    __shared__ A shared[256 * WIDTH];
    const int x = threadIdx.x % lanes, y = threadIdx.x / lanes, height = 256 / lanes;
    const int64 column = (static_cast<int64>(blockIdx.x) * lanes + x) * WIDTH;
    const int64 begin = blockIdx.y * part, end = rows - begin < part ? rows : begin + part;
    A sum[WIDTH];
#pragma unroll
    for (int e = 0; e < WIDTH; e++) sum[e] = A(0);
    if (column < N) {
#pragma unroll 4
        for (int64 row = begin + y; row < end; row += height) {
            const Pack<In, WIDTH> pack = load_pack<In, WIDTH>(in + row * N + column);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sum[e] += widen(pack.item[e]);
        }
    }
    for (int half = height / 2; half > 0; half /= 2) {
        // The upper half hands its sums to the lower one; the barrier behind keeps the next round apart.
        if (y >= half && y < 2 * half) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) shared[((y - half) * lanes + x) * WIDTH + e] = sum[e];
        }
        __syncthreads();
        if (y < half) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sum[e] += shared[(y * lanes + x) * WIDTH + e];
        }
        __syncthreads();
    }
    if (y == 0 && column < N) {
#pragma unroll
        for (int e = 0; e < WIDTH; e++) out[blockIdx.y * N + column + e] = narrow<Out>(sum[e]);
    }
}
