// sums[warp] = sum of the warp's 32 elements of x, the last warp perhaps short.
//
// Lanes without an element must stay: a shuffle that names lanes which have returned reads an undefined
// value. The emulator hands over a poisoned value (NaN), so that the result is visibly wrong.

extern "C" __global__ void warp_sum_tail(float* sums, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BUG_LANES_RETURNED
    if (i >= n) return;
    float value = x[i];
#else
    float value = i < n ? x[i] : 0.f;
#endif
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_down_sync(0xffffffffu, value, offset);  // FAULT: BUG_LANES_RETURNED
    if (threadIdx.x % 32 == 0) sums[i / 32] = value;
}
