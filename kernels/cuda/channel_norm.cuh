// channel_norm.cuh - what the forward and the backward of batch, group and instance norm share; see channel_norm.cu.
#pragma once
#include "activation.cuh"
#include "norm.cuh"
#include "quick.cuh"

constexpr int BLOCK = 256;

// Neighbouring channels that a thread takes: 16 bytes, but 8 of 16-bit types, whose coefficients would fill the registers.
template <typename T> constexpr int WIDTH = PACK<T> < 4 ? PACK<T> : 4;

enum Flags { WIDE_WEIGHTS = 1, WIDE_STATISTICS = 2, VARIANCE = 4, VECTOR = 8 };

// identity, relu and leaky_relu in one: x, or alpha x below zero, with alpha 1, 0 or what it is.
struct Bent {
    template <typename A> static __device__ __forceinline__ A value(A x, A alpha) {
        return x <= A(0) ? (alpha == A(0) ? A(0) : alpha * x) : x;
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A alpha) { return x <= A(0) ? alpha : A(1); }
};

// The activation, one for the whole launch: f gets its struct. The numbers are those of gpunn/primitives/channel_norm.py.
template <typename F> __device__ __forceinline__ void with_activation(int activation, F f) {
    if (activation == 0) f(Bent());
    else if (activation == 1) f(Silu());
    else f(HardSwish());
}
template <typename T, typename Act> __device__ __forceinline__ Accumulator<T> activated(
    Act, Accumulator<T> z, Accumulator<T> alpha) {
    typedef Functional<T> F;
    return static_cast<Accumulator<T>>(Act::value(F(z), F(alpha)));
}
template <typename T, typename Act> __device__ __forceinline__ Accumulator<T> slope(
    Act, Accumulator<T> z, Accumulator<T> alpha) {
    typedef Functional<T> F;
    return static_cast<Accumulator<T>>(Act::derivative(F(z), F(alpha)));
}

// What is known of the channels. `spread` is the reciprocal deviation, or the variance (flag VARIANCE).
template <typename T> struct Channels {
    typedef Accumulator<T> A;
    const void *mean, *spread, *weight, *bias;
    int64 per, group;
    A eps;
    int flags;

    __device__ __forceinline__ int64 set(int64 o, int64 c) const { return o * per + (group == 1 ? c : c / group); }
    // The mean, the factor for x - mean, reciprocal and weight in one, and the bias.
    __device__ __forceinline__ void load(int64 o, int64 c, A& middle, A& reciprocal, A& scale, A& shift) const {
        const int64 k = set(o, c);
        middle = weight_at<T>(mean, k, flags & WIDE_STATISTICS);
        reciprocal = weight_at<T>(spread, k, flags & WIDE_STATISTICS);
        if (flags & VARIANCE) reciprocal = A(1) / square_root(reciprocal + eps);
        scale = weight == nullptr ? reciprocal : reciprocal * weight_at<T>(weight, c, flags & WIDE_WEIGHTS);
        shift = bias == nullptr ? A(0) : weight_at<T>(bias, c, flags & WIDE_WEIGHTS);
    }
};

// ---- columns: which part of the array a thread has -----------------------------------------------------

// Units are outer index, then run of rows, then tile of channels, the last one fastest.
template <typename T> struct Tile {
    int64 o, channel, from, to;  // the thread's first channel and its rows: from, from + down, … below `to`
    int64 line;                  // outer index and run
    int left, i, j;              // channels that it has: 0 to WIDTH

    __device__ __forceinline__ Tile(const RowLoop& at, int64 length, int64 channels, int parts, int across) {
        const int64 tiles = (channels + across * WIDTH<T> - 1) / (across * WIDTH<T>), each = (length + parts - 1) / parts;
        line = at.row() / tiles;
        o = line / parts;
        i = at.rank & (across - 1);
        j = at.rank >> (__ffs(across) - 1);
        channel = ((at.row() - line * tiles) * across + i) * WIDTH<T>;
        left = !at.active() || channel >= channels ? 0 : channels - channel < WIDTH<T> ? channels - channel : WIDTH<T>;
        from = (line - o * parts) * each;
        to = from + each < length ? from + each : length;
        from += j;
        if (left == 0) to = from;
    }
};

// The `left` elements from `source` on; zeros beyond.
template <typename T> __device__ __forceinline__ Pack<T, WIDTH<T>> load_columns(const T* source, int left, bool vector) {
    if (vector && left == WIDTH<T>) return load_pack<T, WIDTH<T>>(source);
    Pack<T, WIDTH<T>> pack;
#pragma unroll
    for (int e = 0; e < WIDTH<T>; e++) pack.item[e] = e < left ? source[e] : zero<T>();
    return pack;
}
template <typename T>
__device__ __forceinline__ void store_columns(T* target, int left, bool vector, const Pack<T, WIDTH<T>>& pack) {
    if (vector && left == WIDTH<T>) {
        store_pack(target, pack);
        return;
    }
#pragma unroll
    for (int e = 0; e < WIDTH<T>; e++)
        if (e < left) target[e] = pack.item[e];
}

// ---- states of sets ------------------------------------------------------------------------------------

// Which states belong to set k: member i (of `members`) is the state at `base(k) + at(i)`.
struct Members {
    int64 divisor, high, low, parts, step, part;
    __device__ __forceinline__ int64 base(int64 k) const { return k / divisor * high + k % divisor * low; }
    __device__ __forceinline__ int64 at(int64 i) const { return i / parts * step + i % parts * part; }
};
