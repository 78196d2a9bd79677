// loss.cu - losses that compare a prediction p with a target t element by element.
//
//   loss_forward            out[i]  = loss(p[i], t[i])                            reduction "none"
//   loss_forward_reduced    out     = sum of loss(p[i], t[i]) / divisor           "mean" and "sum"
//   loss_finish             out     = sum of the blocks' partial sums / divisor
//   loss_backward           out[i]  = grad[i] loss'(p[i], t[i])                   "none"
//   loss_backward_reduced   out[i]  = grad / divisor loss'(p[i], t[i])
//
// Who does what: maps as in elementwise.cuh. The sum has a grid that just fills the chip; each thread
// walks over tiles of UNROLL packs, the block adds its threads in a fixed tree, and loss_finish, one
// block, adds the blocks: the same input gives the same bits, which atomics would not. Where one block
// is all there is, it writes the result itself and loss_finish is not launched.
// Accuracy: a tile is summed on its own before it joins the thread's sum, so 10^8 elements in float32
// pass about 25 additions in a row a thread and then trees; the error stays near one rounding.
// Shared memory: 32 accumulators for the tree.
// The limit: the sum reads 2 n elements and writes nothing to speak of; backward reads 2 n (3 n for
// "none") and writes n. At 4 bytes an element that is 8 to 16 bytes for each of 3 to about 50
// operations (binary cross-entropy), so memory is the limit on any GPU with fast float32.
// Assumes: nothing of the shape; VECTOR only if all pointers are multiples of 16 bytes; factors that repeat
// only where there are at most 2^32 elements. The gradient of a reduced loss is read from device
// memory, so that nobody waits for it.
#include "elementwise.cuh"

// ---- the losses: value and derivative with respect to p, at element i ------------------------------

// A factor for each element, repeated every `size` elements; 1 if the pointer is null.
template <typename A> struct Factor {
    const A* pointer;
    int64 size;
    __device__ __forceinline__ A at(int64 i) const {
        if (pointer == nullptr) return A(1);
        // A 32-bit remainder costs a third of a 64-bit one; beyond 2^32 elements nothing repeats (see Assumes).
        return pointer[i < size ? i : static_cast<uint32>(i) % static_cast<uint32>(size)];
    }
};
template <typename A> struct Options {
    A delta;            // Huber
    Factor<A> weight;   // binary cross-entropy: of the loss
    Factor<A> positive; // binary cross-entropy: of its part for t = 1
};

struct MSE {  // (p - t)^2
    template <typename A> static __device__ __forceinline__ A value(A p, A t, int64, const Options<A>&) {
        return (p - t) * (p - t);
    }
    template <typename A> static __device__ __forceinline__ A slope(A p, A t, int64, const Options<A>&) {
        return A(2) * (p - t);
    }
};

struct L1 {  // |p - t|; the derivative at 0 is 0
    template <typename A> static __device__ __forceinline__ A value(A p, A t, int64, const Options<A>&) {
        return absolute(p - t);
    }
    template <typename A> static __device__ __forceinline__ A slope(A p, A t, int64, const Options<A>&) {
        const A d = p - t;
        return d > A(0) ? A(1) : d < A(0) ? A(-1) : d;  // d itself is 0 or NaN
    }
};

struct Huber {  // d^2 / 2 for |d| <= delta, else delta (|d| - delta / 2), d = p - t
    template <typename A> static __device__ __forceinline__ A value(A p, A t, int64, const Options<A>& o) {
        const A d = absolute(p - t), c = minimum(d, o.delta);
        return c * (d - A(0.5) * c);
    }
    template <typename A> static __device__ __forceinline__ A slope(A p, A t, int64, const Options<A>& o) {
        const A d = p - t;
        return d > o.delta ? o.delta : d < -o.delta ? -o.delta : d;
    }
};

// (1 - t) softplus(p) + positive t softplus(-p), with softplus(±p) = max(±p, 0) + log1p(exp(-|p|)).
// p is a logit; exp is only taken of numbers <= 0.
struct BinaryCrossEntropy {
    template <typename A> static __device__ __forceinline__ A of(A p, A t, A positive) {
        const A no = A(1) - t, yes = positive * t, far = p > A(0) ? no : yes;
        // An infinite logit on the target's own side is a certain and right answer: 0, not 0 * inf.
        const A line = far == A(0) ? A(0) : far * absolute(p);
        return line + (no + yes) * logarithm_of_1_plus(exponential(-absolute(p)));
    }
    template <typename A> static __device__ __forceinline__ A slope_of(A p, A t, A positive) {
        const A no = A(1) - t, yes = positive * t;
        const A e = exponential(-absolute(p)), one = A(1) / (A(1) + e), rest = e * one;
        // sigmoid(p) and sigmoid(-p), each to full precision: their difference from 1 or t would not be.
        return p >= A(0) ? no * one - yes * rest : no * rest - yes * one;
    }
    template <typename A> static __device__ __forceinline__ A value(A p, A t, int64, const Options<A>&) {
        return of(p, t, A(1));
    }
    template <typename A> static __device__ __forceinline__ A slope(A p, A t, int64, const Options<A>&) {
        return slope_of(p, t, A(1));
    }
};

