// Correct: a ring of four blocks passes 32 values on to the right with st.async for several rounds. Each
// block has two inboxes, with a barrier each; an inbox is ready again when its owner has told the left
// neighbour so (a remote arrival). At the end a cluster barrier, since the last arrivals go to a block that
// might have left.

#include "ptx.cuh"

constexpr int COUNT = 32;

extern "C" __global__ void __cluster_dims__(4, 1, 1) store_async_ring(int* y, const int* x, int rounds) {
    __shared__ __align__(16) int inbox[2][COUNT];
    __shared__ __align__(8) uint64 arrived[2], ready[2];
    const int t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
    const int left = (rank + size - 1) % size, right = (rank + 1) % size;
    if (t == 0) {
        for (int s = 0; s < 2; s++) {
            ptx::mbarrier_init(&arrived[s], 1);
            ptx::mbarrier_init(&ready[s], COUNT);  // arrivals of the right neighbour's threads
        }
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_sync();
    int value = x[blockIdx.x * COUNT + t];
    for (int round = 0; round < rounds; round++) {
        const int s = round % 2, phase = round / 2 & 1;
        if (t == 0) ptx::mbarrier_arrive_expect(&arrived[s], sizeof(inbox[s]));
        ptx::mbarrier_wait_cluster(&ready[s], phase ^ 1);
        ptx::store_async(&inbox[s][t], value, &arrived[s], right);
        ptx::mbarrier_wait_cluster(&arrived[s], phase);
        value += inbox[s][COUNT - 1 - t];
        ptx::mbarrier_arrive_remote(&ready[s], left);
    }
    y[blockIdx.x * COUNT + t] = value;
    ptx::cluster_sync();
}
