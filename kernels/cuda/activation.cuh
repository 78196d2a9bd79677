// activation.cuh - the activation functions and their derivatives, for use in any kernel.
//
// Each struct gives value(x, alpha) and derivative(x, alpha) in the type A of its arguments: float, double or,
// for 16-bit elements, the quicker `Quick` of quick.cuh. They are written so that no intermediate
// overflows: exp is only ever taken of a number <= 0.
// Sources: GELU Hendrycks & Gimpel 2016; ELU Clevert et al. 2015; SELU Klambauer et al. 2017;
// SiLU Elfwing et al. 2017; Mish Misra 2019; hard swish Howard et al. 2019.
#pragma once
#include "common.cuh"

// a / b for any b; the quick division of `Quick` is not.
template <typename A> __device__ __forceinline__ A quotient(A a, A b) { return a / b; }

struct Identity {
    template <typename A> static __device__ __forceinline__ A value(A x, A) { return x; }
    template <typename A> static __device__ __forceinline__ A derivative(A, A) { return A(1); }
};

struct Sigmoid {  // 1 / (1 + exp(-x))
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        const A e = exponential(-absolute(x));
        return (x >= A(0) ? A(1) : e) / (A(1) + e);
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        const A e = exponential(-absolute(x));
        return e / ((A(1) + e) * (A(1) + e));
    }
};

struct Tanh {
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        return hyperbolic_tangent(x);
    }
    // 1 - tanh(x)^2 = 4 e / (1 + e)^2 with e = exp(-2|x|): keeps its digits where tanh is near 1.
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        const A e = exponential(A(-2) * absolute(x));
        return A(4) * e / ((A(1) + e) * (A(1) + e));
    }
};

struct Relu {  // max(x, 0)
    template <typename A> static __device__ __forceinline__ A value(A x, A) { return x <= A(0) ? A(0) : x; }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        return x <= A(0) ? A(0) : A(1);
    }
};

struct LeakyRelu {  // x, or alpha x below zero
    template <typename A> static __device__ __forceinline__ A value(A x, A alpha) {
        return x <= A(0) ? alpha * x : x;
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A alpha) {
        return x <= A(0) ? alpha : A(1);
    }
};

struct Elu {  // x, or alpha (exp(x) - 1) below zero
    template <typename A> static __device__ __forceinline__ A value(A x, A alpha) {
        return x <= A(0) ? alpha * exponential_minus_1(x) : x;
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A alpha) {
        return x <= A(0) ? alpha * exponential(x) : A(1);
    }
};

struct Selu {  // scale * elu(x, alpha) with the two constants that keep mean 0 and variance 1
    template <typename A> static __device__ __forceinline__ A scale() { return A(1.0507009873554804934193349852946); }
    template <typename A> static __device__ __forceinline__ A slope() { return A(1.6732632423543772848170429916717); }
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        return scale<A>() * Elu::value(x, slope<A>());
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        return scale<A>() * Elu::derivative(x, slope<A>());
    }
};

struct Gelu {  // x Phi(x), Phi the normal distribution function
    template <typename A> static __device__ __forceinline__ A phi(A x) {
        return A(0.5) * complementary_error_function(-x * A(0.70710678118654752440));
    }
    template <typename A> static __device__ __forceinline__ A value(A x, A) { return x * phi(x); }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        const A density = A(0.39894228040143267794) * exponential(A(-0.5) * x * x);
        return phi(x) + x * density;
    }
};

struct GeluTanh {  // x (1 + tanh(c (x + 0.044715 x^3))) / 2, c = sqrt(2 / pi)
    template <typename A> static __device__ __forceinline__ A c() { return A(0.79788456080286535588); }
    template <typename A> static __device__ __forceinline__ A inner(A x) {
        return c<A>() * (x + A(0.044715) * x * x * x);
    }
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        return A(0.5) * x * (A(1) + hyperbolic_tangent(inner(clamped(x))));
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        const A z = clamped(x), t = hyperbolic_tangent(inner(z));
        const A slope = c<A>() * (A(1) + A(3 * 0.044715) * z * z);
        return A(0.5) * (A(1) + t) + A(0.5) * z * (A(1) - t * t) * slope;
    }
    // tanh is exactly ±1 beyond, and the cube of a huge x would be infinite.
    template <typename A> static __device__ __forceinline__ A clamped(A x) {
        return x > A(10) ? A(10) : x < A(-10) ? A(-10) : x;
    }
};

struct Silu {  // x sigmoid(x)
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        return x * Sigmoid::value(x, A(0));
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        const A s = Sigmoid::value(x, A(0));
        return s + x * Sigmoid::derivative(x, A(0));
    }
};

struct Softplus {  // log(1 + exp(alpha x)) / alpha
    template <typename A> static __device__ __forceinline__ A value(A x, A alpha) {
        const A z = alpha * x;
        return quotient(maximum(z, A(0)) + logarithm_of_1_plus(exponential(-absolute(z))), alpha);
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A alpha) {
        return Sigmoid::value(alpha * x, A(0));
    }
};

struct Mish {  // x tanh(log(1 + exp(x))); with e = exp(-|x|) the tanh is a ratio of polynomials in e
    template <typename A> static __device__ __forceinline__ void split(A x, A& t, A& rest) {
        const A e = exponential(-absolute(x));
        const A numerator = x > A(0) ? A(1) + A(2) * e : e * (e + A(2));
        const A remainder = x > A(0) ? A(2) * e * e : A(2);
        t = numerator / (numerator + remainder);
        rest = remainder / (numerator + remainder);  // 1 - t without cancellation
    }
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        A t, rest;
        split(x, t, rest);
        return x * t;
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        A t, rest;
        split(x, t, rest);
        return t + x * Sigmoid::value(x, A(0)) * rest * (A(1) + t);
    }
};

struct HardSwish {  // x clamp(x + 3, 0, 6) / 6
    template <typename A> static __device__ __forceinline__ A value(A x, A) {
        return x <= A(-3) ? A(0) : x >= A(3) ? x : x * (x + A(3)) / A(6);
    }
    template <typename A> static __device__ __forceinline__ A derivative(A x, A) {
        return x <= A(-3) ? A(0) : x >= A(3) ? A(1) : (A(2) * x + A(3)) / A(6);
    }
};
