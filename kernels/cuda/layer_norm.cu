// layer_norm.cu - layer norm and RMS norm of the rows of a (rows, cols) array.
//
//   s = x, or x + residual rounded to T and written to `sum`; x may be of a 16-bit type L beside a float residual
//   mean = sum(s) / cols (RMS norm: 0), reciprocal = 1 / sqrt(sum((s - mean)^2) / cols + eps)
//   y = (s - mean) reciprocal weight + bias
//
//   row_norm_forward         a group of 1 to 256 threads holds its row in registers, PACKS packs a thread: up to
//                            8192 columns (2048 of double). The variance is taken from the held values less
//                            their mean, so it is right for means that are large beside the deviation.
//   row_norm_forward_held    longer rows: a block or a cluster of blocks keeps its row in shared memory
//                            (16 * kept * threads bytes); what is beyond it is read again.
//
// The limit: 2 elements moved an element (4 with a residual) for about 10 operations: memory.
// Assumes: contiguous rows; 1 <= cols <= 2^30; vector only if all pointers are multiples of 16 (x of L: of 8).
#include "layer_norm.cuh"

// The elements of x in pack p of a row of T, widened: as many of 16 bits, 8 bytes where the pack is whole.
template <typename T, typename L>
__device__ __forceinline__ Pack<T, PACK<T>> load_widened(const L* x, const Row<T, int>& row, int p) {
    if constexpr (sizeof(L) == sizeof(T)) {
        return load_row(x, row, p, zero<T>());
    } else {
        const L* first = x + row.start;
        const int column = row.column(p);
        Pack<L, PACK<T>> low;
        if (p >= row.whole && p < row.whole_end) {
            low = load_pack<L, PACK<T>>(first + column);
        } else {
#pragma unroll
            for (int e = 0; e < PACK<T>; e++) low.item[e] = row.inside(column + e) ? first[column + e] : zero<L>();
        }
        Pack<T, PACK<T>> pack;
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) pack.item[e] = widen(low.item[e]);
        return pack;
    }
}

// Pack p of x, or of x + residual rounded, which also goes to `sum`.
template <typename T, typename L>
__device__ __forceinline__ Pack<T, PACK<T>> load_sum(
    const L* x, const T* residual, T* sum, const Row<T, int>& row, int p) {
    Pack<T, PACK<T>> pack = load_widened<T, L>(x, row, p);
    if (residual != nullptr) {
        const Pack<T, PACK<T>> other = load_row(residual, row, p, zero<T>());
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) pack.item[e] = narrow<T>(widen(pack.item[e]) + widen(other.item[e]));
        if (p < row.packs) store_row(sum, row, p, pack);
    }
    return pack;
}

// The sum of (x - middle)^2 over what lies inside the row of pack p.
template <typename T>
__device__ __forceinline__ Accumulator<T> squares_of(
    const Pack<T, PACK<T>>& pack, const Row<T, int>& row, int p, Accumulator<T> middle) {
    typedef Accumulator<T> A;
    const bool whole = p >= row.whole && p < row.whole_end;
    const int column = row.column(p);
    A total = A(0);
#pragma unroll
    for (int e = 0; e < PACK<T>; e++) {
        const A d = whole || row.inside(column + e) ? widen(pack.item[e]) - middle : A(0);
        total += d * d;
    }
    return total;
}

template <typename T>
__device__ __forceinline__ void write_normalised(
    T* out, Pack<T, PACK<T>> pack, const Row<T, int>& row, int p, Accumulator<T> middle, Accumulator<T> scale,
    const void* weight, const void* bias, bool wide, bool vector) {
    typedef Accumulator<T> A;
    A w[PACK<T>], b[PACK<T>];
    row_weights<T>(weight, row, p, wide, vector, A(1), w);
    row_weights<T>(bias, row, p, wide, vector, A(0), b);
#pragma unroll
    for (int e = 0; e < PACK<T>; e++) pack.item[e] = narrow<T>((widen(pack.item[e]) - middle) * scale * w[e] + b[e]);
    store_row(out, row, p, pack);
}

template <typename A>
__device__ __forceinline__ void write_statistics(A* mean, A* reciprocal, int64 row, A middle, A scale) {
    if (mean != nullptr) mean[row] = middle;
    if (reciprocal != nullptr) reciprocal[row] = scale;
}

