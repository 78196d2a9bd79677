// attention_simt.cuh - what the kernels of attention on the ordinary units share: tiles of 64 rows x 64 keys.
//
// Who does what: 256 threads, 16 x 16. Thread (ty, tx) has the elements (ty + 16 i, tx + 16 j), i, j < 4, of a tile of
// scores, and of a result the rows ty + 16 i and the columns 4 tx … 4 tx + 3 of each of CHUNKS times 64. A head of
// more than CHUNKS * 64 is shared by blocks, which then make the same scores; one of 64 leaves the second chunk of
// float alone: its registers cost nothing, as either way one block fits on a multiprocessor.
// Shared memory, in bytes of A = Accumulator<T>: two operands of 64 x 32 or one of 64 x 64, and the weights 64 x 64,
// all rows with 16 bytes to spare, which keeps 16-byte reads of 8 neighbouring rows in different banks:
// 36 KB for float, 69 KB for double.
// The limit: arithmetic. Of 8 loads of 16 bytes from shared memory come 64 multiply-adds (float).
// Assumes: contiguous last dimensions; `vector` says that all rows begin at multiples of 16 bytes (8 for 16 bits).
#pragma once
#include "attention.cuh"

constexpr int TILE = 64, DEPTH = 32, THREADS = 256;

template <typename A> constexpr int LANES = 16 / sizeof(A);  // elements of 16 bytes
// A thread has the columns 4 tx … 4 tx + 3 of so many times 64; registers for double suffice for one.
template <typename A> constexpr int CHUNKS = sizeof(A) == 4 ? 2 : 1;
template <typename A> constexpr int HEAD_COLUMNS = CHUNKS<A> * TILE;
template <typename A> constexpr int DEPTH_PITCH = DEPTH + LANES<A>;
template <typename A> constexpr int PITCH = TILE + LANES<A>;

template <typename A> struct Panels {
    A *left, *right, *values, *weights;  // `values` lies over `left` and `right`

    __device__ __forceinline__ explicit Panels(A* memory)
        : left(memory), right(memory + TILE * DEPTH_PITCH<A>), values(memory),
          weights(memory + 2 * TILE * DEPTH_PITCH<A>) {}
};

// 64 rows from `first` on, columns [column, column + COLUMNS), into shared memory; zeros where there is nothing.
template <int COLUMNS, int PITCH_, template <typename> class Rows, typename T>
__device__ __forceinline__ void load_rows(Accumulator<T>* panel, const Rows<T>& rows, int first, int column, int dim,
                                          bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>, PER_ROW = COLUMNS / WIDTH;
#pragma unroll 2
    for (int index = threadIdx.x; index < TILE * PER_ROW; index += THREADS) {
        const int line = index / PER_ROW, from = index % PER_ROW * WIDTH, at = column + from;
        Pack<T, WIDTH> pack;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) pack.item[e] = T(0.f);
        if (first + line < rows.end && at < dim) {
            const T* source = rows.row(first + line) + at;
            if (vector) {  // then dim is a multiple of WIDTH
                pack = load_pack<T, WIDTH>(source);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    if (at + e < dim) pack.item[e] = source[e];
            }
        }
        Pack<A, WIDTH> wide;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) wide.item[e] = widen(pack.item[e]);
        store_pack(panel + line * PITCH_ + from, wide);
    }
}

// sums[i][j] = left row (ty + 16 i) · right row (tx + 16 j)
template <typename T, typename Left, typename Right>
__device__ __forceinline__ void products(Accumulator<T> (&sums)[4][4], const Panels<Accumulator<T>>& panels,
                                         const Left& left, int first_left, const Right& right, int first_right,
                                         int dim, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = A(0);
#pragma unroll 1
    for (int column = 0; column < dim; column += DEPTH) {
        __syncthreads();
        load_rows<DEPTH, DEPTH_PITCH<A>>(panels.left, left, first_left, column, dim, vector);
        load_rows<DEPTH, DEPTH_PITCH<A>>(panels.right, right, first_right, column, dim, vector);
        __syncthreads();
#pragma unroll 2
        for (int d = 0; d < DEPTH; d += WIDTH) {
            Pack<A, WIDTH> a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = load_pack<A, WIDTH>(panels.left + (ty + 16 * i) * DEPTH_PITCH<A> + d);
                b[i] = load_pack<A, WIDTH>(panels.right + (tx + 16 * i) * DEPTH_PITCH<A> + d);
            }
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i][j] += a[i].item[e] * b[j].item[e];
        }
    }
}

// The weights, where all threads have them for `accumulate`.
template <typename A>
__device__ __forceinline__ void put_weights(const Panels<A>& panels, const A (&weights)[4][4]) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) panels.weights[(ty + 16 * i) * PITCH<A> + tx + 16 * j] = weights[i][j];
}

