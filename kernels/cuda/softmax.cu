// softmax.cu - softmax and log-softmax of the rows of a (rows, cols) array, forward and backward.
//
//   forward    y = exp(x - max) / sum(exp(x - max))         LOG: y = x - max - log(sum(exp(x - max)))
//   backward   out = y (grad - sum(grad y))                 LOG: out = grad - exp(y) sum(grad)
//
// Three ways, chosen by row_plan of gpunn/primitives/rows.py; packs and teams are those of row.cuh:
//
//   softmax_*         a group of 1 to 256 threads holds its row in registers, PACKS packs a thread: up to 8192
//                     columns forward, 4096 backward, 2048 of double.
//   softmax_*_held    longer rows: a block, or from sm_90 on a cluster of 2, 4 or 8 blocks, keeps its row in
//                     shared memory. The cluster grows until a block's share is at most 52 KB, so
//                     that four blocks are on a multiprocessor and one's loads hide another's stores; at 8
//                     blocks the share grows on, up to all there is (8 x 224 KB: 458,000 floats).
//                     Where the rows alone are too few for the chip the cluster grows as well, down to shares
//                     of 16 KB. Whatever is beyond `kept` is read from memory a second time.
//   softmax_*_part, softmax_*_finish   few rows that the block or cluster cannot hold (below sm_90: any few
//                     long rows): `parts` blocks a row. One launch leaves a partial result for every
//                     part, the next merges those of its row in a fixed order and writes. Reads twice; rows so
//                     few usually stay in the L2 cache meanwhile.
//
// The limit: forward moves 2 elements of memory an element, backward 3, for about 15 operations
// each, so memory is the limit. That holds as long as each byte is read once, which is why the row is
// held; a plainer kernel that reads it for the maximum, the sum and the output moves twice as much.
// With k of a row's n bytes kept, forward moves 3 n - k instead of 2 n, less what L2 still holds.
// Why a cluster and not one large block: a block of 1024 threads with 225 KB is alone on its multiprocessor,
// whose memory path idles while the block reduces; and parts cost a second launch and read twice.
// Log-softmax's backward sums grad alone, so it keeps grad alone and reads y only once, in the second pass.
// Assumes: contiguous rows; cols >= 1, and up to 2^30 where a row is held; vector only if all pointers are
// multiples of 16.
// -inf elements give 0 (LOG: -inf); a row of only -inf, or one with +inf or NaN, gives NaN.
#include "row.cuh"

struct Larger {
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return larger(a, b); }
};

template <typename T> __device__ __forceinline__ T minus_infinity() {
    return narrow<T>(-infinity<Accumulator<T>>());
}
template <typename T> __device__ __forceinline__ T zero() { return narrow<T>(Accumulator<T>(0)); }

// ---- the row in registers -------------------------------------------------------------------------

// Registers: PACKS * PACK<T> values of the accumulator (32, or 8 double, in the larger of the two sizes).
// The maximum drops NaN; the sum then brings it to the whole row.
template <typename T, int PACKS, bool LOG>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 3)
softmax_forward(const T* x, T* out, int64 rows, int cols, int threads, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = PACK<T>;
    __shared__ A scratch[WARP];
    for (RowLoop at(rows, threads); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        Pack<T, WIDTH> pack[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; k++) pack[k] = load_row(x, row, at.rank + k * threads, minus_infinity<T>());

        A value[PACKS][WIDTH], top = -infinity<A>();
#pragma unroll
        for (int k = 0; k < PACKS; k++)
#pragma unroll
            for (int e = 0; e < WIDTH; e++) top = larger(top, value[k][e] = widen(pack[k].item[e]));
        top = group_reduce<Larger>(top, threads, scratch);

        A total = A(0);
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            if (at.rank + k * threads >= row.packs) continue;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                const A exponent = value[k][e] - top, power = row_exponential<T>(exponent);
                total += power;
                value[k][e] = LOG ? exponent : power;
            }
        }
        total = group_reduce<Sum>(total, threads, scratch);

        const A scale = LOG ? logarithm(total) : A(1) / total;
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            if (at.rank + k * threads >= row.packs) continue;
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                pack[k].item[e] = narrow<T>(LOG ? value[k][e] - scale : value[k][e] * scale);
            store_row(out, row, at.rank + k * threads, pack[k]);
        }
    }
}

