// attention_mma.cuh - what the kernels of attention by mma.sync share: panels of heads in shared memory, products of
// a warp's 16 rows with a panel, masks and dropout in the layout of mma's results.
//
// A panel is LINES lines (rows of the table, or keys) of DIM numbers, zeros where there is nothing, laid out as in
// matmul_mma.cuh. The same bytes are read in two ways: with DIM as the k of a product (scores), and with the lines
// as its k and DIM as its columns (what the weights are multiplied by), where ldmatrix transposes.
// A warp owns 16 lines of the table, its *own* side (queries, or in grad_kv keys); the *other* side lies along the
// columns. Thread (g, t) = (lane / 4, lane % 4) has of a result, for columns 8 j … 8 j + 7,
//   [j][0..1]: own line g, columns 8 j + 2 t + 0..1     [j][2..3]: own line g + 8, the same columns
// and two neighbouring j are, rounded to 16 bits, the left operand of the next product: no way through memory.
#pragma once
#include "attention.cuh"
#include "matmul_mma.cuh"
#include "ptx_math.cuh"

constexpr int WARPS = 4, MMA_THREADS = WARPS * WARP, OWN = 16 * WARPS;  // threads and own lines of a block
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

template <typename T, int LINES, int DIM> struct HeadPanel {
    typedef Panel<T, LINES, DIM, ALONG_K> ByLine;    // DIM is the k
    typedef Panel<T, DIM, LINES, ALONG_ROWS> Across;  // the lines are the k
    typedef Reader<ByLine, 16, false> Own;
    typedef Reader<ByLine, LINES, true> Columns;
    typedef Reader<Across, DIM, true> Values;
    static constexpr int BYTES = ByLine::BYTES, CHUNKS = ByLine::CHUNKS;
    static_assert(BYTES == Across::BYTES && ByLine::LINE == Across::LINE, "one memory, seen in two ways");
};

// Starts the copies of the lines from `first` on; the caller commits.
template <int LINES, int DIM, template <typename> class Rows, typename T>
__device__ __forceinline__ void load_panel(unsigned char* panel, const Rows<T>& rows, int first, int dim) {
    typedef HeadPanel<T, LINES, DIM> P;
    constexpr int STEP = MMA_THREADS / P::CHUNKS;
    static_assert(LINES % STEP == 0, "every thread moves as many chunks");
    const int line = threadIdx.x / P::CHUNKS, chunk = threadIdx.x % P::CHUNKS;
#pragma unroll
    for (int j = 0; j < LINES / STEP; j++) {
        const int index = first + line + j * STEP;
        const bool valid = index < rows.end && chunk * 8 < dim;
        const T* source = valid ? rows.row(index) + chunk * 8 : rows.base;
        ptx::copy_async<16>(panel + P::ByLine::place(line + j * STEP, chunk), source, valid);
    }
}

template <int COUNT> __device__ __forceinline__ void clear(float (&sums)[COUNT][4]) {
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[j][e] = 0.f;
}

// sums = the warp's own lines of one panel times all lines of another, over DIM, in steps of 16; UNROLL of them side by
// side, each of which wants registers for addresses.
template <typename T, int OTHERS, int DIM, int UNROLL = DIM / 16>
__device__ __forceinline__ void scores_of(float (&sums)[OTHERS / 8][4], const unsigned char* own_panel,
                                          const typename HeadPanel<T, OWN, DIM>::Own& own,
                                          const unsigned char* other_panel,
                                          const typename HeadPanel<T, OTHERS, DIM>::Columns& others) {
    clear(sums);
#pragma unroll UNROLL
    for (int step = 0; step < DIM / 16; step++) {
        uint32 a[1][4];
        own.load(a, own_panel, 0, step);
#pragma unroll
        for (int pair = 0; pair < OTHERS / 32; pair++) {
            uint32 b[2][4];
            others.load(b, other_panel, 2 * pair, step);
#pragma unroll
            for (int j = 0; j < 4; j++) multiply<KIND<T>>(sums[4 * pair + j], a[0], b[j / 2], j % 2);
        }
    }
}

template <typename T> __device__ __forceinline__ uint32 pack_two(float x, float y);
template <> __device__ __forceinline__ uint32 pack_two<__half>(float x, float y) {
    const __half2 pair = __floats2half2_rn(x, y);
    return reinterpret_cast<const uint32&>(pair);
}
template <> __device__ __forceinline__ uint32 pack_two<__nv_bfloat16>(float x, float y) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return reinterpret_cast<const uint32&>(pair);
}

