// matmul_epilogue.cuh - what every matrix product does to a finished sum before it is rounded once and stored.
//
//   forward    z = scale sum + bias;  preactivation = z;  out = f(z) + residual
//   backward   out = scale sum f'(saved) + residual;      column_sums = sums of out over the rows of the tile
//
// Doing it here spares a kernel of its own and its trip through memory: the sum is in a register already. Two
// kinds and not one, because each activation's code would stand twice in every kernel.
#pragma once
#include "activation.cuh"
#include "quick.cuh"

// The activations by number, the position in ACTIVATIONS of gpunn/primitives/activation.py. Chosen at run
// time: as a template parameter it would make thirteen kernels of each.
#define MATMUL_FOR_ACTIVATION(number, CALL)  \
    switch (number) {                        \
        case 1: CALL(Sigmoid); break;        \
        case 2: CALL(Tanh); break;           \
        case 3: CALL(Relu); break;           \
        case 4: CALL(LeakyRelu); break;      \
        case 5: CALL(Elu); break;            \
        case 6: CALL(Selu); break;           \
        case 7: CALL(Gelu); break;           \
        case 8: CALL(GeluTanh); break;       \
        case 9: CALL(Silu); break;           \
        case 10: CALL(Softplus); break;      \
        case 11: CALL(Mish); break;          \
        case 12: CALL(HardSwish); break;     \
        default: break;                      \
    }

// value = f(value), as exact as a T can hold it.
template <typename T, int W, typename A>
__device__ __forceinline__ void activate(A (&value)[W], int number, A alpha) {
    typedef Functional<T> Q;
#define MATMUL_VALUE(F) \
    _Pragma("unroll") for (int e = 0; e < W; e++) value[e] = A(F::value(Q(value[e]), Q(alpha)))
    MATMUL_FOR_ACTIVATION(number, MATMUL_VALUE)
#undef MATMUL_VALUE
}

// value *= f'(saved)
template <typename T, int W, typename A>
__device__ __forceinline__ void differentiate(A (&value)[W], const A (&saved)[W], int number, A alpha) {
    typedef Functional<T> Q;
#define MATMUL_DERIVATIVE(F) \
    _Pragma("unroll") for (int e = 0; e < W; e++) value[e] *= A(F::derivative(Q(saved[e]), Q(alpha)))
    MATMUL_FOR_ACTIVATION(number, MATMUL_DERIVATIVE)
#undef MATMUL_DERIVATIVE
}

// Load the first `count` of W neighbours, zeros for the others; all W at once if `vector`.
template <typename T, int W>
__device__ __forceinline__ void load_row(Accumulator<T> (&value)[W], const T* source, int count, bool vector) {
    if (vector) {
        const Pack<T, W> pack = load_pack<T, W>(source);
#pragma unroll
        for (int e = 0; e < W; e++) value[e] = widen(pack.item[e]);
    } else {
#pragma unroll
        for (int e = 0; e < W; e++) value[e] = e < count ? widen(source[e]) : Accumulator<T>(0);
    }
}

// Store the first `count` of W neighbours; all W at once if `vector`.
template <typename T, int W>
__device__ __forceinline__ void store_row(T* target, const Accumulator<T> (&value)[W], int count, bool vector) {
    if (vector) {
        Pack<T, W> pack;
#pragma unroll
        for (int e = 0; e < W; e++) pack.item[e] = narrow<T>(value[e]);
        store_pack(target, pack);
    } else {
#pragma unroll
        for (int e = 0; e < W; e++)
            if (e < count) target[e] = narrow<T>(value[e]);
    }
}

template <typename T, bool BACKWARD> struct Epilogue {
    typedef Accumulator<T> A;
    const T* bias;      // forward: one number a column, or null
    const T* saved;     // backward: what the activation was applied to, like `out`
    const T* residual;  // like `out`, or null; may be `out` itself
    T* out;
    T* preactivation;   // forward: like `out`, or null
    int activation;
    A alpha, scale;

    // What is worth fetching ahead of `finish`: memory answers late.
    __device__ __forceinline__ const T* fetched_from() const { return BACKWARD ? saved : residual; }

    // W neighbours of one row, of which `count` exist: element `at` of the result and its right-hand neighbours,
    // from column `column`. `value` comes as sums and leaves as what `out` has got, not yet rounded.
    // With `vector` all W exist, and N and all pointers are multiples of W elements.
    // `fetched`: a copy of what stands at `at` in fetched_from(), or null.
    template <int W>
    __device__ __forceinline__ void finish(A (&value)[W], int64 at, int64 column, int count, bool vector,
                                           const T* fetched = nullptr) const {
#pragma unroll
        for (int e = 0; e < W; e++) value[e] *= scale;
        if constexpr (BACKWARD) {
            A before[W];
            load_row<T, W>(before, fetched != nullptr ? fetched : saved + at, count, vector);
            differentiate<T>(value, before, activation, alpha);
        } else {
            if (bias != nullptr) {
                A more[W];
                load_row<T, W>(more, bias + column, count, vector);
#pragma unroll
                for (int e = 0; e < W; e++) value[e] += more[e];
            }
            if (preactivation != nullptr) store_row<T, W>(preactivation + at, value, count, vector);
            activate<T>(value, activation, alpha);
        }
        if (residual != nullptr) {
            A more[W];
            load_row<T, W>(more, !BACKWARD && fetched != nullptr ? fetched : residual + at, count, vector);
#pragma unroll
            for (int e = 0; e < W; e++) value[e] += more[e];
        }
        store_row<T, W>(out + at, value, count, vector);
    }
};

// The sums of the columns of a tile, one row of `column_sums`. Each of THREADS threads brings the sums of its
// rows for the W columns from (thread % (COLUMNS / W)) W on; they are added in the order of the threads.
// `shared` holds THREADS W numbers and is free before and after; barrier() waits for these THREADS threads.
template <int THREADS, int COLUMNS, int W, typename A, typename Barrier>
__device__ __forceinline__ void add_columns(const A (&sum)[W], A* shared, A* target, int thread, int64 columns,
                                            Barrier barrier) {
    static_assert(THREADS % (COLUMNS / W) == 0, "a thread's rows all have the same columns");
    constexpr int GROUPS = THREADS / (COLUMNS / W);
    barrier();
#pragma unroll
    for (int e = 0; e < W; e++)
        shared[thread / (COLUMNS / W) * COLUMNS + thread % (COLUMNS / W) * W + e] = sum[e];
    barrier();
    for (int column = thread; column < COLUMNS; column += THREADS) {
        if (column >= columns) break;
        A total = shared[column];
        for (int g = 1; g < GROUPS; g++) total += shared[g * COLUMNS + column];
        target[column] = total;
    }
    barrier();
}
