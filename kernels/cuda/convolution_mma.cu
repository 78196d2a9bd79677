// convolution_mma.cu - convolutions on tensor cores for sm_80 and later: cp.async, ldmatrix, mma.sync.
#include "convolution_mma.cuh"
#include "matmul_order.cuh"

constexpr uint32 GROUP = 8;  // rows of tiles that are walked together

struct ConvolutionPlace {
    int64 first_n, columns;
    int64 part;    // where the block's part begins in `partial`
    int64 column;  // of bias, of the tile's first column
};

// The tile and the movers of a pass. A 16-byte PACKED operand lies along K or along its rows as in memory.
template <typename T, Mode MODE, int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, Made MADE, bool PACKED>
struct Gathered {
    static constexpr Load LOAD_A = !PACKED ? STRIDED : MADE == WEIGHT ? ALONG_ROWS : ALONG_K;
    static constexpr Load LOAD_B = !PACKED ? STRIDED : MADE == OUTPUT ? ALONG_K : ALONG_ROWS;
    typedef MmaTile<T, MODE, BM, BN, BK, WARPS_M, WARPS_N, STAGES, LOAD_A, LOAD_B> S;
    static constexpr int UNIT = PACKED ? PACK<T> : 1;
    // Two gathered operands take more registers than one.
    static constexpr int RESIDENT = S::RESIDENT - (MADE == INPUT && S::RESIDENT > 2 ? 1 : 0);

    static __device__ __forceinline__ auto move_a(const T* a, const GatherRow* rows, const Convolution& c,
                                                  const Meeting<MADE>& m, const ProductSizes<MADE>& sizes, int group,
                                                  int64 first_m, int64 first_k, int depth) {
        if constexpr (MADE == WEIGHT) {
            typedef typename MoverFor<T, BM, BK, S::THREADS, LOAD_A>::type Mover;
            return Mover(a + group * c.group_outputs + first_k * c.outputs + first_m, 1, c.outputs,
                         sizes.rows - first_m, depth);
        } else {
            const int channels = MADE == INPUT ? c.group_outputs : c.group_channels;
            const int pitch = MADE == INPUT ? c.outputs : c.channels;
            return TapMover<T, BM, BK, S::THREADS, PACKED>(a, rows, m.taps, m.by, MADE == INPUT ? c.out : c.size,
                                                           channels / UNIT, pitch / UNIT, first_k, depth);
        }
    }
    static __device__ __forceinline__ auto move_b(const T* b, const Convolution& c, const Meeting<MADE>& m,
                                                  const ProductSizes<MADE>& sizes, int group, int64 first_n,
                                                  int64 first_k, int depth) {
        if constexpr (MADE == OUTPUT) {
            typedef typename MoverFor<T, BN, BK, S::THREADS, LOAD_B>::type Mover;
            return Mover(b + (group * sizes.columns + first_n) * sizes.depth + first_k, sizes.depth, 1,
                         sizes.columns - first_n, depth);
        } else if constexpr (MADE == INPUT) {
            typedef LineMover<T, BN, BK, S::THREADS, PACKED, Walk<int, true, false>> Mover;
            const int64 column = first_n + Mover::row();
            const bool exists = column < sizes.columns;  // others are never stored
            return Mover(b, walk_weight<int>(c, m, group, exists ? column : 0, first_k + Mover::k(),
                                             Mover::LINE_STEP, UNIT), depth);
        } else {
            typedef LineMover<T, BN, BK, S::THREADS, PACKED, Walk<int, false>> Mover;
            return Mover(b, walk_positions<int>(c, m, group, first_n + Mover::row(), sizes.columns,
                                                first_k + Mover::k(), Mover::LINE_STEP, UNIT), depth);
        }
    }
};

// The result of one pass of a convolution; finish: see matmul_epilogue.cuh, without a scale.
//
//   OUTPUT   a = x, b = weight;    INPUT   a = dy, b = weight;    WEIGHT   a = dy, b = x
//
// Who does what: a block owns BM x BN elements of the product of one group (INPUT: and phase), or of one part of K.
// The main loop is that of matmul_mma.cu (matmul_mma_product.cuh), which describes the tile, the arithmetic (MODE),
// and what SPLIT needs; here the gathered operand comes through TapMover or LineMover of convolution_mma.cuh.
//
// The limit: 2 N positions O K / groups operations on the tensor cores; arrays of a layer with a few dozen channels
// and a 3 x 3 kernel are read and written in a fraction of that time. In the compiled loop (sm_80, bfloat16; a tile
// of BK = 32 for one warp, PACKED):
//
//                      mma  ldmatrix  cp.async  others  registers
//   OUTPUT 128 x 128    64        16         8     112        254
//   WEIGHT 128 x 128    64        16         8     175        254
//   INPUT  128 x 64     32        12         6     154        180
//
//   Issue slots: a quarter of an sm_80 multiprocessor issues 8 instructions in the time of one mma; the loop has 3.1,
//   4.1 and 6.4 for each. What is more than in matmul_mma.cu counts positions, tests and adds up places: 12 to 20
//   instructions for each chunk. INPUT gathers both operands.
//   First layers, with 1 to 4 channels, go by single elements: taps and channels lie in K without gaps, so that the
//   tile is as full as with many channels, and only the loads are slow; neighbouring lanes take neighbours.
//
// Shared memory: STAGES (BM + BN) BK elements (dynamic; finished sums leave through the same bytes), and 24 bytes for
// each row.
// Splits: as in matmul.cu; the parts lie in `partial` like the result, and matmul_combine adds them in order.
//
// Assumes: PACKED only where channels and outputs of a group are multiples of 16 bytes and pointers aligned to them;
// each operand has less than 2^31 packs (PACKED) or elements. `vector` as in matmul_mma.cu. Positions and sizes below
// 2^29 in each dimension. The grid: tiles_m x tiles_n x groups x phases x parts.
template <typename T, Mode MODE, int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, Made MADE, bool PACKED>
__global__ void __launch_bounds__(
    WARPS_M * WARPS_N * WARP,
    (Gathered<T, MODE, BM, BN, BK, WARPS_M, WARPS_N, STAGES, MADE, PACKED>::RESIDENT))
