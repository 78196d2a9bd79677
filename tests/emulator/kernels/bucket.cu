// buckets[i] = a hash of keys[i] into `count` buckets, one thread a key; *fullest = the fullest bucket's
// size.
//
// The home of faults that need no second thread: integer arithmetic without a result, assertions, endless
// loops and stacks that are too small.

#ifndef __CUDACC_RTC__  // NVRTC has assert without it
#include <cassert>
#endif

#ifdef BUG_DEEP_RECURSION
// FAULT: BUG_DEEP_RECURSION
__device__ __noinline__ int depth_of(int key, volatile int* trail) {
    volatile int here[256];
    here[key & 255] = key;  // FAULT: BUG_DEEP_RECURSION
    if (key <= 0) return trail[0];
    return depth_of(key - 1, here) + here[key & 255] - key;  // FAULT: BUG_DEEP_RECURSION
}
#endif

// FAULT: BUG_BIG_LOCAL_ARRAY
extern "C" __global__ void bucket(int* buckets, int* sizes, int* fullest, const int* keys, int n, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned key = keys[i];
#ifdef BUG_SHIFT_BY_KEY
    key ^= key >> (keys[i] % 64);  // FAULT: BUG_SHIFT_BY_KEY
#else
    key ^= key >> 16;
#endif
    key *= 0x85ebca6bu;
#ifdef BUG_DIVISION_BY_ZERO
    const int bucket = static_cast<int>(key >> 1) % (count - count / 4 * 4);  // FAULT: BUG_DIVISION_BY_ZERO
#else
    const int bucket = static_cast<int>(key >> 1) % count;
#endif
#ifdef BUG_ASSERT
    assert(bucket < count / 2);  // FAULT: BUG_ASSERT
#endif
#ifdef BUG_TRAP
    if (bucket >= count / 2) __trap();  // FAULT: BUG_TRAP
#endif
#ifdef BUG_LOCAL_INDEX
    int local[8] = {};
    local[bucket] = bucket;  // FAULT: BUG_LOCAL_INDEX
    buckets[i] = local[bucket & 7];
#elif defined(BUG_BIG_LOCAL_ARRAY)
    volatile int copy[1 << 18];  // 1 MiB: more than the 512 KiB that a thread may have
    copy[bucket] = bucket;       // FAULT: BUG_BIG_LOCAL_ARRAY
    buckets[i] = copy[bucket];   // FAULT: BUG_BIG_LOCAL_ARRAY
#else
    buckets[i] = bucket;
#endif
#ifdef BUG_DEEP_RECURSION
    volatile int start[1] = {0};
    buckets[i] += depth_of(5000, start);  // FAULT: BUG_DEEP_RECURSION
#endif
#ifdef BUG_SPIN_FOREVER
    while (*const_cast<volatile int*>(&sizes[bucket]) <= n) {  // FAULT: BUG_SPIN_FOREVER
    }
#endif
    const int size = atomicAdd(&sizes[bucket], 1) + 1;
    atomicMax(fullest, size);
}
