// softmax.cu - softmax and log-softmax of the rows of a (rows, cols) array, forward and backward.
//
//   forward    y = exp(x - max) / sum(exp(x - max))         LOG: y = x - max - log(sum(exp(x - max)))
//   backward   out = y (grad - sum(grad y))                 LOG: out = grad - exp(y) sum(grad)
//
// Three ways, chosen by the launch code; rows are cut into 16-byte packs as row.cuh explains:
//
//   softmax_*        a group of 1 to 256 threads (row.cuh) holds its row in registers: PACKS packs a thread.
//                    Columns up to 8192 forward, 4096 backward, 2048 of double.
//   softmax_*_long   one block a row. The first pass reads the row and keeps its first `kept` packs in
//                    shared memory (all of it up to 227 KB); the second reads from there, and only what
//                    did not fit from memory again. It goes backwards, because what was read
//                    last is what the L2 cache still holds.
//   softmax_*_part, softmax_*_finish   for few long rows: `parts` blocks a row. One launch leaves a partial
//                    result for every part, the next merges those of its row in a fixed order and
//                    writes. Reads twice; rows so few usually stay in the L2 cache meanwhile.
//
// The limit: forward moves 2 elements of memory an element, backward 3, for about 15 operations
// each, so memory is the limit. That holds as long as each byte is read once, which is why the row is
// held; a plainer kernel that reads it for the maximum, the sum and the output moves twice as much.
// A row beyond shared memory is read twice but for what was kept: of n bytes with k kept, forward moves
// 3 n - k instead of 2 n, less what L2 still holds. Holding it across a cluster would spare that.
// Assumes: contiguous rows, cols >= 1; vector only if all pointers are multiples of 16.
// -inf elements give 0 (LOG: -inf); a row of only -inf, or one with +inf or NaN, gives NaN.
#include "row.cuh"

struct Larger {
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return larger(a, b); }
};

template <typename T> __device__ __forceinline__ T minus_infinity() { return narrow<T>(-infinity<Accumulator<T>>()); }
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

// ---- passes of a block over a stretch of a row ------------------------------------------------------

// Packs that a thread has under way, and threads of the largest block. Double needs the registers for exp.
template <typename T> constexpr int AHEAD = sizeof(T) == 8 ? 2 : 4;
template <typename T> constexpr int LONG_BLOCK = sizeof(T) == 8 ? 512 : 1024;

// The packs [from, to) of a row, of which those below `kept` are also in shared memory.
template <typename T> struct Stretch {
    int64 from, to, kept;
    Pack<T, PACK<T>>* memory;

    __device__ __forceinline__ int64 steps(int ahead) const {
        const int64 stride = static_cast<int64>(ahead) * blockDim.x;
        return to > from ? (to - from + stride - 1) / stride : 0;
    }
    // The pack that is this thread's in one step; at the end of the row or behind it if there is none.
    __device__ __forceinline__ int64 pack(int64 step, int ahead, int k) const {
        return from + (step * ahead + k) * blockDim.x + threadIdx.x;
    }
    // First pass: from memory, kept if there is room. Second pass: from where it is.
    __device__ __forceinline__ Pack<T, PACK<T>> first(const T* array, const Row<T>& row, int64 p, T fill) {
        const Pack<T, PACK<T>> pack = load_row(array, row, p < to ? p : row.packs, fill);
        if (p < kept && p < to) memory[p] = pack;
        return pack;
    }
    __device__ __forceinline__ Pack<T, PACK<T>> again(const T* array, const Row<T>& row, int64 p, T fill) const {
        return p < kept && p < to ? memory[p] : load_row(array, row, p < to ? p : row.packs, fill);
    }
};

