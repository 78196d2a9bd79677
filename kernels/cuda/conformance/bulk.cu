// bulk.cu - conformance kernels of ptx_bulk.cuh.
#include "ptx.cuh"

// 1 KiB in by two bulk copies, one added to each word, out by two bulk copies in two groups.
__global__ void bulk_round_trip(const int* source, int* out) {
    __shared__ __align__(16) int line[256];
    __shared__ uint64 barrier;
    const int thread = threadIdx.x;  // of 128
    if (thread == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_expect(&barrier, 256);
        ptx::mbarrier_arrive_expect(&barrier, 768);
        ptx::bulk_load(line, source, 256, &barrier);
        ptx::bulk_load(line + 64, source + 64, 768, &barrier);
    }
    __syncthreads();
    ptx::mbarrier_wait(&barrier, 0);
    line[thread] += 1;
    line[128 + thread] += 1;
    ptx::fence_proxy_async();
    __syncthreads();
    if (thread == 0) {
        ptx::bulk_store(out, line, 512);
        ptx::bulk_commit();
        ptx::bulk_store(out + 128, line + 128, 512);
        ptx::bulk_commit();
        ptx::bulk_wait_read<1>();
        ptx::bulk_wait_read<0>();
        ptx::bulk_wait<0>();
    }
}

// Two blocks of 32 threads add the same 64 numbers to out.
template <typename T> __global__ void bulk_sum(const T* source, T* out) {
    __shared__ __align__(16) T line[64];
    line[threadIdx.x] = source[threadIdx.x];
    line[32 + threadIdx.x] = source[32 + threadIdx.x];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_add(out, line, 64 * sizeof(T));
        ptx::bulk_commit();
        ptx::bulk_wait<0>();
    }
}

// A cluster of 4 blocks: each loads a quarter of the source for blocks 0, 1 and 3; out[block] is what it got.
__global__ void __cluster_dims__(4, 1, 1) bulk_multicast(const int* source, int* out) {
    __shared__ __align__(16) int line[256];
    __shared__ uint64 barrier;
    const int thread = threadIdx.x, rank = ptx::cluster_rank();  // 64 threads
    for (int i = thread; i < 256; i += 64) line[i] = -1;
    ptx::fence_proxy_async();
    if (thread == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (thread == 0 && rank != 2) ptx::mbarrier_arrive_expect(&barrier, 1024);
    ptx::cluster_sync();
    if (thread == 0) ptx::bulk_load_multicast(line + 64 * rank, source + 64 * rank, 256, &barrier, 0xb);
    if (rank != 2) ptx::mbarrier_wait(&barrier, 0);
    for (int i = thread; i < 256; i += 64) out[rank * 256 + i] = line[i];
    ptx::cluster_sync();
}

// A cluster of 2: each block sends 256 bytes to the other, and tells the other's barrier what to expect.
__global__ void __cluster_dims__(2, 1, 1) bulk_exchange(const int* source, int* out) {
    __shared__ __align__(16) int mine[64], theirs[64];
    __shared__ uint64 barrier;
    const int thread = threadIdx.x, rank = ptx::cluster_rank();  // 64 threads
    mine[thread] = source[rank * 64 + thread];
    ptx::fence_proxy_async();
    if (thread == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_sync();
    if (thread == 0) {
        ptx::mbarrier_arrive_expect_remote(&barrier, 256, rank ^ 1);
        ptx::bulk_to_peer(theirs, mine, 256, &barrier, rank ^ 1);
    }
    ptx::mbarrier_wait(&barrier, 0);
    out[rank * 64 + thread] = theirs[thread];
    ptx::cluster_sync();
}