// What the backward pass sums over a row, and what it writes.
template <typename T, bool LOG>
__device__ __forceinline__ Accumulator<T> backward_term(Accumulator<T> grad, Accumulator<T> y) {
    return LOG ? grad : grad * y;
}
template <typename T, bool LOG>
__device__ __forceinline__ T backward_value(T grad, T y, Accumulator<T> total) {
    if constexpr (LOG) return narrow<T>(widen(grad) - row_exponential<T>(widen(y)) * total);
    else return narrow<T>(widen(y) * (widen(grad) - total));
}

// Registers: 2 * PACKS packs of 16 bytes, as they came from memory.
template <typename T, int PACKS, bool LOG>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 3)
softmax_backward(const T* grad, const T* y, T* out, int64 rows, int cols, int threads, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = PACK<T>;
    __shared__ A scratch[WARP];
    for (RowLoop at(rows, threads); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        Pack<T, WIDTH> g[PACKS], value[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            g[k] = load_row(grad, row, at.rank + k * threads, zero<T>());
            value[k] = load_row(y, row, at.rank + k * threads, zero<T>());
        }
        A total = A(0);
#pragma unroll
        for (int k = 0; k < PACKS; k++)
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                total += backward_term<T, LOG>(widen(g[k].item[e]), widen(value[k].item[e]));
        total = group_reduce<Sum>(total, threads, scratch);
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            if (at.rank + k * threads >= row.packs) continue;
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                value[k].item[e] = backward_value<T, LOG>(g[k].item[e], value[k].item[e], total);
            store_row(out, row, at.rank + k * threads, value[k]);
        }
    }
}

// ---- passes of a team over a long row ---------------------------------------------------------------

// Packs that a thread has under way, and threads of the largest block. Double needs the registers for exp.
template <typename T> constexpr int AHEAD = sizeof(T) == 8 ? 2 : 4;
template <typename T> constexpr int LONG_BLOCK = sizeof(T) == 8 ? 512 : 1024;

template <typename T, typename Index>
__device__ __forceinline__ MaxSum<Accumulator<T>> max_sum_of(
    const T* x, const Row<T, Index>& row, Index rank, Index team, const Kept<T>& keep) {
    typedef Accumulator<T> A;
    MaxSum<A> state = max_sum_identity<A>();
#pragma unroll 1
    for (Index k = 0; rank + k * team < row.packs; k += AHEAD<T>) {
        Pack<T, PACK<T>> pack[AHEAD<T>];
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++)
            pack[u] = load_row(x, row, rank + (k + u) * team, minus_infinity<T>());
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) keep.put(pack[u], row, rank + (k + u) * team, k + u);
        constexpr int TOGETHER = sizeof(T) == 2 ? 2 : AHEAD<T>;  // packs widened at once
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u += TOGETHER) {
            A value[TOGETHER * PACK<T>];
#pragma unroll
            for (int i = 0; i < TOGETHER * PACK<T>; i++) value[i] = widen(pack[u + i / PACK<T>].item[i % PACK<T>]);
            max_sum_add<T>(state, value);
        }
    }
    return state;
}

