// reduce.cu - sum, mean, max and argmax over one axis of an (outer, n, inner) array.
//
//   out[o, i] = op over a of x[o, a, i]             (SumOf with a divisor for the mean, LargestOf, ArgmaxOf)
//
//   reduce_rows      inner == 1. A group of 1 to 256 threads (row.cuh) takes a row; each thread keeps a
//                    state in registers over its packs of 16 bytes, and the group's states are joined by
//                    shuffles and, beyond a warp, shared memory (one state a warp).
//   reduce_columns   inner > 1. A group of `across` x `down` threads takes up to across * WIDTH neighbouring
//                    columns; thread (i, j) keeps a state for each of WIDTH columns over the elements
//                    a = j, j + down, … of the axis, so that a warp reads neighbouring memory. The `down`
//                    states of a column are joined in shared memory (at most 16 KB).
//   reduce_merge     joins the states of parts. Where there are too few rows or columns to occupy the chip,
//                    the axis is cut into `parts`, whose states go to memory; and an array that is
//                    reduced over axes that are not neighbours is reduced over the last of them first.
//
// The limit: every element is read once and next to nothing is written, so memory is the limit; AHEAD
// packs are under way in every thread to reach it.
// Deterministic: states are always joined in the same tree, never by atomics. Float sums are kept short:
// a thread sums K elements apart before it adds them to its own sum (K = AHEAD packs of a row, 64 of
// a column), so the error is at most (K + n / (K threads parts) + log2(threads parts)) 2^-24 sum |x|,
// where a plain running sum would have n 2^-24 sum |x|.
// NaN is the largest number, as in NumPy: max gives NaN and argmax the first one's index.
// Assumes: contiguous x; vector only if x is a multiple of 16 bytes and, in reduce_columns, inner is a
// multiple of WIDTH.
#include "row.cuh"

// ---- operations -------------------------------------------------------------------------------------
//
// start(a)         the state of nothing; a is an index of the axis (argmax of -inf alone is its first index)
// take(state, x, a)   a thread takes element a in; a rises from call to call
// apply(a, b)      two states joined; commutative to the bit
// finish(state, divisor), fill()   the result; a value that changes no state

template <typename T> struct SumState { typedef long long type; };
template <> struct SumState<float> { typedef float type; };
template <> struct SumState<double> { typedef double type; };
template <> struct SumState<__half> { typedef float type; };
template <> struct SumState<__nv_bfloat16> { typedef float type; };

__device__ __forceinline__ int widen(int x) { return x; }
__device__ __forceinline__ int64 widen(int64 x) { return x; }
__device__ __forceinline__ int widen(unsigned char x) { return x; }

template <typename T, typename State> __device__ __forceinline__ T narrowed(State x) {
    if constexpr (sizeof(T) == 2) return narrow<T>(x);
    else return static_cast<T>(x);
}

template <typename T> struct SumOf {
    typedef T Input;
    typedef typename SumState<T>::type State;
    template <bool INTEGER, typename Any> struct Choose { typedef T type; };
    template <typename Any> struct Choose<true, Any> { typedef long long type; };
    static constexpr bool INTEGER = State(0.5) == State(0);
    typedef typename Choose<INTEGER, void>::type Result;

    static __device__ __forceinline__ State start(int64) { return State(0); }
    static __device__ __forceinline__ void take(State& state, T x, int64) { state += State(widen(x)); }
    static __device__ __forceinline__ State apply(State a, State b) { return a + b; }
    static __device__ __forceinline__ T fill() { return narrowed<T>(State(0)); }
    static __device__ __forceinline__ Result finish(State state, State divisor) {
        if constexpr (INTEGER) return state;
        else return narrowed<Result>(state / divisor);
    }
};

// The smallest value of a type: no element is below it.
template <typename T> __device__ __forceinline__ T lowest() { return narrow<T>(-infinity<Accumulator<T>>()); }
template <> __device__ __forceinline__ int lowest<int>() { return -2147483647 - 1; }
template <> __device__ __forceinline__ int64 lowest<int64>() { return -9223372036854775807ll - 1; }
template <> __device__ __forceinline__ unsigned char lowest<unsigned char>() { return 0; }

template <typename T> struct LargestOf {
    typedef T Input;
    typedef T Result;
    typedef decltype(widen(T())) State;

    static __device__ __forceinline__ State start(int64) { return widen(lowest<T>()); }
    static __device__ __forceinline__ void take(State& state, T x, int64) { state = maximum(state, State(widen(x))); }
    static __device__ __forceinline__ State apply(State a, State b) { return maximum(a, b); }
    static __device__ __forceinline__ T fill() { return lowest<T>(); }
    static __device__ __forceinline__ Result finish(State state, State) { return narrowed<T>(state); }
};

