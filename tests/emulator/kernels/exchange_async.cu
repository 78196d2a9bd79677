// y = x + reverse of the other half: two blocks of a cluster send each other 128 values with st.async.
//
// Each block expects 512 bytes at its own barrier before the cluster's barrier lets the peer send. No
// barrier is needed at the end: a block leaves only after all that the peer sends has arrived.

#include "ptx.cuh"

constexpr int COUNT = 128;

extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange_async(float* y, const float* x) {
    __shared__ float inbox[COUNT];
    __shared__ __align__(8) uint64 arrived;
    const int t = threadIdx.x, peer = ptx::cluster_rank() ^ 1, i = blockIdx.x * COUNT + t;
    if (t == 0) {
        ptx::mbarrier_init(&arrived, 1);  // FAULT: BUG_NO_CLUSTER_BARRIER
        ptx::fence_mbarrier_init();
#if defined(BUG_EXPECTS_TOO_MANY)
        ptx::mbarrier_arrive_expect(&arrived, sizeof(inbox) + 4);
#elif defined(BUG_EXPECTS_TOO_FEW)
        ptx::mbarrier_arrive_expect(&arrived, sizeof(inbox) - 4);
#else
        ptx::mbarrier_arrive_expect(&arrived, sizeof(inbox));
#endif
    }
#ifdef BUG_NO_CLUSTER_BARRIER
    __syncthreads();
#else
    ptx::cluster_sync();
#endif
    // FAULT: BUG_NO_CLUSTER_BARRIER, BUG_EXPECTS_TOO_FEW, BUG_NO_WAIT
    ptx::store_async(&inbox[t], x[i], &arrived, peer);
#ifndef BUG_NO_WAIT
    ptx::mbarrier_wait_cluster(&arrived, 0);  // FAULT: BUG_EXPECTS_TOO_MANY, BUG_NO_CLUSTER_BARRIER
#endif
    y[i] = x[i] + inbox[COUNT - 1 - t];  // FAULT: BUG_NO_WAIT, BUG_EXPECTS_TOO_FEW
}
