// convolution.cuh - a convolution's three passes as matrix products: which element of an array is an element of an
// operand, without a division in the main loop.
//
// Arrays are channels-last with three spatial dimensions z, y, x (ones where there are fewer). With stride s,
// dilation d and zeros p in front, an output position i and a tap k of the kernel meet the input at s i + d k - p:
//
//   OUTPUT   y (n, i; o)          = sum over (k, c)   of  x[n, s i + d k - p, c]          w[o, k, c]
//   INPUT    dx (n, j; c)         = sum over (k, o)   of  dy[n, (j + p - d k) / s, o]     w[o, k, c]
//   WEIGHT   dw (o; k, c)         = sum over (n, i)   of  dy[n, i, o]   x[n, s i + d k - p, c]
//
// One operand of each is gathered: its element for a position and a tap lies at the place
//
//   scale position + by tap + from          in each dimension, zero where that is outside of the array.
//
// INPUT with strides: only taps for which the division leaves no rest meet a place j, and these are the same for all
// j of the same rest f = j mod s. So the result falls into s phases (in each dimension), j = f + s i, which are
// products of their own with scale 1 (at most as many as places): with g = gcd(s, d) their taps are
// first + (s / g) t, and the place in dy
// is i - (d / g) t + from. Nothing is multiplied with zeros, and one launch makes all phases. (To gather with a test
// of divisibility would make s times as many products in each dimension.)
#pragma once
#include "common.cuh"

enum Made { OUTPUT, INPUT, WEIGHT };  // what a pass makes

// The sizes of a convolution, as Geometry of gpunn/primitives/convolution_problem.py; z, y, x.
struct Convolution {
    int batch, channels, outputs, groups, group_channels, group_outputs;
    int size[3], out[3], kernel[3], stride[3], low[3], dilation[3];
    int common[3];   // gcd of stride and dilation
    int inverse[3];  // of dilation / common, modulo stride / common
};

// number = number / by, neither negative; gives the rest. Large numbers are divided bit by bit: that is rare, and
// the compiler's own division of 64 bits is a function, around whose call registers are spilled.
__device__ __forceinline__ int divide(int64& number, int by) {
    const uint32 high = static_cast<uint32>(number >> 32), low = static_cast<uint32>(number);
    const uint32 divisor = static_cast<uint32>(by);
    if (high == 0) {
        number = low / divisor;
        return static_cast<int>(low % divisor);
    }
    uint32 rest = high % divisor, quotient = 0;
#pragma unroll 1
    for (int bit = 31; bit >= 0; bit--) {
        rest = rest * 2 + (low >> bit & 1);
        quotient *= 2;
        if (rest >= divisor) {
            rest -= divisor;
            quotient++;
        }
    }
    number = static_cast<int64>(static_cast<uint64>(high / divisor) << 32 | quotient);
    return static_cast<int>(rest);
}

// A number written with four digits, the fastest first, and what is added to it again and again.
struct Counter {
    int digit[4], size[3], step[4];
    __device__ __forceinline__ Counter(int64 start, int by, int first, int second, int third)
        : size{first, second, third} {
        uint32 rest = by;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            digit[i] = divide(start, size[i]);
            step[i] = static_cast<int>(rest % static_cast<uint32>(size[i]));
            rest /= static_cast<uint32>(size[i]);
        }
        digit[3] = static_cast<int>(start);
        step[3] = static_cast<int>(rest);
    }
    __device__ __forceinline__ void advance() {
        bool carry = false;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            digit[i] += step[i] + carry;
            carry = digit[i] >= size[i];
            if (carry) digit[i] -= size[i];
        }
        digit[3] += step[3] + carry;
    }
};

