// y = inclusive prefix sum of x (int32), by one block of 128 threads that walks over chunks of 128
// elements.
//
// Within a chunk: log2(128) steps between two buffers in shared memory. `carry` holds the sum of all
// earlier chunks; at the end it goes to *total.

constexpr int THREADS = 128;

extern "C" __global__ void scan(int* y, int* total, const int* x, int n) {
    __shared__ int buffer[2][THREADS];
    __shared__ int carry;
    const int t = threadIdx.x;
    if (t == 0) carry = 0;
#ifdef BUG_BARRIER_IN_UNEVEN_LOOP
    for (int start = 0; start + t < n; start += THREADS) {
#else
    for (int start = 0; start < n; start += THREADS) {
#endif
        buffer[0][t] = start + t < n ? x[start + t] : 0;
        __syncthreads();  // FAULT: BUG_BARRIER_IN_UNEVEN_LOOP
        int from = 0;
        for (int offset = 1; offset < THREADS; offset *= 2) {
#ifdef BUG_ONE_BUFFER
            if (t >= offset) buffer[0][t] += buffer[0][t - offset];  // FAULT: BUG_ONE_BUFFER
#else
            buffer[1 - from][t] = buffer[from][t] + (t >= offset ? buffer[from][t - offset] : 0);
            from = 1 - from;
#endif
            __syncthreads();  // FAULT: BUG_BARRIER_IN_UNEVEN_LOOP
        }
        const int sum = buffer[from][t] + carry;  // FAULT: BUG_NO_BARRIER_BEFORE_CARRY
        if (start + t < n) y[start + t] = sum;
#ifndef BUG_NO_BARRIER_BEFORE_CARRY
        __syncthreads();  // FAULT: BUG_BARRIER_IN_UNEVEN_LOOP
#endif
        if (t == THREADS - 1) carry = sum;  // FAULT: BUG_NO_BARRIER_BEFORE_CARRY
    }
    __syncthreads();  // FAULT: BUG_BARRIER_IN_UNEVEN_LOOP
    if (t == 0) *total = carry;
}
