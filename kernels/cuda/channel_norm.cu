// channel_norm.cu - batch, group and instance norm, forward: statistics over sets of channels, then y.
//
// x is (outer, length, channels) in memory ("columns", channels-last) or (outer, channels, length) ("rows"). Value
// (o, c, l) belongs to the set k = o per + c / group: batch norm has per = 0 and group = 1, group norm per = groups;
// instance norm is group norm with group = 1. With the statistics of its set a value becomes
//
//   h = (x - mean[k]) reciprocal[k],   z = h weight[c] + bias[c] + residual,   y = act(z)
//
// Launches; those on x have a kernel for columns and one for rows:
//
//   channel_moments_*   count, mean and sum of squares of each (o, c), in `parts` pieces where channels are few
//   channel_finish      merges them for each set (Chan's formula), updates the running statistics
//   channel_running     those of instance norm: the average over o
//   channel_apply_*     y
//
// Columns: a group of `across` x `down` threads takes up to across * WIDTH neighbouring channels, thread (i, j) rows
// j, j + down, … of a run, a channel's coefficients in registers; a warp reads neighbouring memory. The `down` states
// of a channel are joined in shared memory (8 to 10 KB). Rows: a team of row.cuh takes a row of `length`, all with one
// set of coefficients.
// The limit: memory. x is read twice and y written, because the statistics must be known first; arrays that fit the L2
// cache are read from memory once. About 12 operations an element, more with an activation.
// Squares are of differences from each thread's own shift, so nothing cancels where the mean is large. A set
// with NaN or inf has NaN statistics. Deterministic: all is joined in an order that the launch fixes.
// Assumes: contiguous arrays; rows of at most 2^30 elements. VECTOR only if the pointers are multiples of 16 and,
// for columns, channels one of WIDTH.
#include "channel_norm.cuh"

// ---- moments ------------------------------------------------------------------------------------------

// Take N more values of each of W columns into running moments: their own first, then Chan's formula.
template <int N, int W, typename A>
__device__ __forceinline__ void take(A& count, A (&mean)[W], A (&squares)[W], const A (&x)[N][W]) {
    const A before = count, share = A(N) / (count + A(N));
    count += A(N);
#pragma unroll
    for (int e = 0; e < W; e++) {
        A own = A(0), square = A(0);
#pragma unroll
        for (int u = 0; u < N; u++) own += x[u][e];
        own *= A(1) / A(N);
#pragma unroll
        for (int u = 0; u < N; u++) square += (x[u][e] - own) * (x[u][e] - own);
        const A difference = own - mean[e];
        mean[e] += difference * share;
        squares[e] += square + difference * difference * (before * share);
    }
}

