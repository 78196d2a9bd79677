// 05 - reuse in both directions. C[M, N] = A[M, K] B[K, N], float32.
//
// The idea: a thread owns 8 x 8 elements of C. At each k it reads 8 numbers of A and 8 of B and multiplies
// each with each: 64 multiply-adds for 16 numbers, where 04 had 8 for 9.
//
// Who does what: a block of 256 threads owns 128 x 128 elements of C and walks along K in slices of 8;
// thread (x, y) of 16 x 16 owns rows 8 y … 8 y + 7 and columns 8 x … 8 x + 7.
// Shared memory: 128 x 8 of A and 8 x 128 of B, 8 KiB. Registers: 64 sums.
//
// The limit: the compiler reads four numbers at once where they are neighbours, A's along k and B's along the
// columns. The lanes of a warp lie 8 numbers apart in B and in A, so that their addresses fall into the same
// few banks: a read of B takes 4 wavefronts instead of 2, one of A 2 instead of 1. That is 12 wavefronts a k in
// the time of 16 clocks of multiply-adds: enough, but with what the loads and stores of the tiles take, only just.
//
// M and N are multiples of 128, K is one of 8.

constexpr int TILE = 128, DEPTH = 8, OWN = 8, ACROSS = TILE / OWN, THREADS = ACROSS * ACROSS;

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    __shared__ float tile_a[TILE][DEPTH], tile_b[DEPTH][TILE];
    const int t = threadIdx.x, x = t % ACROSS * OWN, y = t / ACROSS * OWN;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    float sums[OWN][OWN] = {};
    for (int start = 0; start < K; start += DEPTH) {
#pragma unroll
        for (int j = 0; j < TILE * DEPTH / THREADS; j++) {
            const int i = t + j * THREADS;
            tile_a[i / DEPTH][i % DEPTH] = a[(top + i / DEPTH) * K + start + i % DEPTH];
            tile_b[i / TILE][i % TILE] = b[(start + i / TILE) * N + left + i % TILE];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float from_a[OWN], from_b[OWN];
#pragma unroll
            for (int i = 0; i < OWN; i++) from_a[i] = tile_a[y + i][k];
#pragma unroll
            for (int j = 0; j < OWN; j++) from_b[j] = tile_b[k][x + j];
#pragma unroll
            for (int i = 0; i < OWN; i++)
#pragma unroll
                for (int j = 0; j < OWN; j++) sums[i][j] += from_a[i] * from_b[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++) c[(top + y + i) * N + left + x + j] = sums[i][j];
}
