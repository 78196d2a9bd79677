// 01 - the definition. C[M, N] = A[M, K] B[K, N], float32, all three with contiguous rows.
//
// The idea: a thread computes one element, c = sum over k of A[row][k] B[k][column].
//
// Who does what: a block of 32 x 32 threads owns 32 x 32 elements of C. threadIdx.x counts rows, as a
// mathematician would write it: the 32 lanes of a warp own one column of 32 rows.
//
// The limit: at each k the lanes of a warp read A in 32 different rows, K numbers apart: 32 cache lines
// for 32 numbers, and the load path serves one line a clock. B costs one line more (all lanes read the
// same number). 33 clocks of loading for 32 multiply-adds, of which the chip could do 128 in one clock.
//
// M and N are multiples of 32.

extern "C" __global__ void __launch_bounds__(1024)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    const int row = blockIdx.y * 32 + threadIdx.x, column = blockIdx.x * 32 + threadIdx.y;
    float sum = 0.f;
    for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + column];
    c[row * N + column] = sum;
}
