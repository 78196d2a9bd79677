// Correct: bulk copies. Blocks add their sums to one row of global memory with bulk_add (atomic, element by
// element, so blocks do not race); rows go from block to block of a cluster with bulk_to_peer; a bulk store
// is waited for and then read back by the same thread.

#include "ptx.cuh"

constexpr int COUNT = 64;

extern "C" __global__ void bulk_sum(float* y, const float* x, int rows) {
    __shared__ __align__(128) float sums[COUNT];
    const int t = threadIdx.x;
    float sum = 0.f;
    for (int r = blockIdx.x; r < rows; r += gridDim.x) sum += x[r * COUNT + t];
    sums[t] = sum;
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        ptx::bulk_add(y, sums, sizeof(sums));
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) bulk_peer(float* y, const float* x) {
    __shared__ __align__(128) float mine[COUNT], theirs[COUNT];
    __shared__ __align__(8) uint64 loaded, arrived;
    const int t = threadIdx.x, peer = ptx::cluster_rank() ^ 1;
    if (t == 0) {
        ptx::mbarrier_init(&loaded, 1);
        ptx::mbarrier_init(&arrived, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&loaded, sizeof(mine));
        ptx::bulk_load(mine, x + blockIdx.x * COUNT, sizeof(mine), &loaded);
        ptx::mbarrier_arrive_expect(&arrived, sizeof(theirs));
    }
    ptx::cluster_sync();
    ptx::mbarrier_wait(&loaded, 0);
    if (t == 0) ptx::bulk_to_peer(theirs, mine, sizeof(mine), &arrived, peer);  // async to async: no fence
    ptx::mbarrier_wait_cluster(&arrived, 0);
    y[blockIdx.x * COUNT + t] = mine[t] + 2.f * theirs[COUNT - 1 - t];
    ptx::cluster_sync();  // `mine` stays until the peer has all of it
}

extern "C" __global__ void bulk_read_back(float* y, float* copy, const float* x) {
    __shared__ __align__(128) float row[COUNT];
    const int t = threadIdx.x, start = blockIdx.x * COUNT;
    row[t] = 2.f * x[start + t];
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        ptx::bulk_store(copy + start, row, sizeof(row));
        ptx::bulk_commit();
        ptx::bulk_wait<0>();  // written, not only read
        for (int k = 0; k < COUNT; k++) y[start + k] = copy[start + COUNT - 1 - k];
    }
}