// What a block works on: the positions and taps of its phase, and where they meet the gathered array.
template <Made MADE> struct Meeting {
    int positions[3], taps[3], scale[3], by[3], from[3];
    int first_tap[3], tap_step[3];  // INPUT: the taps of the phase
    int first[3], step[3];          // INPUT: the places of the phase in the result

    __device__ __forceinline__ Meeting(const Convolution& c, uint32 phase) {
#pragma unroll
        for (int d = 2; d >= 0; d--) {
            if constexpr (MADE == INPUT) {
                const int s = c.stride[d], apart = s / c.common[d];
                const uint32 phases = s < c.size[d] ? s : c.size[d];
                const int f = static_cast<int>(phase % phases), meets = f + c.low[d];
                phase /= phases;
                const int rest = meets / c.common[d] % apart;
                int64 turned = static_cast<int64>(rest) * c.inverse[d];
                const int tap = divide(turned, apart);
                const bool any = meets % c.common[d] == 0 && tap < c.kernel[d];
                first[d] = f;
                step[d] = s;
                positions[d] = (c.size[d] - f - 1) / s + 1;
                first_tap[d] = tap;
                tap_step[d] = apart;
                taps[d] = any ? (c.kernel[d] - 1 - tap) / apart + 1 : 0;
                scale[d] = 1;
                by[d] = -c.dilation[d] / c.common[d];
                from[d] = any ? (meets - tap * c.dilation[d]) / s : 0;
            } else {
                positions[d] = c.out[d];
                taps[d] = c.kernel[d];
                scale[d] = c.stride[d];
                by[d] = c.dilation[d];
                from[d] = -c.low[d];
            }
        }
    }
    __device__ __forceinline__ int64 position_count(int batch) const {
        return static_cast<int64>(batch) * positions[0] * positions[1] * positions[2];
    }
    __device__ __forceinline__ int64 tap_count() const {
        return static_cast<int64>(taps[0]) * taps[1] * taps[2];
    }
};

// The sizes of the product, for one group and phase: the result has `rows` x `columns`, summed over `depth`.
template <Made MADE> struct ProductSizes {
    int64 rows, columns, depth;
    __device__ __forceinline__ ProductSizes(const Convolution& c, const Meeting<MADE>& m) {
        const int64 positions = m.position_count(c.batch), taps = m.tap_count();
        rows = MADE == WEIGHT ? c.group_outputs : positions;
        columns = MADE == OUTPUT ? c.group_outputs : MADE == INPUT ? c.group_channels : taps * c.group_channels;
        depth = MADE == OUTPUT ? taps * c.group_channels : MADE == INPUT ? taps * c.group_outputs : positions;
    }
};

// A position's digits: which item of the batch and where.
struct Position {
    int n, at[3];
    __device__ __forceinline__ Position(int64 number, const int (&positions)[3]) {
#pragma unroll
        for (int d = 2; d >= 0; d--) at[d] = divide(number, positions[d]);
        n = static_cast<int>(number);
    }
};

// The first element of row `row` of the result, which exists.
template <Made MADE>
__device__ __forceinline__ int64 result_row(const Convolution& c, const Meeting<MADE>& m, int group, int64 row,
                                            int64 columns) {
    if constexpr (MADE == OUTPUT) {
        return row * c.outputs + group * c.group_outputs;
    } else if constexpr (MADE == WEIGHT) {
        return (static_cast<int64>(group) * c.group_outputs + row) * columns;
    } else {
        const Position position(row, m.positions);
        int64 at = position.n;
#pragma unroll
        for (int d = 0; d < 3; d++) at = at * c.size[d] + m.first[d] + m.step[d] * position.at[d];
        return at * c.channels + group * c.group_channels;
    }
}

constexpr int NOWHERE = 1 << 29;  // a place that is outside of every array; two of them are, too

