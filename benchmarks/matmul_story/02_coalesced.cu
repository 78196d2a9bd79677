// 02 - neighbouring lanes read neighbouring addresses. C[M, N] = A[M, K] B[K, N], float32.
//
// The idea: threadIdx.x now counts columns. Not one instruction differs from 01, only who owns what.
//
// Who does what: a block of 32 x 32 threads owns 32 x 32 elements of C; the 32 lanes of a warp own 32
// columns of one row.
//
// The limit: at each k all lanes read the same number of A (one line, handed to all) and 32 neighbours in
// a row of B (128 bytes, one line): 2 clocks of loading for 32 multiply-adds instead of 33. The store of C
// gains in the same way.
//
// M and N are multiples of 32.

extern "C" __global__ void __launch_bounds__(1024)
    matmul(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int M, int N, int K) {
    const int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + column];
    c[row * N + column] = sum;
}
