// Fast functions, special functions that the C library lacks, min and max, overloads. See shim_math.h.
#pragma once

// ---- fast functions: the accurate value, with the edges that the fast ones have ---------------------------

EMU_INLINE float __expf(float x) { return expf(x); }
EMU_INLINE float __exp10f(float x) { return exp10f(x); }
EMU_INLINE float __logf(float x) { return logf(x); }
EMU_INLINE float __log2f(float x) { return log2f(x); }
EMU_INLINE float __log10f(float x) { return log10f(x); }
EMU_INLINE float __sinf(float x) { return sinf(x); }
EMU_INLINE float __cosf(float x) { return cosf(x); }
EMU_INLINE float __tanf(float x) { return tanf(x); }
EMU_INLINE float __tanhf(float x) { return tanhf(x); }
EMU_INLINE void __sincosf(float x, float* sine, float* cosine) { *sine = sinf(x), *cosine = cosf(x); }
// 2^(y log2 x): not-a-number for a negative x and for 0^0, unlike powf.
EMU_INLINE float __powf(float x, float y) { return (float)exp2((double)y * log2((double)x)); }
// 0 (or not-a-number, for an infinite x) where 2^126 < |y| < 2^128.
EMU_INLINE float __fdividef(float x, float y) {
    const float size = fabsf(y);
    return size > 0x1p126f && size <= FLT_MAX ? x * 0.0f : x / y;
}
EMU_INLINE float fdividef(float x, float y) { return x / y; }
EMU_INLINE double fdivide(double x, double y) { return x / y; }
EMU_INLINE float fdivide(float x, float y) { return x / y; }
// [0, 1]; not-a-number gives 0.
EMU_INLINE float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

// ---- roots and norms --------------------------------------------------------------------------------------

EMU_INLINE double rsqrt(double x) { return 1 / std::sqrt(x); }
EMU_INLINE float rsqrtf(float x) { return (float)(1 / std::sqrt((double)x)); }
EMU_INLINE double rcbrt(double x) { return (double)(1 / ::cbrtl(x)); }
EMU_INLINE float rcbrtf(float x) { return (float)(1 / ::cbrtl(x)); }
EMU_INLINE double rhypot(double x, double y) { return 1 / ::hypot(x, y); }
EMU_INLINE float rhypotf(float x, float y) { return (float)(1 / ::hypot((double)x, (double)y)); }

EMU_INLINE double norm3d(double a, double b, double c) { return ::hypot(::hypot(a, b), c); }
EMU_INLINE double norm4d(double a, double b, double c, double d) { return ::hypot(norm3d(a, b, c), d); }
EMU_INLINE double rnorm3d(double a, double b, double c) { return 1 / norm3d(a, b, c); }
EMU_INLINE double rnorm4d(double a, double b, double c, double d) { return 1 / norm4d(a, b, c, d); }
EMU_INLINE float norm3df(float a, float b, float c) { return (float)norm3d(a, b, c); }
EMU_INLINE float norm4df(float a, float b, float c, float d) { return (float)norm4d(a, b, c, d); }
EMU_INLINE float rnorm3df(float a, float b, float c) { return (float)(1 / norm3d(a, b, c)); }
EMU_INLINE float rnorm4df(float a, float b, float c, float d) { return (float)(1 / norm4d(a, b, c, d)); }

EMU_INLINE double norm(int count, const double* values) {
    double result = 0;
    for (int i = 0; i < count; i++) result = ::hypot(result, values[i]);
    return result;
}
EMU_INLINE float normf(int count, const float* values) {
    double result = 0;
    for (int i = 0; i < count; i++) result = ::hypot(result, (double)values[i]);
    return (float)result;
}
EMU_INLINE double rnorm(int count, const double* values) { return 1 / norm(count, values); }
EMU_INLINE float rnormf(int count, const float* values) { return 1 / normf(count, values); }

// ---- multiples of pi --------------------------------------------------------------------------------------

namespace emu {
namespace math {

// x modulo 2, in [-1, 1]; exact.
EMU_INLINE double half_turns(double x) { return x - 2 * std::nearbyint(x / 2); }

inline double sine_of_turns(double x) {
    if (std::isinf(x)) return NAN;
    double r = half_turns(x);
    if (r > 0.5) r = 1 - r;
    if (r < -0.5) r = -1 - r;
    return r == 0 ? std::copysign(0.0, x) : std::sin(M_PI * r);
}

inline double cosine_of_turns(double x) {
    if (std::isinf(x)) return NAN;
    const double r = std::fabs(half_turns(x));
    if (r == 0.5) return 0;
    // Near a half the sine of the exact difference keeps the digits that the cosine would lose.
    return r < 0.25 ? std::cos(M_PI * r) : r > 0.75 ? -std::cos(M_PI * (1 - r)) : std::sin(M_PI * (0.5 - r));
}

}  // namespace math
}  // namespace emu

