// y[n - 1 - i] = x[skip + i] for i < n: a reversed copy, four elements (16 bytes) at a time.
//
// Thread t of a block moves one float4: read from x, turned round, put through shared memory (so that the
// block writes in rising order), written to y. A tail of up to three elements goes one by one. skip is a
// multiple of 4.

extern "C" __global__ void vector_reverse(float* y, const float* x, int n, int skip) {
    __shared__ __align__(16) float staged[4 * 64 + 4];
    const int t = threadIdx.x, threads = blockDim.x, block_start = blockIdx.x * threads;
#ifdef BUG_VECTORS_ROUNDED_UP
    const int vectors = (n + 3) / 4;
#else
    const int vectors = n / 4;
#endif
#ifdef BUG_SOURCE_NOT_ALIGNED
    const float* source = x + skip + 1;
#else
    const float* source = x + skip;
#endif
    const int here = min(threads, vectors - block_start);  // vectors of this block
    if (t < here) {
        // FAULT: BUG_SOURCE_NOT_ALIGNED, BUG_VECTORS_ROUNDED_UP
        const float4 v = *reinterpret_cast<const float4*>(source + 4 * (block_start + t));
        float* slot = staged + 4 * (here - 1 - t);
#ifdef BUG_SHARED_NOT_ALIGNED
        slot += 1;
#endif
        *reinterpret_cast<float4*>(slot) = make_float4(v.w, v.z, v.y, v.x);  // FAULT: BUG_SHARED_NOT_ALIGNED
    }
    __syncthreads();
    // y is only 4-byte aligned where n is no multiple of 4.
    const int target = n - 4 * (block_start + here);
    for (int k = t; k < 4 * here; k += threads) y[target + k] = staged[k];
    if (blockIdx.x == 0) {
#ifdef BUG_TAIL_TOO_LONG
        for (int i = 4 * vectors + t; i <= n; i += threads)
#else
        for (int i = 4 * vectors + t; i < n; i += threads)
#endif
            y[n - 1 - i] = source[i];  // FAULT: BUG_TAIL_TOO_LONG
    }
#ifdef BUG_CLEARS_SOURCE
    if (t < here) const_cast<float*>(source)[4 * (block_start + t)] = 0.f;  // FAULT: BUG_CLEARS_SOURCE
#endif
}
