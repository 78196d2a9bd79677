// Correct: prefix sums in one pass, chunks given out by a ticket, with look-back by a whole warp. State and
// value of a chunk lie in one 64-bit word (state in the upper half), written and read at once: no fence is
// needed, the word is all there is to see. Volatile accesses, as in older code.

constexpr int THREADS = 64;

extern "C" __global__ void look_back(int* y, unsigned long long* words, unsigned* tickets, const int* x, int n) {
    __shared__ int of_warps[2], chunk, before;
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    if (t == 0) chunk = atomicAdd(tickets, 1u);
    __syncthreads();
    const int here = chunk, i = here * THREADS + t;
    int value = i < n ? x[i] : 0;
    for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, value, offset);
        if (lane >= offset) value += other;
    }
    if (lane == 31) of_warps[warp] = value;
    __syncthreads();
    if (warp == 1) value += of_warps[0];
    const int sum = of_warps[0] + of_warps[1];
    volatile unsigned long long* const published = words;
    if (warp == 0) {
        const unsigned long long one = 1;
        if (lane == 0) published[here] = (here == 0 ? 2 * one : one) << 32 | (unsigned)sum;
        int prefix = 0;
        // Lane l looks at the chunk l + 1 before; 32 chunks at a time, until one knows its whole prefix.
        for (int last = here - 1; last >= 0; last -= 32) {
            unsigned long long word = 2 * one << 32;  // before the first chunk: a known prefix of zero
            if (last - lane >= 0)
                do word = published[last - lane];
                while (word >> 32 == 0);
            const unsigned known = __ballot_sync(0xffffffffu, word >> 32 == 2);
            const int wanted = known ? __ffs(known) - 1 : 31;
            int part = lane <= wanted ? (int)(unsigned)word : 0;
            for (int offset = 16; offset > 0; offset /= 2) part += __shfl_xor_sync(0xffffffffu, part, offset);
            prefix += part;
            if (known) break;
        }
        if (lane == 0) {
            published[here] = 2 * one << 32 | (unsigned)(prefix + sum);
            before = prefix;
        }
    }
    __syncthreads();
    if (i < n) y[i] = before + value;
}
