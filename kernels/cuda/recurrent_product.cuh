// recurrent_product.cuh - a matrix that stays in a block's registers and shared memory while vectors come and go.
//
// The block owns `rows` rows of a matrix with `depth` columns and multiplies them by a tile of COLUMNS vectors at a
// time, one for each sequence of a batch. Both kinds have one interface:
//
//   Product(matrix, rows, depth, memory)   loads the matrix; `memory` has the bytes that recurrent_plan.py counts
//   vectors, place(column, k)              where element k of a vector lies in a set of vectors: elements
//   packs(...), pack_place(...)            the 16-byte packs of the elements that the block itself has made
//   multiply(vectors, tile)                leaves sums in shared memory, a part for each split of `depth`
//   add(column, row, pitch, count, to)     adds to `to` the parts of `count` rows, in a fixed order; a barrier stands
//                                          between
//
// `matrix` says where elements come from: row(r) is a number for a row, negative for one beyond the end, and
// at(row, k) is the element, 0 beyond the end.
//
// What is beyond the end of the matrix is zero, and so are vectors beyond the end of the batch: nothing is masked
// in the loops.
#pragma once
#include "common.cuh"
#include "ptx_memory.cuh"
#include "ptx_tensor_core.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP, COLUMNS = 8;

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// ---- 16-bit types: tensor cores ---------------------------------------------------------------------------
//
// A warp owns up to SLOTS fragments of 16 rows and, if there are fewer such groups than warps, one of `splits` parts
// of the depth. Its fragments of the first HELD steps of 16 are in registers for the whole sequence (128 of them a
// thread, 128 KB a block), the others in shared memory in the order of the registers: one 16-byte load a lane
// and fragment, free of conflicts. Vectors lie with k inside, 16 bytes longer than they are, so that the eight
// rows of an ldmatrix are in different banks.
// Bytes: 512 for each group, split, step beyond HELD and slot; 2 (depth + 8) a vector; the sums.
template <typename T> struct KindFor { static constexpr ptx::Kind kind = ptx::Kind::bf16; };
template <> struct KindFor<__half> { static constexpr ptx::Kind kind = ptx::Kind::f16; };

