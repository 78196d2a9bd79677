// wgmma.cu - conformance kernels of ptx_wgmma.cuh, one warpgroup each: d (64 x N) += A B over STEPS times 32
// bytes of K. The operands come as images of shared memory, byte for byte (a multiple of 1024 of them), with
// their descriptors' offsets and the step from one 32 bytes of K to the next.
#include "ptx.cuh"

__device__ void fill(unsigned char* target, const uint4* image, int bytes) {
    for (int i = threadIdx.x; i < bytes / 16; i += 128) reinterpret_cast<uint4*>(target)[i] = image[i];
}

template <int N> __device__ __forceinline__ int place_of(int i) {  // of d[i] in the 64 x N matrix
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4 + 8 * (i / 2 % 2);
    return row * N + i / 4 * 8 + lane % 4 * 2 + i % 2;
}

template <int N, ptx::Kind K, ptx::Swizzle SWIZZLE_A, ptx::Swizzle SWIZZLE_B, bool TRANSPOSE_A,
          bool TRANSPOSE_B, int STEPS>
__global__ void __launch_bounds__(128) from_shared(const uint4* image_a, const uint4* image_b,
                                                   int bytes_a, int leading_a, int stride_a, int step_a,
                                                   int bytes_b, int leading_b, int stride_b, int step_b,
                                                   float* out) {
    extern __shared__ __align__(1024) unsigned char a[];
    unsigned char* b = a + bytes_a;
    fill(a, image_a, bytes_a);
    fill(b, image_b, bytes_b);
    ptx::fence_proxy_async();
    __syncthreads();
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = out[place_of<N>(i)];
    ptx::wgmma_hold(d);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++)
        ptx::wgmma<N, K, TRANSPOSE_A, TRANSPOSE_B>(
            d,
            ptx::matrix_descriptor(a + k * step_a, leading_a, stride_a, SWIZZLE_A),
            ptx::matrix_descriptor(b + k * step_b, leading_b, stride_b, SWIZZLE_B));
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::wgmma_hold(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++) out[place_of<N>(i)] = d[i];
}

// A from registers: `a` holds 64 rows of STEPS times 32 bytes. Two groups; the first overwrites d.
template <int N, ptx::Kind K, ptx::Swizzle SWIZZLE_B, bool TRANSPOSE_B, int STEPS>
__global__ void __launch_bounds__(128) from_registers(const uint32* a, const uint4* image_b, int bytes_b,
                                                      int leading_b, int stride_b, int step_b, float* out) {
    extern __shared__ __align__(1024) unsigned char b[];
    fill(b, image_b, bytes_b);
    ptx::fence_proxy_async();
    __syncthreads();
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    uint32 fragment[STEPS][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            fragment[k][i] = a[(row + 8 * (i % 2)) * 8 * STEPS + 8 * k + lane % 4 + 4 * (i / 2)];
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = 1e30f;  // to be overwritten
    ptx::wgmma_hold(d);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        ptx::wgmma<N, K, TRANSPOSE_B>(
            d, fragment[k],
            ptx::matrix_descriptor(b + k * step_b, leading_b, stride_b, SWIZZLE_B),
            k > 0);
        ptx::wgmma_commit();
    }
    ptx::wgmma_wait<1>();
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int k = 0; k < STEPS; k++) ptx::wgmma_hold(fragment[k]);
    ptx::wgmma_hold(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++) out[place_of<N>(i)] = d[i];
}
