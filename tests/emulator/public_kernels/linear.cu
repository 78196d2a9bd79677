// Element-wise work and dense linear algebra, in the styles of the CUDA programming guide and of Kirk & Hwu,
// "Programming Massively Parallel Processors". Typed anew for these tests.

extern "C" __global__ void saxpy(int n, float a, const float* __restrict__ x, float* __restrict__ y) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) y[i] = a * x[i] + y[i];
}

// Squared difference with a plain bounds check, double, size_t and unsigned mixed as people do.
extern "C" __global__ void squared_difference(const double* x, const double* y, double* z, size_t n) {
    const unsigned int i = blockDim.x * blockIdx.x + threadIdx.x;
    if (i >= n) return;
    double d = x[i] - y[i];
    z[i] = d * d;
}

#define TILE_WIDTH 16

// Kirk & Hwu, chapter "Memory architecture and data locality": tiled product with boundary checks.
extern "C" __global__ void matrix_multiply(const float* M, const float* N, float* P, int rows, int inner, int columns) {
    __shared__ float Mds[TILE_WIDTH][TILE_WIDTH];
    __shared__ float Nds[TILE_WIDTH][TILE_WIDTH];

    int bx = blockIdx.x, by = blockIdx.y;
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = by * TILE_WIDTH + ty;
    int col = bx * TILE_WIDTH + tx;

    float value = 0;
    for (int ph = 0; ph < (inner + TILE_WIDTH - 1) / TILE_WIDTH; ++ph) {
        if (row < rows && ph * TILE_WIDTH + tx < inner)
            Mds[ty][tx] = M[row * inner + ph * TILE_WIDTH + tx];
        else
            Mds[ty][tx] = 0.0f;
        if (ph * TILE_WIDTH + ty < inner && col < columns)
            Nds[ty][tx] = N[(ph * TILE_WIDTH + ty) * columns + col];
        else
            Nds[ty][tx] = 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE_WIDTH; ++k) value += Mds[ty][k] * Nds[k][tx];
        __syncthreads();
    }
    if (row < rows && col < columns) P[row * columns + col] = value;
}

// The same with the second barrier forgotten: a fast thread overwrites tiles that others still read.
extern "C" __global__ void matrix_multiply_racy(const float* M, const float* N, float* P, int n) {
    __shared__ float Mds[TILE_WIDTH][TILE_WIDTH];
    __shared__ float Nds[TILE_WIDTH][TILE_WIDTH];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * TILE_WIDTH + ty, col = blockIdx.x * TILE_WIDTH + tx;
    float value = 0;
    for (int ph = 0; ph < n / TILE_WIDTH; ++ph) {
        Mds[ty][tx] = M[row * n + ph * TILE_WIDTH + tx];
        Nds[ty][tx] = N[(ph * TILE_WIDTH + ty) * n + col];
        __syncthreads();
        for (int k = 0; k < TILE_WIDTH; ++k) value += Mds[ty][k] * Nds[k][tx];
    }
    P[row * n + col] = value;
}

#define TILE_DIM 32
#define BLOCK_ROWS 8

// Ruetsch & Micikevicius, "Optimizing Matrix Transpose in CUDA": one column of padding avoids bank conflicts.
extern "C" __global__ void transpose_no_bank_conflicts(float* out, const float* in, int width, int height) {
    __shared__ float tile[TILE_DIM][TILE_DIM + 1];
    int x = blockIdx.x * TILE_DIM + threadIdx.x;
    int y = blockIdx.y * TILE_DIM + threadIdx.y;
    for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
        if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    __syncthreads();
    x = blockIdx.y * TILE_DIM + threadIdx.x;
    y = blockIdx.x * TILE_DIM + threadIdx.y;
    for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
        if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

// Bell & Garland, "Efficient Sparse Matrix-Vector Multiplication on CUDA": one warp a row of a CSR matrix.
extern "C" __global__ void spmv_csr_vector(const int num_rows, const int* ptr, const int* indices, const float* data,
                                           const float* x, float* y) {
    int thread_id = blockDim.x * blockIdx.x + threadIdx.x;
    int warp_id = thread_id / warpSize;
    int lane = thread_id & (warpSize - 1);
    int row = warp_id;
    if (row < num_rows) {
        int row_start = ptr[row];
        int row_end = ptr[row + 1];
        float sum = 0;
        for (int jj = row_start + lane; jj < row_end; jj += warpSize) sum += data[jj] * __ldg(&x[indices[jj]]);
        for (int offset = warpSize / 2; offset > 0; offset >>= 1) sum += __shfl_down_sync(0xffffffff, sum, offset);
        if (lane == 0) y[row] = sum;
    }
}

// Register tiling with float4 loads, as in many "how to optimize GEMM" posts: a thread computes 4 x 4 outputs.
extern "C" __global__ void __launch_bounds__(64) sgemm_float4(int K, const float* __restrict__ A,
                                                              const float* __restrict__ B, float* __restrict__ C,
                                                              int N) {
    __shared__ float As[8][32];
    __shared__ __align__(16) float Bs[8][32];
    const int tid = threadIdx.x;
    const int row0 = blockIdx.y * 32, col0 = blockIdx.x * 32;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += 8) {
        // 64 threads bring 32 x 8 of A and 8 x 32 of B, four floats each.
        float4 a = *reinterpret_cast<const float4*>(&A[(row0 + tid / 2) * K + k0 + (tid % 2) * 4]);
        As[(tid % 2) * 4 + 0][tid / 2] = a.x;
        As[(tid % 2) * 4 + 1][tid / 2] = a.y;
        As[(tid % 2) * 4 + 2][tid / 2] = a.z;
        As[(tid % 2) * 4 + 3][tid / 2] = a.w;
        *reinterpret_cast<float4*>(&Bs[tid / 8][(tid % 8) * 4]) =
            *reinterpret_cast<const float4*>(&B[(k0 + tid / 8) * N + col0 + (tid % 8) * 4]);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            float4 b = *reinterpret_cast<float4*>(&Bs[k][(tid % 8) * 4]);
            const float bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] += As[k][(tid / 8) * 4 + i] * bs[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; ++i)
        *reinterpret_cast<float4*>(&C[(row0 + (tid / 8) * 4 + i) * N + col0 + (tid % 8) * 4]) =
            make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
}