// A loss of its own, because the remainders make its code three times as long.
struct WeightedBinaryCrossEntropy {
    template <typename A> static __device__ __forceinline__ A value(A p, A t, int64 i, const Options<A>& o) {
        return o.weight.at(i) * BinaryCrossEntropy::of(p, t, o.positive.at(i));
    }
    template <typename A> static __device__ __forceinline__ A slope(A p, A t, int64 i, const Options<A>& o) {
        return o.weight.at(i) * BinaryCrossEntropy::slope_of(p, t, o.positive.at(i));
    }
};

// ---- kernels ------------------------------------------------------------------------------------------

// This thread's share of the sum of f over all elements.
template <typename T, bool VECTOR, int INPUTS, typename Function>
__device__ __forceinline__ Accumulator<T> elementwise_sum(const Inputs<T, INPUTS>& in, int64 n, Function f) {
    constexpr int WIDTH = VECTOR ? PACK<T> : 1;
    typedef Pack<T, WIDTH> Item;
    typedef Accumulator<T> A;
    const int64 packs = n / WIDTH, step = grid_threads() * UNROLL<T>;
    A total = A(0);
    for (int64 first = static_cast<int64>(blockIdx.x) * blockDim.x * UNROLL<T> + threadIdx.x; first < packs;
         first += step) {
        Item item[UNROLL<T>][INPUTS];
#pragma unroll
        for (int u = 0; u < UNROLL<T>; u++) {
            const int64 p = first + static_cast<int64>(u) * blockDim.x;
            if (p < packs) {
#pragma unroll
                for (int k = 0; k < INPUTS; k++) item[u][k] = load_pack<T, WIDTH>(in.pointer[k] + p * WIDTH);
            }
        }
        A tile = A(0);
#pragma unroll
        for (int u = 0; u < UNROLL<T>; u++) {
            const int64 p = first + static_cast<int64>(u) * blockDim.x;
            if (p < packs) {
#pragma unroll
                for (int e = 0; e < WIDTH; e++) {
                    A value[INPUTS];
#pragma unroll
                    for (int k = 0; k < INPUTS; k++) value[k] = widen(item[u][k].item[e]);
                    tile += f(value, p * WIDTH + e);
                }
            }
        }
        total += tile;
    }
    const int64 tail = packs * WIDTH + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && tail < n) {
        A value[INPUTS];
#pragma unroll
        for (int k = 0; k < INPUTS; k++) value[k] = widen(in.pointer[k][tail]);
        total += f(value, tail);
    }
    return total;
}

template <typename T, typename Loss, bool VECTOR>
__global__ void __launch_bounds__(256, 2)
loss_forward(const T* prediction, const T* target, T* out, int64 n, Accumulator<T> delta,
             const Accumulator<T>* weight, int64 weights, const Accumulator<T>* positive, int64 positives) {
    typedef Accumulator<T> A;
    const Inputs<T, 2> in = {{prediction, target}};
    const Options<A> options = {delta, {weight, weights}, {positive, positives}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[2], int64 i) {
        return Loss::template value<A>(v[0], v[1], i, options);
    });
}

// partial: one sum a block, not touched by a grid of one block.
template <typename T, typename Loss, bool VECTOR>
__global__ void __launch_bounds__(256, 2)
loss_forward_reduced(const T* prediction, const T* target, Accumulator<T>* partial, Accumulator<T>* out,
                     int64 n, Accumulator<T> divisor, Accumulator<T> delta, const Accumulator<T>* weight,
                     int64 weights, const Accumulator<T>* positive, int64 positives) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Inputs<T, 2> in = {{prediction, target}};
    const Options<A> options = {delta, {weight, weights}, {positive, positives}};
    const A mine = elementwise_sum<T, VECTOR>(in, n, [=](const A (&v)[2], int64 i) {
        return Loss::template value<A>(v[0], v[1], i, options);
    });
    const A sum = block_reduce<Sum>(mine, scratch);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) out[0] = sum / divisor;
    else partial[blockIdx.x] = sum;
}

// One block. Reads `blocks` sums.
template <typename A>
__global__ void __launch_bounds__(256) loss_finish(const A* partial, int blocks, A* out, A divisor) {
    __shared__ A scratch[WARP];
    A mine = A(0);
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) mine += partial[b];
    const A sum = block_reduce<Sum>(mine, scratch);
    if (threadIdx.x == 0) out[0] = sum / divisor;
}

template <typename T, typename Loss, bool VECTOR>
__global__ void __launch_bounds__(256, 2)
loss_backward(const T* grad, const T* prediction, const T* target, T* out, int64 n, Accumulator<T> delta,
              const Accumulator<T>* weight, int64 weights, const Accumulator<T>* positive, int64 positives) {
    typedef Accumulator<T> A;
    const Inputs<T, 3> in = {{grad, prediction, target}};
    const Options<A> options = {delta, {weight, weights}, {positive, positives}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[3], int64 i) {
        return v[0] * Loss::template slope<A>(v[1], v[2], i, options);
    });
}

template <typename T, typename Loss, bool VECTOR>
__global__ void __launch_bounds__(256, 2)
loss_backward_reduced(const Accumulator<T>* grad, const T* prediction, const T* target, T* out, int64 n,
                      Accumulator<T> divisor, Accumulator<T> delta, const Accumulator<T>* weight,
                      int64 weights, const Accumulator<T>* positive, int64 positives) {
    typedef Accumulator<T> A;
    const Inputs<T, 2> in = {{prediction, target}};
    const Options<A> options = {delta, {weight, weights}, {positive, positives}};
    const A scale = grad[0] / divisor;
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[2], int64 i) {
        return scale * Loss::template slope<A>(v[0], v[1], i, options);
    });
}
