// pooling.cu - the largest or the mean of each window of images (N, D, H, W, C), and the gradients.
//
//   max_pool_forward    y[n, o, c] = max of x[n, i, c] over the window of o, and indices[n, o, c] = that i
//   max_pool_backward   out[n, i, c] = sum of grad[n, o, c] over windows o that hold i and have indices = i
//   avg_pool_forward    y[n, o, c] = (sum of x[n, i, c] over the window of o) / d(o)
//   avg_pool_backward   out[n, i, c] = sum of grad[n, o, c] / d(o) over windows o that hold i
//
// Windows: o stride - padding + t dilation for t < kernel, cut at the image; or, adaptive, floor(o size / count) up
// to ceil((o + 1) size / count). d is the window's size, with or without its padding, or a given number.
// Who does what: an item is WIDTH neighbouring channels (16 bytes, or one) of one pixel of the result, one thread
// each; a warp's items are neighbours, so its accesses are whole pieces of memory. A thread asks for AHEAD places of
// the window before it looks at the first. Where windows are large and few, `team` neighbouring threads of a warp
// share one: thread r takes places r, r + team, …, and shuffles join what they found. Gradients are gathered, each
// pixel from the windows over it, in one order: nothing is added atomically.
// Shared memory: none. The limit: memory. Each pixel is read once from it, and again from the cache where windows
// overlap; for 2x2 windows in 16 bits the forward moves 4 x 2 + 2 + 4 bytes (value and index) a result. The
// divisions that find a pixel are of 32 bits where they may be, and shared by the WIDTH channels.
// Assumes: packs only where a pixel is a whole number of them and all arrays begin at multiples of 16; an image has
// less than 2^31 pixels. Of equal values the first in the window counts, of NaN the last, as in PyTorch.
#include "image.cuh"

constexpr int AHEAD = 4;

struct PoolGeometry {
    int size[3], count[3];  // of the image, of the result
    int kernel[3], stride[3], padding[3], dilation[3];
    int adaptive, count_padding, team;
};

// The window of output o along dimension k: `count` pixels, `step` apart, from `start`.
struct Window {
    int start, step, count;

    __device__ __forceinline__ Window(const PoolGeometry& g, int k, int o) : step(1) {
        int end;
        if (g.adaptive) {
            start = static_cast<int>(static_cast<int64>(o) * g.size[k] / g.count[k]);
            end = static_cast<int>(((o + 1ll) * g.size[k] + g.count[k] - 1) / g.count[k]);
        } else {
            step = g.dilation[k];
            start = o * g.stride[k] - g.padding[k];
            end = start + (g.kernel[k] - 1) * step + 1;
            end = end < g.size[k] ? end : g.size[k];
            if (start < 0) start = step == 1 ? 0 : start + (step - 1 - start) / step * step;
        }
        const int reach = end - start;
        count = reach <= 0 ? 0 : step == 1 ? reach : (reach + step - 1) / step;
    }
};

// What the sum over the window of output o is divided by, along dimension k; there is no dilation.
__device__ __forceinline__ int extent(const PoolGeometry& g, int k, int o) {
    if (g.adaptive)
        return static_cast<int>(((o + 1ll) * g.size[k] + g.count[k] - 1) / g.count[k])
             - static_cast<int>(static_cast<int64>(o) * g.size[k] / g.count[k]);
    const int border = g.count_padding ? g.padding[k] : 0, limit = g.size[k] + border;
    const int first = o * g.stride[k] - g.padding[k], end = first + g.kernel[k];
    const int start = first > -border ? first : -border;
    return (end < limit ? end : limit) - start;
}

// The outputs first … last of dimension k whose windows can hold pixel i.
struct Covering {
    int first, last;