template <typename T, int SLOTS> struct TensorCoreProduct {
    static constexpr int HELD = 32 / SLOTS, GROUP = 16 * SLOTS;
    static constexpr ptx::Kind KIND = KindFor<T>::kind;

    int groups, splits, steps, line, stride;
    int group, split, used;  // of this warp; `used` slots have rows
    uint32 held[HELD * SLOTS][4];
    Pack<uint32, 4>* others;
    float* sums;

    template <typename Matrix>
    __device__ __forceinline__ TensorCoreProduct(const Matrix& matrix, int rows, int depth, unsigned char* memory) {
        groups = divide_up(rows, GROUP);
        splits = WARPS / groups;
        steps = divide_up(divide_up(depth, 16), splits);
        line = 16 * steps * splits + 8;
        stride = groups * GROUP + 4;
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        group = warp % groups;
        split = warp / groups;
        used = split < splits ? divide_up(rows - group * GROUP, 16) : 0;
        if (used > SLOTS) used = SLOTS;
        sums = reinterpret_cast<float*>(memory);
        const int more = steps > HELD ? steps - HELD : 0;
        others = reinterpret_cast<Pack<uint32, 4>*>(memory + sum_bytes()) + warp * more * SLOTS * WARP + lane;
        load(matrix);
    }

    __device__ __forceinline__ int sum_bytes() const { return splits * COLUMNS * stride * 4; }
    __device__ __forceinline__ int bytes() const {
        const int more = steps > HELD ? steps - HELD : 0;
        return sum_bytes() + groups * splits * more * SLOTS * 512;
    }
    __device__ __forceinline__ int vector_bytes(int tiles) const { return tiles * COLUMNS * line * 2; }

    // Fragment i SLOTS + q is slot q of step i. Registers have no index at run time, and a loop unrolled for
    // their sake would be hundreds of loads long: so a turn writes its four fragments to all places that are its own.
    template <typename Matrix> __device__ __forceinline__ void load(const Matrix& matrix) {
        constexpr int ALL = HELD * SLOTS, FOUR = 4;
#pragma unroll 1
        for (int first = 0; first < ALL || first < steps * SLOTS; first += FOUR) {
            Pack<uint32, 4> made[FOUR];
#pragma unroll
            for (int j = 0; j < FOUR; j++) {
                const int step = (first + j) / SLOTS, slot = (first + j) % SLOTS;
                made[j] = {{0, 0, 0, 0}};
                if (step < steps && slot < used) made[j] = fragment(matrix, slot, split * steps + step);
            }
#pragma unroll
            for (int f = 0; f < ALL; f++)
                if (f / FOUR == first / FOUR)
#pragma unroll
                    for (int e = 0; e < 4; e++) held[f][e] = made[f % FOUR].item[e];
#pragma unroll
            for (int j = 0; j < FOUR; j++)
                if (first >= ALL && (first + j) / SLOTS < steps && (first + j) % SLOTS < used)
                    others[(first + j - ALL) * WARP] = made[j];
        }
    }

    // What this lane holds of a slot's 16 rows and the 16 columns of step `step`.
    template <typename Matrix>
    __device__ __forceinline__ Pack<uint32, 4> fragment(const Matrix& matrix, int slot, int step) const {
        const int k = step * 16 + threadIdx.x % 4 * 2, row = group * GROUP + slot * 16 + threadIdx.x % WARP / 4;
        const int64 low = matrix.row(row), high = matrix.row(row + 8);
        return {{both(matrix, low, k), both(matrix, high, k), both(matrix, low, k + 8), both(matrix, high, k + 8)}};
    }
    template <typename Matrix>
    __device__ __forceinline__ uint32 both(const Matrix& matrix, int64 row, int k) const {
        const Pack<T, 2> two{{matrix.at(row, k), matrix.at(row, k + 1)}};
        return *reinterpret_cast<const uint32*>(&two);
    }

    __device__ __forceinline__ int place(int column, int k) const { return column * line + k; }
    static __device__ __forceinline__ int packs(int segments, int units, int, int columns) {
        return columns * segments * (units / PACK<T>);
    }
    // Pack i of the block's units from `first` on, in each segment of `pitch` elements of each vector.
    __device__ __forceinline__ int pack_place(int i, int segments, int units, int first, int pitch) const {
        const int each = units / PACK<T>, rest = i / each;
        return place(rest / segments, rest % segments * pitch + first + i % each * PACK<T>);
    }

    __device__ __forceinline__ void multiply(const T* vectors, int tile) const {
        if (used <= 0) return;
        const int lane = threadIdx.x % WARP;
        const T* from = vectors + place(tile * COLUMNS + lane % 8, split * steps * 16 + lane / 8 % 2 * 8);
        float sum[SLOTS][4] = {};
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (i >= steps) continue;
            uint32 b[2];
            ptx::load_matrix(b, from + i * 16);
#pragma unroll
            for (int q = 0; q < SLOTS; q++)
                if (q < used) ptx::mma<KIND>(sum[q], held[i * SLOTS + q], b);
        }
#pragma unroll 1
        for (int i = HELD; i < steps; i++) {
            uint32 b[2];
            ptx::load_matrix(b, from + i * 16);
#pragma unroll
            for (int q = 0; q < SLOTS; q++) {
                if (q >= used) continue;
                const Pack<uint32, 4> a = others[((i - HELD) * SLOTS + q) * WARP];
                ptx::mma<KIND>(sum[q], a.item, b);
            }
        }
        float* to = sums + (split * COLUMNS + lane % 4 * 2) * stride + group * GROUP + lane / 4;
#pragma unroll
        for (int q = 0; q < SLOTS; q++) {
            if (q >= used) continue;
            to[q * 16] = sum[q][0];
            to[q * 16 + stride] = sum[q][1];
            to[q * 16 + 8] = sum[q][2];
            to[q * 16 + 8 + stride] = sum[q][3];
        }
    }

    template <int N>
    __device__ __forceinline__ void add(int column, int row, int pitch, int count, float (&to)[N]) const {
#pragma unroll 4
        for (int s = 0; s < splits; s++)
#pragma unroll
            for (int q = 0; q < N; q++)
                if (q < count) to[q] += sums[(s * COLUMNS + column) * stride + row + q * pitch];
    }
};

