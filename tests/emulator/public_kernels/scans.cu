// Prefix sums, compaction and sorting. After Blelloch and after Harris, Sengupta & Owens, "Parallel Prefix Sum (Scan)
// with CUDA"; after Adinets' post on warp-aggregated atomics; after Batcher. Typed anew.

#include <cooperative_groups.h>

#define NUM_BANKS 32
#define LOG_NUM_BANKS 5
#define CONFLICT_FREE_OFFSET(n) ((n) >> LOG_NUM_BANKS)

// Blelloch's work-efficient exclusive scan of 2 * blockDim.x elements, padded against bank conflicts.
extern "C" __global__ void blelloch_scan(float* g_odata, const float* g_idata, int n) {
    extern __shared__ float temp[];
    int thid = threadIdx.x;
    int offset = 1;
    int ai = thid;
    int bi = thid + (n / 2);
    int bankOffsetA = CONFLICT_FREE_OFFSET(ai);
    int bankOffsetB = CONFLICT_FREE_OFFSET(bi);
    temp[ai + bankOffsetA] = g_idata[ai];
    temp[bi + bankOffsetB] = g_idata[bi];
    for (int d = n >> 1; d > 0; d >>= 1) {  // up-sweep
        __syncthreads();
        if (thid < d) {
            int ai = offset * (2 * thid + 1) - 1;
            int bi = offset * (2 * thid + 2) - 1;
            ai += CONFLICT_FREE_OFFSET(ai);
            bi += CONFLICT_FREE_OFFSET(bi);
            temp[bi] += temp[ai];
        }
        offset *= 2;
    }
    if (thid == 0) temp[n - 1 + CONFLICT_FREE_OFFSET(n - 1)] = 0;
    for (int d = 1; d < n; d *= 2) {  // down-sweep
        offset >>= 1;
        __syncthreads();
        if (thid < d) {
            int ai = offset * (2 * thid + 1) - 1;
            int bi = offset * (2 * thid + 2) - 1;
            ai += CONFLICT_FREE_OFFSET(ai);
            bi += CONFLICT_FREE_OFFSET(bi);
            float t = temp[ai];
            temp[ai] = temp[bi];
            temp[bi] += t;
        }
    }
    __syncthreads();
    g_odata[ai] = temp[ai + bankOffsetA];
    g_odata[bi] = temp[bi + bankOffsetB];
}

// Hillis & Steele's inclusive scan, double-buffered in shared memory.
extern "C" __global__ void hillis_steele_scan(int* out, const int* in, int n) {
    extern __shared__ int buffer[];
    int t = threadIdx.x, pout = 0, pin = 1;
    buffer[t] = t < n ? in[t] : 0;
    __syncthreads();
    for (int offset = 1; offset < n; offset <<= 1) {
        pout = 1 - pout;
        pin = 1 - pout;
        buffer[pout * n + t] = t >= offset ? buffer[pin * n + t] + buffer[pin * n + t - offset] : buffer[pin * n + t];
        __syncthreads();
    }
    out[t] = buffer[pout * n + t];
}

// Ordered stream compaction in one block: ballots in warps, a scan over warp counts.
extern "C" __global__ void compact_positive(const int* in, int* out, int* count, int n) {
    __shared__ int warp_offset[33];
    int base = 0;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int start = 0; start < n; start += blockDim.x) {
        int i = start + threadIdx.x;
        bool keep = i < n && in[i] > 0;
        unsigned ballot = __ballot_sync(0xffffffff, keep);
        if (lane == 0) warp_offset[warp + 1] = __popc(ballot);
        __syncthreads();
        if (threadIdx.x == 0) {
            warp_offset[0] = 0;
            for (int w = 0; w < warps; w++) warp_offset[w + 1] += warp_offset[w];
        }
        __syncthreads();
        int rank = warp_offset[warp] + __popc(ballot & ((1u << lane) - 1));
        if (keep) out[base + rank] = in[i];
        base += warp_offset[warps];
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = base;
}

// Warp-aggregated atomics: the active threads of a warp take their places with one atomicAdd.
namespace cg = cooperative_groups;
__device__ int atomicAggInc(int* ctr) {
    auto g = cg::coalesced_threads();
    int warp_res;
    if (g.thread_rank() == 0) warp_res = atomicAdd(ctr, (int)g.size());
    return g.shfl(warp_res, 0) + g.thread_rank();
}
extern "C" __global__ void filter_k(int* dst, int* nres, const int* src, int n, int threshold) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    if (src[i] > threshold) dst[atomicAggInc(nres)] = src[i];
}

// Batcher's bitonic sort in shared memory.
extern "C" __global__ void bitonic_sort_shared(unsigned int* keys) {
    extern __shared__ unsigned int shared[];
    const unsigned int tid = threadIdx.x;
    shared[tid] = keys[blockIdx.x * blockDim.x + tid];
    __syncthreads();
    for (unsigned int k = 2; k <= blockDim.x; k *= 2) {
        for (unsigned int j = k / 2; j > 0; j /= 2) {
            unsigned int ixj = tid ^ j;
            if (ixj > tid) {
                bool ascending = (tid & k) == 0;
                if ((shared[tid] > shared[ixj]) == ascending) {
                    unsigned int tmp = shared[tid];
                    shared[tid] = shared[ixj];
                    shared[ixj] = tmp;
                }
            }
            __syncthreads();
        }
    }
    keys[blockIdx.x * blockDim.x + tid] = shared[tid];
}

// Bitonic sort of one value a lane, in registers.
extern "C" __global__ void bitonic_sort_warp(float* values) {
    const int lane = threadIdx.x & 31;
    float v = values[blockIdx.x * blockDim.x + threadIdx.x];
    for (int k = 2; k <= 32; k <<= 1)
        for (int j = k >> 1; j > 0; j >>= 1) {
            float other = __shfl_xor_sync(0xffffffff, v, j);
            bool low = (lane & j) == 0, up = (lane & k) == 0;
            v = (low == up) ? fminf(v, other) : fmaxf(v, other);
        }
    values[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

// One pass of a least-significant-digit radix sort of bits: the split primitive.
extern "C" __global__ void split_by_bit(const unsigned* in, unsigned* out, int bit) {
    extern __shared__ int falses[];
    int t = threadIdx.x, n = blockDim.x;
    int e = !((in[t] >> bit) & 1);
    falses[t] = e;
    __syncthreads();
    for (int d = 1; d < n; d *= 2) {
        int add = t >= d ? falses[t - d] : 0;
        __syncthreads();
        falses[t] += add;
        __syncthreads();
    }
    int total = falses[n - 1], before = falses[t] - e;
    out[e ? before : total + t - before] = in[t];
}
