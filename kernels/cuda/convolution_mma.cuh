// convolution_mma.cuh - movers of a convolution's gathered operands to the panels of matmul_mma.cuh.
//
// Offsets are counted in ints, in units of what is moved at once: 16 bytes (PACKED) or one element. So an array has
// less than 2^31 of these units.
#pragma once
#include "convolution.cuh"
#include "matmul_mma_product.cuh"

// One row of the gathered operand of OUTPUT and INPUT, a position: its place z, y, x for the tap that moves by 0, and
// the units up to there.
struct __align__(16) GatherRow {
    int number[4];
};

// Moves an operand whose rows are positions and whose K runs along taps and channels.
//
// Who does what: a thread always has the same chunk (or element) of a line, so it counts along K once for a tile and
// knows the tap and channel for all of its COUNT rows, LINE_STEP apart. The rows' places lie in shared memory: one
// load of 16 bytes for each copy, of which the lanes of one row share theirs. Registers have no room for them.
template <typename T, int ROWS, int BK, int THREADS, bool PACKED> struct TapMover {
    typedef Panel<T, ROWS, BK, PACKED ? ALONG_K : STRIDED> P;
    static constexpr int UNIT = PACKED ? PACK<T> : 1, LINE = BK / UNIT;  // units of a line
    static constexpr int LINE_STEP = THREADS / LINE, COUNT = ROWS / LINE_STEP;
    static constexpr bool ASYNC = PACKED || sizeof(T) == 4;
    static_assert(THREADS % LINE == 0 && COUNT * LINE_STEP == ROWS, "every thread moves as many");

    const T* source;
    const GatherRow* rows;
    Counter counter;
    int by[3], extent[3], stride[3];
    int left;
    uint16 staged[ASYNC ? 1 : COUNT];  // the bits of T

    static __device__ __forceinline__ int line() { return threadIdx.x / LINE; }
    static __device__ __forceinline__ int unit() { return threadIdx.x % LINE; }

    // channels, pitch: units of a group, and from place to place along x.
    __device__ __forceinline__ TapMover(const T* source, const GatherRow* rows, const int (&taps)[3],
                                        const int (&by_)[3], const int (&extent_)[3], int channels, int pitch,
                                        int64 first_k, int depth)
        : source(source), rows(rows + line()),
          counter(first_k / UNIT + unit(), LINE, channels, at_least_1(taps[2]), at_least_1(taps[1])),
          left(depth - unit() * UNIT) {
#pragma unroll
        for (int d = 2; d >= 0; d--) {
            by[d] = by_[d];
            extent[d] = extent_[d];
            stride[d] = pitch;
            pitch *= extent_[d];
        }
    }

    static __device__ __forceinline__ int place(int j) {
        if constexpr (PACKED)
            return P::place(line() + j * LINE_STEP, unit());
        else
            return P::place(line() + j * LINE_STEP, unit() / P::WIDTH) + unit() % P::WIDTH * int(sizeof(T));
    }

    __device__ __forceinline__ void load(unsigned char* panel) {
        int moved[3], shift = counter.digit[0];
#pragma unroll
        for (int d = 0; d < 3; d++) {
            moved[d] = by[d] * counter.digit[3 - d];
            shift += stride[d] * moved[d];
        }
        if (left <= 0) moved[0] = NOWHERE;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            const Pack<int, 4> row = load_pack<int, 4>(rows[j * LINE_STEP].number);
            bool inside = true;
#pragma unroll
            for (int d = 0; d < 3; d++)  // no &&: that would branch
                inside &= static_cast<uint32>(row.item[d] + moved[d]) < static_cast<uint32>(extent[d]);
            const T* from = source + static_cast<int64>(row.item[3] + shift) * UNIT;
            if constexpr (ASYNC) {
                ptx::copy_async<PACKED ? 16 : 4>(panel + place(j), from, inside);
            } else {
                staged[j] = 0;
                if (inside) staged[j] = *reinterpret_cast<const uint16*>(from);
            }
        }
        counter.advance();
        left -= BK;
    }
    __device__ __forceinline__ void store(unsigned char* panel) const {
        if constexpr (!ASYNC) {
#pragma unroll
            for (int j = 0; j < COUNT; j++) *reinterpret_cast<uint16*>(panel + place(j)) = staged[j];
        }
    }
};

// Moves an operand whose rows are channels (of a tap) and whose K is walked along in any order: positions in WEIGHT,
// taps and outputs of the weight in INPUT.
//
// Who does what: a thread always has the same chunk (or element) of a line of rows and takes every LINE_STEP-th k:
// the next k of one tile and the first of the next tile are the same distance away, so one walk serves all.
template <typename T, int ROWS, int BK, int THREADS, bool PACKED, typename Walk> struct LineMover {
    typedef Panel<T, ROWS, BK, PACKED ? ALONG_ROWS : STRIDED> P;
    static constexpr int UNIT = PACKED ? PACK<T> : 1, LINE = ROWS / UNIT;
    static constexpr int LINE_STEP = THREADS / LINE, COUNT = BK / LINE_STEP;
    static constexpr bool ASYNC = PACKED || sizeof(T) == 4;
    static_assert(THREADS % LINE == 0 && COUNT * LINE_STEP == BK, "every thread moves as many");

    const T* source;
    Walk walk;
    int left;
    uint16 staged[ASYNC ? 1 : COUNT];

    static __device__ __forceinline__ int k() { return threadIdx.x / LINE; }
    static __device__ __forceinline__ int row() { return threadIdx.x % LINE * UNIT; }

    __device__ __forceinline__ LineMover(const T* source, const Walk& walk, int depth)
        : source(source), walk(walk), left(depth - k()) {}

    static __device__ __forceinline__ int place(int j) {
        const int at = k() + j * LINE_STEP;
        if constexpr (PACKED)
            return P::place(at, row() / UNIT);
        else
            return P::place(row(), at / P::WIDTH) + at % P::WIDTH * int(sizeof(T));
    }

    __device__ __forceinline__ void load(unsigned char* panel) {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            int at;
            const bool inside = walk.find(at) && left > j * LINE_STEP;
            const T* from = source + static_cast<int64>(at) * UNIT;
            if constexpr (ASYNC) {
                ptx::copy_async<PACKED ? 16 : 4>(panel + place(j), from, inside);
            } else {
                staged[j] = 0;
                if (inside) staged[j] = *reinterpret_cast<const uint16*>(from);
            }
            walk.counter.advance();
        }
        left -= BK;
    }
    __device__ __forceinline__ void store(unsigned char* panel) const {
        if constexpr (!ASYNC) {
#pragma unroll
            for (int j = 0; j < COUNT; j++) *reinterpret_cast<uint16*>(panel + place(j)) = staged[j];
        }
    }
};
