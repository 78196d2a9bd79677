// memory.cu - conformance kernels of ptx_memory.cuh. gpunn/emulator/conformance.py says what each must give.
#include "ptx.cuh"

// One warp: N matrices from shared memory to registers, out[lane][i].
template <int N, bool TRANSPOSED> __global__ void load_matrices(const uint16* source, uint32* out) {
    __shared__ __align__(16) uint16 rows[32][8];
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; i++) rows[lane][i] = source[lane * 8 + i];
    __syncwarp();
    uint32 r[N];
    if (TRANSPOSED) ptx::load_matrix_transposed(r, rows[lane % (8 * N)]);
    else ptx::load_matrix(r, rows[lane % (8 * N)]);
    for (int i = 0; i < N; i++) out[lane * N + i] = r[i];
}

// One warp: registers source[lane][i] to N matrices in shared memory.
template <int N, bool TRANSPOSED> __global__ void store_matrices(const uint32* source, uint16* out) {
    __shared__ __align__(16) uint16 rows[8 * N][8];
    const int lane = threadIdx.x;
    uint32 r[N];
    for (int i = 0; i < N; i++) r[i] = source[lane * N + i];
    if (TRANSPOSED) ptx::store_matrix_transposed(rows[lane % (8 * N)], r);
    else ptx::store_matrix(rows[lane % (8 * N)], r);
    __syncwarp();
    for (int i = lane; i < 64 * N; i += 32) out[i] = rows[i / 8][i % 8];
}

// 64 threads copy two pieces each, in two groups; every third thread's second piece is zeros.
template <int BYTES> __global__ void copies(const unsigned char* source, unsigned char* out) {
    __shared__ __align__(16) unsigned char target[2][64][BYTES];
    const int thread = threadIdx.x;
    ptx::copy_async<BYTES>(target[0][thread], source + thread * BYTES);
    ptx::copy_async_commit();
    ptx::copy_async<BYTES>(target[1][thread], source + (64 + thread) * BYTES, thread % 3 != 2);
    ptx::copy_async_commit();
    const int other = 63 - thread;
    ptx::copy_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < BYTES; i++) out[other * BYTES + i] = target[0][other][i];
    ptx::copy_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < BYTES; i++) out[(64 + other) * BYTES + i] = target[1][other][i];
}

// 64 threads copy 16 bytes each; a barrier counts them. Each thread writes another's.
__global__ void counted_copies(const uint4* source, uint4* out) {
    __shared__ uint4 target[64];
    __shared__ uint64 barrier;
    const int thread = threadIdx.x;
    if (thread == 0) ptx::mbarrier_init(&barrier, 64);
    __syncthreads();
    ptx::copy_async<16>(&target[thread], source + thread);
    ptx::copy_async_arrive(&barrier);
    ptx::mbarrier_wait(&barrier, 0);
    out[63 - thread] = target[63 - thread];
}

// Two warps, the second reads what the first has written once a flag says so. Word: uint32 or uint64.
template <typename Word> __global__ void flags(Word* flag, int* data, int* out) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        data[lane] = 3 * lane;
        __syncwarp();
        if (lane == 0) {
            __threadfence();
            ptx::store_release(flag, static_cast<Word>(7));
        }
    } else {
        while (ptx::load_acquire(flag) != 7) __nanosleep(20);
        out[lane] = data[31 - lane];
    }
}

// The distance of two places in shared memory, and the alignment of dynamic shared memory.
__global__ void addresses(uint32* out) {
    __shared__ int here[100];
    extern __shared__ __align__(1024) unsigned char dynamic[];
    if (threadIdx.x == 0) {
        out[0] = ptx::shared_address(&here[70]) - ptx::shared_address(&here[10]);
        out[1] = ptx::shared_address(dynamic) % 1024;
        out[2] = ptx::shared_address(dynamic + 5) - ptx::shared_address(dynamic);
    }
}
