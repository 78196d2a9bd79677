// Correct: y = x + 1 by tiles of 32 x 64 halves: two slots in, two slots out, all copies by TMA. An output
// slot is written again when bulk_wait_read<1> says that the store before last has read it; at the end it
// is enough that shared memory has been read (bulk_wait_read<0>): the writes arrive in their own time.

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int ROWS = 32, COLUMNS = 64, COUNT = ROWS * COLUMNS;

extern "C" __global__ void tma_store(const __grid_constant__ ptx::TensorMap map_y,
                                     const __grid_constant__ ptx::TensorMap map_x, int tiles) {
    __shared__ __align__(1024) __half in[2][COUNT], out[2][COUNT];
    __shared__ __align__(8) uint64 landed[2];
    const int t = threadIdx.x, row = blockIdx.x * ROWS;
    if (t == 0) {
        ptx::mbarrier_init(&landed[0], 1);
        ptx::mbarrier_init(&landed[1], 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    auto load = [&](int k) {
        const int at[2] = {k * COLUMNS, row};
        ptx::mbarrier_expect(&landed[k % 2], COUNT * 2);
        ptx::tensor_load(in[k % 2], &map_x, &landed[k % 2], at);
        ptx::mbarrier_arrive(&landed[k % 2]);  // the phase stays open until this arrival
    };
    if (t == 0) load(0);
    for (int k = 0; k < tiles; k++) {
        if (t == 0 && k + 1 < tiles) load(k + 1);
        if (t == 0) ptx::bulk_wait_read<1>();
        ptx::mbarrier_wait(&landed[k % 2], k / 2 & 1);
        __syncthreads();
        for (int i = t; i < COUNT; i += blockDim.x) out[k % 2][i] = __hadd(in[k % 2][i], __float2half(1.f));
        ptx::fence_proxy_async();
        __syncthreads();
        if (t == 0) {
            const int at[2] = {k * COLUMNS, row};
            ptx::tensor_store(&map_y, out[k % 2], at);
            ptx::bulk_commit();
        }
    }
    if (t == 0) ptx::bulk_wait_read<0>();
}