// states: (outer, parts, channels, 3)
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_moments_columns(const T* x, Accumulator<T>* states, int64 outer, int64 length, int64 channels, int parts,
                        int across, int down, bool vector) {
    typedef Accumulator<T> A;
    constexpr int W = WIDTH<T>, U = 2 * AHEAD<T>;
    __shared__ A means[W * BLOCK], sums[W * BLOCK], counts[BLOCK];
    const int64 tiles = (channels + across * W - 1) / (across * W);
    for (RowLoop at(outer * parts * tiles, across * down); at.more(); at.next()) {
        const Tile<T> tile(at, length, channels, parts, across);
        const T* source = x + tile.o * length * channels + tile.channel;
        A count = A(0), mean[W], squares[W], start[W];
        Pack<T, W> first;
        if (tile.from < tile.to) first = load_columns(source + tile.from * channels, tile.left, vector);
#pragma unroll
        for (int e = 0; e < W; e++) {
            mean[e] = squares[e] = A(0);
            start[e] = tile.from < tile.to ? widen(first.item[e]) : A(0);
        }
#pragma unroll 1
        for (int64 r = tile.from; r < tile.to; r += U * down) {
            Pack<T, W> pack[U];
            if (r + (U - 1) * down < tile.to) {
#pragma unroll
                for (int u = 0; u < U; u++)
                    pack[u] = load_columns(source + (r + u * down) * channels, tile.left, vector);
                A value[U][W];
#pragma unroll
                for (int i = 0; i < U * W; i++) value[i / W][i % W] = widen(pack[i / W].item[i % W]) - start[i % W];
                take<U, W>(count, mean, squares, value);
                continue;
            }
            for (int64 row = r; row < tile.to; row += down) {
                pack[0] = load_columns(source + row * channels, tile.left, vector);
                A value[1][W];
#pragma unroll
                for (int e = 0; e < W; e++) value[0][e] = widen(pack[0].item[e]) - start[e];
                take<1, W>(count, mean, squares, value);
            }
        }
#pragma unroll
        for (int e = 0; e < W; e++) mean[e] += start[e];

        if (down > 1) __syncthreads();  // the memory may still be read from the last round
        for (int half = down / 2; half > 0; half /= 2) {
            if (tile.j >= half && tile.j < 2 * half) {
                counts[threadIdx.x] = count;
#pragma unroll
                for (int e = 0; e < W; e++) {
                    means[e * BLOCK + threadIdx.x] = mean[e];
                    sums[e * BLOCK + threadIdx.x] = squares[e];
                }
            }
            __syncthreads();
            if (tile.j < half) {
                const int other = threadIdx.x + half * across;
                const A theirs = counts[other];
#pragma unroll
                for (int e = 0; e < W; e++) {
                    const Moments<A> merged = MergeMoments::apply(
                        Moments<A>{count, mean[e], squares[e]},
                        Moments<A>{theirs, means[e * BLOCK + other], sums[e * BLOCK + other]});
                    mean[e] = merged.mean;
                    squares[e] = merged.squares;
                }
                count += theirs;
            }
        }
        if (tile.j > 0) continue;
        A* own = states + 3 * (tile.line * channels + tile.channel);
#pragma unroll
        for (int e = 0; e < W; e++) {
            if (e >= tile.left) continue;
            own[3 * e] = count;
            own[3 * e + 1] = mean[e];
            own[3 * e + 2] = squares[e];
        }
    }
}

// states: (outer, channels, parts, 3). Block b works on part b % parts.
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_moments_rows(const T* x, Accumulator<T>* states, int64 rows, int length, int parts, int threads, bool vector) {
    typedef Accumulator<T> A;
    constexpr int W = PACK<T>, U = AHEAD<T>;
    __shared__ Moments<A> scratch[WARP];
    for (RowLoop at(rows, threads, parts); at.more(); at.next()) {
        const Row<T, int> row(at.row(), length, vector, at.active());
        const A start = at.active() ? widen(x[row.start]) : A(0);
        Moments<A> state = {A(0), A(0), A(0)};
#pragma unroll 1
        for (int p = at.rank; p < row.packs; p += U * at.team) {
            Pack<T, W> pack[U];
#pragma unroll
            for (int u = 0; u < U; u++) pack[u] = load_row(x, row, p + u * at.team, zero<T>());
            const bool whole = p >= row.whole && p + (U - 1) * at.team < row.whole_end;
            A count = A(U * W), own = A(0), square = A(0);
            if (!whole) {
                count = A(0);
#pragma unroll
                for (int i = 0; i < U * W; i++)
                    count += row.inside(row.column(p + i / W * at.team) + i % W) ? A(1) : A(0);
            }
#pragma unroll
            for (int i = 0; i < U * W; i++) {
                const bool inside = whole || row.inside(row.column(p + i / W * at.team) + i % W);
                own += inside ? widen(pack[i / W].item[i % W]) - start : A(0);
            }
            own /= count;
#pragma unroll
            for (int i = 0; i < U * W; i++) {
                const bool inside = whole || row.inside(row.column(p + i / W * at.team) + i % W);
                const A d = inside ? widen(pack[i / W].item[i % W]) - start - own : A(0);
                square += d * d;
            }
            state = MergeMoments::apply(state, Moments<A>{count, own, square});
        }
        state = group_reduce<MergeMoments>(state, threads, scratch);
        if ((at.rank & (threads - 1)) == 0 && at.active()) {
            A* own = states + 3 * (at.row() * parts + (parts > 1 ? blockIdx.x % parts : 0));
            own[0] = state.count;
            own[1] = state.mean + start;
            own[2] = state.squares;
        }
    }
}

