// quick.cuh - float arithmetic by the GPU's approximate instructions, for values that are stored in 16 bits.
//
// An H200 moves a 16-bit element in and one out in the time of about 27 instructions. Exact float functions take
// twice that (GELU 60, its derivative 70), so memory would wait for arithmetic whose last twelve bits are
// rounded away. `Quick` is a float whose division, exponential and what is made of them are good to about
// 2^-15 relative to the result, where half a unit in the last place of float16 is 2^-12 and of bfloat16 2^-9:
//
//   a / b                        reciprocal and product, 2 ulp of float; 0 for a divisor above 2^126, where
//                                quotient(a, b) is exact
//   exponential                  2 + |x| ulp: below 1e-5 for all results that float16 and bfloat16 can hold
//   hyperbolic_tangent, exponential_minus_1, logarithm_of_1_plus
//                                from the exponential or logarithm, and near 0, where that would cancel, from
//                                three terms of their series: below 2e-5
//   complementary_error_function t exp(-z² + p(t)), t = 2 / (2 + |z|): below 1e-5 of the result, however small.
//                                p is the start of the Chebyshev series in gpunn/primitives/activation.py.
//
// NaN and infinity travel as in float. Formulas are written for any accumulator type A and become quick ones by
// A = Functional<T>, the type that a function of a T is computed in.
#pragma once
#include "common.cuh"

struct Quick {
    float number;
    Quick() = default;
    template <typename Number>
    __device__ __forceinline__ explicit constexpr Quick(Number x) : number(static_cast<float>(x)) {}
    __device__ __forceinline__ explicit operator float() const { return number; }
};

__device__ __forceinline__ Quick operator-(Quick a) { return Quick(-a.number); }
__device__ __forceinline__ Quick operator+(Quick a, Quick b) { return Quick(a.number + b.number); }
__device__ __forceinline__ Quick operator-(Quick a, Quick b) { return Quick(a.number - b.number); }
__device__ __forceinline__ Quick operator*(Quick a, Quick b) { return Quick(a.number * b.number); }
__device__ __forceinline__ Quick operator/(Quick a, Quick b) { return Quick(__fdividef(a.number, b.number)); }
__device__ __forceinline__ Quick quotient(Quick a, Quick b) { return Quick(a.number / b.number); }
__device__ __forceinline__ bool operator<(Quick a, Quick b) { return a.number < b.number; }
__device__ __forceinline__ bool operator>(Quick a, Quick b) { return a.number > b.number; }
__device__ __forceinline__ bool operator<=(Quick a, Quick b) { return a.number <= b.number; }
__device__ __forceinline__ bool operator>=(Quick a, Quick b) { return a.number >= b.number; }
__device__ __forceinline__ bool operator==(Quick a, Quick b) { return a.number == b.number; }
__device__ __forceinline__ bool operator!=(Quick a, Quick b) { return a.number != b.number; }

// Below this the functions that vanish at 0 are taken from their series.
constexpr float NEAR_ZERO = 0.03f;

__device__ __forceinline__ Quick absolute(Quick x) { return Quick(fabsf(x.number)); }
__device__ __forceinline__ Quick exponential(Quick x) { return Quick(__expf(x.number)); }

__device__ __forceinline__ Quick exponential_minus_1(Quick x) {
    const float series = x.number * (1 + x.number * (0.5f + x.number * (1.0f / 6)));
    return Quick(fabsf(x.number) < NEAR_ZERO ? series : __expf(x.number) - 1);
}

// Of x >= 0.
__device__ __forceinline__ Quick logarithm_of_1_plus(Quick x) {
    const float series = x.number * (1 - x.number * (0.5f - x.number * (1.0f / 3)));
    return Quick(x.number < NEAR_ZERO ? series : __logf(1 + x.number));
}

__device__ __forceinline__ Quick hyperbolic_tangent(Quick x) {
    const float size = fabsf(x.number), e = __expf(-2 * size);
    const float series = x.number * (1 - x.number * x.number * (1.0f / 3));
    return Quick(size < NEAR_ZERO ? series : copysignf(__fdividef(1 - e, 1 + e), x.number));
}

__device__ __forceinline__ Quick complementary_error_function(Quick x) {
    const float z = fabsf(x.number), t = __fdividef(2.0f, 2 + z);
    float p = -0.166122112f;
    p = p * t + 0.668515161f;
    p = p * t - 0.872904148f;
    p = p * t + 0.248290639f;
    p = p * t + 0.00403571361f;
    p = p * t + 0.384089844f;
    p = p * t + 0.999604579f;
    p = p * t - 1.2655093f;
    const float upper = t * __expf(p - z * z);
    return Quick(x.number < 0 ? 2 - upper : upper);
}

// ---- which type a function of a T is computed in -------------------------------------------------------

template <typename T> struct FunctionalOf { typedef Accumulator<T> type; };
template <> struct FunctionalOf<__half> { typedef Quick type; };
template <> struct FunctionalOf<__nv_bfloat16> { typedef Quick type; };
template <typename T> using Functional = typename FunctionalOf<T>::type;
