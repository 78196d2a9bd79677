// layer_norm_backward.cu - the gradients of layer norm and RMS norm of the rows of a (rows, cols) array.
//
//   with h = (x - mean) reciprocal, u = grad weight:
//   out = reciprocal (u - sum(u) / cols - h sum(u h) / cols) + extra         (RMS norm: without sum(u))
//   dweight[c] = sum over rows of grad h,  dbias[c] = sum over rows of grad
//
//   row_norm_backward        a persistent grid: a group holds a row of grad and x in registers (up to 8192 columns
//                            of 16 bits, 4096 of float, 1024 of double), and its threads, which meet the same
//                            columns in every row, keep the sums for dweight and dbias of all rows they see,
//                            too. Those of the groups of a block are joined in shared memory (32 * PACK bytes a
//                            thread at most) and go to partial[block].
//   row_norm_backward_held   longer rows: out alone.
//   row_norm_column_sums     longer rows: partials of dweight and dbias; each block goes over a run of rows.
//   row_norm_sums            adds the partials of each column in a fixed order: deterministic, no atomics.
//
// The limit: 3 elements moved an element (4 with `extra`) for about 20 operations: memory. Longer rows read grad
// and x twice.
// Assumes: contiguous rows; 1 <= cols <= 2^30; vector only if all pointers are multiples of 16, and in
// row_norm_backward and row_norm_column_sums only if cols is a multiple of a pack.
#include "layer_norm.cuh"

// Pack p of `extra`, zeros where there is none.
template <typename T>
__device__ __forceinline__ Pack<T, PACK<T>> load_extra(const T* extra, const Row<T, int>& row, int p) {
    if (extra != nullptr) return load_row(extra, row, p, zero<T>());
    Pack<T, PACK<T>> none;
#pragma unroll
    for (int e = 0; e < PACK<T>; e++) none.item[e] = zero<T>();
    return none;
}

// Pack p of the gradient of x, from packs of grad, x and extra and the means of u and u h.
template <typename T>
__device__ __forceinline__ void write_gradient(
    T* out, Pack<T, PACK<T>> extra, const Row<T, int>& row, int p, const Pack<T, PACK<T>>& grad,
    const Pack<T, PACK<T>>& x, const Accumulator<T> (&w)[PACK<T>], Accumulator<T> middle, Accumulator<T> scale,
    Two<Accumulator<T>> means) {
    typedef Accumulator<T> A;
#pragma unroll
    for (int e = 0; e < PACK<T>; e++) {
        const A h = (widen(x.item[e]) - middle) * scale, u = widen(grad.item[e]) * w[e];
        extra.item[e] = narrow<T>(scale * (u - means.first - h * means.second) + widen(extra.item[e]));
    }
    store_row(out, row, p, extra);
}

