// channel_norm_backward.cu - batch, group and instance norm, backward. Layouts, sets and teams are those of channel_norm.cu.
//
// With h = (x - mean[k]) reciprocal[k], z = h weight[c] + bias[c] + residual, d = grad act'(z), m values in a set:
//
//   residual's gradient d,   dbias[c] = sum of d,   dweight[c] = sum of d h
//   out = reciprocal (d weight - sum of (d weight) / m - h sum of (d weight h) / m)     (sums over the set)
//
// Launches; those on x have a kernel for columns and one for rows:
//
//   channel_sums_*      the sums of d and of d h of each (o, c) and part; writes d where `grad_z` is given
//   channel_totals      adds them: dweight and dbias, or the two means of each set
//   channel_backward_*  out
//
// z is computed again, so that nothing but x (and the residual) must be kept. Where there is a residual with
// an activation its gradient d is an output anyway: the second pass reads it instead of computing it again.
// Shared memory: for columns WIDTH * 256 accumulators, twice (8 KB).
// The limit: memory. grad and x are read twice and out is written. About 20 operations an element, more with an
// activation. Statistics that were given and not computed (evaluation) have no part in the gradient: totals are null.
// Deterministic: all sums are taken in an order that the launch fixes.
// Assumes: contiguous arrays; rows of at most 2^30 elements. VECTOR only if the pointers are multiples of 16 and,
// for columns, channels one of WIDTH.
#include "channel_norm.cuh"

// sums: (outer, parts, channels, 2)
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_sums_columns(const T* grad, const T* x, const T* residual, const void* mean, const void* spread,
                     const void* weight, const void* bias, T* grad_z, Accumulator<T>* sums, int64 outer, int64 length,
                     int64 channels, int64 per, int64 group, int parts, int across, int down, Accumulator<T> eps,
                     int activation, Accumulator<T> alpha, int flags) {
    typedef Accumulator<T> A;
    constexpr int W = WIDTH<T>, U = AHEAD<T> / 2;
    __shared__ A shared[2][W * BLOCK];
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    const bool vector = flags & VECTOR;
    const int64 tiles = (channels + across * W - 1) / (across * W);
    for (RowLoop at(outer * parts * tiles, across * down); at.more(); at.next()) {
        const Tile<T> tile(at, length, channels, parts, across);
        const int64 start = tile.o * length * channels + tile.channel;
        A middle[W], reciprocal[W], scale[W], shift[W], first[W], second[W];
#pragma unroll
        for (int e = 0; e < W; e++) {
            middle[e] = reciprocal[e] = scale[e] = shift[e] = first[e] = second[e] = A(0);
            if (e < tile.left) known.load(tile.o, tile.channel + e, middle[e], reciprocal[e], scale[e], shift[e]);
        }
#pragma unroll 1
        for (int64 r = tile.from; r < tile.to; r += U * down) {
            Pack<T, W> g[U], value[U], other[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                const int64 place = start + (r + u * down) * channels;
                const int left = r + u * down < tile.to ? tile.left : 0;  // zeros otherwise
                g[u] = load_columns(grad + place, left, vector);
                value[u] = load_columns(x + place, left, vector);
                if (residual != nullptr) other[u] = load_columns(residual + place, left, vector);
            }
            with_activation(activation, [&](auto act) {
#pragma unroll
                for (int e = 0; e < W; e++) {
                    A one = A(0), two = A(0);
#pragma unroll
                    for (int u = 0; u < U; u++) {
                        const bool there = r + u * down < tile.to;
                        const A difference = there ? widen(value[u].item[e]) - middle[e] : A(0);
                        A z = difference * scale[e] + shift[e];
                        if (residual != nullptr) z += widen(other[u].item[e]);
                        const A d = there ? widen(g[u].item[e]) * slope<T>(act, z, alpha) : A(0);
                        one += d;
                        two += d * difference;
                        if (grad_z != nullptr) g[u].item[e] = narrow<T>(d);
                    }
                    first[e] += one;
                    second[e] += two;
                }
            });
            if (grad_z == nullptr) continue;
#pragma unroll
            for (int u = 0; u < U; u++)
                if (r + u * down < tile.to)
                    store_columns(grad_z + start + (r + u * down) * channels, tile.left, vector, g[u]);
        }

        if (down > 1) __syncthreads();  // the memory may still be read from the last round
        for (int half = down / 2; half > 0; half /= 2) {
            if (tile.j >= half && tile.j < 2 * half)
#pragma unroll
                for (int e = 0; e < W; e++) {
                    shared[0][e * BLOCK + threadIdx.x] = first[e];
                    shared[1][e * BLOCK + threadIdx.x] = second[e];
                }
            __syncthreads();
            if (tile.j < half)
#pragma unroll
                for (int e = 0; e < W; e++) {
                    first[e] += shared[0][e * BLOCK + threadIdx.x + half * across];
                    second[e] += shared[1][e * BLOCK + threadIdx.x + half * across];
                }
        }
        if (tile.j > 0) continue;
        A* own = sums + 2 * (tile.line * channels + tile.channel);
#pragma unroll
        for (int e = 0; e < W; e++) {
            if (e >= tile.left) continue;
            own[2 * e] = first[e];
            own[2 * e + 1] = second[e] * reciprocal[e];
        }
    }
}

