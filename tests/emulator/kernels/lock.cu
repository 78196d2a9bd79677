// Each thread adds its value to a sum and a count that belong together, under a lock; all threads of all
// blocks. state[0] is the sum, state[1] the count.

extern "C" __global__ void locked_add(int* state, int* lock, const int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    bool done = false;
    while (!done) {
#ifdef BUG_NO_LOCK
        {
#else
        if (atomicCAS(lock, 0, 1) == 0) {  // FAULT: BUG_NEVER_UNLOCKED
#endif
            __threadfence();
            state[0] += x[i];  // FAULT: BUG_NO_LOCK, BUG_UNLOCKED_WITHOUT_FENCE
            state[1] += 1;     // FAULT: BUG_NO_LOCK, BUG_UNLOCKED_WITHOUT_FENCE
#ifndef BUG_UNLOCKED_WITHOUT_FENCE
            __threadfence();
#endif
#ifndef BUG_NEVER_UNLOCKED
            atomicExch(lock, 0);
#endif
            done = true;
        }
    }
}
