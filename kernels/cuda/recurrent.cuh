// recurrent.cuh - one step of a recurrent network for one unit of one sequence, forward and backward.
//
// With x the part of a gate that comes from the input, p = h W_hh^T + b_hh, s the logistic function:
//   RNN_TANH, RNN_RELU   h' = f(x + p)
//   LSTM (i, f, g, o)    c' = s(i) c + s(f) tanh(g) with i = x_i + p_i and so on,  h' = s(o) tanh(c')
//   GRU  (r, z, n)       n = tanh(x_n + s(r) p_n),  h' = (1 - s(z)) n + s(z) h
// All is computed in the accumulator's type. The mode is an argument: every thread of a launch takes the same
// branch, and four times as many kernels would not be faster.
#pragma once
#include "common.cuh"

enum RecurrentMode { RNN_TANH, RNN_RELU, LSTM, GRU };  // as MODES of gpunn/primitives/recurrent_plan.py

constexpr int MOST_GATES = 4;

__device__ __forceinline__ int gates_of(int mode) { return mode == LSTM ? 4 : mode == GRU ? 3 : 1; }

// How many steps each sequence has: an array of int or int64, or nullptr for all of `steps`.
struct Lengths {
    const void* values;
    bool wide;
    int steps;

    __device__ __forceinline__ int of(int64 sequence) const {
        if (values == nullptr) return steps;
        const int64 value = wide ? static_cast<const int64*>(values)[sequence]
                                 : static_cast<const int*>(values)[sequence];
        return static_cast<int>(value < 0 ? 0 : value > steps ? steps : value);
    }
};

// exp(-x) overflows to inf, and 1 / inf is the right 0. The hardware's exponential is exact enough for what is
// stored in 16 bits.
template <typename T> __device__ __forceinline__ Accumulator<T> logistic(Accumulator<T> x) {
    if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-x));
    else return Accumulator<T>(1) / (Accumulator<T>(1) + exponential(-x));
}

// What one unit of one sequence leaves behind: `h` is the new state, `gate` the activated gates, `inner` the new
// cell state (LSTM) or p_n (GRU).
template <typename A> struct Stepped {
    A h, inner, gate[MOST_GATES];
};

template <typename T>
__device__ __forceinline__ Stepped<Accumulator<T>> step_forward(
    int mode, const Accumulator<T> (&x)[MOST_GATES], const Accumulator<T> (&p)[MOST_GATES], Accumulator<T> h,
    Accumulator<T> c) {
    typedef Accumulator<T> A;
    Stepped<A> to;
    to.inner = A(0);
    if (mode == LSTM) {
        to.gate[0] = logistic<T>(x[0] + p[0]);
        to.gate[1] = logistic<T>(x[1] + p[1]);
        to.gate[2] = hyperbolic_tangent(x[2] + p[2]);
        to.gate[3] = logistic<T>(x[3] + p[3]);
        to.inner = to.gate[1] * c + to.gate[0] * to.gate[2];
        to.h = to.gate[3] * hyperbolic_tangent(to.inner);
    } else if (mode == GRU) {
        to.gate[0] = logistic<T>(x[0] + p[0]);
        to.gate[1] = logistic<T>(x[1] + p[1]);
        to.gate[2] = hyperbolic_tangent(x[2] + to.gate[0] * p[2]);
        to.gate[3] = A(0);
        to.inner = p[2];
        to.h = to.gate[2] + to.gate[1] * (h - to.gate[2]);
    } else {
        to.h = mode == RNN_TANH ? hyperbolic_tangent(x[0] + p[0]) : maximum(x[0] + p[0], A(0));
#pragma unroll
        for (int q = 0; q < MOST_GATES; q++) to.gate[q] = A(0);
    }
    return to;
}

// The gradients of one unit of one sequence. `gate`: by x; `hidden`: by p, which for GRU differs in the third;
// `h`: what reaches the state before the step past the gates; `c`: by the cell state before it.
template <typename A> struct SteppedBack {
    A h, c, gate[MOST_GATES], hidden[MOST_GATES];
};

// `output` is h after the step, `inner` as in Stepped, `before` the cell state (LSTM) or h (GRU) before the step.
template <typename A>
__device__ __forceinline__ SteppedBack<A> step_backward(int mode, const A (&gate)[MOST_GATES], A output, A inner,
                                                        A before, A grad_h, A grad_c) {
    SteppedBack<A> to;
    to.h = to.c = A(0);
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) to.gate[q] = A(0);
    if (mode == LSTM) {
        const A i = gate[0], f = gate[1], g = gate[2], o = gate[3], bent = hyperbolic_tangent(inner);
        const A grad = grad_c + grad_h * o * (A(1) - bent * bent);
        to.gate[0] = grad * g * i * (A(1) - i);
        to.gate[1] = grad * before * f * (A(1) - f);
        to.gate[2] = grad * i * (A(1) - g * g);
        to.gate[3] = grad_h * bent * o * (A(1) - o);
        to.c = grad * f;
    } else if (mode == GRU) {
        const A r = gate[0], z = gate[1], n = gate[2];
        to.gate[2] = grad_h * (A(1) - z) * (A(1) - n * n);
        to.gate[1] = grad_h * (before - n) * z * (A(1) - z);
        to.gate[0] = to.gate[2] * inner * r * (A(1) - r);
        to.h = grad_h * z;
    } else if (mode == RNN_TANH) {
        to.gate[0] = grad_h * (A(1) - output * output);
    } else {
        to.gate[0] = output <= A(0) ? A(0) : grad_h;
    }
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) to.hidden[q] = to.gate[q];
    if (mode == GRU) to.hidden[2] = to.gate[2] * gate[0];
    return to;
}

