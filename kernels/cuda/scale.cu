// scale.cu - an array times a number, in place or into another type: what a gradient that is there already needs.
//
//   scaled   out[i] = c x[i], or with ADD out[i] += c x[i]
//
// c is read on the device from `factor`, so that nobody waits for it, or is `constant` where that is null. X and
// Y are one type, or float and a 16-bit type; the product is made in float (double for double) and rounded once.
// Who does what: as in elementwise.cuh, a block owns a tile of blockDim.x * UNROLL packs. A pack has as many
// elements as 16 bytes hold of the wider type, 8 bytes of the narrower: so a warp's access is one piece of memory
// without gaps in both, and UNROLL loads of each array are under way before the first is used.
// Shared memory: none. The limit: 1 or 2 operations for the bytes of an element, memory on every GPU: 4 to scale
// 16-bit numbers, 6 from float to 16 bits, 10 to add 16-bit numbers to a float total and 6 to begin one with them.
// Assumes: nothing of the length; out is x or shares no memory with it. VECTOR only if the pointers are multiples
// of 16 bytes, or, where X is Y, at one distance from them: packs then begin at the first multiple.
#include "store.cuh"

template <typename X, typename Y, bool ADD, bool VECTOR>
__global__ void __launch_bounds__(256)
scaled(const X* x, const Accumulator<X>* factor, Accumulator<X> constant, Y* out, int64 n) {
    typedef Accumulator<X> A;
    constexpr int WIDEST = sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y);
    constexpr int WIDTH = VECTOR ? 16 / WIDEST : 1, EACH = WIDEST == 8 ? 2 : 4;
    int64 head = 0;  // elements before the first pack
    if (VECTOR) head = (16 - (reinterpret_cast<uint64>(out) & 15)) % 16 / sizeof(Y);
    if (head > n) head = n;
    const int64 packs = (n - head) / WIDTH;
    const int64 first = static_cast<int64>(blockIdx.x) * blockDim.x * EACH + threadIdx.x;

    Pack<X, WIDTH> item[EACH];
    Pack<Y, WIDTH> total[EACH];
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) {
            item[u] = load_pack<X, WIDTH>(x + head + p * WIDTH);
            if constexpr (ADD) total[u] = load_pack<Y, WIDTH>(out + head + p * WIDTH);
        }
    }
    const A c = factor != nullptr ? *factor : constant;
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A value = c * widen(item[u].item[e]);
                if constexpr (ADD) value += widen(total[u].item[e]);
                total[u].item[e] = narrow<Y>(value);
            }
            store_at_once(out + head + p * WIDTH, total[u]);
        }
    }
    const int64 edge = threadIdx.x < head ? threadIdx.x : packs * WIDTH + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && edge < n) {
        A value = c * widen(x[edge]);
        if constexpr (ADD) value += widen(out[edge]);
        out[edge] = narrow<Y>(value);
    }
}
