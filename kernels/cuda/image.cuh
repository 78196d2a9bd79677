// image.cuh - what the kernels of images share: (N, D, H, W, C) with the channels innermost.
#pragma once
#include "common.cuh"

// The remainder of index / size, with the quotient left in index; by 32 bits where both fit, because a
// division of 64 bits takes ten times as many instructions.
__device__ __forceinline__ int64 split(int64& index, int64 size) {
    const int64 quotient = (static_cast<uint64>(index | size) >> 32) == 0
                               ? static_cast<int64>(static_cast<uint32>(index) / static_cast<uint32>(size))
                               : index / size;
    const int64 rest = index - quotient * size;
    index = quotient;
    return rest;
}

// An item: image n, pixel (d, h, w) among `size`, pack c of its channels.
struct ImagePlace {
    int64 n, c;
    int d, h, w;

    __device__ __forceinline__ ImagePlace(int64 item, int64 packs, const int (&size)[3]) {
        c = packs == 1 ? 0 : split(item, packs);
        w = static_cast<int>(split(item, size[2]));
        h = size[1] == 1 ? 0 : static_cast<int>(split(item, size[1]));
        d = size[0] == 1 ? 0 : static_cast<int>(split(item, size[0]));
        n = item;
    }
};