template <typename T, bool LOG, typename Index>
__device__ __forceinline__ void write_forward(
    const T* x, T* out, const Row<T, Index>& row, Index rank, Index team, const Kept<T>& keep,
    const MaxSum<Accumulator<T>>& state) {
    typedef Accumulator<T> A;
    constexpr int EACH = sizeof(T) == 2 ? AHEAD<T> / 2 : AHEAD<T>;  // as many elements under way as of float
    const A scale = LOG ? logarithm(state.sum) : A(1) / state.sum;
#pragma unroll 1
    for (Index k = last_round<EACH>(row.packs, rank, team); k >= 0; k -= EACH) {
        Pack<T, PACK<T>> pack[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++)
            pack[u] = keep.again(x, row, rank + (k + u) * team, k + u, minus_infinity<T>());
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const Index p = rank + (k + u) * team;
            if (p >= row.packs) continue;
#pragma unroll
            for (int e = 0; e < PACK<T>; e++) {
                const A exponent = widen(pack[u].item[e]) - state.max;
                pack[u].item[e] = narrow<T>(LOG ? exponent - scale : row_exponential<T>(exponent) * scale);
            }
            store_row(out, row, p, pack[u]);
        }
    }
}

// The sum of grad y, or of grad alone, which then leaves y unread. Two arrays: half as many packs of each ahead.
template <typename T, bool LOG, typename Index>
__device__ __forceinline__ Accumulator<T> backward_sum(
    const T* grad, const T* y, const Row<T, Index>& row, Index rank, Index team, const Kept<T>& keep_grad,
    const Kept<T>& keep_y) {
    typedef Accumulator<T> A;
    constexpr int EACH = LOG ? AHEAD<T> : AHEAD<T> / 2;
    A total = A(0);
#pragma unroll 1
    for (Index k = 0; rank + k * team < row.packs; k += EACH) {
        Pack<T, PACK<T>> g[EACH], value[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const Index p = rank + (k + u) * team;
            g[u] = load_row(grad, row, p, zero<T>());
            if constexpr (!LOG) value[u] = load_row(y, row, p, zero<T>());
        }
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const Index p = rank + (k + u) * team;
            keep_grad.put(g[u], row, p, k + u);
            if constexpr (!LOG) keep_y.put(value[u], row, p, k + u);
        }
        A sum = A(0);  // apart from the total, which then grows by fewer and larger numbers
#pragma unroll
        for (int i = 0; i < EACH * PACK<T>; i++) {
            const A grad_i = widen(g[i / PACK<T>].item[i % PACK<T>]);
            if constexpr (LOG) sum += grad_i;
            else sum += grad_i * widen(value[i / PACK<T>].item[i % PACK<T>]);
        }
        total += sum;
    }
    return total;
}

template <typename T, bool LOG, typename Index>
__device__ __forceinline__ void write_backward(
    const T* grad, const T* y, T* out, const Row<T, Index>& row, Index rank, Index team, const Kept<T>& keep_grad,
    const Kept<T>& keep_y, Accumulator<T> total) {
    constexpr int EACH = AHEAD<T> / 2;
#pragma unroll 1
    for (Index k = last_round<EACH>(row.packs, rank, team); k >= 0; k -= EACH) {
        Pack<T, PACK<T>> g[EACH], value[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const Index p = rank + (k + u) * team;
            g[u] = keep_grad.again(grad, row, p, k + u, zero<T>());
            value[u] = keep_y.again(y, row, p, k + u, zero<T>());
        }
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const Index p = rank + (k + u) * team;
            if (p >= row.packs) continue;
#pragma unroll
            for (int e = 0; e < PACK<T>; e++)
                value[u].item[e] = backward_value<T, LOG>(g[u].item[e], value[u].item[e], total);
            store_row(out, row, p, value[u]);
        }
    }
}

// ---- a block or a cluster holds the row -----------------------------------------------------------

// Shared memory: `kept` packs of x a thread. CLUSTER must divide the grid.
template <typename T, bool LOG, int CLUSTER>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1) __cluster_dims__(CLUSTER, 1, 1)
softmax_forward_held(const T* x, T* out, int64 rows, int cols, int kept, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ MaxSum<A> scratch[WARP + CLUSTER];
    const Kept<T> keep(memory, kept);
    team_enter<CLUSTER>();
    for (RowLoop at(rows, blockDim.x, CLUSTER); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector);
        const MaxSum<A> state =
            team_reduce<MergeMaxSum, CLUSTER>(max_sum_of(x, row, at.rank, at.team, keep), blockDim.x, scratch);
        write_forward<T, LOG>(x, out, row, at.rank, at.team, keep, state);
    }
    team_leave<CLUSTER>();
}

