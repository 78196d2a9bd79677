// Correct: threads without work return, the others go on with block barriers: __syncthreads counts the
// threads that are still there. Whole warps leave, and some lanes of a warp; later more threads leave.

extern "C" __global__ void early_exit(int* y, const int* x, int n) {
    __shared__ int values[128], others[128];
    const int t = threadIdx.x;
    if (t >= n) return;
    values[t] = x[blockIdx.x * n + t];
    __syncthreads();
    const int sum = values[t] + 2 * values[n - 1 - t];
    if (t >= n / 2) {
        y[blockIdx.x * n + t] = sum;
        return;
    }
    others[t] = values[n - 1 - t] * sum;
    __syncthreads();
    y[blockIdx.x * n + t] = others[n / 2 - 1 - t];
}
