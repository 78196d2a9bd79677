// y[r] = reverse of x[r], plus 1: rows of float32 by bulk copies. columns is a multiple of 4.
//
// A block owns `rows` consecutive rows. Dynamic shared memory: one row in, 16 bytes to spare, one row out.
// Thread 0 starts all copies; while a row is on its way out, the next comes in.

#include "ptx.cuh"

extern "C" __global__ void bulk_rows(float* y, const float* x, int columns, int rows) {
    extern __shared__ __align__(128) float buffers[];
    __shared__ __align__(8) uint64 landed;
    float *in = buffers, *out = buffers + columns + 4;
    const int t = threadIdx.x;
    if (t == 0) {
        ptx::mbarrier_init(&landed, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    for (int r = 0; r < rows; r++) {
        const int start = (blockIdx.x * rows + r) * columns;
        if (t == 0) {
            const float* from = x + start;
            int bytes = columns * 4;
#if defined(BUG_ROW_TOO_LONG)
            bytes += 16;
#elif defined(BUG_BYTES_NOT_16)
            bytes -= 4;
#elif defined(BUG_SOURCE_NOT_ALIGNED)
            from += 2;
            bytes -= 16;
#endif
#ifdef BUG_EXPECTS_MORE_THAN_COMES
            ptx::mbarrier_arrive_expect(&landed, bytes + 16);
#else
            ptx::mbarrier_arrive_expect(&landed, bytes);
#endif
            // FAULT: BUG_ROW_TOO_LONG, BUG_BYTES_NOT_16, BUG_SOURCE_NOT_ALIGNED
            ptx::bulk_load(in, from, bytes, &landed);
        }
#ifndef BUG_NO_WAIT
        ptx::mbarrier_wait(&landed, r & 1);  // FAULT: BUG_EXPECTS_MORE_THAN_COMES
#endif
#ifndef BUG_NO_READ_WAIT
        if (t == 0) ptx::bulk_wait_read<0>();  // the row before has left `out`
#endif
        __syncthreads();
        for (int i = t; i < columns; i += blockDim.x)
            out[i] = in[columns - 1 - i] + 1.f;  // FAULT: BUG_NO_WAIT, BUG_NO_READ_WAIT
#ifndef BUG_NO_PROXY_FENCE
        ptx::fence_proxy_async();
#endif
        __syncthreads();
        if (t == 0) {
#ifdef BUG_STORED_A_ROW_FURTHER
            ptx::bulk_store(y + start + columns, out, columns * 4);  // FAULT: BUG_STORED_A_ROW_FURTHER
#else
            ptx::bulk_store(y + start, out, columns * 4);  // FAULT: BUG_NO_PROXY_FENCE, BUG_NO_WAIT_AT_EXIT
#endif
            ptx::bulk_commit();  // FAULT: BUG_NO_WAIT_AT_EXIT
        }
    }
#ifndef BUG_NO_WAIT_AT_EXIT
    if (t == 0) ptx::bulk_wait<0>();
#endif
}
