// Correct: a persistent kernel. Blocks fetch the next tile from a queue (an atomic counter) until it is
// empty; which block does what is left to chance. Rows of unequal length; results gathered in places
// reserved by atomics.

extern "C" __global__ void work_queue(int* sums, int* finished_rows, int* count, unsigned* queue,
                                      const int* starts, const int* x, int rows) {
    __shared__ int row, of_warps[2], place;
    const int t = threadIdx.x;
    while (true) {
        if (t == 0) row = atomicAdd(queue, 1u);
        __syncthreads();
        if (row >= rows) break;
        int sum = 0;
        for (int i = starts[row] + t; i < starts[row + 1]; i += blockDim.x) sum += x[i];
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (t % 32 == 0) of_warps[t / 32] = sum;
        __syncthreads();
        if (t == 0) {
            sums[row] = of_warps[0] + of_warps[1];
            place = atomicAdd(count, 1);
            finished_rows[place] = row;
        }
        __syncthreads();  // all have read `row` before it changes
    }
}
