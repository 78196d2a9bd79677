// 03 - what a block reads more than once waits in shared memory. C[M, N] = A[M, K] B[K, N], float32.
//
// The idea: the 1024 threads of a block need the same 32 rows of A and 32 columns of B. They fetch a slice
// of 32 k of both together, once, and then each reads what it needs from shared memory. In 02 the same
// reuse was left to the first-level cache, which other blocks may empty at any time.
//
// Who does what: a block owns 32 x 32 elements of C, a thread one; for each slice a thread fetches one
// element of A and one of B.
// Shared memory: a 32 x 32 tile of A and one of B, 8 KiB.
//
// The limit: from the second-level cache 8 KiB a slice. But of the load path a multiply-add takes nearly
// as much as before: B's number (one wavefront of 32 neighbours) each k and A's (one number for all lanes;
// the compiler reads four k at once) are now read from shared memory, which is the same path.
//
// M, N and K are multiples of 32.

extern "C" __global__ void __launch_bounds__(1024)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    __shared__ float tile_a[32][32], tile_b[32][32];
    const int x = threadIdx.x, y = threadIdx.y;
    const int row = blockIdx.y * 32 + y, column = blockIdx.x * 32 + x;
    float sum = 0.f;
    for (int start = 0; start < K; start += 32) {
        tile_a[y][x] = a[row * K + start + x];
        tile_b[y][x] = b[(start + y) * N + column];
        __syncthreads();  // the tiles are whole
#pragma unroll
        for (int k = 0; k < 32; k++) sum += tile_a[y][k] * tile_b[k][x];
        __syncthreads();  // all have read them: they may be overwritten
    }
    c[row * N + column] = sum;
}
