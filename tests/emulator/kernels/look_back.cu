// y = inclusive prefix sum of x (int32) in one pass: a scan with decoupled look-back.
//
// A block takes the next chunk of 64 elements by a ticket, so that all earlier chunks are already being
// worked on. It publishes its own sum (state 1), adds up what its predecessors have published until it
// meets one whose whole prefix is known (state 2), and publishes its own prefix.

#include "ptx.cuh"

constexpr int THREADS = 64;
constexpr unsigned SUM_READY = 1, PREFIX_READY = 2;

// Whoever sees the state sees what was written before it.
__device__ void publish(unsigned* state, unsigned value) {
#ifdef BUG_FLAG_WITHOUT_RELEASE
    *const_cast<volatile unsigned*>(state) = value;
#else
    ptx::store_release(state, value);
#endif
}

extern "C" __global__ void look_back(int* y, int* sums, int* prefixes, unsigned* states, unsigned* tickets,
                                     const int* x, int n) {
    __shared__ int values[THREADS];
    __shared__ int chunk, before;
    const int t = threadIdx.x;
    if (t == 0) chunk = atomicAdd(tickets, 1u);  // FAULT: BUG_TICKET_NOT_SHARED
#ifndef BUG_TICKET_NOT_SHARED
    __syncthreads();
#endif
    const int here = chunk, i = here * THREADS + t;  // FAULT: BUG_TICKET_NOT_SHARED
    int value = i < n ? x[i] : 0;
    values[t] = value;
    __syncthreads();
    for (int offset = 1; offset < THREADS; offset *= 2) {
        const int other = t >= offset ? values[t - offset] : 0;  // FAULT: BUG_NO_BARRIER_IN_SCAN
#ifndef BUG_NO_BARRIER_IN_SCAN
        __syncthreads();
#endif
        values[t] = value += other;  // FAULT: BUG_NO_BARRIER_IN_SCAN
        __syncthreads();
    }
    if (t == 0) {
        const int sum = values[THREADS - 1];
        sums[here] = sum;  // FAULT: BUG_FLAG_WITHOUT_RELEASE
        publish(&states[here], SUM_READY);
        int prefix = 0;
        for (int k = here - 1; k >= 0; k--) {
            unsigned state;
            while ((state = ptx::load_acquire(&states[k])) == 0) __nanosleep(20);
            // FAULT: BUG_FLAG_WITHOUT_RELEASE, BUG_PREFIX_AFTER_FLAG
            prefix += state == PREFIX_READY ? prefixes[k] : sums[k];
            if (state == PREFIX_READY) break;
        }
#ifdef BUG_PREFIX_AFTER_FLAG
        publish(&states[here], PREFIX_READY);
        prefixes[here] = prefix + sum;  // FAULT: BUG_PREFIX_AFTER_FLAG
#else
        prefixes[here] = prefix + sum;  // FAULT: BUG_FLAG_WITHOUT_RELEASE
        publish(&states[here], PREFIX_READY);
#endif
        before = prefix;
    }
    __syncthreads();
    if (i < n) y[i] = before + value;
}
