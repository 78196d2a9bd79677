// What cuda_fp16.h and cuda_bf16.h give to device code alone: fused multiply-add, functions, conversions.
//
// NVIDIA's headers in host mode already have the types, their operators, comparisons, __hadd … __hdiv with their
// _sat forms, and most conversions; loads and stores (shim_math_integer.h), shuffles (shim_warp.h) and atomics
// (shim_atomic.h) are templates that take these types as any other. cuda_fp8.h lacks nothing.
//
// Every result is rounded once, to nearest even, as on the GPU: computed in double, where a product of two such
// numbers is exact.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "shim_math.h"

// Sources ask for the compiler's version before they include newer headers.
#ifndef __CUDACC_VER_MAJOR__
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#define __CUDACC_VER_BUILD__ 0
#endif

namespace emu {
namespace half {

EMU_INLINE double wide(__half x) { return __half2float(x); }
EMU_INLINE double wide(__nv_bfloat16 x) { return __bfloat162float(x); }
EMU_INLINE void narrow(double x, __half& result) { result = __double2half(x); }
EMU_INLINE void narrow(double x, __nv_bfloat16& result) { result = __double2bfloat16(x); }
EMU_INLINE __half2 pair(__half low, __half high) { return __halves2half2(low, high); }
EMU_INLINE __nv_bfloat162 pair(__nv_bfloat16 low, __nv_bfloat16 high) { return __halves2bfloat162(low, high); }

// x + y, where a lost remainder forces the last bit to 1. A second rounding, to far fewer bits, is then correct:
// it cannot take for a tie what is none. (bfloat16 needs it: its range is so wide that a sum may not fit a
// double.)
inline double sum_to_odd(double x, double y) {
    const double sum = x + y;
    const double from_y = sum - x;
    const double lost = (x - (sum - from_y)) + (y - from_y);
    uint64_t bits = same_bits<uint64_t>(sum);
    if (!(std::fabs(sum) <= DBL_MAX) || !(lost != 0) || (bits & 1)) return sum;
    return same_bits<double>((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

template <class T>
EMU_INLINE T multiply_add(T a, T b, T c) {
    T result;
    narrow(sum_to_odd(wide(a) * wide(b), wide(c)), result);
    return result;
}
// Not-a-number becomes 0 in a saturated result, and stays in a rectified one.
template <class T>
EMU_INLINE T saturated(T x) {
    const double value = wide(x);
    T result;
    narrow(value > 0 ? (value < 1 ? value : 1.0) : 0.0, result);
    return result;
}
template <class T>
EMU_INLINE T rectified(T x) {
    if (!(wide(x) <= 0)) return x;
    T zero;
    narrow(0, zero);
    return zero;
}

}  // namespace half
}  // namespace emu

// ---- fused multiply-add -----------------------------------------------------------------------------------

#define EMU_HALF_FMA(scalar, vector)                                                                    \
    EMU_INLINE scalar __hfma(scalar a, scalar b, scalar c) { return emu::half::multiply_add(a, b, c); } \
    EMU_INLINE scalar __hfma_sat(scalar a, scalar b, scalar c) {                                        \
        return emu::half::saturated(emu::half::multiply_add(a, b, c));                                  \
    }                                                                                                   \
    EMU_INLINE scalar __hfma_relu(scalar a, scalar b, scalar c) {                                       \
        return emu::half::rectified(emu::half::multiply_add(a, b, c));                                  \
    }                                                                                                   \
    EMU_INLINE vector __hfma2(vector a, vector b, vector c) {                                           \
        return emu::half::pair(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));                           \
    }                                                                                                   \
    EMU_INLINE vector __hfma2_sat(vector a, vector b, vector c) {                                       \
        return emu::half::pair(__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y));                   \
    }                                                                                                   \
    EMU_INLINE vector __hfma2_relu(vector a, vector b, vector c) {                                      \
        return emu::half::pair(__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y));                 \
    }                                                                                                   \
    /* complex numbers (x + iy): a * b + c, in four fused steps */                                      \
    EMU_INLINE vector __hcmadd(vector a, vector b, vector c) {                                          \
        return emu::half::pair(__hfma(__hneg(a.y), b.y, __hfma(a.x, b.x, c.x)),                         \
                               __hfma(a.y, b.x, __hfma(a.x, b.y, c.y)));                                \
    }
EMU_HALF_FMA(__half, __half2)
EMU_HALF_FMA(__nv_bfloat16, __nv_bfloat162)
#undef EMU_HALF_FMA

