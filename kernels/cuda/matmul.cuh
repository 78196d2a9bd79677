// matmul.cuh - the parts of a matrix product on the ordinary arithmetic units: a panel on its way from memory
// to shared memory, and the product of one block's tile.
//
// Letters: C (M x N) = A (M x K) B (K x N). A block owns BM x BN elements of C and walks along K in steps of
// BK; a thread owns TM x TN of them.
#pragma once
#include "matmul_epilogue.cuh"

// ---- panels: ROWS x BK elements of one operand -----------------------------------------------------------
//
// "Rows" are the rows of A, or the columns of B. In shared memory a panel always is [BK][ROWS + 4] numbers of
// the accumulator's type, so that the inner loop reads neighbouring rows of one k with 16-byte loads, and
// 16-bit numbers are widened once and not TM times. The pitch is 4 mod 8 words: stores that scatter the
// elements of a row over several k then fall into different banks.
//
// Both kinds have the same interface. The constructor takes the element (first row, first k) of the block, the
// strides, how many rows the matrix has from there and how many k it is to walk over; load() starts
// loading the next tile, with zeros behind the last k; store(shared) puts it into shared memory.
// What stands in rows beyond the edge does not matter: their sums are never stored.

// Moves packs of WIDTH elements, 16 bytes once widened, of an operand that is contiguous along K (K_INNER) or
// along the rows. Pointer, extent and the other stride must be multiples of WIDTH elements.
// Who does what: a thread moves COUNT packs of one row and of k that lie K_STEP apart. K_INNER: two
// neighbouring lanes take neighbouring packs of a row, a warp 16 rows. Otherwise a warp takes
// neighbouring packs of one k.
template <typename T, int ROWS, int BK, int THREADS, bool K_INNER> struct VectorPanel {
    typedef Accumulator<T> A;
    static constexpr int WIDTH = PACK<A>, PITCH = ROWS + 4;
    static constexpr int COUNT = ROWS * BK / WIDTH / THREADS, K_STEP = BK / COUNT;
    static_assert(COUNT * WIDTH * THREADS == ROWS * BK, "every thread moves the same number of packs");
    static_assert(K_INNER ? THREADS % (2 * ROWS) == 0 : THREADS * WIDTH % ROWS == 0, "COUNT packs share a row");

    const T* next;                 // the first pack of the next tile
    int64 step;                    // from k to k
    int left;                      // k from that pack to the end
    int target;                    // its place in shared memory
    Pack<T, WIDTH> staged[COUNT];  // the next tile, on its way

    __device__ __forceinline__ VectorPanel(const T* origin, int64 row_stride, int64 k_stride, int64 rows, int depth) {
        const int t = threadIdx.x;
        const int row = K_INNER ? t / 2 % ROWS : t % (ROWS / WIDTH) * WIDTH;
        const int k = K_INNER ? (t / (2 * ROWS) * 2 + t % 2) * WIDTH : t / (ROWS / WIDTH);
        step = K_INNER ? 1 : k_stride;
        next = origin + (row < rows ? row : 0) * (K_INNER ? row_stride : 1) + k * step;
        left = depth - k;
        target = k * PITCH + row;
    }

    __device__ __forceinline__ void load() {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) staged[j].item[e] = narrow<T>(A(0));
            if (left > j * K_STEP) staged[j] = load_pack<T, WIDTH>(next + j * K_STEP * step);
        }
        next += BK * step;
        left -= BK;
    }

    __device__ __forceinline__ void store(A* shared) const {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            A* place = shared + target + j * K_STEP * PITCH;
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

// Moves single elements of an operand with any strides.
// Who does what: neighbouring lanes take neighbouring elements in the direction of the smaller stride: BK of a
// row, or rows of one k. A thread moves COUNT elements at equal distances.
template <typename T, int ROWS, int BK, int THREADS> struct StridedPanel {
    typedef Accumulator<T> A;
    static constexpr int COUNT = ROWS * BK / THREADS, PITCH = ROWS + 4;
    static_assert(THREADS % BK == 0 && THREADS % ROWS == 0 && ROWS * BK % THREADS == 0, "equal distances");

    const T* next;              // the first element of the next tile
    int64 step, across;         // addresses from tile to tile, and from element to element
    int left, k_step;           // k from that element to the end, and from element to element
    int rows_left, row_step;    // the same for rows
    int target, target_step;    // places in shared memory
    T staged[COUNT];

    __device__ __forceinline__ StridedPanel(const T* origin, int64 row_stride, int64 k_stride, int64 rows, int depth) {
        const bool k_inner = (k_stride < 0 ? -k_stride : k_stride) <= (row_stride < 0 ? -row_stride : row_stride);
        const int t = threadIdx.x;
        const int row = k_inner ? t / BK : t % ROWS, k = k_inner ? t % BK : t / ROWS;
        row_step = k_inner ? THREADS / BK : 0;
        k_step = k_inner ? 0 : THREADS / ROWS;
        next = origin + row * row_stride + k * k_stride;
        step = BK * k_stride;
        across = row_step * row_stride + k_step * k_stride;
        left = depth - k;
        rows_left = static_cast<int>(rows - row < ROWS ? rows - row : ROWS);
        target = k * PITCH + row;
        target_step = k_step * PITCH + row_step;
    }

    __device__ __forceinline__ void load() {
        const T* source = next;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            staged[j] = narrow<T>(A(0));
            if (j * row_step < rows_left && j * k_step < left) staged[j] = *source;
            source += across;
        }
        next += step;
        left -= BK;
    }

    __device__ __forceinline__ void store(A* shared) const {
#pragma unroll
        for (int j = 0; j < COUNT; j++) shared[target + j * target_step] = widen(staged[j]);
    }
};