// Shared memory: `kept` packs of grad a thread and, unless LOG, as many of y.
template <typename T, bool LOG, int CLUSTER>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1) __cluster_dims__(CLUSTER, 1, 1)
softmax_backward_held(const T* grad, const T* y, T* out, int64 rows, int cols, int kept, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ A scratch[WARP + CLUSTER];
    const Kept<T> keep_grad(memory, kept);
    const Kept<T> keep_y(memory + (LOG ? 0 : 16 * kept * blockDim.x), LOG ? 0 : kept);
    team_enter<CLUSTER>();
    for (RowLoop at(rows, blockDim.x, CLUSTER); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector);
        const A sum = backward_sum<T, LOG>(grad, y, row, at.rank, at.team, keep_grad, keep_y);
        const A total = team_reduce<Sum, CLUSTER>(sum, blockDim.x, scratch);
        write_backward<T, LOG>(grad, y, out, row, at.rank, at.team, keep_grad, keep_y, total);
    }
    team_leave<CLUSTER>();
}

// ---- several blocks a row, in two launches -----------------------------------------------------------

// Block b is part b % parts of row b / parts. All parts are one team, which keeps nothing.
struct Part {
    int64 row, rank, team;
    __device__ __forceinline__ Part(int parts)
        : row(blockIdx.x / parts), rank(static_cast<int64>(blockIdx.x % parts) * blockDim.x + threadIdx.x),
          team(static_cast<int64>(parts) * blockDim.x) {}
};

template <typename T>
__global__ void __launch_bounds__(256)
softmax_forward_part(const T* x, Accumulator<T>* partial, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ MaxSum<A> scratch[WARP];
    const Part part(parts);
    const Row<T> row(part.row, cols, vector);
    const Kept<T> none(nullptr, 0);
    const MaxSum<A> state =
        group_reduce<MergeMaxSum>(max_sum_of(x, row, part.rank, part.team, none), blockDim.x, scratch);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = state.max;
        partial[2 * blockIdx.x + 1] = state.sum;
    }
}

template <typename T, bool LOG>
__global__ void __launch_bounds__(256)
softmax_forward_finish(const T* x, const Accumulator<T>* partial, T* out, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ MaxSum<A> scratch[WARP];
    const Part part(parts);
    const Row<T> row(part.row, cols, vector);
    const Kept<T> none(nullptr, 0);
    const A* own = partial + 2 * part.row * parts;
    MaxSum<A> state = max_sum_identity<A>();
    for (int i = threadIdx.x; i < parts; i += blockDim.x)
        state = MergeMaxSum::apply(state, MaxSum<A>{own[2 * i], own[2 * i + 1]});
    state = group_reduce<MergeMaxSum>(state, blockDim.x, scratch);
    write_forward<T, LOG>(x, out, row, part.rank, part.team, none, state);
}

template <typename T, bool LOG>
__global__ void __launch_bounds__(256)
softmax_backward_part(const T* grad, const T* y, Accumulator<T>* partial, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Part part(parts);
    const Row<T> row(part.row, cols, vector);
    const Kept<T> none(nullptr, 0);
    const A sum = backward_sum<T, LOG>(grad, y, row, part.rank, part.team, none, none);
    const A total = group_reduce<Sum>(sum, blockDim.x, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename T, bool LOG>
__global__ void __launch_bounds__(256)
softmax_backward_finish(
    const T* grad, const T* y, const Accumulator<T>* partial, T* out, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Part part(parts);
    const Row<T> row(part.row, cols, vector);
    const Kept<T> none(nullptr, 0);
    const A* own = partial + part.row * parts;
    A total = A(0);
    for (int i = threadIdx.x; i < parts; i += blockDim.x) total += own[i];
    total = group_reduce<Sum>(total, blockDim.x, scratch);
    write_backward<T, LOG>(grad, y, out, row, part.rank, part.team, none, none, total);
}