template <typename V> struct Candidate {
    V value;
    int64 index;
};
template <typename V> __device__ __forceinline__ Candidate<V> shuffle_xor(Candidate<V> c, int offset) {
    return {shuffle_xor(c.value, offset), shuffle_xor(c.index, offset)};
}

template <typename T> struct ArgmaxOf {
    typedef T Input;
    typedef long long Result;
    typedef decltype(widen(T())) Value;
    typedef Candidate<Value> State;

    static __device__ __forceinline__ State start(int64 a) { return {widen(lowest<T>()), a}; }
    // Larger, or NaN where there was none; an equal one comes later and so does not count.
    static __device__ __forceinline__ void take(State& state, T x, int64 a) {
        const Value value = widen(x);
        if (!(value <= state.value) && state.value == state.value) state = {value, a};
    }
    static __device__ __forceinline__ State apply(State a, State b) {
        const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        const bool equal = (a_nan && b_nan) || a.value == b.value;
        const bool first = equal ? a.index < b.index : a_nan || a.value > b.value;
        return first ? a : b;
    }
    static __device__ __forceinline__ T fill() { return lowest<T>(); }
    static __device__ __forceinline__ Result finish(State state, int) { return state.index; }
};

template <typename Op> struct DivisorOf { typedef int type; };  // not used
template <typename T> struct DivisorOf<SumOf<T>> { typedef typename SumOf<T>::State type; };
template <typename Op> using Divisor = typename DivisorOf<Op>::type;

// Packs of a row that a thread has under way. Two of bytes: 64 of them take more registers than there are.
template <typename T> constexpr int ROW_AHEAD = sizeof(T) == 1 ? 2 : 4;

// ---- rows -------------------------------------------------------------------------------------------