EMU_INLINE double sinpi(double x) { return emu::math::sine_of_turns(x); }
EMU_INLINE double cospi(double x) { return emu::math::cosine_of_turns(x); }
EMU_INLINE float sinpif(float x) { return (float)emu::math::sine_of_turns(x); }
EMU_INLINE float cospif(float x) { return (float)emu::math::cosine_of_turns(x); }
EMU_INLINE void sincospi(double x, double* sine, double* cosine) { *sine = sinpi(x), *cosine = cospi(x); }
EMU_INLINE void sincospif(float x, float* sine, float* cosine) { *sine = sinpif(x), *cosine = cospif(x); }

// The C library has these, but its stores would go past the checker: a body here replaces the call.
#define EMU_REPLACES extern inline __attribute__((gnu_inline, always_inline, unused))
extern "C" {
EMU_REPLACES void sincos(double x, double* sine, double* cosine) noexcept { *sine = sin(x), *cosine = cos(x); }
EMU_REPLACES void sincosf(float x, float* sine, float* cosine) noexcept { *sine = sinf(x), *cosine = cosf(x); }
}
#undef EMU_REPLACES

// ---- the error function's relatives -----------------------------------------------------------------------

namespace emu {
namespace math {

constexpr double two_over_root_pi = 1.12837916709551257390;

// exp(x * x * sign), with the rounding error of the square put back.
EMU_INLINE double exp_of_square(double x, double sign) {
    const double square = x * x;
    return std::exp(sign * square) * (1 + sign * std::fma(x, x, -square));
}

// exp(x * x) erfc(x): the asymptotic series where erfc is too small to be scaled up.
inline double scaled_erfc(double x) {
    if (x < 25) return x < -27 ? HUGE_VAL : exp_of_square(x, 1) * ::erfc(x);
    const double step = -0.5 / (x * x);
    double term = 1, sum = 1;
    for (int k = 1; k < 16; k += 2) term *= step * k, sum += term;
    return sum * two_over_root_pi / 2 / x;
}

// erfc(result) = q for 0 < q <= 1: a rational guess, then Halley's iteration.
inline double inverse_erfc(double q) {
    const double t = std::sqrt(-2 * std::log(q / 2));
    double y = 0.70710678118654752 * (t - (2.30753 + t * 0.27061) / (1 + t * (0.99229 + t * 0.04481)));
    if (y < 0) y = 0;
    for (int i = 0; i < 4; i++) {
        const double newton = (::erfc(y) - q) / (two_over_root_pi * exp_of_square(y, -1));
        y += newton / (1 - y * newton);
    }
    return y;
}

inline double inverse_erf(double x) {
    const double size = std::fabs(x);
    if (!(size <= 1)) return NAN;
    if (size == 1) return std::copysign(HUGE_VAL, x);
    if (size > 0.5) return std::copysign(inverse_erfc(1 - size), x);
    double y = x / two_over_root_pi;
    y += y * y * y / 3;
    for (int i = 0; i < 4; i++) {
        const double newton = (::erf(y) - x) / (two_over_root_pi * exp_of_square(y, -1));
        y -= newton / (1 + y * newton);
    }
    return y;
}

inline double inverse_erfc_anywhere(double q) {
    if (!(q >= 0 && q <= 2)) return NAN;
    if (q == 0) return HUGE_VAL;
    if (q == 2) return -HUGE_VAL;
    return q > 0.5 ? -inverse_erf(q - 1) : inverse_erfc(q);
}

// 0.5 erfc(-x / sqrt(2)); the argument's rounding error matters in the tail, so it is put back to first order.
inline double normal_cdf(double x) {
    constexpr double high = 0.70710678118654752440, low = -4.8336466567264567e-17;
    const double z = -x * high;
    const double error = std::fma(-x, high, -z) - x * low;
    const double value = ::erfc(z);
    if (!(std::fabs(z) < 27)) return value / 2;
    return (value - two_over_root_pi * exp_of_square(z, -1) * error) / 2;
}

// Modified Bessel function of the first kind, order 0 or 1: its power series, or the asymptotic one from 30 on.
inline double modified_bessel(int order, double x) {
    const double size = std::fabs(x);
    double sum;
    if (size < 30) {
        const double quarter = size * size / 4;
        double term = order ? size / 2 : 1;
        sum = term;
        for (int k = 1; term > sum * 1e-18; k++) term *= quarter / ((double)k * (k + order)), sum += term;
    } else {
        double term = 1;
        sum = 1;
        for (int k = 1; k < 20; k++) {
            term *= ((2.0 * k - 1) * (2 * k - 1) - 4 * order) / (8 * size * k);
            sum += term;
        }
        const double half = std::exp(size / 2);  // in two halves: exp(size) would overflow too early
        sum = half / std::sqrt(2 * M_PI * size) * sum * half;
    }
    return order && x < 0 ? -sum : sum;
}

}  // namespace math
}  // namespace emu

