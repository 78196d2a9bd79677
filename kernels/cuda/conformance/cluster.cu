// cluster.cu - conformance kernels of ptx_cluster.cuh and of mbarriers across a cluster.
#include "ptx.cuh"

// Clusters of 4 blocks of 32 threads: each thread reads its neighbour block's number.
__global__ void __cluster_dims__(4, 1, 1) neighbours(int* out) {
    __shared__ int value[32];
    const int lane = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
    value[lane] = 1000 * blockIdx.x + lane;
    ptx::cluster_sync();
    const int* there = ptx::map_shared(value, (rank + 1) % size);
    out[blockIdx.x * 32 + lane] = there[31 - lane] + 100000 * rank + 10000000 * size;
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// Clusters of 2: each block writes into the other's shared memory and arrives at its barrier.
__global__ void __cluster_dims__(2, 1, 1) remote_arrivals(int* out) {
    __shared__ int value[32];
    __shared__ uint64 barrier;
    const int lane = threadIdx.x, rank = ptx::cluster_rank();
    if (lane == 0) {
        ptx::mbarrier_init(&barrier, 32);
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_sync();
    ptx::map_shared(value, rank ^ 1)[lane] = 100 * rank + lane;
    ptx::mbarrier_arrive_remote(&barrier, rank ^ 1);
    ptx::mbarrier_wait_cluster(&barrier, 0);
    out[rank * 32 + lane] = value[31 - lane];
    ptx::cluster_sync();
}

// Clusters of 2: each block waits for the other's 32 lanes, which have nothing to hand over.
__global__ void __cluster_dims__(2, 1, 1) remote_releases(int* out) {
    __shared__ uint64 barrier;
    const int lane = threadIdx.x, rank = ptx::cluster_rank();
    if (lane == 0) {
        ptx::mbarrier_init(&barrier, 32);
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_meet();
    ptx::mbarrier_release_remote(&barrier, rank ^ 1);
    ptx::mbarrier_wait(&barrier, 0);
    out[rank * 32 + lane] = 10 * rank + lane;
    ptx::cluster_meet();
}

// Clusters of 2: each thread sends one number to the other block. T: 4 or 8 bytes.
template <typename T> __global__ void __cluster_dims__(2, 1, 1) remote_stores(const T* source, T* out) {
    __shared__ T value[32];
    __shared__ uint64 barrier;
    const int lane = threadIdx.x, rank = ptx::cluster_rank();
    if (lane == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&barrier, 32 * sizeof(T));
    }
    ptx::cluster_sync();
    ptx::store_async(&value[lane], source[rank * 32 + lane], &barrier, rank ^ 1);
    ptx::mbarrier_wait(&barrier, 0);
    out[rank * 32 + lane] = value[31 - lane];
    ptx::cluster_sync();
}
