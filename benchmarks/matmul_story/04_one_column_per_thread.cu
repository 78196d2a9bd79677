// 04 - a number that was read is used several times. C[M, N] = A[M, K] B[K, N], float32.
//
// The idea: a thread owns eight rows of one column. It reads B's number once, keeps it in a register and
// uses it for eight multiply-adds.
//
// Who does what: a block of 512 threads owns 64 x 64 elements of C and walks along K in slices of 8; a
// thread owns rows 8 y … 8 y + 7 of column x. All lanes of a warp have the same rows, so A's numbers are
// handed to all of them at once.
// Shared memory: 64 x 8 of A and 8 x 64 of B, 4 KiB.
//
// The limit: a warp reads B once a k and A's eight rows four k at a time: 3 wavefronts for 8 x 32
// multiply-adds, where 03 took 1.25 for 1 x 32. The block, twice as wide and twice as high, also asks the
// second-level cache for half as much.
//
// M and N are multiples of 64, K is one of 8.

constexpr int TILE = 64, DEPTH = 8, ROWS = 8;

extern "C" __global__ void __launch_bounds__(512)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    __shared__ __align__(16) float tile_a[TILE][DEPTH];
    __shared__ float tile_b[DEPTH][TILE];
    const int t = threadIdx.x, x = t % TILE, y = t / TILE;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    float sums[ROWS] = {};
    for (int start = 0; start < K; start += DEPTH) {
        tile_a[t / DEPTH][t % DEPTH] = a[(top + t / DEPTH) * K + start + t % DEPTH];
        tile_b[y][x] = b[(start + y) * N + left + x];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const float from_b = tile_b[k][x];
#pragma unroll
            for (int i = 0; i < ROWS; i++) sums[i] += tile_a[y * ROWS + i][k] * from_b;
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) c[(top + y * ROWS + i) * N + left + x] = sums[i];
}