// ---- functions --------------------------------------------------------------------------------------------

#define EMU_HALF_FUNCTION_OF(scalar, vector, name, expression) \
    EMU_INLINE scalar h##name(scalar a) {                      \
        const double x = emu::half::wide(a);                   \
        scalar result;                                         \
        emu::half::narrow(expression, result);                 \
        return result;                                         \
    }                                                          \
    EMU_INLINE vector h2##name(vector a) { return emu::half::pair(h##name(a.x), h##name(a.y)); }
#define EMU_HALF_FUNCTION(name, expression)                 \
    EMU_HALF_FUNCTION_OF(__half, __half2, name, expression) \
    EMU_HALF_FUNCTION_OF(__nv_bfloat16, __nv_bfloat162, name, expression)
EMU_HALF_FUNCTION(exp, ::exp(x))
EMU_HALF_FUNCTION(exp2, ::exp2(x))
EMU_HALF_FUNCTION(exp10, ::exp10(x))
EMU_HALF_FUNCTION(log, ::log(x))
EMU_HALF_FUNCTION(log2, ::log2(x))
EMU_HALF_FUNCTION(log10, ::log10(x))
EMU_HALF_FUNCTION(sqrt, ::sqrt(x))
EMU_HALF_FUNCTION(rsqrt, 1 / ::sqrt(x))
EMU_HALF_FUNCTION(rcp, 1 / x)
EMU_HALF_FUNCTION(sin, ::sin(x))
EMU_HALF_FUNCTION(cos, ::cos(x))
EMU_HALF_FUNCTION(tanh, ::tanh(x))
EMU_HALF_FUNCTION(tanh_approx, ::tanh(x))
EMU_HALF_FUNCTION(ceil, ::ceil(x))
EMU_HALF_FUNCTION(floor, ::floor(x))
EMU_HALF_FUNCTION(trunc, ::trunc(x))
EMU_HALF_FUNCTION(rint, ::nearbyint(x))
#undef EMU_HALF_FUNCTION
#undef EMU_HALF_FUNCTION_OF

// ---- to integers: saturating; the headers have the _rz forms ----------------------------------------------

#define EMU_HALF_TO(name, scalar, to_float, integer)                                                          \
    EMU_INLINE integer name##_rn(scalar x) { return emu::math::saturated<integer>(nearbyintf(to_float(x))); } \
    EMU_INLINE integer name##_ru(scalar x) { return emu::math::saturated<integer>(ceilf(to_float(x))); }      \
    EMU_INLINE integer name##_rd(scalar x) { return emu::math::saturated<integer>(floorf(to_float(x))); }
#define EMU_HALF_TO_INTEGER(word, integer)                    \
    EMU_HALF_TO(__half2##word, __half, __half2float, integer) \
    EMU_HALF_TO(__bfloat162##word, __nv_bfloat16, __bfloat162float, integer)
EMU_HALF_TO_INTEGER(int, int)
EMU_HALF_TO_INTEGER(uint, unsigned)
EMU_HALF_TO_INTEGER(short, short)
EMU_HALF_TO_INTEGER(ushort, unsigned short)
EMU_HALF_TO_INTEGER(ll, long long)
EMU_HALF_TO_INTEGER(ull, unsigned long long)
#undef EMU_HALF_TO_INTEGER
#undef EMU_HALF_TO

// ---- from integers ----------------------------------------------------------------------------------------
// The headers have all for half, and the _rn forms for bfloat16. Two roundings the same way (up, down, towards
// zero) are one.

#define EMU_TO_BFLOAT16(word, integer, to_float)                                                                 \
    EMU_INLINE __nv_bfloat16 __##word##2bfloat16_rz(integer x) { return __float2bfloat16_rz(to_float##_rz(x)); } \
    EMU_INLINE __nv_bfloat16 __##word##2bfloat16_ru(integer x) { return __float2bfloat16_ru(to_float##_ru(x)); } \
    EMU_INLINE __nv_bfloat16 __##word##2bfloat16_rd(integer x) { return __float2bfloat16_rd(to_float##_rd(x)); }
EMU_TO_BFLOAT16(int, int, __int2float)
EMU_TO_BFLOAT16(uint, unsigned, __uint2float)
EMU_TO_BFLOAT16(short, short, __int2float)
EMU_TO_BFLOAT16(ushort, unsigned short, __uint2float)
EMU_TO_BFLOAT16(ll, long long, __ll2float)
EMU_TO_BFLOAT16(ull, unsigned long long, __ull2float)
#undef EMU_TO_BFLOAT16
