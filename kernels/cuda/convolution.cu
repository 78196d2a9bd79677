// convolution.cu - convolutions on the ordinary arithmetic units: every dtype, shape and architecture.
#include "convolution.cuh"
#include "matmul.cuh"
#include "matmul_order.cuh"

constexpr uint32 GROUP = 8;  // rows of tiles that are walked together
constexpr int BM = 64, BN = 64, TM = 8, TN = 4, THREADS = BM * BN / (TM * TN);
template <typename T> constexpr int BK = sizeof(T) == 8 ? 8 : 16;

// Moves the gathered operand to shared memory, as the panels of matmul.cuh do: a thread stays at one row and walks
// along K, COUNT packs a tile. K_INNER: packs lie along K (the channels of a position), two neighbouring lanes take
// neighbouring packs; otherwise along the rows (the channels of a tap). Single elements: neighbouring lanes take
// neighbouring rows.
template <typename T, int ROWS, bool K_INNER, bool PACKED, typename Walk> struct GatherPanel {
    typedef Accumulator<T> A;
    static constexpr int WIDTH = PACKED ? PACK<A> : 1, PITCH = ROWS + 4;
    static constexpr int COUNT = ROWS * BK<T> / WIDTH / THREADS, K_STEP = BK<T> / COUNT;
    static constexpr bool PAIRS = K_INNER && PACKED;
    static_assert(COUNT * WIDTH * THREADS == ROWS * BK<T>, "every thread moves the same number of packs");
    static_assert(THREADS % (2 * ROWS) == 0, "COUNT packs share a row");

    static __device__ __forceinline__ int row() {
        return PAIRS ? threadIdx.x / 2 % ROWS : threadIdx.x % (ROWS / WIDTH) * WIDTH;
    }
    static __device__ __forceinline__ int k() {
        return PAIRS ? (threadIdx.x / (2 * ROWS) * 2 + threadIdx.x % 2) * WIDTH : threadIdx.x / (ROWS / WIDTH);
    }

    const T* source;
    Walk walk;
    int left;
    Pack<T, WIDTH> staged[COUNT];

    __device__ __forceinline__ GatherPanel(const T* source, const Walk& walk, int depth)
        : source(source), walk(walk), left(depth - k()) {}

    __device__ __forceinline__ void load() {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            int64 at;
            const bool inside = walk.find(at);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) staged[j].item[e] = narrow<T>(A(0));
            if (inside && left > j * K_STEP) staged[j] = load_pack<T, WIDTH>(source + at);
            walk.counter.advance();
        }
        left -= BK<T>;
    }
    __device__ __forceinline__ void store(A* shared) const {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            A* place = shared + (k() + j * K_STEP) * PITCH + row();
            Pack<A, WIDTH> pack;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) pack.item[e] = widen(staged[j].item[e]);
            if (!K_INNER) store_pack(place, pack);
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                if (K_INNER) place[e * PITCH] = pack.item[e];
        }
    }
};

// The main loop of matmul.cu's Product with one tile in its body instead of two: a gathered operand's is long, and with
// the buffers' places in registers it stands there once.
template <int BK, int BUFFER, int PANEL_A, typename Product, typename A>
__device__ __forceinline__ void multiply(Product& product, A* shared, int depth) {
    product.a.load();
    product.b.load();
    product.a.store(shared);
    product.b.store(shared + PANEL_A);
    __syncthreads();
    product.load_fragments(0, 0);
    int step = BUFFER;  // from the buffer that is read to the one that is filled
    A* next = shared + BUFFER;
#pragma unroll 1
    for (; depth > 0; depth -= BK) {
#pragma unroll
        for (int k = 0; k < BK; k++) {
            if (k == BK - 1) {
                product.a.store(next);
                product.b.store(next + PANEL_A);
                __syncthreads();
                product.rows += step;
                product.columns += step;
                next -= step;
                step = -step;
            }
            product.load_fragments((k + 1) % 2, (k + 1) % BK);
            if (k == 0) {
                product.a.load();
                product.b.load();
            }
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    product.sums[i][j] += product.fragment_a[k % 2][i] * product.fragment_b[k % 2][j];
        }
    }
}