convolution_mma(const T* a, const T* b, const Convolution c, uint32 tiles_m, uint32 tiles_n, uint32 matrices,
                int64 part, int64 size, float* partial, const T* bias, const T* residual, T* out, T* preactivation,
                int activation, float alpha, bool vector, int* needed) {
    typedef Gathered<T, MODE, BM, BN, BK, WARPS_M, WARPS_N, STAGES, MADE, PACKED> G;
    typedef typename G::S S;
    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ GatherRow rows[MADE == WEIGHT ? 1 : BM];
    __shared__ int64 result[BM];       // where the rows of the tile begin, or -1
    __shared__ ConvolutionPlace here;  // needed again only behind the main loop, which has no register to spare

    const TilePlace tile = find_tile(blockIdx.x, tiles_m, tiles_n, matrices, GROUP);
    const int group = static_cast<int>(tile.matrix % c.groups);
    const Meeting<MADE> meeting(c, tile.matrix / c.groups);
    const ProductSizes<MADE> sizes(c, meeting);
    const int64 first_m = static_cast<int64>(tile.row) * BM, first_n = static_cast<int64>(tile.column) * BN;
    if (first_m >= sizes.rows) return;  // phases have different numbers of rows
    const int64 first_k = tile.part * part, rest = sizes.depth - first_k;
    const int depth = static_cast<int>(rest < 0 ? 0 : rest < part ? rest : part);
    if (threadIdx.x == 0) here = {first_n, sizes.columns, tile.part * size, group * sizes.columns + first_n};
    for (int r = threadIdx.x; r < BM; r += S::THREADS) {
        const int64 row = first_m + r;
        result[r] = row < sizes.rows ? result_row<MADE>(c, meeting, group, row, sizes.columns) : -1;
        if constexpr (MADE != WEIGHT) {
            const Walk<int, true> walk = walk_taps<int, MADE>(c, meeting, group, row, sizes.rows, 0, 1, G::UNIT);
            const int inside = walk.stride[0] * walk.place[0] + walk.stride[1] * walk.place[1] +
                               walk.stride[2] * walk.place[2];
            rows[r] = {walk.place[0], walk.place[1], walk.place[2], row < sizes.rows ? walk.at + inside : 0};
        }
    }
    __syncthreads();

    auto move_a = G::move_a(a, rows, c, meeting, sizes, group, first_m, first_k, depth);
    auto move_b = G::move_b(b, c, meeting, sizes, group, first_n, first_k, depth);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int warp_m = warp / WARPS_N * S::WARP_M, warp_n = warp % WARPS_N * S::WARP_N;
    MmaProduct<S, T, MODE, BK, STAGES, decltype(move_a), decltype(move_b), false> product(
        move_a, move_b, shared, warp_m, warp_n, false);
    if constexpr (MODE == SPLIT)
        product.run_split(depth);
    else
        product.run_single(depth);
    if (MODE == SPLIT && product.overflowed()) *needed = 1;

    // Out through shared memory, 16 rows of each warp at a time, as in matmul_mma.cu.
    ptx::copy_async_wait<0>();
    __syncthreads();
    if (MADE == WEIGHT) activation = 0;  // it has none, and the kernel is half as long without
    const Epilogue<T, false> epilogue = {bias, nullptr, residual, out, preactivation, activation, alpha, 1.f};
    constexpr int W = PACK<T>, PACKS = S::WARP_N / W;  // packs of a row
    static_assert(WARP % PACKS == 0, "a lane always has the same columns");
    float* slab = reinterpret_cast<float*>(shared) + warp * S::SLAB;
    const int column = lane % PACKS * W;
    const int64 left = here.columns - here.first_n - warp_n - column;
    const int count = left < 0 ? 0 : left < W ? static_cast<int>(left) : W;
#pragma unroll 1
    for (int i = 0; i < S::TM; i++) {
        product.put(slab, i);
        __syncwarp();
#pragma unroll 1
        for (int row = lane / PACKS; row < 16; row += WARP / PACKS) {
            const int64 start = result[warp_m + S::ReaderA::row_of(i, row)];
            if (start < 0 || count == 0) continue;
            float value[W];
            load_fragment<W, 4, 1>(value, slab + row * S::SLAB_PITCH + column);
            const int64 at = start + here.first_n + warp_n + column;
            if (partial != nullptr)
                store_row<float, W>(partial + here.part + at, value, count, vector);
            else
                epilogue.template finish<W>(value, at, here.column + warp_n + column, count, vector);
        }
        __syncwarp();
    }
}