// ---- float ----------------------------------------------------------------------------------------------
//
// A thread owns SLOTS rows, `quarter` apart, and one of `splits` parts of the depth: every `splits`-th element. So
// the elements that the threads need at one time are neighbours, in the order of the threads. Vectors of
// a tile lie with their columns inside, and a warp reads few of them at a time: a broadcast.
// A step of the loop is 4 loads of the matrix, 8 numbers of the vectors and 32 multiplications a thread.
// Bytes: 16 for each thread in use and step of the loop; 4 depth a vector; the sums.
struct PlainProduct {
    static constexpr int SLOTS = 4;

    int quarter, splits, steps, team, stride, depth;
    float* matrix_at;
    float* sums;

    template <typename Matrix>
    __device__ __forceinline__ PlainProduct(const Matrix& matrix, int rows, int columns, unsigned char* memory) {
        quarter = divide_up(rows, SLOTS);
        splits = THREADS / quarter;
        if (splits > columns) splits = columns;
        steps = divide_up(columns, splits);
        team = quarter * splits;
        stride = SLOTS * quarter;
        depth = steps * splits;
        sums = reinterpret_cast<float*>(memory);
        matrix_at = reinterpret_cast<float*>(memory + sum_bytes()) + threadIdx.x;
        const int thread = threadIdx.x;
        if (thread >= team) return;
#pragma unroll 1
        for (int q = 0; q < SLOTS; q++) {
            const int row = q * quarter + thread % quarter;
            const int64 from = row < rows ? matrix.row(row) : -1;
            for (int i = 0; i < steps; i++)
                matrix_at[(i * SLOTS + q) * team] = matrix.at(from, i * splits + thread / quarter);
        }
    }

    __device__ __forceinline__ int sum_bytes() const { return splits * COLUMNS * stride * 4; }
    __device__ __forceinline__ int bytes() const { return sum_bytes() + steps * SLOTS * team * 4; }
    __device__ __forceinline__ int vector_bytes(int tiles) const { return tiles * depth * COLUMNS * 4; }

    __device__ __forceinline__ int place(int column, int k) const {
        return (column / COLUMNS * depth + k) * COLUMNS + column % COLUMNS;
    }
    static __device__ __forceinline__ int packs(int segments, int units, int tiles, int) {
        return tiles * segments * units * (COLUMNS / PACK<float>);
    }
    __device__ __forceinline__ int pack_place(int i, int segments, int units, int first, int pitch) const {
        constexpr int EACH = COLUMNS / PACK<float>;
        const int unit = i / EACH % units, rest = i / EACH / units;
        return place(rest / segments * COLUMNS, rest % segments * pitch + first + unit) + i % EACH * PACK<float>;
    }

    __device__ __forceinline__ void multiply(const float* vectors, int tile) const {
        const int thread = threadIdx.x;
        if (thread >= team) return;
        const float* from = vectors + place(tile * COLUMNS, thread / quarter);
        float sum[SLOTS][COLUMNS] = {};
#pragma unroll 2
        for (int i = 0; i < steps; i++) {
            float vector[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; c += PACK<float>) {
                const Pack<float, PACK<float>> pack = load_pack<float, PACK<float>>(from + i * splits * COLUMNS + c);
#pragma unroll
                for (int e = 0; e < PACK<float>; e++) vector[c + e] = pack.item[e];
            }
#pragma unroll
            for (int q = 0; q < SLOTS; q++) {
                const float a = matrix_at[(i * SLOTS + q) * team];
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) sum[q][c] += a * vector[c];
            }
        }
        float* to = sums + thread / quarter * COLUMNS * stride + thread % quarter;
#pragma unroll
        for (int q = 0; q < SLOTS; q++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) to[c * stride + q * quarter] = sum[q][c];
    }

    template <int N>
    __device__ __forceinline__ void add(int column, int row, int pitch, int count, float (&to)[N]) const {
#pragma unroll 4
        for (int s = 0; s < splits; s++)
#pragma unroll
            for (int q = 0; q < N; q++)
                if (q < count) to[q] += sums[(s * COLUMNS + column) * stride + row + q * pitch];
    }
};

template <typename T, int SLOTS> struct ProductFor { typedef TensorCoreProduct<T, SLOTS> type; };
template <int SLOTS> struct ProductFor<float, SLOTS> { typedef PlainProduct type; };
