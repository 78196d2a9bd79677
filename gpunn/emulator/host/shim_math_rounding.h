// Arithmetic and conversions with a stated rounding: _rn nearest even, _rz towards zero, _ru up, _rd down.
// See shim_math.h.
#pragma once

#include <fenv.h>

#if defined(__x86_64__)
#define EMU_FLOAT_REGISTER "x"
#else
#define EMU_FLOAT_REGISTER "w"
#endif

namespace emu {
namespace math {

// A value that the optimizer must compute before this point and cannot look into. It keeps the host compiler
// from fusing __fmul_rn with a later addition (the intrinsic's purpose) and from moving arithmetic past
// fesetround.
EMU_INLINE float opaque(float x) {
    __asm__ __volatile__("" : "+" EMU_FLOAT_REGISTER(x)::"memory");
    return x;
}
EMU_INLINE double opaque(double x) {
    __asm__ __volatile__("" : "+" EMU_FLOAT_REGISTER(x)::"memory");
    return x;
}
template <class Integer>
EMU_INLINE Integer opaque(Integer x) {
    static_assert(std::is_integral<Integer>::value, "opaque takes numbers");
    __asm__ __volatile__("" : "+r"(x)::"memory");
    return x;
}
EMU_INLINE float unfused(float x) {
    __asm__("" : "+" EMU_FLOAT_REGISTER(x));
    return x;
}
EMU_INLINE double unfused(double x) {
    __asm__("" : "+" EMU_FLOAT_REGISTER(x));
    return x;
}

template <class F>
struct Add {
    static F of(F a, F b, F) { return a + b; }
};
template <class F>
struct Subtract {
    static F of(F a, F b, F) { return a - b; }
};
template <class F>
struct Multiply {
    static F of(F a, F b, F) { return a * b; }
};
template <class F>
struct Divide {
    static F of(F a, F b, F) { return a / b; }
};
template <class F>
struct MultiplyAdd {
    static F of(F a, F b, F c) { return std::fma(a, b, c); }
};
template <class F>
struct SquareRoot {
    static F of(F a, F, F) { return std::sqrt(a); }
};

// The host's own rounding mode does the work: IEEE arithmetic is the same on both sides.
template <class Operation, int MODE, class F>
__attribute__((noinline)) F rounded_towards(F a, F b, F c) {
    fesetround(MODE);
    const F result = opaque(Operation::of(opaque(a), opaque(b), opaque(c)));
    fesetround(FE_TONEAREST);
    return result;
}
template <class To, int MODE, class From>
__attribute__((noinline)) To converted_towards(From x) {
    fesetround(MODE);
    const To result = opaque((To)opaque(x));
    fesetround(FE_TONEAREST);
    return result;
}

// Floating point to integer as the GPU's cvt does it: out of range saturates; not-a-number gives 0, or the top
// bit alone where either side has 64 bits (PTX ISA, cvt).
template <class To, class From>
EMU_INLINE To saturated(From whole) {
    constexpr bool wide = sizeof(From) == 8 || sizeof(To) == 8;
    typedef typename std::make_unsigned<To>::type Bits;
    if (whole != whole) return wide ? (To)((Bits)1 << (8 * sizeof(To) - 1)) : (To)0;
    // Both limits as From: the lower is exact, the upper rounds up to a power of two or is exact.
    if (whole <= (From)std::numeric_limits<To>::min()) return std::numeric_limits<To>::min();
    if (whole >= (From)std::numeric_limits<To>::max()) return std::numeric_limits<To>::max();
    return (To)whole;
}

}  // namespace math
}  // namespace emu

// ---- arithmetic -------------------------------------------------------------------------------------------

#define EMU_BINARY(type, name, operation)                                                            \
    EMU_INLINE type name##_rn(type a, type b) {                                                      \
        return emu::math::unfused(emu::math::operation<type>::of(a, b, 0));                          \
    }                                                                                                \
    EMU_INLINE type name##_rz(type a, type b) {                                                      \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_TOWARDZERO, type>(a, b, 0); \
    }                                                                                                \
    EMU_INLINE type name##_ru(type a, type b) {                                                      \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_UPWARD, type>(a, b, 0);     \
    }                                                                                                \
    EMU_INLINE type name##_rd(type a, type b) {                                                      \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_DOWNWARD, type>(a, b, 0);   \
    }
EMU_BINARY(float, __fadd, Add)
EMU_BINARY(float, __fsub, Subtract)
EMU_BINARY(float, __fmul, Multiply)
EMU_BINARY(float, __fdiv, Divide)
EMU_BINARY(double, __dadd, Add)
EMU_BINARY(double, __dsub, Subtract)
EMU_BINARY(double, __dmul, Multiply)
EMU_BINARY(double, __ddiv, Divide)
#undef EMU_BINARY

