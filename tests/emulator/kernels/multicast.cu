// y[block] = (rank + 1) * sum of the slices of x, 64 x 64 each, x half, y float32: TMA multicast in a
// cluster of two.
//
// Both blocks need every slice, so each loads half of it and sends it to both. Warps 0 ... 3 consume;
// thread 128 produces into a ring of two slots. A slot may be filled again when the consumers of BOTH
// blocks have left it: empty[s] counts four warps of each block, which arrive at both blocks' barriers.

#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int TILE = 64, STAGES = 2, EACH = TILE * TILE / 128;
constexpr int SLOT_BYTES = TILE * TILE * 2;

extern "C" __global__ void __cluster_dims__(2, 1, 1)
    multicast(float* y, const __grid_constant__ ptx::TensorMap map_x, int slices) {
    extern __shared__ __align__(1024) __half slots[];
    __shared__ __align__(8) uint64 full[STAGES], empty[STAGES];
    const int t = threadIdx.x, rank = ptx::cluster_rank();
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);  // FAULT: BUG_NO_CLUSTER_BARRIER_AFTER_INIT
#ifdef BUG_PEER_NOT_ASKED
            ptx::mbarrier_init(&empty[s], 4);
#else
            ptx::mbarrier_init(&empty[s], 8);  // FAULT: BUG_NO_CLUSTER_BARRIER_AFTER_INIT
#endif
        }
#ifndef BUG_NO_INIT_FENCE
        ptx::fence_mbarrier_init();
#endif
    }
#ifdef BUG_NO_CLUSTER_BARRIER_AFTER_INIT
    __syncthreads();
#else
    ptx::cluster_sync();
#endif
    if (t == 128) {
        for (int slice = 0; slice < slices; slice++) {
            const int s = slice % STAGES, round = slice / STAGES;
            ptx::mbarrier_wait_cluster(&empty[s], (round & 1) ^ 1);  // FAULT: BUG_MASK_OF_ONE_BLOCK
#ifdef BUG_EXPECTS_OWN_HALF
            ptx::mbarrier_arrive_expect(&full[s], SLOT_BYTES / 2);  // FAULT: BUG_EXPECTS_OWN_HALF
#else
            ptx::mbarrier_arrive_expect(&full[s], SLOT_BYTES);
#endif
            const int at[2] = {0, slice * TILE + rank * TILE / 2};
            __half* half_slot = slots + s * TILE * TILE + rank * TILE / 2 * TILE;
#ifdef BUG_MASK_OF_ONE_BLOCK
            const uint16 mask = 1 << rank;
#else
            const uint16 mask = 3;
#endif
            // FAULT: BUG_NO_CLUSTER_BARRIER_AFTER_INIT, BUG_NO_INIT_FENCE, BUG_PEER_NOT_ASKED
            // FAULT: BUG_PEER_MAY_HAVE_EXITED, BUG_EXPECTS_OWN_HALF, BUG_NO_SYNCWARP_BEFORE_RELEASE
            ptx::tensor_load_multicast(half_slot, &map_x, &full[s], at, mask);
        }
    } else if (t < 128) {
        float sums[EACH] = {};
        for (int slice = 0; slice < slices; slice++) {
            const int s = slice % STAGES, round = slice / STAGES;
            ptx::mbarrier_wait(&full[s], round & 1);  // FAULT: BUG_MASK_OF_ONE_BLOCK
            // Row k of 128 bytes; its 16-byte pieces are swizzled, and so is what this thread adds up.
            for (int k = 0; k < EACH; k++)
                // FAULT: BUG_PEER_NOT_ASKED, BUG_EXPECTS_OWN_HALF, BUG_NO_SYNCWARP_BEFORE_RELEASE
                sums[k] += __half2float(slots[s * TILE * TILE + k * 128 + t]);
#ifndef BUG_NO_SYNCWARP_BEFORE_RELEASE
            __syncwarp();
#endif
            if (t % 32 == 0) {
                ptx::mbarrier_arrive_remote(&empty[s], rank);
#ifndef BUG_PEER_NOT_ASKED
                // FAULT: BUG_PEER_MAY_HAVE_EXITED, BUG_NO_CLUSTER_BARRIER_AFTER_INIT
                ptx::mbarrier_arrive_remote(&empty[s], rank ^ 1);
#endif
            }
        }
        for (int k = 0; k < EACH; k++) {
            const int place = k * 128 + t, row = place / TILE, piece = place % TILE / 8 ^ row % 8;
            y[blockIdx.x * TILE * TILE + row * TILE + piece * 8 + place % 8] = (rank + 1) * sums[k];
        }
    }
#ifndef BUG_PEER_MAY_HAVE_EXITED
    ptx::cluster_sync();  // the peer may still send to this block and arrive at its barriers
#endif
}