// How an operand is moved: packs along K, packs along its rows, or single elements.
enum Load { ALONG_K, ALONG_ROWS, STRIDED };

template <typename T, int ROWS, int BK, int THREADS, Load LOAD> struct PanelFor {
    typedef VectorPanel<T, ROWS, BK, THREADS, LOAD == ALONG_K> type;
};
template <typename T, int ROWS, int BK, int THREADS> struct PanelFor<T, ROWS, BK, THREADS, STRIDED> {
    typedef StridedPanel<T, ROWS, BK, THREADS> type;
};

// ---- the tile of one block ---------------------------------------------------------------------------------

constexpr int LANE_ROWS = 4, LANE_COLUMNS = 8;  // the lanes of a warp as a grid

template <int A, int B> constexpr int SMALLER = A < B ? A : B;
template <int A, int B> constexpr int LARGER = A < B ? B : A;

// Sizes that follow from a tile's shape.
template <typename T, int BM, int BN, int BK, int TM, int TN> struct Tile {
    typedef Accumulator<T> A;
    static constexpr int THREADS = BM * BN / (TM * TN);
    static constexpr int WARP_M = LANE_ROWS * TM, WARP_N = LANE_COLUMNS * TN;  // a warp's part of the tile
    static constexpr int WARPS_M = BM / WARP_M, WARPS_N = BN / WARP_N;
    static_assert(WARPS_M * WARPS_N * WARP == THREADS, "the warps cover the tile exactly");
    static constexpr int VM = SMALLER<TM, PACK<A>>, VN = SMALLER<TN, PACK<A>>;  // rows, columns in one piece
    static constexpr int PANEL_A = BK * (BM + 4), PANEL_B = BK * (BN + 4), BUFFER = PANEL_A + PANEL_B;
    static constexpr int SLAB_PITCH = BN + 4;                    // finished rows on their way out
    static constexpr int SHARED = LARGER<2 * BUFFER, WARP_M * SLAB_PITCH>;  // numbers of type A
};

