// barrier.cu - conformance kernels of ptx_barrier.cuh.
#include "ptx.cuh"

// 128 threads: the first two warps write, the last two read behind named barrier 1, and the other way round
// behind barrier 2.
__global__ void named_barriers(int* out) {
    __shared__ int line[64], back[64];
    const int thread = threadIdx.x;
    if (thread < 64) {
        line[thread] = 5 * thread;
        ptx::barrier_arrive(1, 128);
        ptx::barrier_sync(2, 128);
        out[thread] = back[63 - thread];
    } else {
        ptx::barrier_sync(1, 128);
        back[thread - 64] = line[127 - thread] + 1;
        ptx::barrier_arrive(2, 128);
    }
}

// 64 threads through 4 phases of two barriers. out[phase][thread] is the neighbour's number; tests[phase]
// says whether this phase was complete and the next was not.
__global__ void phases(int* out, int* tests) {
    __shared__ uint64 written, read;
    __shared__ int line[64];
    const int thread = threadIdx.x;
    if (thread == 0) {
        ptx::mbarrier_init(&written, 64);
        ptx::mbarrier_init(&read, 64);
    }
    __syncthreads();
    for (int phase = 0; phase < 4; phase++) {
        line[thread] = 100 * phase + thread;
        ptx::mbarrier_arrive(&written);
        ptx::mbarrier_wait(&written, phase & 1);
        if (thread == 0)
            tests[phase] = (ptx::mbarrier_test(&written, phase & 1) ? 1 : 0) +
                           (ptx::mbarrier_test(&written, (phase & 1) ^ 1) ? 2 : 0);
        out[phase * 64 + thread] = line[(thread + 1) % 64];
        ptx::mbarrier_arrive(&read);
        ptx::mbarrier_wait(&read, phase & 1);
    }
    __syncthreads();
    if (thread == 0) {
        ptx::mbarrier_invalidate(&written);
        ptx::mbarrier_init(&written, 1);
        line[0] = -1;
        ptx::mbarrier_arrive(&written);
    }
    __syncthreads();
    ptx::mbarrier_wait(&written, 0);
    out[4 * 64 + thread] = line[0];
}
