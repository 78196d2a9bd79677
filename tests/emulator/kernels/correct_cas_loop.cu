// Correct: read-modify-write by a loop of atomicCAS. It begins with an ordinary read where an atomic always
// follows (a product in shared memory), and with a volatile one where the value read may be the end of it
// (a maximum, and the best pair of value and index in 64 bits).

extern "C" __global__ void cas_loop(float* largest, float* products, unsigned long long* best, const float* x,
                                    int n) {
    __shared__ float product;
    const int t = threadIdx.x;
    if (t == 0) product = 1.f;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) {
        int old = *reinterpret_cast<volatile int*>(largest), seen;
        do {
            seen = old;
            if (__int_as_float(seen) >= x[i]) break;
            old = atomicCAS(reinterpret_cast<int*>(largest), seen, __float_as_int(x[i]));
        } while (old != seen);

        int* word = reinterpret_cast<int*>(&product);
        int before = *word, assumed;
        do {
            assumed = before;
            before = atomicCAS(word, assumed, __float_as_int(__int_as_float(assumed) * (x[i] > 0 ? 2.f : 1.f)));
        } while (assumed != before);

        // The largest value, and of equals the smallest index; x + 8 is positive, so its bits compare as it does.
        unsigned long long have = *const_cast<volatile unsigned long long*>(best);
        unsigned long long mine = static_cast<unsigned long long>(__float_as_uint(x[i] + 8.f)) << 32;
        mine |= static_cast<unsigned>(n - i);
        while (mine > have) {
            const unsigned long long now = atomicCAS(best, have, mine);
            if (now == have) break;
            have = now;
        }
    }
    __syncthreads();
    if (t == 0) products[blockIdx.x] = product;
}