// partial is (blocks, 2, cols): the sums for dweight, those for dbias; null if neither is wanted.
template <typename T, int PACKS>
__global__ void __launch_bounds__(256, 1)
row_norm_backward(
    const T* grad, const T* x, const Accumulator<T>* mean, const Accumulator<T>* reciprocal, const void* weight,
    const T* extra, T* out, Accumulator<T>* partial, int64 rows, int cols, int threads, bool vector, bool wide) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = PACK<T>;
    __shared__ Two<A> scratch[WARP];
    __shared__ A shared[256 * WIDTH];
    const bool centred = mean != nullptr;
    A w[PACKS][WIDTH], dweight[PACKS][WIDTH], dbias[PACKS][WIDTH];
    const Row<T, int> any(0, cols, vector);  // the columns of a thread are the same in every row
    const int rank = threadIdx.x & (threads - 1);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        row_weights<T>(weight, any, rank + k * threads, wide, vector, A(1), w[k]);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) dweight[k][e] = dbias[k][e] = A(0);
    }
    for (RowLoop at(rows, threads); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        Pack<T, WIDTH> g[PACKS], value[PACKS], more[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            g[k] = load_row(grad, row, rank + k * threads, zero<T>());
            value[k] = load_row(x, row, rank + k * threads, zero<T>());
            more[k] = load_extra(extra, row, rank + k * threads);
        }
        const A middle = centred && at.active() ? mean[at.row()] : A(0);
        const A scale = at.active() ? reciprocal[at.row()] : A(0);
        Two<A> means = {A(0), A(0)};
#pragma unroll
        for (int k = 0; k < PACKS; k++)
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                const A gradient = widen(g[k].item[e]), h = (widen(value[k].item[e]) - middle) * scale;
                means.first += gradient * w[k][e];
                means.second += gradient * w[k][e] * h;
                dweight[k][e] += gradient * h;
                dbias[k][e] += gradient;
            }
        means = group_reduce<SumTwo>(means, threads, scratch);
        means = {centred ? means.first / A(cols) : A(0), means.second / A(cols)};
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            const int p = rank + k * threads;
            if (p < row.packs) write_gradient(out, more[k], row, p, g[k], value[k], w[k], middle, scale, means);
        }
    }
    if (partial == nullptr) return;

    A* own = partial + static_cast<int64>(blockIdx.x) * 2 * cols;
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            const int column = any.column(rank + k * threads);
            if (threads < blockDim.x) {  // the groups of the block, in their order
                __syncthreads();
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    shared[e * blockDim.x + threadIdx.x] = which ? dbias[k][e] : dweight[k][e];
                __syncthreads();
                if (threadIdx.x >= threads) continue;
            }
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A total = which ? dbias[k][e] : dweight[k][e];
                for (int other = threads; other < blockDim.x; other += threads)
                    total += shared[e * blockDim.x + other + threadIdx.x];
                if (column + e < cols) own[which * static_cast<int64>(cols) + column + e] = total;
            }
        }
}

// Shared memory: `kept` packs of grad a thread and as many of x.
template <typename T, int CLUSTER>
__global__ void __launch_bounds__(LONG_BLOCK<T>, 1) __cluster_dims__(CLUSTER, 1, 1)
row_norm_backward_held(
    const T* grad, const T* x, const Accumulator<T>* mean, const Accumulator<T>* reciprocal, const void* weight,
    const T* extra, T* out, int64 rows, int cols, int kept, bool vector, bool wide) {
    typedef Accumulator<T> A;
    constexpr int EACH = AHEAD<T> / 2;
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ Two<A> scratch[WARP + CLUSTER];
    const Kept<T> keep_grad(memory, kept), keep_x(memory + 16 * kept * blockDim.x, kept);
    const bool centred = mean != nullptr;
    team_enter<CLUSTER>();
    for (RowLoop at(rows, blockDim.x, CLUSTER); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector);
        const A middle = centred ? mean[at.row()] : A(0), scale = reciprocal[at.row()];
        Two<A> means = {A(0), A(0)};
#pragma unroll 1
        for (int k = 0; at.rank + k * at.team < row.packs; k += EACH) {
            Pack<T, PACK<T>> g[EACH], value[EACH];
#pragma unroll
            for (int u = 0; u < EACH; u++) {
                const int p = at.rank + (k + u) * at.team;
                g[u] = load_row(grad, row, p, zero<T>());
                value[u] = load_row(x, row, p, zero<T>());
            }
#pragma unroll
            for (int u = 0; u < EACH; u++) {
                const int p = at.rank + (k + u) * at.team;
                keep_grad.put(g[u], row, p, k + u);
                keep_x.put(value[u], row, p, k + u);
                A w[PACK<T>];
                row_weights<T>(weight, row, p, wide, vector, A(1), w);
                Two<A> part = {A(0), A(0)};
#pragma unroll
                for (int e = 0; e < PACK<T>; e++) {
                    const A gradient = widen(g[u].item[e]) * w[e];
                    part.first += gradient;
                    part.second += gradient * ((widen(value[u].item[e]) - middle) * scale);
                }
                means = SumTwo::apply(means, part);
            }
        }
        means = team_reduce<SumTwo, CLUSTER>(means, blockDim.x, scratch);
        means = {centred ? means.first / A(cols) : A(0), means.second / A(cols)};
#pragma unroll 1
        for (int k = last_round<1>(row.packs, at.rank, at.team); k >= 0; k--) {
            const int p = at.rank + k * at.team;
            A w[PACK<T>];
            row_weights<T>(weight, row, p, wide, vector, A(1), w);
            write_gradient(
                out, load_extra(extra, row, p), row, p, keep_grad.again(grad, row, p, k, zero<T>()),
                keep_x.again(x, row, p, k, zero<T>()), w, middle, scale, means);
        }
    }
    team_leave<CLUSTER>();
}

