// Correct: two warpgroups take the 64 x 64 tiles of C = A @ B^T in turn (ping-pong): while one multiplies,
// the other writes its sums out. One block walks over all tiles of a row of C.
//
// One ring serves both. The order of the mainloops is kept by two named barriers: a warpgroup waits for its
// turn, and gives the turn on, by arriving, once it has waited for all its slices. No arrival is left over
// at the end.

#include "ptx.cuh"

constexpr int TILE = 64, DEPTH = 64, STAGES = 3;
constexpr int BYTES = TILE * DEPTH * 2;

__device__ uint64 describe(const unsigned char* operand) {
    return ptx::matrix_descriptor(operand, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(288)
    ping_pong(float* c, const __grid_constant__ ptx::TensorMap map_a, const __grid_constant__ ptx::TensorMap map_b,
              int tiles, int depth) {
    extern __shared__ __align__(1024) unsigned char slots[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, slices = depth / DEPTH;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 1);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (t >= 256) {
        if (t == 256)
            for (int step = 0; step < tiles * slices; step++) {
                const int s = step % STAGES, tile = step / slices, slice = step % slices;
                ptx::mbarrier_wait(&empty[s], (step / STAGES & 1) ^ 1);
                ptx::mbarrier_arrive_expect(&full[s], 2 * BYTES);
                const int at_a[2] = {slice * DEPTH, static_cast<int>(blockIdx.x) * TILE};
                const int at_b[2] = {slice * DEPTH, tile * TILE};
                ptx::tensor_load(slots + s * 2 * BYTES, &map_a, &full[s], at_a);
                ptx::tensor_load(slots + s * 2 * BYTES + BYTES, &map_b, &full[s], at_b);
            }
        return;
    }
    const int group = t / 128, lane = t % 32, row = blockIdx.x * TILE + t % 128 / 32 * 16 + lane / 4;
    for (int tile = group; tile < tiles; tile += 2) {
        float sums[TILE / 2];
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) sums[i] = 0.f;
        if (tile > 0) ptx::barrier_sync(1 + group, 256);
        for (int slice = 0; slice < slices; slice++) {
            const int step = tile * slices + slice, s = step % STAGES;
            ptx::mbarrier_wait(&full[s], step / STAGES & 1);
            const unsigned char *a = slots + s * 2 * BYTES, *b = a + BYTES;
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < DEPTH; k += 16)
                ptx::wgmma<TILE, ptx::Kind::bf16>(sums, describe(a + k * 2), describe(b + k * 2));
            ptx::wgmma_commit();
            if (slice > 0) {
                ptx::wgmma_wait<1>();
                if (t % 128 == 0) ptx::mbarrier_arrive(&empty[(step - 1) % STAGES]);
            }
        }
        if (tile + 1 < tiles) ptx::barrier_arrive(2 - group, 256);
        ptx::wgmma_wait<0>();
        if (t % 128 == 0) ptx::mbarrier_arrive(&empty[((tile + 1) * slices - 1) % STAGES]);
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) {
            float* target = c + row * tiles * TILE + tile * TILE + j * 8 + lane % 4 * 2;
            target[0] = sums[j * 4];
            target[1] = sums[j * 4 + 1];
            target[8 * tiles * TILE] = sums[j * 4 + 2];
            target[8 * tiles * TILE + 1] = sums[j * 4 + 3];
        }
    }
}
