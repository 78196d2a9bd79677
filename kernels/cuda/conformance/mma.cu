// mma.cu - conformance kernels of ptx_tensor_core.cuh, one warp each. Operands are rows of 32 bytes: A's 16
// rows, B's 8 columns; d (16 x 8) += A B.
#include "ptx.cuh"

template <ptx::Kind K> __global__ void multiply(const uint32* a, const uint32* b, float* d) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32 fragment_a[4], fragment_b[2];
    float sum[4];
    for (int i = 0; i < 4; i++) fragment_a[i] = a[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)];
    for (int i = 0; i < 2; i++) fragment_b[i] = b[g * 8 + t + 4 * i];
    for (int i = 0; i < 4; i++) sum[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    ptx::mma<K>(sum, fragment_a, fragment_b);
    for (int i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

__global__ void multiply_s8(const uint32* a, const uint32* b, int* d) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32 fragment_a[4], fragment_b[2];
    int sum[4];
    for (int i = 0; i < 4; i++) fragment_a[i] = a[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)];
    for (int i = 0; i < 2; i++) fragment_b[i] = b[g * 8 + t + 4 * i];
    for (int i = 0; i < 4; i++) sum[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    ptx::mma_s8(sum, fragment_a, fragment_b);
    for (int i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

// a: 8 rows of 4, b: 8 columns of 4, d: 8 x 8.
__global__ void multiply_f64(const double* a, const double* b, double* d) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    double sum[2] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1]};
    ptx::mma_f64(sum, a[g * 4 + t], b[g * 4 + t]);
    d[g * 8 + 2 * t] = sum[0];
    d[g * 8 + 2 * t + 1] = sum[1];
}