EMU_INLINE double erfcx(double x) { return emu::math::scaled_erfc(x); }
EMU_INLINE float erfcxf(float x) { return (float)emu::math::scaled_erfc(x); }
EMU_INLINE double erfinv(double x) { return emu::math::inverse_erf(x); }
EMU_INLINE float erfinvf(float x) { return (float)emu::math::inverse_erf(x); }
EMU_INLINE double erfcinv(double x) { return emu::math::inverse_erfc_anywhere(x); }
EMU_INLINE float erfcinvf(float x) { return (float)emu::math::inverse_erfc_anywhere(x); }
EMU_INLINE double normcdf(double x) { return emu::math::normal_cdf(x); }
EMU_INLINE float normcdff(float x) { return (float)emu::math::normal_cdf(x); }
EMU_INLINE double normcdfinv(double x) { return -M_SQRT2 * emu::math::inverse_erfc_anywhere(2 * x); }
EMU_INLINE float normcdfinvf(float x) { return (float)normcdfinv((double)x); }
EMU_INLINE double cyl_bessel_i0(double x) { return emu::math::modified_bessel(0, x); }
EMU_INLINE double cyl_bessel_i1(double x) { return emu::math::modified_bessel(1, x); }
EMU_INLINE float cyl_bessel_i0f(float x) { return (float)emu::math::modified_bessel(0, x); }
EMU_INLINE float cyl_bessel_i1f(float x) { return (float)emu::math::modified_bessel(1, x); }

// ---- overloads for float of functions whose C names end in f ----------------------------------------------

#define EMU_OVERLOAD(name) EMU_INLINE float name(float x) { return name##f(x); }
EMU_OVERLOAD(exp10)
EMU_OVERLOAD(rsqrt)
EMU_OVERLOAD(rcbrt)
EMU_OVERLOAD(sinpi)
EMU_OVERLOAD(cospi)
EMU_OVERLOAD(erfcx)
EMU_OVERLOAD(erfinv)
EMU_OVERLOAD(erfcinv)
EMU_OVERLOAD(normcdf)
EMU_OVERLOAD(normcdfinv)
EMU_OVERLOAD(cyl_bessel_i0)
EMU_OVERLOAD(cyl_bessel_i1)
EMU_OVERLOAD(j0)
EMU_OVERLOAD(j1)
EMU_OVERLOAD(y0)
EMU_OVERLOAD(y1)
#undef EMU_OVERLOAD
EMU_INLINE float jn(int order, float x) { return jnf(order, x); }
EMU_INLINE float yn(int order, float x) { return ynf(order, x); }
EMU_INLINE float rhypot(float x, float y) { return rhypotf(x, y); }
EMU_INLINE float norm3d(float a, float b, float c) { return norm3df(a, b, c); }
EMU_INLINE float norm4d(float a, float b, float c, float d) { return norm4df(a, b, c, d); }
EMU_INLINE float rnorm3d(float a, float b, float c) { return rnorm3df(a, b, c); }
EMU_INLINE float rnorm4d(float a, float b, float c, float d) { return rnorm4df(a, b, c, d); }
EMU_INLINE float norm(int count, const float* values) { return normf(count, values); }
EMU_INLINE float rnorm(int count, const float* values) { return rnormf(count, values); }
EMU_INLINE void sincos(float x, float* sine, float* cosine) { *sine = sinf(x), *cosine = cosf(x); }
EMU_INLINE void sincospi(float x, float* sine, float* cosine) { sincospif(x, sine, cosine); }

// ---- min and max ------------------------------------------------------------------------------------------
// The overloads that CUDA has: one signed and one unsigned argument compare as unsigned, float with double as
// double. A not-a-number among floating-point arguments loses.

#define EMU_MIN_MAX(result, first, second)                                                             \
    EMU_INLINE result min(first a, second b) { return (result)a < (result)b ? (result)a : (result)b; } \
    EMU_INLINE result max(first a, second b) { return (result)a > (result)b ? (result)a : (result)b; }
#define EMU_MIN_MAX_INTEGER(type)                            \
    EMU_MIN_MAX(type, type, type)                            \
    EMU_MIN_MAX(unsigned type, unsigned type, unsigned type) \
    EMU_MIN_MAX(unsigned type, type, unsigned type)          \
    EMU_MIN_MAX(unsigned type, unsigned type, type)
EMU_MIN_MAX_INTEGER(int)
EMU_MIN_MAX_INTEGER(long)
EMU_MIN_MAX_INTEGER(long long)
#undef EMU_MIN_MAX_INTEGER
#undef EMU_MIN_MAX
EMU_INLINE float min(float a, float b) { return fminf(a, b); }
EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMU_INLINE double min(double a, double b) { return ::fmin(a, b); }
EMU_INLINE double max(double a, double b) { return ::fmax(a, b); }
EMU_INLINE double min(float a, double b) { return ::fmin((double)a, b); }
EMU_INLINE double max(float a, double b) { return ::fmax((double)a, b); }
EMU_INLINE double min(double a, float b) { return ::fmin(a, (double)b); }
EMU_INLINE double max(double a, float b) { return ::fmax(a, (double)b); }
EMU_INLINE unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
EMU_INLINE unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }
EMU_INLINE long long llmin(long long a, long long b) { return a < b ? a : b; }
EMU_INLINE long long llmax(long long a, long long b) { return a > b ? a : b; }
EMU_INLINE unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
EMU_INLINE unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