    __device__ __forceinline__ Covering(const PoolGeometry& g, int k, int i) {
        if (g.adaptive) {
            first = static_cast<int>(static_cast<int64>(i) * g.count[k] / g.size[k]);
            last = static_cast<int>(((i + 1ll) * g.count[k] - 1) / g.size[k]);
        } else {
            const int end = i + g.padding[k], low = end - (g.kernel[k] - 1) * g.dilation[k];
            first = low <= 0 ? 0 : (low + g.stride[k] - 1) / g.stride[k];
            last = end / g.stride[k];
            last = last < g.count[k] ? last : g.count[k] - 1;
        }
    }
};

__device__ __forceinline__ int64 pixels_of(const int (&size)[3]) {
    return static_cast<int64>(size[0]) * size[1] * size[2];
}

// Calls take(pixel of the image, pack) for this thread's places of the window of `at`, in order.
template <typename T, int WIDTH, typename Take>
__device__ __forceinline__ void for_window(const T* x, const PoolGeometry& g, const ImagePlace& at, int64 packs,
                                           bool active, int rank, Take take) {
    const Window wd(g, 0, at.d), wh(g, 1, at.h), ww(g, 2, at.w);
    const int total = active ? wd.count * wh.count * ww.count : 0;
    const T* image = x + (at.n * pixels_of(g.size) * packs + at.c) * WIDTH;
    int a = 0, b = 0, e = rank;  // the place: along D, H and W
    for (int t = rank; t < total;) {
        Pack<T, WIDTH> pack[AHEAD];
        int pixel[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            pixel[k] = -1;
            if (t < total) {
                while (e >= ww.count) {
                    e -= ww.count;
                    if (++b == wh.count) b = 0, a++;
                }
                pixel[k] = ((wd.start + a * wd.step) * g.size[1] + wh.start + b * wh.step) * g.size[2]
                         + ww.start + e * ww.step;
                pack[k] = load_pack<T, WIDTH>(image + static_cast<int64>(pixel[k]) * packs * WIDTH);
            }
            t += g.team, e += g.team;
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (pixel[k] >= 0) take(pixel[k], pack[k]);
    }
}

// ---- max ---------------------------------------------------------------------------------------------------

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256)
max_pool_forward(const T* x, T* y, int* indices, int64 items, int64 packs, PoolGeometry g) {
    typedef Accumulator<T> A;
    const int64 item = global_thread() >> (__ffs(g.team) - 1);
    const bool active = item < items;
    const ImagePlace at(active ? item : 0, packs, g.count);
    A best[WIDTH];
    int where[WIDTH];
#pragma unroll
    for (int v = 0; v < WIDTH; v++) best[v] = -infinity<A>(), where[v] = -1;
    for_window<T, WIDTH>(x, g, at, packs, active, threadIdx.x & (g.team - 1),
                         [&](int pixel, const Pack<T, WIDTH>& pack) {
#pragma unroll
        for (int v = 0; v < WIDTH; v++) {
            const A value = widen(pack.item[v]);
            if (where[v] < 0 || value > best[v] || value != value) best[v] = value, where[v] = pixel;
        }
    });
    for (int offset = g.team / 2; offset > 0; offset /= 2) {
#pragma unroll
        for (int v = 0; v < WIDTH; v++) {
            const A value = __shfl_xor_sync(FULL_WARP, best[v], offset);
            const int pixel = __shfl_xor_sync(FULL_WARP, where[v], offset);
            const bool nan = value != value, mine = best[v] != best[v];
            const bool better = nan ? !mine || pixel > where[v]
                                    : !mine && (where[v] < 0 || value > best[v] ||
                                                (value == best[v] && pixel < where[v]));
            if (pixel >= 0 && better) best[v] = value, where[v] = pixel;
        }
    }
    if (!active || (threadIdx.x & (g.team - 1)) != 0) return;
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(best[v]);
    store_pack(y + item * WIDTH, result);
    if (indices == nullptr) return;
    constexpr int EACH = WIDTH < 4 ? WIDTH : 4;  // of one store
#pragma unroll
    for (int first = 0; first < WIDTH; first += EACH) {
        Pack<int, EACH> some;
#pragma unroll
        for (int v = 0; v < EACH; v++) some.item[v] = where[first + v];
        store_pack(indices + item * WIDTH + first, some);
    }
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256, 3)
max_pool_backward(const T* grad, const int* indices, T* out, int64 items, int64 packs, PoolGeometry g) {
    typedef Accumulator<T> A;
    constexpr int EACH = WIDTH < 4 ? WIDTH : 4;
    const int64 item = global_thread();
    if (item >= items) return;
    const ImagePlace at(item, packs, g.size);
    const int pixel = (at.d * g.size[1] + at.h) * g.size[2] + at.w;
    const Covering ds(g, 0, at.d), hs(g, 1, at.h), ws(g, 2, at.w);
    A total[WIDTH] = {};
#pragma unroll 1
    for (int d = ds.first; d <= ds.last; d++)
#pragma unroll 1
        for (int h = hs.first; h <= hs.last; h++)
#pragma unroll 2
            for (int w = ws.first; w <= ws.last; w++) {
                const int64 o = ((at.n * g.count[0] + d) * g.count[1] + h) * g.count[2] + w;
                const int64 from = (o * packs + at.c) * WIDTH;
                const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(grad + from);
#pragma unroll
                for (int first = 0; first < WIDTH; first += EACH) {
                    const Pack<int, EACH> where = load_pack<int, EACH>(indices + from + first);
#pragma unroll
                    for (int v = 0; v < EACH; v++)
                        if (where.item[v] == pixel) total[first + v] += widen(pack.item[first + v]);
                }
            }
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(total[v]);
    store_pack(out + item * WIDTH, result);
}

