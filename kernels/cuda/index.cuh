// index.cuh - integer arrays that a caller may give as int32 or int64: labels, positions, lengths.
#pragma once
#include "common.cuh"

// Element i of an array of int64 (`wide`) or int32. One kernel serves both; the branch is the same for all threads.
__device__ __forceinline__ int64 index_at(const void* array, bool wide, int64 i) {
    return wide ? static_cast<const int64*>(array)[i] : static_cast<const int*>(array)[i];
}