// sums: (outer, channels, parts, 2). Block b works on part b % parts of its rows.
template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_sums_rows(const T* grad, const T* x, const T* residual, const void* mean, const void* spread,
                  const void* weight, const void* bias, T* grad_z, Accumulator<T>* sums, int64 rows, int length,
                  int64 channels, int64 per, int64 group, int parts, int threads, Accumulator<T> eps, int activation,
                  Accumulator<T> alpha, int flags) {
    typedef Accumulator<T> A;
    constexpr int W = PACK<T>, U = sizeof(T) == 4 ? 2 : 1;  // as many as the registers take
    __shared__ Two<A> scratch[WARP];
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    for (RowLoop at(rows, threads, parts); at.more(); at.next()) {
        const Row<T, int> row(at.row(), length, flags & VECTOR, at.active());
        A middle = A(0), reciprocal = A(0), scale = A(0), shift = A(0);
        if (at.active()) known.load(at.row() / channels, at.row() % channels, middle, reciprocal, scale, shift);
        Two<A> total = {A(0), A(0)};
#pragma unroll 1
        for (int p = at.rank; p < row.packs; p += U * at.team) {
            Pack<T, W> g[U], value[U], other[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                g[u] = load_row(grad, row, p + u * at.team, zero<T>());
                value[u] = load_row(x, row, p + u * at.team, narrow<T>(middle));
                if (residual != nullptr) other[u] = load_row(residual, row, p + u * at.team, zero<T>());
            }
            with_activation(activation, [&](auto act) {
                Two<A> part = {A(0), A(0)};
#pragma unroll
                for (int i = 0; i < U * W; i++) {
                    const A difference = widen(value[i / W].item[i % W]) - middle;
                    A z = difference * scale + shift;
                    if (residual != nullptr) z += widen(other[i / W].item[i % W]);
                    const A d = widen(g[i / W].item[i % W]) * slope<T>(act, z, alpha);
                    part = SumTwo::apply(part, Two<A>{d, d * difference});
                    if (grad_z != nullptr) g[i / W].item[i % W] = narrow<T>(d);
                }
                total = SumTwo::apply(total, part);
            });
            if (grad_z == nullptr) continue;
#pragma unroll
            for (int u = 0; u < U; u++)
                if (p + u * at.team < row.packs) store_row(grad_z, row, p + u * at.team, g[u]);
        }
        total = group_reduce<SumTwo>(total, threads, scratch);
        if ((at.rank & (threads - 1)) == 0 && at.active()) {
            A* own = sums + 2 * (at.row() * parts + (parts > 1 ? blockIdx.x % parts : 0));
            own[0] = total.first;
            own[1] = total.second * reciprocal;
        }
    }
}

