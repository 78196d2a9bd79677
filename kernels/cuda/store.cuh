// store.cuh - a pack as one store instruction, of 8 bytes as well as of 16; see store_whole in elementwise.cuh.
#pragma once
#include "elementwise.cuh"

template <typename T, int N> __device__ __forceinline__ void store_at_once(T* target, const Pack<T, N>& pack) {
    if constexpr (sizeof(pack) == 8)
        __stwb(reinterpret_cast<uint2*>(target), *reinterpret_cast<const uint2*>(&pack));
    else
        store_whole(target, pack);
}