// Masks a tile of scores by way of shared memory, where a loop can pick elements: this way it stays small. TURNED: the
// keys are ty + 16 i and the rows tx + 16 j.
template <typename T, bool TURNED>
__device__ __forceinline__ void mask_tile(Accumulator<T> (&scores)[4][4], const Panels<Accumulator<T>>& panels,
                                          const Attention& p, const Sequence& s, const void* mask, int row0,
                                          int key0) {
    typedef Accumulator<T> A;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    A* mine = panels.weights + ty * PITCH<A> + tx;  // only this thread's elements, so without a barrier
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mine[16 * i * PITCH<A> + 16 * j] = scores[i][j];
#pragma unroll 1
    for (int n = 0; n < 16; n++) {
        const int y = ty + n / 4 * 16, x = tx + n % 4 * 16;
        const RowView row(p, s, row0 + (TURNED ? x : y));
        A& score = mine[n / 4 * 16 * PITCH<A> + n % 4 * 16];
        score = mask_score<T>(score, p, s, mask, row, key0 + (TURNED ? y : x), A(1));
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) scores[i][j] = mine[16 * i * PITCH<A> + 16 * j];
}

// Bit 4 i + j: whether dropout keeps the weight (i, j) of this thread.
template <bool TURNED>
__device__ __forceinline__ uint32 kept_of_tile(const Attention& p, const Sequence& s, const uint64* counter, int row0,
                                               int key0) {
    if (p.threshold == 0) return 0xffffu;
    const Origin from = random_origin(p, counter);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    uint32 kept = 0;
#pragma unroll 1
    for (int n = 0; n < 16; n++) {
        const int y = ty + n / 4 * 16, x = tx + n % 4 * 16;
        const RowView row(p, s, row0 + (TURNED ? x : y));
        kept |= static_cast<uint32>(is_kept(p, from, row.index(p, s), key0 + (TURNED ? y : x))) << n;
    }
    return kept;
}

// sums[c][i][e] += weights row (ty + 16 i) · column (64 c + 4 tx + e) of the 64 rows from `first` on
template <typename T, typename Rows>
__device__ __forceinline__ void accumulate(Accumulator<T> (&sums)[CHUNKS<Accumulator<T>>][4][4],
                                           const Panels<Accumulator<T>>& panels, const Rows& rows, int first,
                                           int column, int dim, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int c = 0; c < CHUNKS<A>; c++) {
        if (column + c * TILE >= dim) break;
        __syncthreads();
        load_rows<TILE, PITCH<A>>(panels.values, rows, first, column + c * TILE, dim, vector);
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < TILE; key += WIDTH) {
            Pack<A, WIDTH> weight[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                weight[i] = load_pack<A, WIDTH>(panels.weights + (ty + 16 * i) * PITCH<A> + key);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A value[4];
#pragma unroll
                for (int w = 0; w < 4; w += WIDTH) {
                    const Pack<A, WIDTH> some =
                        load_pack<A, WIDTH>(panels.values + (key + e) * PITCH<A> + 4 * tx + w);
#pragma unroll
                    for (int u = 0; u < WIDTH; u++) value[w + u] = some.item[u];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int u = 0; u < 4; u++) sums[c][i][u] += weight[i].item[e] * value[u];
            }
        }
    }
}

template <typename A> __device__ __forceinline__ void clear(A (&sums)[CHUNKS<A>][4][4]) {
#pragma unroll
    for (int c = 0; c < CHUNKS<A>; c++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[c][i][e] = A(0);
}

// Row i of a thread's results, times a factor, to where the row begins.
template <typename T, typename A>
__device__ __forceinline__ void store_row_of(T* row, const A (&sums)[CHUNKS<A>][4][4], int i, A factor, int column,
                                             int dim, bool vector) {
    constexpr int WIDTH = LANES<A>;
    const int tx = threadIdx.x % 16;
#pragma unroll
    for (int c = 0; c < CHUNKS<A>; c++)
#pragma unroll
        for (int w = 0; w < 4; w += WIDTH) {
            const int at = column + c * TILE + 4 * tx + w;
            Pack<T, WIDTH> pack;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) pack.item[e] = narrow<T>(sums[c][i][w + e] * factor);
            if (at >= dim) continue;
            if (vector) {
                store_pack(row + at, pack);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    if (at + e < dim) row[at + e] = pack.item[e];
            }
        }
}

// Over the 16 lanes that share rows.
template <typename Op, typename A> __device__ __forceinline__ A reduce_row(A value) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) value = Op::apply(value, shuffle_xor(value, offset));
    return value;
}
struct Larger {
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return larger(a, b); }
};

// Which tile, which columns, which part of the keys and which table block x is for. The last tiles, which see the
// most where attention is causal, come first.
struct Place {
    int tile, column, part, table;
    __device__ __forceinline__ Place(int tiles, int groups, int parts, int columns) {
        int index = blockIdx.x;
        tile = tiles - 1 - index % tiles;
        index /= tiles;
        column = index % groups * columns;
        index /= groups;
        part = index % parts;
        table = index / parts;
    }
};
