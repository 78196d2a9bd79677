// Correct: C[rows, columns] = A @ B^T with a producer warpgroup (TMA) and two multiplying warpgroups
// (wgmma), 2 to 4 slots.
//
// INSTANCES: wgmma_pipeline<2>; wgmma_pipeline<3>; wgmma_pipeline<4>
//
// A slot is given back one slice later, when wgmma_wait<1> says that its products are done. Registers move
// between the warpgroups by setmaxnreg. Only one thread of the producer works, the others leave at once.

#include "ptx.cuh"

constexpr int ROWS = 128, COLUMNS = 64, DEPTH = 64;
constexpr int BYTES_A = ROWS * DEPTH * 2, BYTES_B = COLUMNS * DEPTH * 2;

__device__ uint64 describe(const unsigned char* operand) {
    return ptx::matrix_descriptor(operand, 16, 1024, ptx::Swizzle::bytes128);
}

template <int STAGES>
__global__ void __launch_bounds__(384)
    wgmma_pipeline(float* c, const __grid_constant__ ptx::TensorMap map_a,
                   const __grid_constant__ ptx::TensorMap map_b, int columns, int depth) {
    extern __shared__ __align__(1024) unsigned char slots[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, group = t / 128, slices = depth / DEPTH;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 2);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (group == 0) {
        ptx::registers_lower<40>();
        if (t == 0) {
            ptx::prefetch_tensor_map(&map_a);
            for (int slice = 0; slice < slices; slice++) {
                const int s = slice % STAGES;
                ptx::mbarrier_wait(&empty[s], (slice / STAGES & 1) ^ 1);
                ptx::mbarrier_arrive_expect(&full[s], BYTES_A + BYTES_B);
                const int at_a[2] = {slice * DEPTH, static_cast<int>(blockIdx.y) * ROWS};
                const int at_b[2] = {slice * DEPTH, static_cast<int>(blockIdx.x) * COLUMNS};
                unsigned char* slot = slots + s * (BYTES_A + BYTES_B);
                ptx::tensor_load(slot, &map_a, &full[s], at_a);
                ptx::tensor_load(slot + BYTES_A, &map_b, &full[s], at_b);
            }
        }
        return;
    }
    ptx::registers_raise<232>();
    float sums[COLUMNS / 2];
    for (int slice = 0; slice < slices; slice++) {
        const int s = slice % STAGES;
        ptx::mbarrier_wait(&full[s], slice / STAGES & 1);
        const unsigned char* slot = slots + s * (BYTES_A + BYTES_B);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16)  // the first product sets the sums, which hold nothing yet
            ptx::wgmma<COLUMNS, ptx::Kind::bf16>(sums, describe(slot + (group - 1) * BYTES_A / 2 + k * 2),
                                                 describe(slot + BYTES_A + k * 2), slice + k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (slice > 0 && t % 128 == 0) ptx::mbarrier_arrive(&empty[(slice - 1) % STAGES]);
    }
    ptx::wgmma_wait<0>();
    const int lane = t % 32, row = blockIdx.y * ROWS + (t / 32 - 4) * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
        float* target = c + row * columns + blockIdx.x * COLUMNS + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(target) = make_float2(sums[j * 4], sums[j * 4 + 1]);
        *reinterpret_cast<float2*>(target + 8 * columns) = make_float2(sums[j * 4 + 2], sums[j * 4 + 3]);
    }
}
