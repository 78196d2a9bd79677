// Correct: the block's votes as barriers. __syncthreads_count, _and and _or order shared memory as
// __syncthreads does; a loop that all threads leave at the same time, by such a vote.

extern "C" __global__ void votes(int* y, const int* x) {
    __shared__ int values[96], rounds;
    const int t = threadIdx.x;
    values[t] = x[blockIdx.x * 96 + t];
    if (t == 0) rounds = 0;
    const int positive = __syncthreads_count(values[t] > 0);
    int value = values[95 - t];
    const int all = __syncthreads_and(value > -100), any = __syncthreads_or(value == 3);
    // Sorting by odd-even exchange until nothing moves.
    for (int round = 0;; round++) {
        const int left = 2 * (t % 48) + round % 2;
        bool moved = false;
        if (t < 48 && left + 1 < 96 && values[left] > values[left + 1]) {
            const int swap = values[left];
            values[left] = values[left + 1];
            values[left + 1] = swap;
            moved = true;
        }
        if (t == 95) rounds += 1;
        if (!__syncthreads_or(moved) && round % 2 == 1) {
            const bool sorted = t == 0 || values[t - 1] <= values[t];
            if (__syncthreads_and(sorted)) break;
        }
    }
    y[blockIdx.x * 96 + t] = values[t] * 1000 + positive + 200 * all + 300 * any + (rounds > 0);
}