#define EMU_UNARY(type, name, operation, a, b)                                                                \
    EMU_INLINE type name##_rn(type x) { return emu::math::unfused(emu::math::operation<type>::of(a, b, 0)); } \
    EMU_INLINE type name##_rz(type x) {                                                                       \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_TOWARDZERO, type>(a, b, 0);          \
    }                                                                                                         \
    EMU_INLINE type name##_ru(type x) {                                                                       \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_UPWARD, type>(a, b, 0);              \
    }                                                                                                         \
    EMU_INLINE type name##_rd(type x) {                                                                       \
        return emu::math::rounded_towards<emu::math::operation<type>, FE_DOWNWARD, type>(a, b, 0);            \
    }
EMU_UNARY(float, __frcp, Divide, 1, x)
EMU_UNARY(double, __drcp, Divide, 1, x)
EMU_UNARY(float, __fsqrt, SquareRoot, x, 0)
EMU_UNARY(double, __dsqrt, SquareRoot, x, 0)
#undef EMU_UNARY

#define EMU_MULTIPLY_ADD(type, name, suffix, mode)                                            \
    EMU_INLINE type name##suffix(type a, type b, type c) {                                    \
        return emu::math::rounded_towards<emu::math::MultiplyAdd<type>, mode, type>(a, b, c); \
    }
#define EMU_MULTIPLY_ADDS(type, name)                                               \
    EMU_INLINE type name##_rn(type a, type b, type c) { return std::fma(a, b, c); } \
    EMU_MULTIPLY_ADD(type, name, _rz, FE_TOWARDZERO)                                \
    EMU_MULTIPLY_ADD(type, name, _ru, FE_UPWARD)                                    \
    EMU_MULTIPLY_ADD(type, name, _rd, FE_DOWNWARD)
EMU_MULTIPLY_ADDS(float, __fmaf)
EMU_MULTIPLY_ADDS(float, __fmaf_ieee)
EMU_MULTIPLY_ADDS(double, __fma)
#undef EMU_MULTIPLY_ADDS
#undef EMU_MULTIPLY_ADD

// 1 / sqrt(x), correctly rounded. In double it is right to far more than 24 bits; should it lie too near the
// middle between two floats to tell, the sign of middle * middle * x - 1, exact in one fma, decides.
inline float __frsqrt_rn(float x) {
    const double close = 1.0 / std::sqrt((double)x);
    const float result = (float)close;
    if (!(x > 0) || std::isinf(x) || result == close) return result;
    const float neighbour = std::nextafterf(result, close > result ? INFINITY : 0.0f);
    const double middle = ((double)result + neighbour) / 2;
    // Positive if the true value lies below the middle.
    const double excess = std::fma(middle * middle, (double)x, -1.0);
    return (excess > 0) == (neighbour > result) ? result : neighbour;
}

// ---- floating point to integer ----------------------------------------------------------------------------

#define EMU_TO_INTEGER(from, name, to)                                                      \
    EMU_INLINE to name##_rn(from x) { return emu::math::saturated<to>(std::nearbyint(x)); } \
    EMU_INLINE to name##_rz(from x) { return emu::math::saturated<to>(std::trunc(x)); }     \
    EMU_INLINE to name##_ru(from x) { return emu::math::saturated<to>(std::ceil(x)); }      \
    EMU_INLINE to name##_rd(from x) { return emu::math::saturated<to>(std::floor(x)); }
EMU_TO_INTEGER(float, __float2int, int)
EMU_TO_INTEGER(float, __float2uint, unsigned)
EMU_TO_INTEGER(float, __float2ll, long long)
EMU_TO_INTEGER(float, __float2ull, unsigned long long)
EMU_TO_INTEGER(double, __double2int, int)
EMU_TO_INTEGER(double, __double2uint, unsigned)
EMU_TO_INTEGER(double, __double2ll, long long)
EMU_TO_INTEGER(double, __double2ull, unsigned long long)
#undef EMU_TO_INTEGER

// ---- to floating point ------------------------------------------------------------------------------------

#define EMU_TO_FLOAT(from, name, to)                                                               \
    EMU_INLINE to name##_rn(from x) { return (to)x; }                                              \
    EMU_INLINE to name##_rz(from x) { return emu::math::converted_towards<to, FE_TOWARDZERO>(x); } \
    EMU_INLINE to name##_ru(from x) { return emu::math::converted_towards<to, FE_UPWARD>(x); }     \
    EMU_INLINE to name##_rd(from x) { return emu::math::converted_towards<to, FE_DOWNWARD>(x); }
EMU_TO_FLOAT(double, __double2float, float)
EMU_TO_FLOAT(int, __int2float, float)
EMU_TO_FLOAT(unsigned, __uint2float, float)
EMU_TO_FLOAT(long long, __ll2float, float)
EMU_TO_FLOAT(unsigned long long, __ull2float, float)
EMU_TO_FLOAT(long long, __ll2double, double)
EMU_TO_FLOAT(unsigned long long, __ull2double, double)
#undef EMU_TO_FLOAT

EMU_INLINE double __int2double_rn(int x) { return x; }
EMU_INLINE double __uint2double_rn(unsigned x) { return x; }
