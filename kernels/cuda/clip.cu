// clip.cu - the norm of all gradients, clipping by it or by value, and gradients of L1/L2 penalties.
//
//   sum_of_squares, norm_of_partials   norm = sqrt(sum of g²), in two launches
//   clip_by_norm                       g *= min(1, max_norm / (norm + 1e-6)), norm read on the device
//   clip_by_value                      g = min(max(g, -limit), limit)
//   penalty_gradient                   g += l1 sign(w) + 2 l2 w, the gradient of l1 sum|w| + l2 sum w²
//
// The last three are elementwise (elementwise.cuh) and in place: 8 bytes a float gradient, 12 for the
// penalty. The norm reads 4 bytes for each two operations. Assumes: nothing of the length; VECTOR only
// if the pointers are at one distance from multiples of 16 bytes, that of the norm at none.
#include "elementwise.cuh"

// ---- norm ------------------------------------------------------------------------------------------------

// The squares of the floats in one thread's registers, summed. In float, except where a square
// could leave its range: then the same values again in double. The branch is hardly ever taken, and it
// keeps the whole range of float without the double instruction an element that many GPUs do at 1/64 speed.
template <typename A, int COUNT> __device__ __forceinline__ double squares(const A (&value)[COUNT]) {
    A sum = A(0), largest = A(0);
#pragma unroll
    for (int e = 0; e < COUNT; e++) {
        sum += value[e] * value[e];
        largest = maximum(largest, absolute(value[e]));
    }
    if (largest > A(1e18) || (largest > A(0) && largest < A(1e-15))) {
        double wide = 0;
#pragma unroll
        for (int e = 0; e < COUNT; e++) wide += static_cast<double>(value[e]) * value[e];
        return wide;
    }
    return sum;
}

// Stage 1: partials[b] = the sum over what block b owns. The blocks walk over the array in strides of
// the grid; in each stride a thread holds UNROLL packs (16 floats), adds their squares in float and the
// sum of these to its double: for 10^8 elements the error stays that of a float sum of 16.
// Shared memory: 32 doubles. The number of blocks does not depend on the GPU, so neither does the result.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256) sum_of_squares(const T* x, int64 n, double* partials) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = VECTOR ? PACK<T> : 1;
    __shared__ double scratch[WARP];
    const int64 packs = n / WIDTH, tile = static_cast<int64>(blockDim.x) * UNROLL<T>;
    double sum = 0;
    for (int64 start = blockIdx.x * tile; start < packs; start += gridDim.x * tile) {
        A value[UNROLL<T> * WIDTH];
#pragma unroll
        for (int u = 0; u < UNROLL<T>; u++) {
            const int64 p = start + threadIdx.x + static_cast<int64>(u) * blockDim.x;
            Pack<T, WIDTH> item = {};
            if (p < packs) item = load_pack<T, WIDTH>(x + p * WIDTH);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) value[u * WIDTH + e] = widen(item.item[e]);
        }
        sum += squares(value);
    }
    const int64 tail = packs * WIDTH + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && tail < n) {
        const double last = static_cast<double>(widen(x[tail]));
        sum += last * last;
    }
    sum = block_reduce<Sum>(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// Stage 2: one block adds the partials, always in the same order, and takes the root.
template <typename A>
__global__ void __launch_bounds__(256) norm_of_partials(const double* partials, int64 count, A* norm) {
    __shared__ double scratch[WARP];
    double sum = 0;
    for (int64 i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_reduce<Sum>(sum, scratch);
    if (threadIdx.x == 0) *norm = static_cast<A>(sqrt(sum));
}

// ---- clipping and penalties --------------------------------------------------------------------------------

// A block leaves without touching memory where nothing is to be clipped: the usual case. Zeros stay
// zeros even for a NaN norm, so that the gaps between the parameters of an arena stay clean.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256)
clip_by_norm(T* gradients, const Accumulator<T>* norm, int64 n, double max_norm) {
    typedef Accumulator<T> A;
    const double ratio = max_norm / (static_cast<double>(*norm) + 1e-6);
    if (ratio >= 1) return;
    const A coefficient = static_cast<A>(ratio);
    const Inputs<T, 1> in = {{gradients}};
    elementwise<T, VECTOR>(gradients, in, n, [=](const A (&v)[1]) {
        return v[0] == A(0) ? v[0] : v[0] * coefficient;
    });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256) clip_by_value(T* gradients, int64 n, Accumulator<T> limit) {
    typedef Accumulator<T> A;
    const Inputs<T, 1> in = {{gradients}};
    elementwise<T, VECTOR>(gradients, in, n, [=](const A (&v)[1]) {
        return v[0] > limit ? limit : v[0] < -limit ? -limit : v[0];  // NaN stays
    });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256)
penalty_gradient(const T* parameters, T* gradients, int64 n, Accumulator<T> l1, Accumulator<T> twice_l2) {
    typedef Accumulator<T> A;
    const Inputs<T, 2> in = {{parameters, gradients}};
    elementwise<T, VECTOR>(gradients, in, n, [=](const A (&v)[2]) {
        const A w = v[0], sign = w > A(0) ? A(1) : w < A(0) ? A(-1) : w;
        A penalty = l1 * sign;
        if (twice_l2 != A(0)) penalty += twice_l2 * w;  // 0 * inf would be NaN
        return v[1] + penalty;
    });
}
