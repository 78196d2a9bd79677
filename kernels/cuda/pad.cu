// pad.cu - images (N, D, H, W, C) with pixels put around them or cut off, and the gradient back.
//
//   pad_forward    out[n, o, c] = x[n, source(o - before), c], or `value` outside with CONSTANT
//   pad_backward   out[n, i, c] = sum of grad[n, o, c] over all o with source(o - before) = i
//
// source, in each dimension of n pixels: CONSTANT none outside; REFLECT -i and 2(n - 1) - i; REPLICATE the edge
// pixel; CIRCULAR i + n and i - n. The backward goes the other way round: a pixel looks up the at most three places
// (REPLICATE: the run of places) where it stands, in one order, so that nothing is added atomically.
// Who does what: a row (n, d, h) is W pixels of `units`, cut into segments of 4 `threads`; a thread moves 4 units
// of one, so that a warp's accesses are neighbours and the divisions that find the row are shared by four units.
// A unit of the forward is 16 bytes, or one element, of whatever type: bits are moved. A unit of the backward is
// WIDTH elements, summed in float (double for double).
// Shared memory: none. The limit: memory; each output is written once, each input read once or, near an edge,
// again from the cache.
// Assumes: 16-byte units only where a pixel is a whole number of them and both arrays begin at multiples of 16.
// REFLECT pads by less than n, CIRCULAR by n at most; a padding below 0 cuts off.
#include "image.cuh"

enum PadMode { CONSTANT, REFLECT, REPLICATE, CIRCULAR };
constexpr int EACH = 4;  // units of a thread

struct PadGeometry {
    int64 size[3], padded[3], before[3];  // of the image, with its padding, in front of it
    int64 units;                          // of a pixel
    int64 rows, row;                      // of what is written: their number, and the units of one
    int64 segments, threads;              // of a row, of a segment (a power of two)
    int64 mode;
};

// Where the unit of this thread lies: its row (n, d, h) and the first of its EACH places in the row.
struct PadPlace {
    int64 n, d, h, first;
    bool inside;

    __device__ __forceinline__ PadPlace(const PadGeometry& g, const int64 (&written)[3]) {
        int64 item = global_thread() / static_cast<uint32>(g.threads);
        const int64 segment = split(item, g.segments);
        inside = item < g.rows;
        first = segment * g.threads * EACH + (threadIdx.x & (g.threads - 1));
        h = split(item, written[1]), d = split(item, written[0]), n = item;
    }
};

// The pixel that stands at place o of dimension k, or -1.
__device__ __forceinline__ int64 source(const PadGeometry& g, int k, int64 o) {
    const int64 n = g.size[k], i = o - g.before[k];
    if (i >= 0 && i < n) return i;
    if (g.mode == REPLICATE) return i < 0 ? 0 : n - 1;
    if (g.mode == REFLECT) return i < 0 ? -i : 2 * (n - 1) - i;
    if (g.mode == CIRCULAR) return i < 0 ? i + n : i - n;
    return -1;
}

template <typename U>
__global__ void __launch_bounds__(256)
pad_forward(const U* x, U* out, uint64 low, uint64 high, PadGeometry g) {
    const PadPlace at(g, g.padded);
    if (!at.inside) return;
    const int64 d = source(g, 0, at.d), h = source(g, 1, at.h);
    const U* line = x + ((at.n * g.size[0] + d) * g.size[1] + h) * g.size[2] * g.units;
    U* target = out + ((at.n * g.padded[0] + at.d) * g.padded[1] + at.h) * g.row;
    const uint64 pattern[2] = {low, high};
    const U value = *reinterpret_cast<const U*>(pattern);
    U unit[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const int64 j = at.first + k * g.threads;
        unit[k] = value;
        if (j < g.row && d >= 0 && h >= 0) {
            int64 pixel = j;
            const int64 c = g.units == 1 ? 0 : split(pixel, g.units);
            const int64 w = source(g, 2, pixel);
            if (w >= 0) unit[k] = line[w * g.units + c];
        }
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const int64 j = at.first + k * g.threads;
        if (j < g.row) target[j] = unit[k];
    }
}

// The places of dimension k where pixel i stands: `count` to try, some of which may be none (-1).
struct Places {
    int64 i, n, m, before, start, count, step;  // step: from one place to the next, CIRCULAR
    bool run;

    __device__ __forceinline__ Places(const PadGeometry& g, int k, int64 pixel)
        : i(pixel), n(g.size[k]), m(g.padded[k]), before(g.before[k]), step(0),
          run(g.mode == REPLICATE) {
        start = i + before;
        count = g.mode == CONSTANT ? 1 : 3;
        if (run) {
            const int64 end = i == n - 1 ? m : start + 1;
            start = i == 0 || start < 0 ? 0 : start;
            count = (end < m ? end : m) - start;  // none if below 0
        } else if (g.mode == CIRCULAR) {
            step = n;
        }
    }
    __device__ __forceinline__ int64 operator[](int64 t) const {
        if (run) return start + t;
        int64 o = start;
        if (t == 1) o = step ? start - step : i > 0 ? before - i : -1;
        if (t == 2) o = step ? start + step : i < n - 1 ? before + 2 * (n - 1) - i : -1;
        return o < m ? o : -1;
    }
};

template <typename T, int WIDTH>
__global__ void __launch_bounds__(256, 3)
pad_backward(const T* grad, T* out, PadGeometry g) {
    typedef Accumulator<T> A;
    const PadPlace at(g, g.size);
    if (!at.inside) return;
    const Places ds(g, 0, at.d), hs(g, 1, at.h);
    T* target = out + ((at.n * g.size[0] + at.d) * g.size[1] + at.h) * g.row * WIDTH;
#pragma unroll 1
    for (int k = 0; k < EACH; k++) {
        const int64 j = at.first + k * g.threads;
        if (j >= g.row) return;
        int64 pixel = j;
        const int64 c = g.units == 1 ? 0 : split(pixel, g.units);
        const Places ws(g, 2, pixel);
        A total[WIDTH] = {};
#pragma unroll 1
        for (int64 a = 0; a < ds.count; a++) {
            const int64 d = ds[a];
#pragma unroll 1
            for (int64 b = 0; d >= 0 && b < hs.count; b++) {
                const int64 h = hs[b];
                for (int64 e = 0; h >= 0 && e < ws.count; e++) {
                    const int64 w = ws[e];
                    if (w < 0) continue;
                    const int64 from = ((at.n * g.padded[0] + d) * g.padded[1] + h) * g.padded[2] + w;
                    const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(grad + (from * g.units + c) * WIDTH);
#pragma unroll
                    for (int v = 0; v < WIDTH; v++) total[v] += widen(pack.item[v]);
                }
            }
        }
        Pack<T, WIDTH> sum;
#pragma unroll
        for (int v = 0; v < WIDTH; v++) sum.item[v] = narrow<T>(total[v]);
        store_pack(target + j * WIDTH, sum);
    }
}
