// random.cuh - Philox4x32-10 and the normal quantile, for use in any kernel.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) maps a 128-bit counter under a 64-bit key to
// four 32-bit words. Element i of an array takes
//
//   word(i) = word i % 4 of philox(block = i / 4, offset, seed)
//
// so every thread makes its own numbers and needs no state, and under one seed no two elements or offsets
// share a counter. A block is 20 wide multiplications and 20 three-way exclusive ors.
//
// The results equal NumPy's (gpunn/primitives/random_reference.py) and Numba's bit for bit. Hence all
// floating arithmetic here goes through the operations of `rounded`: the compiler would contract
// a * b + c into one fused operation with one rounding, but never touches these intrinsics.
#pragma once
#include "common.cuh"

namespace rounded {  // each operation rounded by itself to nearest even
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return __ddiv_rn(a, b); }

// c[0] + c[1] x + c[2] x^2 + ...
template <typename A, int N> __device__ __forceinline__ A polynomial(const A (&c)[N], A x) {
    A value = c[N - 1];
#pragma unroll
    for (int k = N - 2; k >= 0; k--) value = add(multiply(value, x), c[k]);
    return value;
}
}  // namespace rounded

// ---- Philox ------------------------------------------------------------------------------------

// The counter's words are (block low, block high, offset low, offset high), the key (seed low, high).
__device__ __forceinline__ uint4 philox(uint64 block, uint64 offset, uint64 seed) {
    uint32 c0 = static_cast<uint32>(block), c1 = static_cast<uint32>(block >> 32);
    uint32 c2 = static_cast<uint32>(offset), c3 = static_cast<uint32>(offset >> 32);
    uint32 k0 = static_cast<uint32>(seed), k1 = static_cast<uint32>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64 a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        c0 = static_cast<uint32>(b >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32>(b);
        c2 = static_cast<uint32>(a >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32>(a);
        k0 += 0x9E3779B9u;  // the golden ratio
        k1 += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return make_uint4(c0, c1, c2, c3);
}

// Where the numbers of a launch begin: a seed and an offset by value, or, as a CUDA graph needs it, which repeats a
// launch with the same arguments, from a counter {seed, offset} in device memory, to which `offset` is added.
struct Origin {
    uint64 seed, offset;
    __device__ __forceinline__ Origin(uint64 given_seed, uint64 given_offset, const uint64* counter)
        : seed(given_seed), offset(given_offset) {
        if (counter) {
            seed = counter[0];
            offset += counter[1];
        }
    }
};

// ---- draws: the integers that floating numbers are made of --------------------------------------

// float: the word. double: 53 bits, the word and 21 more of the block 2^63 further on.
template <typename A> struct Draws;

template <> struct Draws<float> {
    uint32 item[4];
    __device__ __forceinline__ Draws(uint64 block, const Origin& from) {
        const uint4 words = philox(block, from.offset, from.seed);
        item[0] = words.x, item[1] = words.y, item[2] = words.z, item[3] = words.w;
    }
};

template <> struct Draws<double> {
    uint64 item[4];
    __device__ __forceinline__ Draws(uint64 block, const Origin& from) {
        const Draws<float> first(block, from), more(block + (1ull << 63), from);
#pragma unroll
        for (int k = 0; k < 4; k++)
            item[k] = static_cast<uint64>(first.item[k]) << 21 | more.item[k] >> 11;
    }
};

// ---- uniform ---------------------------------------------------------------------------------------

// In [0, 1), exact: 24 bits of the draw for float, 53 for double. (A signed integer of so few bits is
// the same number, and its conversion is the fastest.)
__device__ __forceinline__ float uniform(uint32 draw) {
    return rounded::multiply(static_cast<float>(static_cast<int>(draw >> 8)), 0x1p-24f);
}
__device__ __forceinline__ double uniform(uint64 draw) {
    return rounded::multiply(static_cast<double>(static_cast<int64>(draw)), 0x1p-53);
}

// ---- the normal quantile ----------------------------------------------------------------------------
//
// P = (draw + 1/2) / 2^32 (2^53), t = 2 min(P, 1 - P), x = 1 - t; then with w = -log(t (2 - t)) >= 0
//
//   Phi^-1(P) = sign x N(w) / D(w)
//
// because x^2 = 1 - exp(-w) and the quantile over x is smooth in w from the middle to the tail: one
// rational function, no branch for a warp to diverge at, no function of a library that would differ
// from the CPU's. N / D is its minimax approximation (relative error 1e-8 for float, 2e-16 for
// double); all coefficients are positive, so nothing cancels. About 65 instructions, two of them
// divisions, against about 20 an element for Philox: bound by arithmetic, not by memory. That is the
// price of bits that do not depend on the device; __logf and __fdividef would be cheaper.

template <typename A> struct Quantile;

template <> struct Quantile<float> {
    static __device__ __forceinline__ int bits(float y) { return __float_as_int(y); }
    static __device__ __forceinline__ float number(int b) { return __int_as_float(b); }
    typedef int Integer;
    static constexpr int HALF = 31, MANTISSA = 23, ROOT = 0x3f3504f3;  // the bits of sqrt(1/2)

    static __device__ __forceinline__ float artanh(float square) {  // 2 artanh(g) / g, of g^2
        constexpr float c[] = {2.0f, 0.666666687f, 0.400000006f, 0.285714298f};
        return rounded::polynomial(c, square);
    }
    static __device__ __forceinline__ float numerator(float w) {
        constexpr float c[] = {1.25331414f, 0.447422057f, 0.0909955576f, 0.0125217028f,
                               0.00113786408f, 5.93234145e-05f, 1.91215833e-07f};
        return rounded::polynomial(c, w);
    }
    static __device__ __forceinline__ float denominator(float w) {
        constexpr float c[] = {1.0f, 0.0951914936f, 0.0346521288f, 0.00231108675f,
                               0.000248439435f, 3.73882995e-06f};
        return rounded::polynomial(c, w);
    }
};

template <> struct Quantile<double> {
    static __device__ __forceinline__ int64 bits(double y) { return __double_as_longlong(y); }
    static __device__ __forceinline__ double number(int64 b) { return __longlong_as_double(b); }
    typedef int64 Integer;
    static constexpr int HALF = 52, MANTISSA = 52;
    static constexpr int64 ROOT = 0x3fe6a09e667f3bcdll;

    static __device__ __forceinline__ double artanh(double square) {
        constexpr double c[] = {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9,
                                2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19};
        return rounded::polynomial(c, square);
    }
    static __device__ __forceinline__ double numerator(double w) {
        constexpr double c[] = {1.2533141373155006, 0.63877970561179054, 0.19217785242659166,
                                0.042690193838295358, 0.007178990369924752, 0.00095522836974797542,
                                0.0001019858464871777, 8.7569920705936494e-06, 6.0826180739714274e-07,
                                3.4613338941603662e-08, 1.6095750634235958e-09, 5.0584866753717997e-11,
                                1.7504548238496434e-12, 1.3743351609089755e-14, 1.0061442076674791e-17};
        return rounded::polynomial(c, w);
    }
    static __device__ __forceinline__ double denominator(double w) {
        constexpr double c[] = {1.0, 0.24787307706271727, 0.075410684602502762, 0.013723964447873448,
                                0.0019499224593928855, 0.00025473804985444372, 2.1011317575274098e-05,
                                1.8985817957889168e-06, 9.8945339204727138e-08, 6.1882117981591238e-09,
                                1.908730327534698e-10, 7.6895357009168876e-12, 1.3828353193838616e-13,
                                3.9585970883079853e-16};
        return rounded::polynomial(c, w);
    }
};

// -log(y), 0 < y <= 1: y = 2^e m with m in [sqrt(1/2), sqrt(2)) and -log m = 2 artanh((1-m)/(1+m)).
template <typename A> __device__ __forceinline__ A minus_logarithm(A y) {
    typedef Quantile<A> Q;
    typedef typename Q::Integer Integer;
    const Integer bits = Q::bits(y) - Q::ROOT;
    const A exponent = static_cast<A>(bits >> Q::MANTISSA);
    const A m = Q::number((bits & ((Integer(1) << Q::MANTISSA) - 1)) + Q::ROOT);
    const A g = rounded::divide(rounded::add(A(1), -m), rounded::add(m, A(1)));
    const A series = rounded::multiply(Q::artanh(rounded::multiply(g, g)), g);
    return rounded::add(series, rounded::multiply(exponent, A(-0.69314718055994530942)));
}

template <typename A, typename Draw> __device__ __forceinline__ A standard_normal(Draw draw) {
    typedef Quantile<A> Q;
    typedef typename Q::Integer Integer;
    const A unit = A(1) / A(Draw(1) << Q::HALF);
    const Integer centred = static_cast<Integer>(draw - (Draw(1) << Q::HALF));
    const A x = rounded::multiply(rounded::add(static_cast<A>(centred), A(0.5)), unit);
    // How many draws lie between this one and the nearer end: the tail to full relative precision.
    const Integer last = static_cast<Integer>((Draw(1) << Q::HALF) - 1);
    const Integer rank = (centred < 0 ? ~centred : centred) ^ last;
    const A t = rounded::multiply(rounded::add(static_cast<A>(rank), A(0.5)), unit);
    const A w = minus_logarithm(rounded::multiply(rounded::add(A(2), -t), t));
    return rounded::multiply(rounded::divide(Q::numerator(w), Q::denominator(w)), x);
}
