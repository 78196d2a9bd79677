// Correct in practice, and left alone: many threads, of many blocks, write one and the same value to a word
// (a flag that says "found"), without order; it is read after a barrier, or by the host.

extern "C" __global__ void same_value(int* found, int* y, const int* x, int n) {
    __shared__ bool any;
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    if (t == 0) any = false;
    __syncthreads();
    if (i < n && x[i] == 3) {
        any = true;
        *found = 1;
    }
    __syncthreads();
    if (i < n) y[i] = any ? x[i] : -x[i];
}