// Unit u of the grid's groups is part u % parts of row u / parts. With `partial` the state goes there.
template <typename Op>
__global__ void __launch_bounds__(256)
reduce_rows(const typename Op::Input* x, typename Op::Result* out, typename Op::State* partial, int64 rows,
            int64 cols, int parts, int threads, Divisor<Op> divisor, bool vector) {
    typedef typename Op::Input T;
    typedef typename Op::State State;
    constexpr int AHEAD = ROW_AHEAD<T>;
    __shared__ State scratch[WARP];
    for (RowLoop at(rows * parts, threads); at.more(); at.next()) {
        const int64 r = parts == 1 ? at.row() : at.row() / parts;  // mostly 1: spare the slow division
        const Row<T> row(r, cols, vector, at.active());
        const int64 each = parts == 1 ? row.packs : (row.packs + parts - 1) / parts;
        const int64 from = (at.row() - r * parts) * each, to = from + each < row.packs ? from + each : row.packs;

        State state = Op::start(row.column(from) > 0 ? row.column(from) : 0);
        for (int64 p = from + at.rank; p < to; p += AHEAD * threads) {
            Pack<T, PACK<T>> pack[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                pack[k] = load_row(x, row, p + k * threads < to ? p + k * threads : row.packs, Op::fill());
            State chunk = Op::start(row.column(p) > 0 ? row.column(p) : 0);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
#pragma unroll
                for (int e = 0; e < PACK<T>; e++)
                    Op::take(chunk, pack[k].item[e], row.column(p + k * threads) + e);
            state = Op::apply(state, chunk);
        }
        state = group_reduce<Op>(state, threads, scratch);
        if (at.rank == 0 && at.active()) {
            if (partial != nullptr) partial[at.row()] = state;
            else out[r] = Op::finish(state, divisor);
        }
    }
}

// ---- columns ----------------------------------------------------------------------------------------

constexpr int COLUMN_BLOCK = 256;
// Neighbouring columns of a thread, and places of the axis that it has under way. Four columns at most:
// eight of a 16-bit type, each with its state, take more registers than the wider load is worth.
template <typename T> constexpr int WIDTH = PACK<T> < 4 ? PACK<T> : 4;
template <typename T> constexpr int COLUMN_AHEAD = sizeof(T) == 2 ? 8 : 4;

// The elements of a thread's columns at one place of the axis. `left` columns exist from `source` on.
template <typename T>
__device__ __forceinline__ Pack<T, WIDTH<T>> load_columns(const T* source, int left, T fill) {
    Pack<T, WIDTH<T>> pack;
#pragma unroll
    for (int e = 0; e < WIDTH<T>; e++) pack.item[e] = e < left ? source[e] : fill;
    return pack;
}

// Unit u of the grid's groups: outer index, then part of the axis, then tile of columns, the last one fastest.
template <typename Op>
__global__ void __launch_bounds__(COLUMN_BLOCK, 2)
reduce_columns(const typename Op::Input* x, typename Op::Result* out, typename Op::State* partial, int64 outer,
               int64 n, int64 inner, int parts, int across, int down, Divisor<Op> divisor, bool vector) {
    typedef typename Op::Input T;
    typedef typename Op::State State;
    constexpr int W = WIDTH<T>, AHEAD = COLUMN_AHEAD<T>, APART = 64 / AHEAD;  // steps that are summed apart
    __shared__ unsigned char bytes[W * COLUMN_BLOCK * sizeof(State)] __attribute__((aligned(16)));
    State* shared = reinterpret_cast<State*>(bytes);
    const int64 tiles = (inner + across * W - 1) / (across * W), each = (n + parts - 1) / parts;
    for (RowLoop at(outer * parts * tiles, across * down); at.more(); at.next()) {
        const int64 line = at.row() / tiles, tile = at.row() - line * tiles;  // line: outer index and part
        const int64 o = line / parts, from = (line - o * parts) * each, to = from + each < n ? from + each : n;
        const int i = at.rank & (across - 1), j = at.rank >> (__ffs(across) - 1);  // powers of two
        const int64 column = (tile * across + i) * W;
        const int left = !at.active() || column >= inner ? 0 : inner - column < W ? inner - column : W;
        const bool whole = vector && left == W;
        const T* source = x + o * n * inner + column;

        State state[W];
#pragma unroll
        for (int e = 0; e < W; e++) state[e] = Op::start(from + j);
        const int64 stride = static_cast<int64>(AHEAD) * down;
        for (int64 begin = from + j; begin < to && left > 0; begin += APART * stride) {
            State chunk[W];
#pragma unroll
            for (int e = 0; e < W; e++) chunk[e] = Op::start(begin);
            const int64 end = begin + APART * stride < to ? begin + APART * stride : to;
#pragma unroll 1
            for (int64 a = begin; a < end; a += stride) {
                Pack<T, W> pack[AHEAD];
                if (whole && a + (AHEAD - 1) * down < end) {
#pragma unroll
                    for (int k = 0; k < AHEAD; k++) pack[k] = load_pack<T, W>(source + (a + k * down) * inner);
                } else {
#pragma unroll
                    for (int k = 0; k < AHEAD; k++)
                        pack[k] = load_columns(source + (a + k * down) * inner, a + k * down < end ? left : 0,
                                               Op::fill());
                }
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
#pragma unroll
                    for (int e = 0; e < W; e++) Op::take(chunk[e], pack[k].item[e], a + k * down);
            }
#pragma unroll
            for (int e = 0; e < W; e++) state[e] = Op::apply(state[e], chunk[e]);
        }

        if (down > 1) __syncthreads();  // the memory may still be read from the last round
        for (int half = down / 2; half > 0; half /= 2) {
            if (j >= half && j < 2 * half)
#pragma unroll
                for (int e = 0; e < W; e++) shared[e * COLUMN_BLOCK + threadIdx.x] = state[e];
            __syncthreads();
            if (j < half)
#pragma unroll
                for (int e = 0; e < W; e++)
                    state[e] = Op::apply(state[e], shared[e * COLUMN_BLOCK + threadIdx.x + half * across]);
        }
        if (j > 0) continue;
#pragma unroll
        for (int e = 0; e < W; e++) {
            if (e >= left) continue;
            if (partial != nullptr) partial[line * inner + column + e] = state[e];
            else out[o * inner + column + e] = Op::finish(state[e], divisor);
        }
    }
}

// ---- states of parts ----------------------------------------------------------------------------------

// states is (outer, parts, inner); each `chunk` neighbouring parts become one, by a group of threads. With
// `next` the states of (outer, chunks, inner) go there, else there is one chunk and it is the result.
template <typename Op>
__global__ void __launch_bounds__(256)
reduce_merge(const typename Op::State* states, typename Op::Result* out, typename Op::State* next, int64 outer,
             int64 parts, int64 inner, int64 chunk, int threads, Divisor<Op> divisor) {
    typedef typename Op::State State;
    __shared__ State scratch[WARP];
    const int64 chunks = (parts + chunk - 1) / chunk;
    for (RowLoop at(outer * chunks * inner, threads); at.more(); at.next()) {
        const int64 line = at.row() / inner, i = at.row() - line * inner;
        const int64 o = line / chunks, from = (line - o * chunks) * chunk;
        const int64 to = !at.active() ? 0 : from + chunk < parts ? from + chunk : parts;
        State state = Op::start(9223372036854775807ll);  // an index behind all others
        for (int64 p = from + at.rank; p < to; p += threads)
            state = Op::apply(state, states[(o * parts + p) * inner + i]);
        state = group_reduce<Op>(state, threads, scratch);
        if (at.rank == 0 && at.active()) {
            if (next != nullptr) next[at.row()] = state;
            else out[at.row()] = Op::finish(state, divisor);
        }
    }
}
