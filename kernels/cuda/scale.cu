// scale.cu - an array times a number, in place or into another type: what a gradient that is there already needs.
//
//   scaled         out[i] = c x[i], or with ADD out[i] += c x[i]
//   scaled_parts   the same with c = 1 for parts of x and out, those of a table
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

// Parts of two arrays, in the order in which they lie; `tile` is the first block of each, 0 for the first.
constexpr int PARTS = 64, PART_TILE = 4096;
struct Parts {
    int64 start[PARTS], stop[PARTS];
    int tile[PARTS];
};

// out[i] = x[i] for all i in the `count` parts, or out[i] += x[i] with `add`; the rest of out stays as it is.
//
// A block owns a tile of PART_TILE elements of one part, which it finds in the table: 6 steps in constant memory,
// the same for all threads. The table comes by value: nothing has to be brought to the GPU before, also not in a
// captured step. `vector`: all parts begin at multiples of 16 bytes in out.
template <typename X>
__global__ void __launch_bounds__(256)
scaled_parts(
    const X* x, Accumulator<X>* out, const __grid_constant__ Parts parts, int count, bool add, bool vector) {
    typedef Accumulator<X> A;
    constexpr int WIDTH = PACK<A>, EACH = PART_TILE / (WIDTH * 256);
    const int tile = static_cast<int>(blockIdx.x);
    int part = 0;
    for (int end = count; end - part > 1;) {
        const int middle = (part + end) / 2;
        if (parts.tile[middle] <= tile)
            part = middle;
        else
            end = middle;
    }
    const int64 start = parts.start[part] + static_cast<int64>(tile - parts.tile[part]) * PART_TILE;
    const int64 left = parts.stop[part] - start;
    const int size = static_cast<int>(left < PART_TILE ? left : PART_TILE);
    x += start;
    out += start;
    const int packs = vector ? size / WIDTH : 0;
    Pack<X, WIDTH> item[EACH];
    Pack<A, WIDTH> total[EACH];
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int p = threadIdx.x + u * 256;
        if (p < packs) {
            item[u] = load_pack<X, WIDTH>(x + p * WIDTH);
            if (add) total[u] = load_pack<A, WIDTH>(out + p * WIDTH);
        }
    }
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int p = threadIdx.x + u * 256;
        if (p < packs) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                const A value = widen(item[u].item[e]);
                total[u].item[e] = add ? total[u].item[e] + value : value;
            }
            store_at_once(out + p * WIDTH, total[u]);
        }
    }
    for (int i = packs * WIDTH + threadIdx.x; i < size; i += 256) {
        const A value = widen(x[i]);
        out[i] = add ? out[i] + value : value;
    }
}