// Blocks that shall fit on a multiprocessor at once. 512 threads leave each 128 registers; float64 and single
// elements of any strides need more of them.
template <typename T, int THREADS, bool WHOLE_PACKS>
constexpr int RESIDENT = sizeof(T) == 8 ? 1 : (WHOLE_PACKS ? 512 : 384) / THREADS;

// Where a thread stands in its block. Neighbouring lanes alternate between two rows, so that each half
// warp reads 2 pieces of A and 8 of B: 128 bytes of B, which is one pass over the banks.
struct Place {
    int warp, row, column;
    __device__ __forceinline__ Place() {
        const int lane = threadIdx.x % WARP;
        warp = threadIdx.x / WARP;
        row = lane / 16 * 2 + lane % 2;
        column = lane / 2 % LANE_COLUMNS;
    }
};

// COUNT numbers in pieces of V that lie LANES * V apart.
template <int COUNT, int V, int LANES, typename A>
__device__ __forceinline__ void load_fragment(A (&fragment)[COUNT], const A* shared) {
#pragma unroll
    for (int i = 0; i < COUNT; i += V) {
        const Pack<A, V> piece = load_pack<A, V>(shared + i * LANES);
#pragma unroll
        for (int e = 0; e < V; e++) fragment[i + e] = piece.item[e];
    }
}

// sums += the product of the two panels over `depth` values of k.
//
// Three things overlap: the global loads of tile t + 1 (issued at the first k of tile t, kept in registers,
// stored at the last), the shared loads of k + 1, and the multiply-adds of k. With two buffers one barrier a
// tile is enough: whoever stores into a buffer has passed the barrier behind its last reader. The last round
// loads nothing and stores zeros, which keeps the body free of branches; the body stands twice in the
// loop, once for each buffer, which makes all addresses in shared memory constants.
template <typename S, int BK, int TM, int TN, typename PanelA, typename PanelB, typename A> struct Product {
    A (&sums)[TM][TN];
    PanelA& a;
    PanelB& b;
    A* shared;
    const A *rows, *columns;  // this thread's first pieces of the panels
    A fragment_a[2][TM], fragment_b[2][TN];

    __device__ __forceinline__ Product(A (&sums)[TM][TN], PanelA& a, PanelB& b, A* shared, const Place& place)
        : sums(sums), a(a), b(b), shared(shared),
          rows(shared + place.warp / S::WARPS_N * S::WARP_M + place.row * S::VM),
          columns(shared + S::PANEL_A + place.warp % S::WARPS_N * S::WARP_N + place.column * S::VN) {}

    // The pieces of one k, which is counted through both buffers.
    __device__ __forceinline__ void load_fragments(int which, int at) {
        const int buffer = at / BK * S::BUFFER, k = at % BK;
        load_fragment<TM, S::VM, LANE_ROWS>(fragment_a[which], rows + buffer + k * PanelA::PITCH);
        load_fragment<TN, S::VN, LANE_COLUMNS>(fragment_b[which], columns + buffer + k * PanelB::PITCH);
    }

    // The tile in buffer FROM.
    template <int FROM> __device__ __forceinline__ void tile() {
#pragma unroll
        for (int k = 0; k < BK; k++) {
            if (k == BK - 1) {
                a.store(shared + (1 - FROM) * S::BUFFER);
                b.store(shared + (1 - FROM) * S::BUFFER + S::PANEL_A);
                __syncthreads();
            }
            load_fragments((k + 1) % 2, (FROM * BK + k + 1) % (2 * BK));
            if (k == 0) {
                a.load();
                b.load();
            }
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sums[i][j] += fragment_a[k % 2][i] * fragment_b[k % 2][j];
        }
    }

    __device__ __forceinline__ void run(int depth) {
        a.load();
        b.load();
        a.store(shared);
        b.store(shared + S::PANEL_A);
        __syncthreads();
        load_fragments(0, 0);
#pragma unroll 1
        for (; depth > 0; depth -= 2 * BK) {
            tile<0>();
            if (depth <= BK) break;
            tile<1>();
        }
    }
};