template <typename T>
__device__ __forceinline__ MaxSum<Accumulator<T>> max_sum_of(const T* x, const Row<T>& row, Stretch<T>& stretch) {
    typedef Accumulator<T> A;
    MaxSum<A> state = max_sum_identity<A>();
#pragma unroll 1
    for (int64 step = 0; step < stretch.steps(AHEAD<T>); step++) {
        Pack<T, PACK<T>> pack[AHEAD<T>];
#pragma unroll
        for (int k = 0; k < AHEAD<T>; k++)
            pack[k] = stretch.first(x, row, stretch.pack(step, AHEAD<T>, k), minus_infinity<T>());
        constexpr int TOGETHER = sizeof(T) == 2 ? 2 : AHEAD<T>;  // packs widened at once
#pragma unroll
        for (int k = 0; k < AHEAD<T>; k += TOGETHER) {
            A value[TOGETHER * PACK<T>];
#pragma unroll
            for (int i = 0; i < TOGETHER * PACK<T>; i++) value[i] = widen(pack[k + i / PACK<T>].item[i % PACK<T>]);
            max_sum_add<T>(state, value);
        }
    }
    return state;
}

template <typename T, bool LOG>
__device__ __forceinline__ void write_forward(
    const T* x, T* out, const Row<T>& row, const Stretch<T>& stretch, const MaxSum<Accumulator<T>>& state) {
    typedef Accumulator<T> A;
    constexpr int EACH = sizeof(T) == 2 ? AHEAD<T> / 2 : AHEAD<T>;  // as many elements under way as of float
    const A scale = LOG ? logarithm(state.sum) : A(1) / state.sum;
#pragma unroll 1
    for (int64 step = stretch.steps(EACH) - 1; step >= 0; step--) {
        Pack<T, PACK<T>> pack[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++)
            pack[k] = stretch.again(x, row, stretch.pack(step, EACH, k), minus_infinity<T>());
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int64 p = stretch.pack(step, EACH, k);
            if (p >= stretch.to) continue;
#pragma unroll
            for (int e = 0; e < PACK<T>; e++) {
                const A exponent = widen(pack[k].item[e]) - state.max;
                pack[k].item[e] = narrow<T>(LOG ? exponent - scale : row_exponential<T>(exponent) * scale);
            }
            store_row(out, row, p, pack[k]);
        }
    }
}