// The sums of the members of each set: dweight and dbias as they are, and where `means` (sets, 2) is given those with
// weights, times `share`. Member i of set k is of channel k % divisor * weight_low + i / parts * weight_step.
template <typename T>
__global__ void __launch_bounds__(BLOCK)
channel_totals(const Accumulator<T>* sums, const void* weight, Accumulator<T>* means, void* dweight, void* dbias,
               int64 sets, int64 members, int64 divisor, int64 high, int64 low, int64 parts, int64 step, int64 part,
               int64 weight_low, int64 weight_step, Accumulator<T> share, int threads, bool wide) {
    typedef Accumulator<T> A;
    __shared__ Two<A> scratch[WARP];
    const Members which = {divisor, high, low, parts, step, part};
    for (RowLoop at(sets, threads); at.more(); at.next()) {
        Two<A> plain = {A(0), A(0)}, weighted = {A(0), A(0)};
        const int64 base = which.base(at.row());
        for (int64 i = at.rank; i < members && at.active(); i += threads) {
            const A* own = sums + 2 * (base + which.at(i));
            A w = A(1);
            if (weight != nullptr)
                w = weight_at<T>(weight, at.row() % divisor * weight_low + i / parts * weight_step, wide);
            plain = SumTwo::apply(plain, Two<A>{own[0], own[1]});
            weighted = SumTwo::apply(weighted, Two<A>{own[0] * w, own[1] * w});
        }
        if (dweight != nullptr || dbias != nullptr) plain = group_reduce<SumTwo>(plain, threads, scratch);
        if (means != nullptr) weighted = group_reduce<SumTwo>(weighted, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        if (dweight != nullptr) put_weight<T>(dweight, at.row(), wide, plain.second);
        if (dbias != nullptr) put_weight<T>(dbias, at.row(), wide, plain.first);
        if (means == nullptr) continue;
        means[2 * at.row()] = weighted.first * share;
        means[2 * at.row() + 1] = weighted.second * share;
    }
}

// ---- out ------------------------------------------------------------------------------------------------

// out = scale d - first - (x - mean) second: what is the same for all values of a channel, from the means of its set.
template <typename T>
__device__ __forceinline__ void load_means(
    const Channels<T>& known, const Accumulator<T>* means, int64 o, int64 c, Accumulator<T> reciprocal,
    Accumulator<T>& first, Accumulator<T>& second) {
    first = second = Accumulator<T>(0);
    if (means == nullptr) return;
    const int64 k = known.set(o, c);
    first = reciprocal * means[2 * k];
    second = reciprocal * reciprocal * means[2 * k + 1];
}

template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_backward_columns(const T* grad, const T* x, const void* mean, const void* spread, const void* weight,
                         const void* bias, const Accumulator<T>* means, T* out, int64 outer, int64 length,
                         int64 channels, int64 per, int64 group, int parts, int across, int down, Accumulator<T> eps,
                         int activation, Accumulator<T> alpha, int flags) {
    typedef Accumulator<T> A;
    constexpr int W = WIDTH<T>, U = sizeof(T) == 2 ? AHEAD<T> : AHEAD<T> / 2;
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    const bool vector = flags & VECTOR;
    const int64 tiles = (channels + across * W - 1) / (across * W);
    for (RowLoop at(outer * parts * tiles, across * down); at.more(); at.next()) {
        const Tile<T> tile(at, length, channels, parts, across);
        const int64 start = tile.o * length * channels + tile.channel;
        A middle[W], scale[W], shift[W], first[W], second[W];
#pragma unroll
        for (int e = 0; e < W; e++) {
            A reciprocal;
            middle[e] = scale[e] = shift[e] = first[e] = second[e] = A(0);
            if (e >= tile.left) continue;
            known.load(tile.o, tile.channel + e, middle[e], reciprocal, scale[e], shift[e]);
            load_means(known, means, tile.o, tile.channel + e, reciprocal, first[e], second[e]);
        }
#pragma unroll 1
        for (int64 r = tile.from; r < tile.to; r += U * down) {
            Pack<T, W> g[U], value[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                const int64 place = start + (r + u * down) * channels;
                const int left = r + u * down < tile.to ? tile.left : 0;
                g[u] = load_columns(grad + place, left, vector);
                value[u] = load_columns(x + place, left, vector);
            }
            with_activation(activation, [&](auto act) {
#pragma unroll
                for (int u = 0; u < U; u++)
#pragma unroll
                    for (int e = 0; e < W; e++) {
                        const A difference = widen(value[u].item[e]) - middle[e];
                        const A d = widen(g[u].item[e]) * slope<T>(act, difference * scale[e] + shift[e], alpha);
                        const A own = scale[e] * d;  // all there is in evaluation, where x may be infinite
                        g[u].item[e] = narrow<T>(means == nullptr ? own : own - first[e] - difference * second[e]);
                    }
            });
#pragma unroll
            for (int u = 0; u < U; u++)
                if (r + u * down < tile.to)
                    store_columns(out + start + (r + u * down) * channels, tile.left, vector, g[u]);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(BLOCK, 2)
channel_backward_rows(const T* grad, const T* x, const void* mean, const void* spread, const void* weight,
                      const void* bias, const Accumulator<T>* means, T* out, int64 rows, int length, int64 channels,
                      int64 per, int64 group, int parts, int threads, Accumulator<T> eps, int activation,
                      Accumulator<T> alpha, int flags) {
    typedef Accumulator<T> A;
    constexpr int W = PACK<T>, U = AHEAD<T> / 2;
    const Channels<T> known = {mean, spread, weight, bias, per, group, eps, flags};
    for (RowLoop at(rows, threads, parts); at.more(); at.next()) {
        const Row<T, int> row(at.row(), length, flags & VECTOR, at.active());
        A middle = A(0), reciprocal = A(0), scale = A(0), shift = A(0), first = A(0), second = A(0);
        if (at.active()) {
            const int64 o = at.row() / channels, c = at.row() % channels;
            known.load(o, c, middle, reciprocal, scale, shift);
            load_means(known, means, o, c, reciprocal, first, second);
        }
#pragma unroll 1
        for (int p = at.rank; p < row.packs; p += U * at.team) {
            Pack<T, W> g[U], value[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                g[u] = load_row(grad, row, p + u * at.team, zero<T>());
                value[u] = load_row(x, row, p + u * at.team, zero<T>());
            }
            with_activation(activation, [&](auto act) {
#pragma unroll
                for (int i = 0; i < U * W; i++) {
                    const A difference = widen(value[i / W].item[i % W]) - middle;
                    const A d = widen(g[i / W].item[i % W]) * slope<T>(act, difference * scale + shift, alpha);
                    const A own = scale * d;  // all there is in evaluation, where x may be infinite
                    g[i / W].item[i % W] = narrow<T>(means == nullptr ? own : own - first - difference * second);
                }
            });
#pragma unroll
            for (int u = 0; u < U; u++)
                if (p + u * at.team < row.packs) store_row(out, row, p + u * at.team, g[u]);
        }
    }
}