// The result of one pass of a convolution; finish: see matmul_epilogue.cuh, without a scale.
//
//   OUTPUT   a = x, b = weight;    INPUT   a = dy, b = weight;    WEIGHT   a = dy, b = x
//
// Who does what: a block owns 64 x 64 elements of the product of one group (INPUT: and phase), or of one part of K;
// 128 threads own 8 x 4 each. The main loop is that of matmul.cu (Product in matmul.cuh), but the gathered operand
// comes through GatherPanel, whose threads count along taps and channels or along positions.
//
// The limit: 2 N positions O K / groups operations, in the ordinary units; memory is far from it where there are
// more than a few dozen channels. A tile of 64 x 64 x 16 makes 512 multiply-adds a thread for about 50 instructions
// of the gathered operand in packs, 170 in single elements (float32).
// Shared memory (float32): 2 buffers x 16 x (68 + 68) x 4 bytes = 17 KiB, and the finished rows' places, 512 bytes.
// Splits: as in matmul.cu; the parts lie in `partial` like the result, and matmul_combine adds them in order.
//
// Assumes: PACKED only where channels and outputs of a group are multiples of WIDTH and pointers of packs; `vector`
// as in matmul.cu. Positions and sizes below 2^29 in each dimension. The grid: tiles_m x tiles_n x groups x phases
// x parts. With *needed == 0 nothing is done: the tensor cores have made it.
template <typename T, Made MADE, bool PACKED>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 2 : 3)
convolution(const T* a, const T* b, const Convolution c, uint32 tiles_m, uint32 tiles_n, uint32 matrices, int64 part,
            int64 size, Accumulator<T>* partial, const T* bias, const T* residual, T* out, T* preactivation,
            int activation, Accumulator<T> alpha, bool vector, const int* needed) {
    if (needed != nullptr && *needed == 0) return;
    typedef Accumulator<T> A;
    typedef Tile<T, BM, BN, BK<T>, TM, TN> S;
    __shared__ __align__(16) A shared[S::SHARED];
    __shared__ int64 result[BM];  // where the rows of the tile begin, or -1

    const TilePlace tile = find_tile(blockIdx.x, tiles_m, tiles_n, matrices, GROUP);
    const int group = static_cast<int>(tile.matrix % c.groups);
    const Meeting<MADE> meeting(c, tile.matrix / c.groups);
    const ProductSizes<MADE> sizes(c, meeting);
    const int64 first_m = static_cast<int64>(tile.row) * BM, first_n = static_cast<int64>(tile.column) * BN;
    if (first_m >= sizes.rows) return;  // phases have different numbers of rows
    const int64 first_k = tile.part * part, rest = sizes.depth - first_k;
    const int depth = static_cast<int>(rest < 0 ? 0 : rest < part ? rest : part);
    if (threadIdx.x < BM) {
        const int64 row = first_m + threadIdx.x;
        result[threadIdx.x] = row < sizes.rows ? result_row<MADE>(c, meeting, group, row, sizes.columns) : -1;
    }

    const Place place;
    A sums[TM][TN];
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] = A(0);
    if constexpr (MADE == WEIGHT) {
        typedef typename PanelFor<T, BM, BK<T>, THREADS, PACKED ? ALONG_ROWS : STRIDED>::type PanelA;
        typedef GatherPanel<T, BN, false, PACKED, Walk<int64, false>> PanelB;
        PanelA panel_a(a + group * c.group_outputs + first_k * c.outputs + first_m, 1, c.outputs,
                       sizes.rows - first_m, depth);
        PanelB panel_b(b, walk_positions<int64>(c, meeting, group, first_n + PanelB::row(), sizes.columns,
                                                first_k + PanelB::k(), PanelB::K_STEP, 1), depth);
        Product<S, BK<T>, TM, TN, PanelA, PanelB, A> product(sums, panel_a, panel_b, shared, place);
        multiply<BK<T>, S::BUFFER, S::PANEL_A>(product, shared, depth);
    } else {
        typedef GatherPanel<T, BM, true, PACKED, Walk<int64, true>> PanelA;
        PanelA panel_a(a, walk_taps<int64, MADE>(c, meeting, group, first_m + PanelA::row(), sizes.rows,
                                                 first_k + PanelA::k(), PanelA::K_STEP, 1), depth);
        if constexpr (MADE == OUTPUT) {
            typedef typename PanelFor<T, BN, BK<T>, THREADS, PACKED ? ALONG_K : STRIDED>::type PanelB;
            PanelB panel_b(b + (group * sizes.columns + first_n) * sizes.depth + first_k, sizes.depth, 1,
                           sizes.columns - first_n, depth);
            Product<S, BK<T>, TM, TN, PanelA, PanelB, A> product(sums, panel_a, panel_b, shared, place);
        multiply<BK<T>, S::BUFFER, S::PANEL_A>(product, shared, depth);
        } else {
            typedef GatherPanel<T, BN, false, PACKED, Walk<int64, true, false>> PanelB;
            const int64 column = first_n + PanelB::row();
            PanelB panel_b(b, walk_weight<int64>(c, meeting, group, column < sizes.columns ? column : 0,
                                                 first_k + PanelB::k(), PanelB::K_STEP, 1), depth);
            Product<S, BK<T>, TM, TN, PanelA, PanelB, A> product(sums, panel_a, panel_b, shared, place);
        multiply<BK<T>, S::BUFFER, S::PANEL_A>(product, shared, depth);
        }
    }

    // Out through shared memory, one row of warps after the other.
    if (MADE == WEIGHT) activation = 0;  // it has none, and the kernel is half as long without
    const Epilogue<T, false> epilogue = {bias, nullptr, residual, out, preactivation, activation, alpha, A(1)};
    constexpr int W = PACK<A>;
#pragma unroll 1
    for (int slab = 0; slab < S::WARPS_M; slab++) {
        __syncthreads();
        if (place.warp / S::WARPS_N == slab) {
            A* corner = shared + place.row * S::VM * S::SLAB_PITCH + place.warp % S::WARPS_N * S::WARP_N;
#pragma unroll
            for (int i = 0; i < TM; i++) {
                Pack<A, S::VN> piece[TN / S::VN];
#pragma unroll
                for (int j = 0; j < TN; j++) piece[j / S::VN].item[j % S::VN] = sums[i][j];
                const int row = i / S::VM * LANE_ROWS * S::VM + i % S::VM;
#pragma unroll
                for (int j = 0; j < TN / S::VN; j++)
                    store_pack(corner + row * S::SLAB_PITCH + (j * LANE_COLUMNS + place.column) * S::VN, piece[j]);
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int p = threadIdx.x; p < S::WARP_M * BN / W; p += THREADS) {
            const int row = p / (BN / W), column = p % (BN / W) * W;
            const int64 n = first_n + column, start = result[slab * S::WARP_M + row];
            if (start < 0 || n >= sizes.columns) continue;
            A value[W];
            load_fragment<W, W, 1>(value, shared + row * S::SLAB_PITCH + column);
            const int count = sizes.columns - n < W ? static_cast<int>(sizes.columns - n) : W;
            if (partial != nullptr)
                store_row<A, W>(partial + tile.part * size + start + n, value, count, vector);
            else
                epilogue.template finish<W>(value, start + n, group * sizes.columns + n, count, vector);
        }
    }
}