// The sum of grad y, or of grad alone, which then leaves y unread. Two arrays: half as many packs of each ahead.
template <typename T, bool LOG>
__device__ __forceinline__ Accumulator<T> backward_sum(
    const T* grad, const T* y, const Row<T>& row, Stretch<T>& of_grad, Stretch<T>& of_y) {
    typedef Accumulator<T> A;
    constexpr int EACH = LOG ? AHEAD<T> : AHEAD<T> / 2;
    A total = A(0);
#pragma unroll 1
    for (int64 step = 0; step < of_grad.steps(EACH); step++) {
        Pack<T, PACK<T>> g[EACH], value[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int64 p = of_grad.pack(step, EACH, k);
            g[k] = of_grad.first(grad, row, p, zero<T>());
            if constexpr (!LOG) value[k] = of_y.first(y, row, p, zero<T>());
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

template <typename T, bool LOG>
__device__ __forceinline__ void write_backward(
    const T* grad, const T* y, T* out, const Row<T>& row, const Stretch<T>& of_grad, const Stretch<T>& of_y,
    Accumulator<T> total) {
    constexpr int EACH = AHEAD<T> / 2;
#pragma unroll 1
    for (int64 step = of_grad.steps(EACH) - 1; step >= 0; step--) {
        Pack<T, PACK<T>> g[EACH], value[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int64 p = of_grad.pack(step, EACH, k);
            g[k] = of_grad.again(grad, row, p, zero<T>());
            value[k] = of_y.again(y, row, p, zero<T>());
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int64 p = of_grad.pack(step, EACH, k);
            if (p >= of_grad.to) continue;
#pragma unroll
            for (int e = 0; e < PACK<T>; e++)
                value[k].item[e] = backward_value<T, LOG>(g[k].item[e], value[k].item[e], total);
            store_row(out, row, p, value[k]);
        }
    }
}

// ---- one block a row ------------------------------------------------------------------------------

// Shared memory: `kept` packs of x. Pack p belongs to thread p % blockDim.x in both passes, so a thread
// reads back only what it wrote itself and no barrier is needed.
template <typename T, bool LOG>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1)
softmax_forward_long(const T* x, T* out, int64 rows, int64 cols, int64 kept, bool vector) {
    typedef Accumulator<T> A;
    typedef Pack<T, PACK<T>> Item;
    DYNAMIC_SHARED(Item, memory);
    __shared__ MaxSum<A> scratch[WARP];
    for (int64 r = blockIdx.x; r < rows; r += gridDim.x) {
        const Row<T> row(r, cols, vector);
        Stretch<T> stretch = {0, row.packs, kept, memory};
        const MaxSum<A> state = group_reduce<MergeMaxSum>(max_sum_of(x, row, stretch), blockDim.x, scratch);
        write_forward<T, LOG>(x, out, row, stretch, state);
    }
}

// Shared memory: `kept` packs of grad and, unless LOG, as many of y.
template <typename T, bool LOG>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1)
softmax_backward_long(const T* grad, const T* y, T* out, int64 rows, int64 cols, int64 kept, bool vector) {
    typedef Accumulator<T> A;
    typedef Pack<T, PACK<T>> Item;
    DYNAMIC_SHARED(Item, memory);
    __shared__ A scratch[WARP];
    for (int64 r = blockIdx.x; r < rows; r += gridDim.x) {
        const Row<T> row(r, cols, vector);
        Stretch<T> of_grad = {0, row.packs, kept, memory}, of_y = {0, row.packs, LOG ? 0 : kept, memory + kept};
        const A total = group_reduce<Sum>(backward_sum<T, LOG>(grad, y, row, of_grad, of_y), blockDim.x, scratch);
        write_backward<T, LOG>(grad, y, out, row, of_grad, of_y, total);
    }
}

// ---- several blocks a row ---------------------------------------------------------------------------

// Block b works on part b % parts of row b / parts.
template <typename T> __device__ __forceinline__ Stretch<T> part_of(const Row<T>& row, int parts) {
    const int64 each = (row.packs + parts - 1) / parts, from = each * (blockIdx.x % parts);
    return {from, from + each < row.packs ? from + each : row.packs, 0, nullptr};
}

template <typename T>
__global__ void __launch_bounds__(256)
softmax_forward_part(const T* x, Accumulator<T>* partial, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ MaxSum<A> scratch[WARP];
    const Row<T> row(blockIdx.x / parts, cols, vector);
    Stretch<T> stretch = part_of(row, parts);
    const MaxSum<A> state = group_reduce<MergeMaxSum>(max_sum_of(x, row, stretch), blockDim.x, scratch);
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
    const Row<T> row(blockIdx.x / parts, cols, vector);
    const A* own = partial + 2 * (blockIdx.x / parts) * parts;
    MaxSum<A> state = max_sum_identity<A>();
    for (int i = threadIdx.x; i < parts; i += blockDim.x)
        state = MergeMaxSum::apply(state, MaxSum<A>{own[2 * i], own[2 * i + 1]});
    state = group_reduce<MergeMaxSum>(state, blockDim.x, scratch);
    write_forward<T, LOG>(x, out, row, part_of(row, parts), state);
}

template <typename T, bool LOG>
__global__ void __launch_bounds__(256)
softmax_backward_part(const T* grad, const T* y, Accumulator<T>* partial, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Row<T> row(blockIdx.x / parts, cols, vector);
    Stretch<T> stretch = part_of(row, parts);
    const A total = group_reduce<Sum>(backward_sum<T, LOG>(grad, y, row, stretch, stretch), blockDim.x, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename T, bool LOG>
__global__ void __launch_bounds__(256)
softmax_backward_finish(
    const T* grad, const T* y, const Accumulator<T>* partial, T* out, int64 cols, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Row<T> row(blockIdx.x / parts, cols, vector);
    const A* own = partial + blockIdx.x / parts * parts;
    A total = A(0);
    for (int i = threadIdx.x; i < parts; i += blockDim.x) total += own[i];
    total = group_reduce<Sum>(total, blockDim.x, scratch);
    const Stretch<T> stretch = part_of(row, parts);
    write_backward<T, LOG>(grad, y, out, row, stretch, stretch, total);
}