// ---- one unit of one sequence in memory -----------------------------------------------------------------
//
// Arrays of a layer: (steps, batch, hidden), with `gates` times as many columns for those that have gates.

struct Place {
    int64 state;  // of a unit of a sequence in a (batch, hidden) array
    int64 unit;   // in a (steps, batch, hidden) array
    int64 gate;   // of its first gate in a (steps, batch, gates hidden) array; the next is `hidden` further

    __device__ __forceinline__ Place(int64 step, int64 sequence, int of, int64 batch, int64 hidden, int gates)
        : state(sequence * hidden + of), unit((step * batch + sequence) * hidden + of),
          gate((step * batch + sequence) * hidden * gates + of) {}
};

// Where step_forward's inputs and results lie. Null where there is none. `activated` may be `gates`: whoever
// writes an element has read it.
template <typename T> struct ForwardArrays {
    const T *gates, *bias;
    T *output, *activated, *inner;
};

template <typename T> struct ForwardInput {
    T x[MOST_GATES];
    bool active;
};

template <typename T>
__device__ __forceinline__ ForwardInput<T> load_input(const ForwardArrays<T>& arrays, const Place& at, int64 hidden,
                                                      int gates, bool active) {
    ForwardInput<T> input;
    input.active = active;
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) {
        input.x[q] = narrow<T>(Accumulator<T>(0));
        if (active && q < gates) input.x[q] = arrays.gates[at.gate + q * hidden];
    }
    return input;
}

// What is left of a step; `inner` of `to` is that of an LSTM also past the end, where the cell state stays.
template <typename T, typename A>
__device__ __forceinline__ void store_step(const ForwardArrays<T>& arrays, const Place& at, int64 hidden, int mode,
                                           bool active, const Stepped<A>& to) {
    arrays.output[at.unit] = narrow<T>(active ? to.h : A(0));
    if (arrays.activated == nullptr) return;
    const int gates = gates_of(mode);
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++)
        if (q < gates) arrays.activated[at.gate + q * hidden] = narrow<T>(active ? to.gate[q] : A(0));
    arrays.inner[at.unit] = narrow<T>(active || mode == LSTM ? to.inner : A(0));
}

// The same for step_backward. `grad_gates` may be `activated`.
template <typename T> struct BackwardArrays {
    const T *grad_output, *output, *activated, *inner, *h0, *c0;
    T *grad_gates, *grad_hidden;
    int steps;
    bool reverse;
};

template <typename T> struct BackwardInput {
    T gate[MOST_GATES], inner, before, output, grad_output;
};

// Reads what step `t` of a sequence of `length` steps needs, if it has such a step.
template <typename T>
__device__ __forceinline__ BackwardInput<T> load_input(const BackwardArrays<T>& arrays, const Place& at, int64 t,
                                                       int length, int64 batch, int64 hidden, int mode) {
    BackwardInput<T> input;
    const T zero = narrow<T>(Accumulator<T>(0));
    const int gates = gates_of(mode);
    input.inner = input.before = input.output = input.grad_output = zero;
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) input.gate[q] = zero;
    if (t >= length) return input;
    if (arrays.grad_output != nullptr) input.grad_output = arrays.grad_output[at.unit];
    if (gates == 1) {
        input.output = arrays.output[at.unit];
        return input;
    }
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++)
        if (q < gates) input.gate[q] = arrays.activated[at.gate + q * hidden];
    input.inner = arrays.inner[at.unit];
    const T* initial = mode == LSTM ? arrays.c0 : arrays.h0;
    const T* states = mode == LSTM ? arrays.inner : arrays.output;
    const bool first = arrays.reverse ? t + 1 == length : t == 0;
    if (!first) input.before = states[at.unit + (arrays.reverse ? 1 : -1) * batch * hidden];
    else if (initial != nullptr) input.before = initial[at.state];
    return input;
}

template <typename T>
__device__ __forceinline__ SteppedBack<Accumulator<T>> step_backward(
    int mode, const BackwardInput<T>& input, Accumulator<T> grad_h, Accumulator<T> grad_c) {
    Accumulator<T> gate[MOST_GATES];
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) gate[q] = widen(input.gate[q]);
    return step_backward(mode, gate, widen(input.output), widen(input.inner), widen(input.before), grad_h, grad_c);
}

template <typename T, typename A>
__device__ __forceinline__ void store_gradients(const BackwardArrays<T>& arrays, const Place& at, int64 hidden,
                                                int gates, const SteppedBack<A>& to) {
#pragma unroll
    for (int q = 0; q < MOST_GATES; q++) {
        if (q >= gates) continue;
        arrays.grad_gates[at.gate + q * hidden] = narrow<T>(to.gate[q]);
        if (arrays.grad_hidden != nullptr) arrays.grad_hidden[at.gate + q * hidden] = narrow<T>(to.hidden[q]);
    }
}
