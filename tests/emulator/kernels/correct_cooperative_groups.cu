// Correct: cooperative groups. Tiles of 8 lanes reduce by their own shuffles and order their own piece of
// shared memory with tile.sync(); the block's group as barrier.

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

extern "C" __global__ void groups(int* y, const int* x) {
    __shared__ int values[64];
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
    const int t = block.thread_rank(), rank = tile.thread_rank();
    int value = x[t];
    for (int round = 0; round <= t / 8; round++) {  // the tiles of a warp make different numbers of rounds
        values[t] = value;
        tile.sync();
        value = values[t - rank + 7 - rank] + 1;
        tile.sync();
    }
    int sum = value;
    for (int offset = tile.size() / 2; offset > 0; offset /= 2) sum += tile.shfl_xor(sum, offset);
    values[t] = sum;
    block.sync();
    y[t] = values[63 - t] + (tile.any(value > 5) ? 1000 : 0);
}