// sums += weights (rounded) times COLUMNS columns from `column` on (a multiple of 32) of the panel's lines.
template <typename T, int OTHERS, int DIM, int COLUMNS>
__device__ __forceinline__ void add_weighted(float (&sums)[COLUMNS / 8][4], const float (&weights)[OTHERS / 8][4],
                                             const unsigned char* panel,
                                             const typename HeadPanel<T, OTHERS, DIM>::Values& values, int column) {
#pragma unroll
    for (int step = 0; step < OTHERS / 16; step++) {
        uint32 a[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float(&pair)[4] = weights[2 * step + r / 2];
            a[r] = pack_two<T>(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
        }
#pragma unroll
        for (int pair = 0; pair < COLUMNS / 32; pair++) {
            uint32 b[2][4];
            values.load(b, panel, column / 16 + 2 * pair, step);
#pragma unroll
            for (int j = 0; j < 4; j++) multiply<KIND<T>>(sums[4 * pair + j], a, b[j / 2], j % 2);
        }
    }
}

// The warp's 16 lines of COLUMNS results, times a factor for each of a thread's two lines, to the rows of an array.
// They go through the warp's own lines of a panel, which nobody reads any more, so that 16 bytes are stored at a time.
template <typename T, int DIM, int COLUMNS, typename RowOf>
__device__ __forceinline__ void store_lines(unsigned char* panel, const float (&sums)[COLUMNS / 8][4],
                                            const float (&factor)[2], int column, int dim, int lines, RowOf row_of) {
    typedef typename HeadPanel<T, OWN, DIM>::ByLine P;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            *reinterpret_cast<uint32*>(panel + P::place(warp * 16 + g + 8 * h, j) + 4 * t) =
                pack_two<T>(sums[j][2 * h] * factor[h], sums[j][2 * h + 1] * factor[h]);
    __syncwarp();
#pragma unroll 4
    for (int index = lane; index < 16 * COLUMNS / 8; index += WARP) {
        const int line = index / (COLUMNS / 8), chunk = index % (COLUMNS / 8);
        if (line < lines && column + chunk * 8 < dim)
            *reinterpret_cast<uint4*>(row_of(line) + column + chunk * 8) =
                *reinterpret_cast<const uint4*>(panel + P::place(warp * 16 + line, chunk));
    }
}

// ---- dropout ------------------------------------------------------------------------------------------------------
//
// A block of four words belongs to four neighbouring keys of one row. Each lane makes one block where it needs words
// of several, and lanes exchange words: one call for four weights, as few as there are.

// Queries are own lines with indices index[0] (g) and index[1] (g + 8) in (B, H, Tq), keys from `key0` on along the
// columns. Bit 4 j + e: whether [j][e] is kept.
template <int KEYS>
__device__ __forceinline__ uint32 kept_by_query(const Attention& p, const uint64* counter, const int64 (&index)[2],
                                                int key0) {
    const int t = threadIdx.x % 4;
    const bool odd = t % 2 != 0;
    const Origin from = random_origin(p, counter);
    uint32 kept = 0;
#pragma unroll 1
    for (int j = 0; j < KEYS / 8; j++) {
        // An even lane makes the words of line g, an odd one of line g + 8; the even ones want words 0 and 1.
        const uint4 words = philox(random_block(p, odd ? index[1] : index[0], key0 + 8 * j + t / 2 * 4), from.offset,
                                   from.seed);
        uint32 own[2] = {odd ? words.z : words.x, odd ? words.w : words.y};
        uint32 got[2];
        got[0] = __shfl_xor_sync(FULL_WARP, odd ? words.x : words.z, 1);
        got[1] = __shfl_xor_sync(FULL_WARP, odd ? words.y : words.w, 1);
        uint32 bits = 0;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            bits |= static_cast<uint32>(is_kept(p, odd ? got[e] : own[e])) << e;
            bits |= static_cast<uint32>(is_kept(p, odd ? own[e] : got[e])) << (e + 2);
        }
        kept |= bits << (4 * j);
    }
    return kept;
}

// Keys are own lines from `key` on (key + g, key + g + 8), queries along the columns; `index(column)` is the index of
// one in (B, H, Tq). Bits as above.
template <int ROWS, typename Index>
__device__ __forceinline__ uint32 kept_by_key(const Attention& p, const uint64* counter, int key, Index index) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, c = g % 4;
    const Origin from = random_origin(p, counter);
    uint32 kept = 0;
#pragma unroll 1
    for (int j = 0; j < ROWS / 8; j++) {
        // The four lanes with one t and one g / 4 want the same four blocks: lane c makes that of weight [j][c], and
        // then they transpose their 4 x 4 words, so that each has its own key's word of all four.
        const int64 row = index(8 * j + 2 * t + c % 2);
        const uint4 words = philox(random_block(p, row, key + c / 2 * 8 + g / 4 * 4), from.offset, from.seed);
        uint32 w[4] = {words.x, words.y, words.z, words.w};
        const bool odd = c % 2 != 0, upper = c / 2 != 0;
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint32 got = __shfl_xor_sync(FULL_WARP, odd ? w[k] : w[k + 1], 4);
            w[k] = odd ? got : w[k], w[k + 1] = odd ? w[k + 1] : got;
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint32 got = __shfl_xor_sync(FULL_WARP, upper ? w[k] : w[k + 2], 8);
            w[k] = upper ? got : w[k], w[k + 2] = upper ? w[k + 2] : got;
        }
        uint32 bits = 0;
#pragma unroll
        for (int e = 0; e < 4; e++) bits |= static_cast<uint32>(is_kept(p, w[e])) << e;
        kept |= bits << (4 * j);
    }
    return kept;
}

// ---- masks --------------------------------------------------------------------------------------------------------

// A score, in units of log2: -inf where the key is not in [first, end); what a mask says at `at`.
template <typename T>
__device__ __forceinline__ float masked(float score, int mask_kind, const void* mask, int64 at, int key, int first,
                                        int end) {
    if (key < first || key >= end) return -infinity<float>();
    if (mask_kind == NO_MASK) return score;
    if (mask_kind == BOOL_MASK) return static_cast<const unsigned char*>(mask)[at] ? score : -infinity<float>();
    return score + widen(static_cast<const T*>(mask)[at]) * LOG2_E;
}

// Where the mask has the first key of a row.
__device__ __forceinline__ int64 mask_row(const Attention& p, const Sequence& s, const RowView& row) {
    return s.batch * p.mask[0] + row.head * p.mask[1] + row.query * p.mask[2];
}