template <typename T, int PACKS, typename L>
__global__ void __launch_bounds__(256, sizeof(T) == 2 ? 3 : 2)
row_norm_forward(
    const L* x, const T* residual, const void* weight, const void* bias, T* out, T* sum, Accumulator<T>* mean,
    Accumulator<T>* reciprocal, int64 rows, int cols, Accumulator<T> eps, int threads, bool vector, bool wide,
    bool centred) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    for (RowLoop at(rows, threads); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        Pack<T, PACK<T>> pack[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; k++) pack[k] = load_sum(x, residual, sum, row, at.rank + k * threads);
        A middle = A(0);
        if (centred) {
#pragma unroll
            for (int k = 0; k < PACKS; k++)
#pragma unroll
                for (int e = 0; e < PACK<T>; e++) middle += widen(pack[k].item[e]);
            middle = group_reduce<Sum>(middle, threads, scratch) / A(cols);
        }
        A squares = A(0);
#pragma unroll
        for (int k = 0; k < PACKS; k++) squares += squares_of(pack[k], row, at.rank + k * threads, middle);
        squares = group_reduce<Sum>(squares, threads, scratch);
        const A scale = A(1) / square_root(squares / A(cols) + eps);
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            const int p = at.rank + k * threads;
            if (p < row.packs)
                write_normalised(out, pack[k], row, p, middle, scale, weight, bias, wide, vector);
        }
        if (at.rank == 0 && at.active()) write_statistics(mean, reciprocal, at.row(), middle, scale);
    }
}

// Shared memory: `kept` packs a thread. CLUSTER must divide the grid.
template <typename T, int CLUSTER>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1) __cluster_dims__(CLUSTER, 1, 1)
row_norm_forward_held(
    const T* x, const T* residual, const void* weight, const void* bias, T* out, T* sum, Accumulator<T>* mean,
    Accumulator<T>* reciprocal, int64 rows, int cols, Accumulator<T> eps, int kept, bool vector, bool wide,
    bool centred) {
    typedef Accumulator<T> A;
    constexpr int EACH = AHEAD<T>;
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ A scratch[WARP + CLUSTER];
    const Kept<T> keep(memory, kept);
    const T* source = residual != nullptr ? sum : x;  // of what was not kept: each thread reads what it wrote
    team_enter<CLUSTER>();
    for (RowLoop at(rows, blockDim.x, CLUSTER); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector);
        A middle = A(0), squares = A(0);
#pragma unroll 1
        for (int k = 0; at.rank + k * at.team < row.packs; k += EACH) {
            Pack<T, PACK<T>> pack[EACH];
#pragma unroll
            for (int u = 0; u < EACH; u++) pack[u] = load_sum(x, residual, sum, row, at.rank + (k + u) * at.team);
            A part = A(0);  // apart from the total, which then grows by fewer and larger numbers
#pragma unroll
            for (int u = 0; u < EACH; u++) {
                keep.put(pack[u], row, at.rank + (k + u) * at.team, k + u);
#pragma unroll
                for (int e = 0; e < PACK<T>; e++) {
                    const A value = widen(pack[u].item[e]);
                    part += centred ? value : value * value;
                }
            }
            middle += part;
        }
        middle = team_reduce<Sum, CLUSTER>(middle, blockDim.x, scratch);
        if (centred) {
            middle /= A(cols);
#pragma unroll 1
            for (int k = last_round<EACH>(row.packs, at.rank, at.team); k >= 0; k -= EACH) {
                A part = A(0);
#pragma unroll
                for (int u = 0; u < EACH; u++) {
                    const int p = at.rank + (k + u) * at.team;
                    part += squares_of(keep.again(source, row, p, k + u, zero<T>()), row, p, middle);
                }
                squares += part;
            }
            squares = team_reduce<Sum, CLUSTER>(squares, blockDim.x, scratch);
        } else {
            squares = middle;
            middle = A(0);
        }
        const A scale = A(1) / square_root(squares / A(cols) + eps);
#pragma unroll 1
        for (int k = last_round<1>(row.packs, at.rank, at.team); k >= 0; k--) {
            const int p = at.rank + k * at.team;
            write_normalised(
                out, keep.again(source, row, p, k, zero<T>()), row, p, middle, scale, weight, bias, wide, vector);
        }
        if (at.rank == 0) write_statistics(mean, reciprocal, at.row(), middle, scale);
    }
    team_leave<CLUSTER>();
}
