// layer_norm.cuh - what the forward and the backward of layer norm and RMS norm share.
//
// CENTRED is a runtime flag (false: RMS norm), as is `wide` (float weights beside 16-bit rows): both are the
// same for all threads and cost nothing beside memory, and twice as many kernels would be compiled.
#pragma once
#include "norm.cuh"

template <typename T> constexpr int LONG_BLOCK = sizeof(T) == 8 ? 512 : 1024;  // threads of the largest block

// The weights of pack p; outside the row anything finite. `fill` where there are none.
template <typename T>
__device__ __forceinline__ void row_weights(
    const void* weight, const Row<T, int>& row, int p, bool wide, bool vector, Accumulator<T> fill,
    Accumulator<T> (&to)[PACK<T>]) {
    const int column = row.column(p);
    if (weight != nullptr && vector && row.shift == 0 && p < row.whole_end) {
        load_weights<T>(weight, column, wide, to);
        return;
    }
#pragma unroll
    for (int e = 0; e < PACK<T>; e++)
        to[e] = weight != nullptr && row.inside(column + e) ? weight_at<T>(weight, column + e, wide) : fill;
}