// A block owns 32 packs of neighbouring columns, a lane one of them, and run blockIdx.y of `each` rows, warp by
// warp. Shared memory: 256 * PACK accumulators.
template <typename T>
__global__ void __launch_bounds__(256, 2)
row_norm_column_sums(
    const T* grad, const T* x, const Accumulator<T>* mean, const Accumulator<T>* reciprocal, Accumulator<T>* partial,
    int64 rows, int64 cols, int64 each, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = PACK<T>, EACH = AHEAD<T> / 2, WARPS = 256 / WARP;
    __shared__ A shared[256 * WIDTH];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 column = (static_cast<int64>(blockIdx.x) * WARP + lane) * WIDTH;
    const int64 from = blockIdx.y * each, to = from + each < rows ? from + each : rows;
    A total[2][WIDTH];
#pragma unroll
    for (int e = 0; e < WIDTH; e++) total[0][e] = total[1][e] = A(0);
    for (int64 r = from + warp; r < to && column < cols; r += EACH * WARPS) {
        Pack<T, WIDTH> g[EACH], value[EACH];
        A middle[EACH], scale[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const int64 row = r + u * WARPS;
            const int64 start = row * cols + column;
            if (vector && row < to) {
                g[u] = load_pack<T, WIDTH>(grad + start);
                value[u] = load_pack<T, WIDTH>(x + start);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; e++) {
                    const bool inside = row < to && column + e < cols;
                    g[u].item[e] = inside ? grad[start + e] : zero<T>();
                    value[u].item[e] = inside ? x[start + e] : zero<T>();
                }
            }
            middle[u] = mean != nullptr && row < to ? mean[row] : A(0);
            scale[u] = row < to ? reciprocal[row] : A(0);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            A part[2] = {A(0), A(0)};
#pragma unroll
            for (int u = 0; u < EACH; u++) {
                const A gradient = widen(g[u].item[e]);
                part[0] += gradient * ((widen(value[u].item[e]) - middle[u]) * scale[u]);
                part[1] += gradient;
            }
            total[0][e] += part[0];
            total[1][e] += part[1];
        }
    }
    A* own = partial + static_cast<int64>(blockIdx.y) * 2 * cols;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < WIDTH; e++) shared[e * 256 + threadIdx.x] = total[which][e];
        __syncthreads();
        if (warp > 0) continue;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            if (column + e >= cols) continue;
            A sum = total[which][e];
            for (int other = 1; other < WARPS; other++) sum += shared[e * 256 + other * WARP + lane];
            own[which * cols + column + e] = sum;
        }
    }
}

// A block adds 32 neighbouring columns, a warp every so manieth partial; blockIdx.y says of which vector. Shared
// memory: 32 x 32 accumulators.
template <typename T>
__global__ void __launch_bounds__(1024)
row_norm_sums(const Accumulator<T>* partial, void* dweight, void* dbias, int blocks, int64 cols, bool wide) {
    typedef Accumulator<T> A;
    __shared__ A shared[WARP * WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP, which = blockIdx.y;
    const int64 column = static_cast<int64>(blockIdx.x) * WARP + lane;
    void* target = which ? dbias : dweight;
    if (target == nullptr) return;
    A total = A(0);
#pragma unroll 4
    for (int block = warp; block < blocks && column < cols; block += warps)
        total += partial[(static_cast<int64>(block) * 2 + which) * cols + column];
    shared[threadIdx.x] = total;
    __syncthreads();
    if (warp > 0 || column >= cols) return;
    for (int other = 1; other < warps; other++) total += shared[other * WARP + lane];
    put_weight<T>(target, column, wide, total);
}