template <typename T>
__device__ __forceinline__ void update_running(
    void* running, int64 at, bool wide, Accumulator<T> factor, Accumulator<T> value) {
    put_weight<T>(running, at, wide, (Accumulator<T>(1) - factor) * weight_at<T>(running, at, wide) + factor * value);
}

// The mean of a set, NaN if a value is NaN or infinite.
template <typename A> __device__ __forceinline__ A known_mean(const Moments<A>& state) {
    return state.squares == state.squares ? state.mean : state.squares;
}

// A negative momentum stands for the average of all batches; `batches` counts those before this one.
template <typename A> __device__ __forceinline__ A running_factor(A momentum, const int64* batches) {
    return momentum >= A(0) ? momentum : A(1) / static_cast<A>(*batches + 1);
}

template <typename T>
__global__ void __launch_bounds__(BLOCK)
channel_finish(const Accumulator<T>* states, Accumulator<T>* mean, Accumulator<T>* reciprocal, void* running_mean,
               void* running_var, const int64* batches, int64 sets, int64 members, int64 divisor, int64 high, int64 low,
               int64 parts, int64 step, int64 part, Accumulator<T> eps, Accumulator<T> momentum, int threads, bool wide) {
    typedef Accumulator<T> A;
    __shared__ Moments<A> scratch[WARP];
    const Members which = {divisor, high, low, parts, step, part};
    for (RowLoop at(sets, threads); at.more(); at.next()) {
        Moments<A> state = {A(0), A(0), A(0)};
        const int64 base = which.base(at.row());
        for (int64 i = at.rank; i < members && at.active(); i += threads) {
            const A* own = states + 3 * (base + which.at(i));
            state = MergeMoments::apply(state, Moments<A>{own[0], own[1], own[2]});
        }
        state = group_reduce<MergeMoments>(state, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        state.mean = known_mean(state);
        mean[at.row()] = state.mean;
        reciprocal[at.row()] = A(1) / square_root(state.squares / state.count + eps);
        if (running_mean != nullptr) {
            const A factor = running_factor(momentum, batches);
            update_running<T>(running_mean, at.row(), wide, factor, state.mean);
            update_running<T>(running_var, at.row(), wide, factor, state.squares / (state.count - A(1)));
        }
    }
}

// Instance norm: the averages over o of means and unbiased variances. Parts are merged first.
template <typename T>
__global__ void __launch_bounds__(BLOCK)
channel_running(const Accumulator<T>* states, void* running_mean, void* running_var, const int64* batches, int64 outer,
                int64 channels, int64 high, int64 low, int64 parts, int64 part, Accumulator<T> momentum, int threads,
                bool wide) {
    typedef Accumulator<T> A;
    __shared__ Two<A> scratch[WARP];
    for (RowLoop at(channels, threads); at.more(); at.next()) {
        Two<A> total = {A(0), A(0)};
        for (int64 o = at.rank; o < outer && at.active(); o += threads) {
            Moments<A> state = {A(0), A(0), A(0)};
            for (int64 p = 0; p < parts; p++) {
                const A* own = states + 3 * (o * high + at.row() * low + p * part);
                state = MergeMoments::apply(state, Moments<A>{own[0], own[1], own[2]});
            }
            total = SumTwo::apply(total, Two<A>{known_mean(state), state.squares / (state.count - A(1))});
        }
        total = group_reduce<SumTwo>(total, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        const A factor = running_factor(momentum, batches);
        update_running<T>(running_mean, at.row(), wide, factor, total.first / A(outer));
        update_running<T>(running_var, at.row(), wide, factor, total.second / A(outer));
    }
}

// ---- y ------------------------------------------------------------------------------------------------

// `batches`, if given, is counted up: this is the last launch of a forward.
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_apply_columns(const T* x, const T* residual, const void* mean, const void* spread, const void* weight,
                      const void* bias, T* out, int64* batches, int64 outer, int64 length, int64 channels, int64 per,
                      int64 group, int parts, int across, int down, Accumulator<T> eps, int activation,
                      Accumulator<T> alpha, int flags) {
    typedef Accumulator<T> A;
    constexpr int W = WIDTH<T>, U = AHEAD<T>;
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    const bool vector = flags & VECTOR;
    if (batches != nullptr && global_thread() == 0) ++*batches;
    const int64 tiles = (channels + across * W - 1) / (across * W);
    for (RowLoop at(outer * parts * tiles, across * down); at.more(); at.next()) {
        const Tile<T> tile(at, length, channels, parts, across);
        const int64 start = tile.o * length * channels + tile.channel;
        A middle[W], scale[W], shift[W];
#pragma unroll
        for (int e = 0; e < W; e++) {
            A unused;
            middle[e] = scale[e] = shift[e] = A(0);
            if (e < tile.left) known.load(tile.o, tile.channel + e, middle[e], unused, scale[e], shift[e]);
        }
#pragma unroll 1
        for (int64 r = tile.from; r < tile.to; r += U * down) {
            Pack<T, W> pack[U], other[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                const int64 row = r + u * down;
                const int64 place = start + row * channels;
                if (row >= tile.to) continue;
                pack[u] = load_columns(x + place, tile.left, vector);
                if (residual != nullptr) other[u] = load_columns(residual + place, tile.left, vector);
            }
            with_activation(activation, [&](auto act) {
#pragma unroll
                for (int u = 0; u < U; u++) {
                    if (r + u * down >= tile.to) continue;
#pragma unroll
                    for (int e = 0; e < W; e++) {
                        A z = (widen(pack[u].item[e]) - middle[e]) * scale[e] + shift[e];
                        if (residual != nullptr) z += widen(other[u].item[e]);
                        pack[u].item[e] = narrow<T>(activated<T>(act, z, alpha));
                    }
                }
            });
#pragma unroll
            for (int u = 0; u < U; u++)
                if (r + u * down < tile.to)
                    store_columns(out + start + (r + u * down) * channels, tile.left, vector, pack[u]);
        }
    }
}

// Block b works on part b % parts of its rows.
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_apply_rows(const T* x, const T* residual, const void* mean, const void* spread, const void* weight,
                   const void* bias, T* out, int64* batches, int64 rows, int length, int64 channels, int64 per,
                   int64 group, int parts, int threads, Accumulator<T> eps, int activation, Accumulator<T> alpha,
                   int flags) {
    typedef Accumulator<T> A;
    constexpr int W = PACK<T>, U = AHEAD<T> / 2;
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    if (batches != nullptr && global_thread() == 0) ++*batches;
    for (RowLoop at(rows, threads, parts); at.more(); at.next()) {
        const Row<T, int> row(at.row(), length, flags & VECTOR, at.active());
        A middle = A(0), unused, scale = A(0), shift = A(0);
        if (at.active()) known.load(at.row() / channels, at.row() % channels, middle, unused, scale, shift);
#pragma unroll 1
        for (int p = at.rank; p < row.packs; p += U * at.team) {
            Pack<T, W> pack[U], other[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                pack[u] = load_row(x, row, p + u * at.team, zero<T>());
                if (residual != nullptr) other[u] = load_row(residual, row, p + u * at.team, zero<T>());
            }
            with_activation(activation, [&](auto act) {
#pragma unroll
                for (int i = 0; i < U * W; i++) {
                    A z = (widen(pack[i / W].item[i % W]) - middle) * scale + shift;
                    if (residual != nullptr) z += widen(other[i / W].item[i % W]);
                    pack[i / W].item[i % W] = narrow<T>(activated<T>(act, z, alpha));
                }
            });
#pragma unroll
            for (int u = 0; u < U; u++)
                if (p + u * at.team < row.packs) store_row(out, row, p + u * at.team, pack[u]);
        }
    }
}
