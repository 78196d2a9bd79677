// y = scale * x, both half [rows, columns]: tiles of 64 x 64 by TMA in, scaled in place, by TMA out.
//
// A block walks along a row of tiles with one buffer of 8 KiB; thread 0 starts all copies. Every element is
// treated alike, so the swizzle of the tile does not matter.

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int TILE = 64;

extern "C" __global__ void tma_scale(const __grid_constant__ ptx::TensorMap map_y,
                                     const __grid_constant__ ptx::TensorMap map_x, float scale, int tiles) {
    __shared__ __align__(1024) __half tile[TILE * TILE];
    __shared__ __align__(8) uint64 landed;
    const int t = threadIdx.x;
    if (t == 0) {
#ifndef BUG_NO_INIT
        ptx::mbarrier_init(&landed, 1);
        ptx::fence_mbarrier_init();
#endif
    }
    __syncthreads();
    for (int k = 0; k < tiles; k++) {
        const int at[2] = {k * TILE, static_cast<int>(blockIdx.x) * TILE};
        if (t == 0) {
#ifndef BUG_NO_READ_WAIT
            ptx::bulk_wait_read<0>();  // the last tile has left the buffer
#endif
#ifdef BUG_NOTHING_EXPECTED
            ptx::mbarrier_arrive(&landed);
#else
            ptx::mbarrier_arrive_expect(&landed, sizeof(tile));  // FAULT: BUG_NO_INIT
#endif
            // FAULT: BUG_NO_READ_WAIT, BUG_NO_COMMIT, BUG_PHASE_NOT_FLIPPED, BUG_NOTHING_EXPECTED
            ptx::tensor_load(tile, &map_x, &landed, at);
        }
#ifdef BUG_PHASE_NOT_FLIPPED
        ptx::mbarrier_wait(&landed, 0);
#else
        ptx::mbarrier_wait(&landed, k & 1);  // FAULT: BUG_NO_INIT
#endif
        for (int i = t; i < TILE * TILE; i += blockDim.x)
            // FAULT: BUG_NO_BARRIER_BEFORE_STORE, BUG_PHASE_NOT_FLIPPED, BUG_NOTHING_EXPECTED
            tile[i] = __float2half(scale * __half2float(tile[i]));
#ifndef BUG_NO_PROXY_FENCE
        ptx::fence_proxy_async();
#endif
#ifndef BUG_NO_BARRIER_BEFORE_STORE
        __syncthreads();
#endif
        if (t == 0) {
            // FAULT: BUG_NO_PROXY_FENCE, BUG_NO_BARRIER_BEFORE_STORE, BUG_NO_WAIT_AT_EXIT, BUG_NO_COMMIT
            // FAULT: BUG_PHASE_NOT_FLIPPED
            ptx::tensor_store(&map_y, tile, at);
#ifndef BUG_NO_COMMIT
            ptx::bulk_commit();  // FAULT: BUG_NO_WAIT_AT_EXIT
#endif
        }
    }
#ifndef BUG_NO_WAIT_AT_EXIT
    if (t == 0) ptx::bulk_wait_read<0>();  // shared memory stays until the last tile has been read
#endif
}