// ---- mean --------------------------------------------------------------------------------------------------

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256)
avg_pool_forward(const T* x, T* y, int64 items, int64 packs, Accumulator<T> divisor, PoolGeometry g) {
    typedef Accumulator<T> A;
    const int64 item = global_thread() >> (__ffs(g.team) - 1);
    const bool active = item < items;
    const ImagePlace at(active ? item : 0, packs, g.count);
    A total[WIDTH] = {};
    for_window<T, WIDTH>(x, g, at, packs, active, threadIdx.x & (g.team - 1),
                         [&](int, const Pack<T, WIDTH>& pack) {
#pragma unroll
        for (int v = 0; v < WIDTH; v++) total[v] += widen(pack.item[v]);
    });
    for (int offset = g.team / 2; offset > 0; offset /= 2)
#pragma unroll
        for (int v = 0; v < WIDTH; v++) total[v] += __shfl_xor_sync(FULL_WARP, total[v], offset);
    if (!active || (threadIdx.x & (g.team - 1)) != 0) return;
    if (divisor == A(0)) divisor = A(extent(g, 0, at.d)) * A(extent(g, 1, at.h)) * A(extent(g, 2, at.w));
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(total[v] / divisor);
    store_pack(y + item * WIDTH, result);
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256, 3)
avg_pool_backward(const T* grad, T* out, int64 items, int64 packs, Accumulator<T> divisor, PoolGeometry g) {
    typedef Accumulator<T> A;
    const int64 item = global_thread();
    if (item >= items) return;
    const ImagePlace at(item, packs, g.size);
    const Covering ds(g, 0, at.d), hs(g, 1, at.h), ws(g, 2, at.w);
    A total[WIDTH] = {};
#pragma unroll 1
    for (int d = ds.first; d <= ds.last; d++)
#pragma unroll 1
        for (int h = hs.first; h <= hs.last; h++) {
            const A plane = divisor != A(0) ? divisor : A(extent(g, 0, d)) * A(extent(g, 1, h));
#pragma unroll 2
            for (int w = ws.first; w <= ws.last; w++) {
                const A share = A(1) / (divisor != A(0) ? divisor : plane * A(extent(g, 2, w)));
                const int64 o = ((at.n * g.count[0] + d) * g.count[1] + h) * g.count[2] + w;
                const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(grad + (o * packs + at.c) * WIDTH);
#pragma unroll
                for (int v = 0; v < WIDTH; v++) total[v] += widen(pack.item[v]) * share;
            }
        }
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(total[v]);
    store_pack(out + item * WIDTH, result);
}
