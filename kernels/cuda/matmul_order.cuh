// matmul_order.cuh - the order in which blocks walk over the tiles of a product.
#pragma once
#include "common.cuh"

// A tile's row and column among the tiles of its matrix, which matrix, and which part of K.
struct TilePlace {
    uint32 row, column, matrix, part;
};

// The place of tile `number`, of high x wide tiles for each matrix of the batch and part of K. Groups of `tall` rows
// are walked column by column: blocks that run at once then have few rows and few columns in common memory, which
// the L2 cache keeps for them; whole rows of tiles would need all of B.
__device__ __forceinline__ TilePlace find_tile(uint32 number, uint32 high, uint32 wide, uint32 batch, uint32 tall) {
    const uint32 tile = number % (high * wide), rest = number / (high * wide);
    const uint32 group = tile / (tall * wide), within = tile % (tall * wide);
    const uint32 height = high - group * tall < tall ? high - group * tall : tall;
    return {group * tall + within % height, within / height, rest % batch, rest / batch};
}
