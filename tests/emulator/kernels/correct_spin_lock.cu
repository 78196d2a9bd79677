// Correct: locks. One in shared memory, taken by the threads of a block (lanes of one warp compete), one in
// global memory between blocks; ordinary data under each. The lock is taken, fence, work, fence, the lock
// is given back.

extern "C" __global__ void spin_lock(int* y, int* global_data, int* global_lock, const int* x) {
    __shared__ int lock, sum, count;
    const int t = threadIdx.x;
    if (t == 0) lock = sum = count = 0;
    __syncthreads();
    bool done = false;
    while (!done) {
        if (atomicCAS(&lock, 0, 1) == 0) {
            __threadfence_block();
            sum += x[blockIdx.x * blockDim.x + t];
            count++;
            __threadfence_block();
            atomicExch(&lock, 0);
            done = true;
        }
    }
    __syncthreads();
    y[blockIdx.x * blockDim.x + t] = sum + count;
    if (t == 0) {
        while (atomicCAS(global_lock, 0, 1) != 0) __nanosleep(50);
        __threadfence();
        global_data[0] += sum;
        if (global_data[1] < sum) global_data[1] = sum;
        __threadfence();
        atomicExch(global_lock, 0);
    }
}
