// Sums, in the stages of Harris, "Optimizing Parallel Reduction in CUDA", and what came after. Typed anew.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;

// Stage 1: interleaved addressing with a divergent branch.
extern "C" __global__ void reduce1(const float* g_idata, float* g_odata) {
    extern __shared__ float sdata[];
    unsigned int tid = threadIdx.x;
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    sdata[tid] = g_idata[i];
    __syncthreads();
    for (unsigned int s = 1; s < blockDim.x; s *= 2) {
        if (tid % (2 * s) == 0) sdata[tid] += sdata[tid + s];
        __syncthreads();
    }
    if (tid == 0) g_odata[blockIdx.x] = sdata[0];
}

// Stage 3: sequential addressing. Stage 4: first addition during the load.
extern "C" __global__ void reduce4(const float* g_idata, float* g_odata, unsigned int n) {
    extern __shared__ float sdata[];
    unsigned int tid = threadIdx.x;
    unsigned int i = blockIdx.x * (blockDim.x * 2) + threadIdx.x;
    float mine = i < n ? g_idata[i] : 0;
    if (i + blockDim.x < n) mine += g_idata[i + blockDim.x];
    sdata[tid] = mine;
    __syncthreads();
    for (unsigned int s = blockDim.x / 2; s > 0; s >>= 1) {
        if (tid < s) sdata[tid] += sdata[tid + s];
        __syncthreads();
    }
    if (tid == 0) g_odata[blockIdx.x] = sdata[0];
}

// Stage 5 as it was printed in 2007: the last warp goes on without barriers, trusting volatile and lock step.
// Since Volta that is a race.
__device__ void warp_reduce_2007(volatile float* sdata, int tid) {
    sdata[tid] += sdata[tid + 32];
    sdata[tid] += sdata[tid + 16];
    sdata[tid] += sdata[tid + 8];
    sdata[tid] += sdata[tid + 4];
    sdata[tid] += sdata[tid + 2];
    sdata[tid] += sdata[tid + 1];
}
extern "C" __global__ void reduce5_volatile(const float* g_idata, float* g_odata) {
    extern __shared__ float sdata[];
    unsigned int tid = threadIdx.x;
    unsigned int i = blockIdx.x * (blockDim.x * 2) + threadIdx.x;
    sdata[tid] = g_idata[i] + g_idata[i + blockDim.x];
    __syncthreads();
    for (unsigned int s = blockDim.x / 2; s > 32; s >>= 1) {
        if (tid < s) sdata[tid] += sdata[tid + s];
        __syncthreads();
    }
    if (tid < 32) warp_reduce_2007(sdata, tid);
    if (tid == 0) g_odata[blockIdx.x] = sdata[0];
}

// Stage 7, today's form: any type, block size as a template argument, several elements a thread, warp shuffles.
template <typename T, unsigned int blockSize>
__global__ void reduce7(const T* __restrict__ g_idata, T* g_odata, unsigned int n) {
    __shared__ T partial[blockSize / 32];
    T mine = T(0);
    for (unsigned int i = blockIdx.x * blockSize + threadIdx.x; i < n; i += blockSize * gridDim.x) mine += g_idata[i];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x < 32) {
        mine = threadIdx.x < blockSize / 32 ? partial[threadIdx.x] : T(0);
        for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_down_sync(0xffffffffu, mine, offset);
        if (threadIdx.x == 0) g_odata[blockIdx.x] = mine;
    }
}

// The threadFenceReduction sample: the last block to finish adds up the partial sums of all.
__device__ unsigned int retirement_count = 0;
extern "C" __global__ void reduce_single_pass(const float* g_idata, volatile float* partial, float* result,
                                              unsigned int n) {
    __shared__ float sdata[256];
    __shared__ bool am_last;
    float sum = 0;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) sum += g_idata[i];
    sdata[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned int s = blockDim.x / 2; s > 0; s >>= 1) {
        if (threadIdx.x < s) sdata[threadIdx.x] += sdata[threadIdx.x + s];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sdata[0];
        __threadfence();
        unsigned int ticket = atomicInc(&retirement_count, gridDim.x);
        am_last = (ticket == gridDim.x - 1);
    }
    __syncthreads();
    if (am_last) {
        __threadfence();
        float total = 0;
        for (unsigned int i = threadIdx.x; i < gridDim.x; i += blockDim.x) total += partial[i];
        sdata[threadIdx.x] = total;
        __syncthreads();
        for (unsigned int s = blockDim.x / 2; s > 0; s >>= 1) {
            if (threadIdx.x < s) sdata[threadIdx.x] += sdata[threadIdx.x + s];
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            *result = sdata[0];
            retirement_count = 0;
        }
    }
}

// Cooperative groups, as in the programming guide: tiles reduce, one atomic a tile.
extern "C" __global__ void reduce_tiles(const int* data, int* total, int n) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> tile = cg::tiled_partition<32>(block);
    int mine = 0;
    for (int i = block.group_index().x * block.size() + block.thread_rank(); i < n; i += gridDim.x * block.size())
        mine += data[i];
    mine = cg::reduce(tile, mine, cg::plus<int>());
    if (tile.thread_rank() == 0) atomicAdd(total, mine);
}

// Cooperative launch: a barrier of the whole grid between the passes.
extern "C" __global__ void reduce_grid_sync(const double* data, double* partial, double* result, int n) {
    cg::grid_group grid = cg::this_grid();
    cg::thread_block block = cg::this_thread_block();
    extern __shared__ double shared[];
    double sum = 0;
    for (unsigned long long i = grid.thread_rank(); i < n; i += grid.size()) sum += data[i];
    shared[block.thread_rank()] = sum;
    cg::sync(block);
    for (int active = block.size() / 2; active > 0; active /= 2) {
        if (block.thread_rank() < active) shared[block.thread_rank()] += shared[block.thread_rank() + active];
        cg::sync(block);
    }
    if (block.thread_rank() == 0) partial[blockIdx.x] = shared[0];
    grid.sync();
    if (grid.thread_rank() == 0) {
        double total = 0;
        for (int b = 0; b < gridDim.x; b++) total += partial[b];
        *result = total;
    }
}

// Before compute capability 6.0, and still copied everywhere: atomicAdd on double by compare-and-swap.
__device__ double atomicAddDouble(double* address, double val) {
    unsigned long long int* address_as_ull = (unsigned long long int*)address;
    unsigned long long int old = *address_as_ull, assumed;
    do {
        assumed = old;
        old = atomicCAS(address_as_ull, assumed, __double_as_longlong(val + __longlong_as_double(assumed)));
    } while (assumed != old);
    return __longlong_as_double(old);
}
extern "C" __global__ void dot_cas(const double* a, const double* b, double* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAddDouble(out, a[i] * b[i]);
}

// Block-wide maximum and its index by comparing packed 64-bit keys.
extern "C" __global__ void argmax(const float* x, unsigned long long* best, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned int bits = __float_as_uint(x[i]);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    atomicMax(best, (unsigned long long)bits << 32 | (unsigned int)(~i));
}
