// y = 1 + sum of the rows of x: each block adds up its rows and adds the sum to y with one bulk_add, which
// is atomic. The block that begins (by a ticket) adds the 1. All of the block's memory, the mbarrier too,
// is dynamic.

#include "ptx.cuh"

constexpr int COUNT = 64;

extern "C" __global__ void bulk_sum(float* y, unsigned* tickets, const float* x, int rows) {
    extern __shared__ __align__(128) unsigned char memory[];
    float* row = reinterpret_cast<float*>(memory);
    float* sums = row + COUNT;
#ifdef BUG_BARRIER_OVERWRITTEN
    uint64* landed = reinterpret_cast<uint64*>(row + COUNT - 2);
#else
    uint64* landed = reinterpret_cast<uint64*>(sums + COUNT);
#endif
    int* ticket = reinterpret_cast<int*>(sums + COUNT + 2);
    const int t = threadIdx.x;
    if (t == 0) {
        ptx::mbarrier_init(landed, 1);  // FAULT: BUG_INITIALISED_EACH_ROUND
        ptx::fence_mbarrier_init();
        *ticket = atomicAdd(tickets, 1u);
    }
    __syncthreads();
    float sum = *ticket == 0 ? 1.f : 0.f;
#ifdef BUG_PLAIN_START
    if (*ticket == 0) y[t] += sum, sum = 0.f;  // FAULT: BUG_PLAIN_START
#endif
    int round = 0;
    for (int r = blockIdx.x; r < rows; r += gridDim.x, round++) {
        if (t == 0) {
#ifdef BUG_INITIALISED_EACH_ROUND
            ptx::mbarrier_init(landed, 1);  // FAULT: BUG_INITIALISED_EACH_ROUND
            ptx::fence_mbarrier_init();
#endif
            ptx::mbarrier_arrive_expect(landed, COUNT * 4);  // FAULT: BUG_BARRIER_OVERWRITTEN
            ptx::bulk_load(row, x + r * COUNT, COUNT * 4, landed);  // FAULT: BUG_BARRIER_OVERWRITTEN
        }
        ptx::mbarrier_wait(landed, round & 1);  // FAULT: BUG_BARRIER_OVERWRITTEN, BUG_INITIALISED_EACH_ROUND
        sum += row[t];  // FAULT: BUG_INITIALISED_EACH_ROUND
        __syncthreads();
    }
    sums[t] = sum;
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        ptx::bulk_add(y, sums, COUNT * 4);  // FAULT: BUG_PLAIN_START
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}
