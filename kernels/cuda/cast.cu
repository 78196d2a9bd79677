// cast.cu - an array in another floating type: out[i] = Y(x[i]).
//
// Rounded once, to nearest even; what is too large for Y becomes infinite, NaN stays NaN, subnormal numbers are
// kept. The weights of a mixed-precision step go through here once a step, its activations and gradients where a
// float meets a 16-bit product.
// Who does what: as in elementwise.cuh, a block owns a tile of blockDim.x * EACH packs. A pack has as many
// elements as 16 bytes hold of the wider type (4 of float, 2 of double; 8 between the two 16-bit types), so that
// the wide side moves 16 bytes a thread, and a warp's access is one piece of memory without gaps on both sides;
// EACH loads are under way before the first is used. A pack is one element where an array does not start at a
// multiple of its pack (`vector` false): the same kernel, since that is rare and a branch is the same for all.
// Shared memory: none. The limit: memory, 6 bytes an element between float and 16 bits, for one operation.
// Assumes: nothing of the length; x and out share no memory.
#include "store.cuh"

// double has two roundings to go to 16 bits if it goes through float. Rounded to odd on its first way (cut off,
// and the last bit set if anything was lost), float has enough bits more than the 16-bit types for the second
// rounding to be that of the exact number.
__device__ __forceinline__ float rounded_to_odd(double x) {
    const float cut = __double2float_rz(x);
    return static_cast<double>(cut) == x ? cut : __int_as_float(__float_as_int(cut) | 1);
}

template <typename Y, typename X> __device__ __forceinline__ Y converted(X x) {
    if constexpr (sizeof(X) == sizeof(double) && sizeof(Y) == 2)
        return narrow<Y>(rounded_to_odd(x));
    else if constexpr (sizeof(X) == sizeof(double) || sizeof(Y) == sizeof(double))
        return static_cast<Y>(widen(x));
    else
        return narrow<Y>(widen(x));
}

template <typename X, typename Y, int WIDTH, int EACH>
__device__ __forceinline__ void cast_packs(const X* x, Y* out, int64 packs) {
    const int64 first = static_cast<int64>(blockIdx.x) * blockDim.x * EACH + threadIdx.x;
    Pack<X, WIDTH> item[EACH];
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) item[u] = load_pack<X, WIDTH>(x + p * WIDTH);
    }
#pragma unroll
    for (int u = 0; u < EACH; u++) {
        const int64 p = first + static_cast<int64>(u) * blockDim.x;
        if (p < packs) {
            Pack<Y, WIDTH> result;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) result.item[e] = converted<Y>(item[u].item[e]);
            store_at_once(out + p * WIDTH, result);
        }
    }
}

template <typename X, typename Y>
__global__ void __launch_bounds__(256) cast(const X* x, Y* out, int64 n, bool vector) {
    constexpr int WIDEST = sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y);
    constexpr int WIDTH = 16 / WIDEST, EACH = WIDEST == 8 ? 2 : 4;
    if (!vector) {
        cast_packs<X, Y, 1, EACH>(x, out, n);
        return;
    }
    const int64 packs = n / WIDTH, tail = packs * WIDTH + threadIdx.x;
    cast_packs<X, Y, WIDTH, EACH>(x, out, packs);
    if (blockIdx.x == gridDim.x - 1 && tail < n) out[tail] = converted<Y>(x[tail]);
}
