// resize.cu - images (N, D, H, W, C) in another size, by the nearest pixel or by linear interpolation.
//
//   resize_forward    y[n, o, c] = sum of w(o, i) x[n, i, c] over the pixels i that o takes
//   resize_backward   out[n, i, c] = sum of w(o, i) grad[n, o, c] over the outputs o that took i
//
// Where output o looks along a dimension with step s: NEAREST o s; EXACT (o + 1/2) s; LINEAR (o + 1/2) s - 1/2, at
// least 0; CORNERS o s. The first two take the pixel there, with weight 1; the others pixel i, the whole part, with
// weight 1 - f and i + 1 with weight f, the fraction. A dimension that keeps its size takes one pixel.
// Who does what: WIDTH neighbouring channels (16 bytes, or one) of one pixel of the result a thread, neighbours by
// neighbouring threads. The backward gathers: along each dimension the outputs that took a pixel are neighbours,
// found by the inverse of the formula, moved on until they are right, and each weight is computed afresh. Always in
// one order, and nothing is added atomically.
// Shared memory: none. The limit: memory; what is read several times (2 pixels along a dimension of the forward,
// all outputs about as often in the backward) comes from the caches. Places are computed in double, in float for
// the nearest pixel, which is then PyTorch's: some double operations for 16 bytes, which GPUs for data centres
// hide and small ones feel.
// Assumes: packs only where a pixel is a whole number of them and both arrays begin at multiples of 16.
#include "image.cuh"

enum ResizeMode { NEAREST, EXACT, LINEAR, CORNERS };

struct ResizeGeometry {
    int size[3], count[3];  // of the image, of the resized one
    int taps[3];            // pixels that an output takes: 1 or 2
    int mode;
};

// What output o of dimension k takes: pixel `first`, and with weight `fraction` pixel `second`.
struct Taken {
    int first, second;
    double fraction;

    __device__ __forceinline__ Taken(const ResizeGeometry& g, int k, double step, int o) : second(-1), fraction(0) {
        const int last = g.size[k] - 1;
        if (g.mode < LINEAR) {
            const float place = floorf((static_cast<float>(o) + (g.mode == EXACT ? 0.5f : 0.0f))
                                       * static_cast<float>(step));
            first = place < last ? static_cast<int>(place) : last;
        } else if (g.taps[k] == 1) {
            first = o;
        } else {
            double place = g.mode == CORNERS ? o * step : step * (o + 0.5) - 0.5;
            if (place < 0) place = 0;
            first = place < last ? static_cast<int>(place) : last;
            second = first < last ? first + 1 : last;
            fraction = place - first < 1 ? place - first : 1;
        }
    }
};

// The first output of dimension k that takes pixel i or one behind it; `count` if none does.
__device__ __forceinline__ int reach(const ResizeGeometry& g, int k, double step, int i) {
    if (i <= 0) return 0;
    if (i >= g.size[k]) return g.count[k];
    const double shift = g.mode == LINEAR || g.mode == EXACT ? 0.5 : 0.0;
    const double guess = step > 0 ? (i + (g.mode == LINEAR ? shift : 0.0)) / step - shift : 0.0;
    int o = guess < g.count[k] ? static_cast<int>(guess) : g.count[k];
    while (o > 0 && Taken(g, k, step, o - 1).first >= i) o--;
    while (o < g.count[k] && Taken(g, k, step, o).first < i) o++;
    return o;
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256)
resize_forward(const T* x, T* y, int64 items, int64 packs, double step_d, double step_h, double step_w,
               ResizeGeometry g) {
    typedef Accumulator<T> A;
    const int64 item = global_thread();
    if (item >= items) return;
    const ImagePlace at(item, packs, g.count);
    const Taken d(g, 0, step_d, at.d), h(g, 1, step_h, at.h), w(g, 2, step_w, at.w);
    A total[WIDTH] = {};
    for (int a = 0; a < g.taps[0]; a++) {
        const int64 plane = (at.n * g.size[0] + (a ? d.second : d.first)) * g.size[1];
        Pack<T, WIDTH> pack[2][2];
#pragma unroll
        for (int b = 0; b < 2; b++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (b < g.taps[1] && e < g.taps[2]) {
                    const int64 pixel = (plane + (b ? h.second : h.first)) * g.size[2] + (e ? w.second : w.first);
                    pack[b][e] = load_pack<T, WIDTH>(x + (pixel * packs + at.c) * WIDTH);
                }
        if (g.mode < LINEAR) {  // the bits as they are
            store_pack(y + item * WIDTH, pack[0][0]);
            return;
        }
        const A outer = static_cast<A>(a ? d.fraction : 1 - d.fraction);
#pragma unroll
        for (int b = 0; b < 2; b++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (b < g.taps[1] && e < g.taps[2]) {
                    const A weight = outer * static_cast<A>(b ? h.fraction : 1 - h.fraction)
                                   * static_cast<A>(e ? w.fraction : 1 - w.fraction);
#pragma unroll
                    for (int v = 0; v < WIDTH; v++) total[v] += weight * widen(pack[b][e].item[v]);
                }
    }
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(total[v]);
    store_pack(y + item * WIDTH, result);
}

// The outputs first … last - 1 of dimension k that may take pixel i, and how much of it each takes.
struct Takers {
    int pixel, first, last, k;
    double step;

    __device__ __forceinline__ Takers(const ResizeGeometry& g, int k, double step, int i)
        : pixel(i), first(reach(g, k, step, g.taps[k] == 2 ? i - 1 : i)), last(reach(g, k, step, i + 1)), k(k),
          step(step) {}
    __device__ __forceinline__ double weight(const ResizeGeometry& g, int o) const {
        const Taken taken(g, k, step, o);
        return (taken.first == pixel ? 1 - taken.fraction : 0) + (taken.second == pixel ? taken.fraction : 0);
    }
};

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256, 4)
resize_backward(const T* grad, T* out, int64 items, int64 packs, double step_d, double step_h, double step_w,
                ResizeGeometry g) {
    typedef Accumulator<T> A;
    const int64 item = global_thread();
    if (item >= items) return;
    const ImagePlace at(item, packs, g.size);
    const Takers ds(g, 0, step_d, at.d), hs(g, 1, step_h, at.h), ws(g, 2, step_w, at.w);
    A total[WIDTH] = {};
#pragma unroll 1
    for (int d = ds.first; d < ds.last; d++) {
        const A outer = static_cast<A>(ds.weight(g, d));
#pragma unroll 1
        for (int h = hs.first; h < hs.last; h++) {
            const A line = outer * static_cast<A>(hs.weight(g, h));
            const int64 row = ((at.n * g.count[0] + d) * g.count[1] + h) * g.count[2];
#pragma unroll 2
            for (int w = ws.first; w < ws.last; w++) {
                const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(grad + ((row + w) * packs + at.c) * WIDTH);
                const A weight = line * static_cast<A>(ws.weight(g, w));
#pragma unroll
                for (int v = 0; v < WIDTH; v++) total[v] += weight * widen(pack.item[v]);
            }
        }
    }
    Pack<T, WIDTH> result;
#pragma unroll
    for (int v = 0; v < WIDTH; v++) result.item[v] = narrow<T>(total[v]);
    store_pack(out + item * WIDTH, result);
}
