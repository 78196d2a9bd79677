// elementwise.cuh - the common core of kernels that compute out[i] = f(in0[i], in1[i], ...).
//
// Who does what: a block owns a tile of blockDim.x * UNROLL packs; thread t holds packs t, t + blockDim.x, …
// of the tile, so that a warp always touches neighbouring packs. With VECTOR a pack is 16 bytes: for this all
// pointers must lie alike, at the same distance from a multiple of 16. Packs then begin at the first such
// multiple. Without VECTOR a pack is one element.
// The limit: each input byte is read once and each output byte written once. UNROLL loads of every
// input are under way before the first is used, which is what hides the latency of memory.
// The elements before the first and behind the last whole pack are done one by one by the first threads of the
// last block.
#pragma once
#include "common.cuh"

// Packs in flight a thread. Two for double: its slow functions need the registers.
template <typename T> constexpr int UNROLL = sizeof(T) == 8 ? 2 : 4;

template <typename T, int INPUTS> struct Inputs {
    const T* pointer[INPUTS];
};

// f(values, index of the element) or f(values), whichever the function takes.
template <typename Function, typename A, int INPUTS>
__device__ __forceinline__ auto apply_at(Function f, const A (&value)[INPUTS], int64 i, int) -> decltype(f(value, i)) {
    return f(value, i);
}
template <typename Function, typename A, int INPUTS>
__device__ __forceinline__ auto apply_at(Function f, const A (&value)[INPUTS], int64, long) -> decltype(f(value)) {
    return f(value);
}

// A pack as one store: the compiler splits a plain assignment in two or four where that saves it a move.
template <typename T, int N> __device__ __forceinline__ void store_whole(T* target, const Pack<T, N>& pack) {
    if constexpr (sizeof(pack) == 16)
        __stwb(reinterpret_cast<uint4*>(target), *reinterpret_cast<const uint4*>(&pack));
    else
        store_pack(target, pack);
}

template <typename T, bool VECTOR, int INPUTS, typename Function>
__device__ __forceinline__ void elementwise(T* out, const Inputs<T, INPUTS>& in, int64 n, Function f) {
    constexpr int WIDTH = VECTOR ? PACK<T> : 1;
    typedef Pack<T, WIDTH> Item;
    typedef Accumulator<T> A;
    int64 head = 0;  // elements before the first pack
    if (VECTOR) head = (16 - (reinterpret_cast<uint64>(out) & 15)) % 16 / sizeof(T);
    if (head > n) head = n;
    const int64 packs = (n - head) / WIDTH;
    const int64 first = static_cast<int64>(blockIdx.x) * blockDim.x * UNROLL<T> + threadIdx.x;

    Item item[UNROLL<T>][INPUTS];
#pragma unroll
    for (int u = 0; u < UNROLL<T>; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) {
#pragma unroll
            for (int k = 0; k < INPUTS; k++) item[u][k] = load_pack<T, WIDTH>(in.pointer[k] + head + p * WIDTH);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL<T>; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) {
            Item result;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A value[INPUTS];
#pragma unroll
                for (int k = 0; k < INPUTS; k++) value[k] = widen(item[u][k].item[e]);
                result.item[e] = narrow<T>(apply_at(f, value, head + p * WIDTH + e, 0));
            }
            store_whole(out + head + p * WIDTH, result);
        }
    }
    const int64 edge = threadIdx.x < head ? threadIdx.x : packs * WIDTH + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && edge < n) {
        A value[INPUTS];
#pragma unroll
        for (int k = 0; k < INPUTS; k++) value[k] = widen(in.pointer[k][edge]);
        out[edge] = narrow<T>(apply_at(f, value, edge, 0));
    }
}