// A walk through a gathered array in equal steps along K, at one row of the operand. TAPS: along (tap, channel), the
// row being a position; else along (n, position), the row being a tap and channel. CHECKED: places may be outside.
// Index: what counts elements; int where the array has less than 2^31.
template <typename Index, bool TAPS, bool CHECKED = true> struct Walk {
    Counter counter;
    int place[3], by[3], extent[3];
    Index at, stride[3], outer;

    // at, place: of the row alone. by: places that one digit moves. pitch: elements from place to place along x.
    __device__ __forceinline__ Walk(const Counter& counter, Index at, const int (&place_)[3], const int (&by_)[3],
                                    const int (&extent_)[3], int pitch, Index outer)
        : counter(counter), at(at), outer(outer) {
        Index s = pitch;
#pragma unroll
        for (int d = 2; d >= 0; d--) {
            place[d] = place_[d];
            by[d] = by_[d];
            extent[d] = extent_[d];
            stride[d] = s;
            s *= extent_[d];
            if (!CHECKED) {  // a product and a sum instead of two of each, and fewer numbers to keep
                this->at += stride[d] * place[d];
                stride[d] *= by[d];
            }
        }
    }
    // Whether there is an element, and where.
    __device__ __forceinline__ bool find(Index& element) const {
        element = at + outer * counter.digit[TAPS ? 0 : 3];
        bool inside = true;
#pragma unroll
        for (int d = 0; d < 3; d++) {
            const int digit = counter.digit[TAPS ? 3 - d : 2 - d];
            if (CHECKED) {
                const int p = place[d] + by[d] * digit;
                inside &= static_cast<uint32>(p) < static_cast<uint32>(extent[d]);
                element += stride[d] * p;
            } else {
                element += stride[d] * digit;
            }
        }
        return inside;
    }
};

__device__ __forceinline__ int at_least_1(int x) { return x < 1 ? 1 : x; }

// Along the taps and channels of the gathered operand of OUTPUT and INPUT, at row `row` (a position); from k on in
// steps of `step`. All counts of channels and elements in packs of `unit`.
template <typename Index, Made MADE>
__device__ __forceinline__ Walk<Index, true> walk_taps(const Convolution& c, const Meeting<MADE>& m, int group,
                                                       int64 row, int64 rows, int64 k, int step, int unit) {
    const int channels = (MADE == INPUT ? c.group_outputs : c.group_channels) / unit;
    const int pitch = (MADE == INPUT ? c.outputs : c.channels) / unit;
    const int (&extent)[3] = MADE == INPUT ? c.out : c.size;
    const Counter counter(k / unit, step / unit, channels, at_least_1(m.taps[2]), at_least_1(m.taps[1]));
    int place[3] = {NOWHERE, 0, 0};
    Index at = 0;
    if (row < rows) {
        const Position position(row, m.positions);
#pragma unroll
        for (int d = 0; d < 3; d++) place[d] = position.at[d] * m.scale[d] + m.from[d];
        at = static_cast<Index>(position.n) * extent[0] * extent[1] * extent[2] * pitch + group * channels;
    }
    return Walk<Index, true>(counter, at, place, m.by, extent, pitch, 1);
}

// Along the taps and outputs of the weight in INPUT, at column `column` (a channel).
template <typename Index>
__device__ __forceinline__ Walk<Index, true, false> walk_weight(const Convolution& c, const Meeting<INPUT>& m,
                                                                int group, int64 column, int64 k, int step,
                                                                int unit) {
    const int pitch = c.group_channels / unit;
    const Index outer = static_cast<Index>(c.kernel[0]) * c.kernel[1] * c.kernel[2] * pitch;
    const Counter counter(k, step, c.group_outputs, at_least_1(m.taps[2]), at_least_1(m.taps[1]));
    const Index at = static_cast<Index>(group) * c.group_outputs * outer + static_cast<Index>(column / unit);
    return Walk<Index, true, false>(counter, at, m.first_tap, m.tap_step, c.kernel, pitch, outer);
}

// Along the positions of x in WEIGHT, at column `column` (a tap and channel).
template <typename Index>
__device__ __forceinline__ Walk<Index, false> walk_positions(const Convolution& c, const Meeting<WEIGHT>& m,
                                                             int group, int64 column, int64 columns, int64 k,
                                                             int step, int unit) {
    const int channels = c.group_channels / unit, pitch = c.channels / unit;
    const Counter counter(k, step, c.out[2], c.out[1], c.out[0]);
    int place[3] = {NOWHERE, 0, 0};
    Index at = 0;
    if (column < columns) {
        const Counter tap(column / unit, 1, channels, m.taps[2], m.taps[1]);
#pragma unroll
        for (int d = 0; d < 3; d++) place[d] = tap.digit[3 - d] * m.by[d] + m.from[d];
        at = tap.digit[0] + group * channels;
    }
    const Index outer = static_cast<Index>(c.size[0]) * c.size[1] * c.size[2] * pitch;
    return Walk<Index, false>(counter, at, place, m.scale, c.size, pitch, outer);
}
