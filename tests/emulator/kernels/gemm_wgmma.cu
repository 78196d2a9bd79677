// C[rows, columns] (float32) = A[rows, depth] @ B[columns, depth]^T, bfloat16: TMA, a ring of mbarriers,
// wgmma.
//
// A block of 160 threads owns a 64 x 64 tile of C. Warp 4 produces: it fills a ring of two slots with
// slices of 64 in depth (A and B, 8 KiB each, 128-byte swizzle). Threads 0 ... 127 are the warpgroup that
// multiplies. full[s] opens when slot s has landed, empty[s] when it has been read.

#include "ptx.cuh"

constexpr int TILE = 64, DEPTH = 64, STAGES = 2;
constexpr int SLOT_BYTES = TILE * DEPTH * 2;  // of one operand

// 8-row groups of 128-byte rows follow each other.
__device__ uint64 describe(const unsigned char* operand) {
    return ptx::matrix_descriptor(operand, 16, 1024, ptx::Swizzle::bytes128);
}

extern "C" __global__ void __launch_bounds__(160)
    gemm_wgmma(float* c, const __grid_constant__ ptx::TensorMap map_a,
               const __grid_constant__ ptx::TensorMap map_b, int columns, int depth) {
    extern __shared__ __align__(1024) unsigned char slots[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, slices = depth / DEPTH;
#ifdef BUG_SLOTS_NOT_ALIGNED
    unsigned char* slots_a = slots + 64;
#else
    unsigned char* slots_a = slots;
#endif
    unsigned char* slots_b = slots + STAGES * SLOT_BYTES;
    if (t == 0) {
#ifdef BUG_ONE_BARRIER_NOT_INITIALISED
        for (int s = 0; s < STAGES - 1; s++) {
#else
        for (int s = 0; s < STAGES; s++) {
#endif
            ptx::mbarrier_init(&full[s], 1);  // FAULT: BUG_NO_BARRIER_AFTER_INIT
#ifdef BUG_EMPTY_COUNT_TOO_HIGH
            ptx::mbarrier_init(&empty[s], 2);
#else
            ptx::mbarrier_init(&empty[s], 1);  // FAULT: BUG_NO_BARRIER_AFTER_INIT
#endif
        }
        ptx::fence_mbarrier_init();
    }
#ifndef BUG_NO_BARRIER_AFTER_INIT
    __syncthreads();
#endif
    if (t >= 128) {
        if (t == 128)
            for (int slice = 0; slice < slices; slice++) {
                const int s = slice % STAGES, round = slice / STAGES;
#if defined(BUG_PRODUCER_PARITY)
                ptx::mbarrier_wait(&empty[s], round & 1);  // FAULT: BUG_PRODUCER_PARITY
#elif !defined(BUG_NO_EMPTY_WAIT)
                // The first wait passes: the phase before the first counts as complete.
                // FAULT: BUG_EXPECTS_TOO_MUCH, BUG_EMPTY_COUNT_TOO_HIGH, BUG_ONE_BARRIER_NOT_INITIALISED
                // FAULT: BUG_NO_BARRIER_AFTER_INIT
                ptx::mbarrier_wait(&empty[s], (round & 1) ^ 1);
#endif
#if defined(BUG_EXPECTS_TOO_MUCH)
                ptx::mbarrier_arrive_expect(&full[s], 2 * SLOT_BYTES + 64);
#elif defined(BUG_ARRIVES_TWICE)
                ptx::mbarrier_arrive_expect(&full[s], SLOT_BYTES);
                ptx::mbarrier_arrive_expect(&full[s], SLOT_BYTES);  // FAULT: BUG_ARRIVES_TWICE
#elif defined(BUG_EXPECTS_TOO_LITTLE)
                ptx::mbarrier_arrive_expect(&full[s], SLOT_BYTES);  // FAULT: BUG_EXPECTS_TOO_LITTLE
#else
                // FAULT: BUG_NO_EMPTY_WAIT, BUG_ONE_BARRIER_NOT_INITIALISED
                ptx::mbarrier_arrive_expect(&full[s], 2 * SLOT_BYTES);
#endif
                const int at_a[2] = {slice * DEPTH, static_cast<int>(blockIdx.y) * TILE};
                const int at_b[2] = {slice * DEPTH, static_cast<int>(blockIdx.x) * TILE};
                // FAULT: BUG_SLOTS_NOT_ALIGNED, BUG_NO_EMPTY_WAIT, BUG_RELEASED_BEFORE_WAIT
                ptx::tensor_load(slots_a + s * SLOT_BYTES, &map_a, &full[s], at_a);
                // FAULT: BUG_NO_EMPTY_WAIT, BUG_RELEASED_BEFORE_WAIT, BUG_EXPECTS_TOO_LITTLE
                // FAULT: LAUNCH_TOO_LITTLE_SHARED
                ptx::tensor_load(slots_b + s * SLOT_BYTES, &map_b, &full[s], at_b);
            }
        return;
    }
#ifdef BUG_ONE_WARP_LEAVES
    if (t >= 96) return;
#endif
    float sums[TILE / 2];
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) sums[i] = 0.f;
    for (int slice = 0; slice < slices; slice++) {
        const int s = slice % STAGES, round = slice / STAGES;
#if defined(BUG_CONSUMER_PARITY)
        ptx::mbarrier_wait(&full[s], (round & 1) ^ 1);  // FAULT: BUG_CONSUMER_PARITY
#elif !defined(BUG_NO_FULL_WAIT) && !defined(BUG_FULL_WAIT_AFTER_WGMMA)
        // FAULT: BUG_EXPECTS_TOO_MUCH, BUG_EMPTY_COUNT_TOO_HIGH, BUG_PRODUCER_PARITY
        // FAULT: BUG_ONE_BARRIER_NOT_INITIALISED, BUG_NO_BARRIER_AFTER_INIT
        ptx::mbarrier_wait(&full[s], round & 1);
#endif
#ifndef BUG_NO_WGMMA_FENCE
        ptx::wgmma_fence();  // FAULT: BUG_ONE_WARP_LEAVES
#endif
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            const uint64 a = describe(slots_a + s * SLOT_BYTES + k * 2);
            const uint64 b = describe(slots_b + s * SLOT_BYTES + k * 2);
            // FAULT: BUG_FULL_WAIT_AFTER_WGMMA, BUG_SLOT_CLEARED_IN_FLIGHT
            // FAULT: BUG_NO_FULL_WAIT, BUG_CONSUMER_PARITY, BUG_NO_WGMMA_FENCE, BUG_RELEASED_BEFORE_WAIT
            // FAULT: BUG_EXPECTS_TOO_LITTLE, BUG_NO_EMPTY_WAIT, BUG_ARRIVES_TWICE, BUG_ONE_WARP_LEAVES
            ptx::wgmma<TILE, ptx::Kind::bf16>(sums, a, b);
        }
#ifdef BUG_FULL_WAIT_AFTER_WGMMA
        ptx::mbarrier_wait(&full[s], round & 1);
#endif
        ptx::wgmma_commit();
#ifdef BUG_SLOT_CLEARED_IN_FLIGHT
        slots_a[s * SLOT_BYTES + t] = 0;  // FAULT: BUG_SLOT_CLEARED_IN_FLIGHT
#endif
#ifdef BUG_SCALED_IN_FLIGHT
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) sums[i] *= 1.f + depth;  // FAULT: BUG_SCALED_IN_FLIGHT
#endif
#if defined(BUG_RELEASED_BEFORE_WAIT)
        if (t == 0) ptx::mbarrier_arrive(&empty[s]);  // FAULT: BUG_RELEASED_BEFORE_WAIT
        ptx::wgmma_wait<0>();
#elif defined(BUG_NO_WGMMA_WAIT)
        if (slice + 1 < slices) ptx::wgmma_wait<0>();
        if (t == 0) ptx::mbarrier_arrive(&empty[s]);
#else
        ptx::wgmma_wait<0>();  // FAULT: BUG_ONE_WARP_LEAVES
        if (t == 0) ptx::mbarrier_arrive(&empty[s]);
#endif
    }
    // Fragment of the sums: row 16 warp + lane / 4 (+ 8), column 8 j + 2 (lane % 4) (+ 1).
    const int lane = t % 32, row = blockIdx.y * TILE + t / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < TILE / 8; j++) {
        float* target = c + row * columns + blockIdx.x * TILE + j * 8 + lane % 4 * 2;
        target[0] = sums[j * 4];  // FAULT: BUG_NO_WGMMA_WAIT
        target[1] = sums[j * 4 + 1];  // FAULT: BUG_NO_WGMMA_WAIT
        target[8 * columns] = sums[j * 4 + 2];  // FAULT: BUG_NO_WGMMA_WAIT
        target[8 * columns + 1] = sums[j * 4 + 3];  // FAULT: BUG_NO_WGMMA_WAIT
    }
}
