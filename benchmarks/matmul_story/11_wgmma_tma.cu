// 11 - Hopper's way: the tensor cores read shared memory, a copy engine fills it. sm_90a.
// C[M, N] = A[M, K] B[N, K]^T, bfloat16, sums in float32.
//
// Two ideas. wgmma: a warpgroup (4 warps) multiplies 64 x 16 by 16 x 128 with one instruction whose operands
// are tiles in shared memory; no lane loads them into registers. TMA: one thread asks for a whole tile; the
// copy engine computes the addresses, writes the tile in the swizzled order that wgmma reads, and tells a
// barrier in shared memory (mbarrier) when its bytes have come.
//
// Who does what: a block of one warpgroup owns 128 x 128 of C: two halves of 64 rows. Thread 0 starts the
// copies; all wait, multiply, wait for the products.
// Shared memory: one slice of 64 k, 128 x 64 of A and of B, 32 KiB. Registers: 128 sums.
//
// The limit: a slice is 512 clocks of products. For each 16 k wgmma reads 2 x (2 + 4) KiB, 384 clocks a slice,
// and TMA writes 32 KiB, 256 clocks: 640 clocks. With one slice of room nothing overlaps within a block; three
// blocks fit on a multiprocessor and fill each other's gaps. The second-level cache must deliver 32 KiB a
// slice, and that takes the longest: see docs/kernels/matmul.md.
//
// M and N are multiples of 128, K is one of 64.

#include "common.cuh"
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

constexpr int TILE = 128, DEPTH = 64, BYTES = TILE * DEPTH * 2;

// Rows of 128 bytes in groups of 8, as TMA writes them with its swizzle of 128 bytes.
__device__ __forceinline__ uint64 describe(const unsigned char* tile) {
    return ptx::matrix_descriptor(tile, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(128)
    matmul(bf16* __restrict__ c, const __grid_constant__ ptx::TensorMap map_a,
           const __grid_constant__ ptx::TensorMap map_b, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char tile_a[];
    unsigned char* tile_b = tile_a + BYTES;
    __shared__ __align__(8) uint64 full;
    const int t = threadIdx.x, top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    if (t == 0) {
        ptx::mbarrier_init(&full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    float sums[2][TILE / 2];
    for (int slice = 0; slice < K / DEPTH; slice++) {
        if (t == 0) {
            ptx::mbarrier_arrive_expect(&full, 2 * BYTES);
            ptx::tensor_load<2>(tile_a, &map_a, &full, {slice * DEPTH, top});
            ptx::tensor_load<2>(tile_b, &map_b, &full, {slice * DEPTH, left});
        }
        __syncwarp();
        ptx::mbarrier_wait(&full, slice & 1);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16)
#pragma unroll
            for (int half = 0; half < 2; half++)  // the very first product sets the sums
                ptx::wgmma<TILE, ptx::Kind::bf16>(sums[half], describe(tile_a + half * BYTES / 2 + k * 2),
                                                  describe(tile_b + k * 2), slice + k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        __syncthreads();  // all four warps' products are done: the tiles may be overwritten
    }
    // The compiler may not read sums that it believes finished before the wait above.
#pragma unroll
    for (int half = 0; half < 2; half++) ptx::wgmma_hold(sums[half]);
    const int row = top + t / WARP * 16 + t % WARP / 4, column = left + t % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<__nv_bfloat162*>(&c[(row + half * 64 + h * 8) * N + column + j * 8]) =
                    __floats2bfloat162_rn(sums[half][j * 4 + h * 2], sums[half][j * 4 + h * 2 + 1]);
}
