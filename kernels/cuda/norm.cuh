// norm.cuh - what the normalisations share: weights of either type, sums of two, moments that can be merged.
#pragma once
#include "row.cuh"

template <typename T> constexpr int AHEAD = sizeof(T) == 8 ? 2 : 4;  // packs or rows under way in a thread

template <typename T> __device__ __forceinline__ T zero() { return narrow<T>(Accumulator<T>(0)); }

// Element i of a vector of weights: of T or, beside 16-bit numbers, of float ("wide").
template <typename T> __device__ __forceinline__ Accumulator<T> weight_at(const void* weight, int64 i, bool wide) {
    if constexpr (sizeof(T) == 2)
        if (wide) return static_cast<const float*>(weight)[i];
    return widen(static_cast<const T*>(weight)[i]);
}
template <typename T> __device__ __forceinline__ void put_weight(void* weight, int64 i, bool wide, Accumulator<T> x) {
    if constexpr (sizeof(T) == 2) {
        if (wide) {
            static_cast<float*>(weight)[i] = x;
            return;
        }
    }
    static_cast<T*>(weight)[i] = narrow<T>(x);
}

// As many weights as a pack has elements, from column `first` on, which is a multiple of it; 16 bytes at a time.
template <typename T>
__device__ __forceinline__ void load_weights(const void* weight, int64 first, bool wide, Accumulator<T> (&to)[PACK<T>]) {
    if constexpr (sizeof(T) == 2) {
        if (wide) {
            const float* source = static_cast<const float*>(weight) + first;
            const Pack<float, 4> low = load_pack<float, 4>(source), high = load_pack<float, 4>(source + 4);
#pragma unroll
            for (int e = 0; e < 4; e++) to[e] = low.item[e], to[e + 4] = high.item[e];
            return;
        }
    }
    const Pack<T, PACK<T>> pack = load_pack<T, PACK<T>>(static_cast<const T*>(weight) + first);
#pragma unroll
    for (int e = 0; e < PACK<T>; e++) to[e] = widen(pack.item[e]);
}

// ---- two sums at once ---------------------------------------------------------------------------------

template <typename A> struct Two {
    A first, second;
};
template <typename A> __device__ __forceinline__ Two<A> shuffle_xor(Two<A> value, int offset) {
    return {shuffle_xor(value.first, offset), shuffle_xor(value.second, offset)};
}
struct SumTwo {
    template <typename A> static __device__ __forceinline__ Two<A> apply(Two<A> a, Two<A> b) {
        return {a.first + b.first, a.second + b.second};
    }
};

// ---- moments ------------------------------------------------------------------------------------------
// Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979. Squares
// are always of differences from a mean, so that nothing cancels where the mean is large beside the deviation.

template <typename A> struct Moments {
    A count, mean, squares;  // squares: the sum of (x - mean)^2
};
template <typename A> __device__ __forceinline__ Moments<A> shuffle_xor(Moments<A> value, int offset) {
    return {shuffle_xor(value.count, offset), shuffle_xor(value.mean, offset), shuffle_xor(value.squares, offset)};
}
struct MergeMoments {
    template <typename A> static __device__ __forceinline__ Moments<A> apply(Moments<A> a, Moments<A> b) {
        const bool first = a.mean >= b.mean;  // whichever comes first: both orders give the same bits
        const Moments<A> big = first ? a : b, small = first ? b : a;
        const A count = a.count + b.count, share = count > A(0) ? small.count / count : A(0);
        const A difference = small.mean - big.mean;
        const A both = a.count > A(0) && b.count > A(0) ? difference * difference * (share * big.count) : A(0);
        return {count, big.count > A(0) ? big.mean + difference * share : small.mean, a.squares + b.squares + both};
    }
};
