// tensor_core.h - what the tensor cores compute, as plain functions of host memory: matrix fragments,
// mma.sync, wgmma. No scheduling, no checking, no globals; the runtime calls these once all threads of
// an operation have come together. Layouts follow the PTX ISA; kernels/cuda/ptx_*.cuh says them in words.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>

#include "tensor_map.h"

namespace tensor {

// ---- the operands' number formats: how many bytes an element has, and its value -------------------------

struct Bf16 {
    typedef uint16_t Bits;
    static float value(Bits bits) { return bfloat16_to_float(bits); }
};
struct F16 {
    typedef uint16_t Bits;
    static float value(Bits bits) { return half_to_float(bits); }
};
struct Tf32 {  // float32 of which the lowest 13 bits are not looked at
    typedef uint32_t Bits;
    static float value(Bits bits) { return float_of_bits(bits & 0xffffe000u); }
};
struct E5m2 {  // the upper half of a float16
    typedef uint8_t Bits;
    static float value(Bits bits) { return half_to_float(static_cast<uint16_t>(bits << 8)); }
};
struct E4m3 {  // no infinities; NaN where all bits but the sign are set
    typedef uint8_t Bits;
    static float value(Bits bits) {
        const uint32_t magnitude = bits & 0x7f;
        // As a float16 the exponent is 8 too small.
        const float size = magnitude == 0x7f ? float_of_bits(0x7fffffffu)
                                             : half_to_float(static_cast<uint16_t>(magnitude << 7)) * 256.0f;
        return bits & 0x80 ? -size : size;
    }
};

// The numbers of ptx::Kind.
enum Kind {
    KIND_BF16,
    KIND_F16,
    KIND_TF32,
    KIND_E4M3,
    KIND_E5M2,
    KIND_E4M3_E5M2,
    KIND_E5M2_E4M3,
    KIND_F64,
    KIND_S8
};

// Calls run(A's format, B's format) for a kind that sums in float32.
template <class Run> void with_formats(int kind, Run run) {
    switch (kind) {
        case KIND_BF16: return run(Bf16(), Bf16());
        case KIND_F16: return run(F16(), F16());
        case KIND_TF32: return run(Tf32(), Tf32());
        case KIND_E4M3: return run(E4m3(), E4m3());
        case KIND_E5M2: return run(E5m2(), E5m2());
        case KIND_E4M3_E5M2: return run(E4m3(), E5m2());
        case KIND_E5M2_E4M3: return run(E5m2(), E4m3());
    }
}

// ---- ldmatrix and stmatrix --------------------------------------------------------------------------

// rows: the 32 lanes' pointers, of which the first 8 count are used; registers[lane][matrix].
inline void load_matrix(const void* const* rows, uint32_t* const* registers, int count, bool transposed) {
    for (int matrix = 0; matrix < count; matrix++) {
        uint16_t elements[8][8];
        for (int row = 0; row < 8; row++) std::memcpy(elements[row], rows[matrix * 8 + row], 16);
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4 * 2;
            const uint32_t low = transposed ? elements[t][g] : elements[g][t];
            const uint32_t high = transposed ? elements[t + 1][g] : elements[g][t + 1];
            registers[lane][matrix] = low | high << 16;
        }
    }
}

inline void store_matrix(void* const* rows, const uint32_t* const* registers, int count, bool transposed) {
    for (int matrix = 0; matrix < count; matrix++) {
        uint16_t elements[8][8];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4 * 2;
            const uint32_t pair = registers[lane][matrix];
            (transposed ? elements[t][g] : elements[g][t]) = static_cast<uint16_t>(pair);
            (transposed ? elements[t + 1][g] : elements[g][t + 1]) = static_cast<uint16_t>(pair >> 16);
        }
        for (int row = 0; row < 8; row++) std::memcpy(rows[matrix * 8 + row], elements[row], 16);
    }
}

// ---- mma.sync ----------------------------------------------------------------------------------------

struct MmaLane {  // one lane's registers; d and c may be the same
    void* d;
    const uint32_t *a, *b;
    const void* c;
};

// Element e of a 32-bit register.
template <class Format> float element(uint32_t word, int e) {
    typedef typename Format::Bits Bits;
    return Format::value(static_cast<Bits>(word >> (e * 8 * static_cast<int>(sizeof(Bits)))));
}

// A fragment's registers r of (g, t) hold E = 4 / bytes elements: row g + 8 (r % 2), k = E t + 4 E (r / 2).
template <class Format> void unpack_a(const uint32_t* a, int lane, float* rows, int k_size) {
    constexpr int E = 4 / sizeof(typename Format::Bits);
    for (int r = 0; r < 4; r++)
        for (int e = 0; e < E; e++)
            rows[(lane / 4 + 8 * (r % 2)) * k_size + E * (lane % 4) + 4 * E * (r / 2) + e] =
                element<Format>(a[r], e);
}

// 16 x 8 sums over k of 8 registers' elements; Sum is float or uint32_t (int that wraps around).
template <class Sum, class UnpackA, class UnpackB>
void mma_16x8(MmaLane* const* lanes, int k_size, UnpackA unpack_lane_a, UnpackB unpack_lane_b) {
    Sum a[16 * 32], b[32 * 8], d[16 * 8];
    for (int lane = 0; lane < 32; lane++) {
        unpack_lane_a(lanes[lane]->a, lane, a);
        unpack_lane_b(lanes[lane]->b, lane, b);
        Sum c[4];
        std::memcpy(c, lanes[lane]->c, sizeof c);
        for (int i = 0; i < 4; i++) d[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < k_size; k++)
            for (int column = 0; column < 8; column++)
                d[row * 8 + column] += a[row * k_size + k] * b[k * 8 + column];
    for (int lane = 0; lane < 32; lane++) {
        Sum result[4];
        for (int i = 0; i < 4; i++) result[i] = d[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2];
        std::memcpy(lanes[lane]->d, result, sizeof result);
    }
}

inline void mma_f64(MmaLane* const* lanes) {  // m8n8k4
    double a[8][4], b[4][8], d[8][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        std::memcpy(&a[g][t], lanes[lane]->a, 8);
        std::memcpy(&b[t][g], lanes[lane]->b, 8);
        std::memcpy(&d[g][2 * t], lanes[lane]->c, 16);
    }
    for (int row = 0; row < 8; row++)
        for (int k = 0; k < 4; k++)
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++) std::memcpy(lanes[lane]->d, &d[lane / 4][lane % 4 * 2], 16);
}

// A warp's d = a b + c. Products are exact, sums rounded to nearest in the order of k.
inline void mma(int kind, MmaLane* const* lanes) {
    if (kind == KIND_F64) return mma_f64(lanes);
    if (kind == KIND_S8) {
        auto byte = [](uint32_t word, int e) {
            return static_cast<uint32_t>(static_cast<int8_t>(word >> (8 * e)));
        };
        return mma_16x8<uint32_t>(
            lanes, 32,
            [&](const uint32_t* registers, int lane, uint32_t* a) {
                for (int i = 0; i < 16; i++)
                    a[(lane / 4 + 8 * (i / 4 % 2)) * 32 + 4 * (lane % 4) + 16 * (i / 8) + i % 4] =
                        byte(registers[i / 4], i % 4);
            },
            [&](const uint32_t* registers, int lane, uint32_t* b) {
                for (int i = 0; i < 8; i++)
                    b[(4 * (lane % 4) + 16 * (i / 4) + i % 4) * 8 + lane / 4] = byte(registers[i / 4], i % 4);
            });
    }
    with_formats(kind, [&](auto format_a, auto format_b) {
        typedef decltype(format_a) A;
        typedef decltype(format_b) B;
        constexpr int E = 4 / sizeof(typename B::Bits), k_size = 8 * E;
        mma_16x8<float>(
            lanes, k_size,
            [](const uint32_t* registers, int lane, float* a) { unpack_a<A>(registers, lane, a, k_size); },
            [](const uint32_t* registers, int lane, float* b) {
                for (int r = 0; r < 2; r++)
                    for (int e = 0; e < E; e++)
                        b[(E * (lane % 4) + 4 * E * r + e) * 8 + lane / 4] = element<B>(registers[r], e);
            });
    });
}

// ---- wgmma ---------------------------------------------------------------------------------------------

struct WgmmaOp {
    int n, kind;
    uint64_t a, b;  // descriptors; a is not looked at if a_in_registers
    bool a_in_registers, accumulate, transpose_a, transpose_b;
};

// Working memory of wgmma: 104 KiB, so kept by the caller and not on a thread's stack.
struct WgmmaScratch {
    alignas(64) float a[64 * 32];   // [row][k]
    alignas(64) float b[32 * 256];  // [k][column]
    alignas(64) float d[64 * 256];  // [row][column]
};

// A matrix descriptor: where the 16-byte pieces of an operand lie in the shared window.
struct Descriptor {
    uint32_t start, leading, stride, width;  // width: 16-byte pieces in a line of a group (1, 2, 4 or 8)
    uint32_t phase;                          // where the swizzle's pattern starts, in units of 128 bytes

    explicit Descriptor(uint64_t bits)
        : start(bits << 4 & 0x3fff0), leading(bits >> 12 & 0x3fff0), stride(bits >> 28 & 0x3fff0),
          width(bits >> 62 ? 16u >> (bits >> 62) : 1), phase(bits >> 49 & 7) {}

    // Piece `half` (0 or 1) of the 32 bytes of K of a row, where K is contiguous.
    uint32_t along_k(uint32_t row, uint32_t half) const {
        return swizzled(row / 8 * stride + row % 8 * width * 16 + half * (width == 1 ? leading : 16));
    }
    // The piece of 8 rows from 8 * group on, of 16-bit elements, at one k, where rows are contiguous.
    uint32_t along_rows(uint32_t group, uint32_t k) const {
        if (width == 1) return swizzled(group * stride + k / 8 * leading + k % 8 * 16);
        return swizzled(group / width * leading + group % width * 16 + k / 8 * stride + k % 8 * width * 16);
    }

private:
    uint32_t swizzled(uint32_t offset) const {
        const uint32_t address = (start + offset) & 0x3ffff;
        return address ^ ((((address >> 7) - phase) & (width - 1)) << 4);
    }
};

// What the hardware would not take or the document leaves open; nullptr if all is well.
inline const char* refuse(const WgmmaOp& op) {
    for (int i = op.a_in_registers ? 1 : 0; i < 2; i++) {
        const Descriptor operand(i ? op.b : op.a);
        if (operand.phase) return "wgmma: a matrix descriptor with a base offset is not supported";
        // Further along K the operand starts within the first line of its group.
        const uint32_t within = operand.start % (operand.width * 128);
        const bool transposed = i ? op.transpose_b : op.transpose_a;
        if (operand.width > 1 && within >= (transposed ? 1 : operand.width * 16))
            return "wgmma: an operand's group of 8 lines does not start at a multiple of its size (1024, 512 "
                   "or 256 bytes for swizzles of 128, 64 or 32)";
    }
    return nullptr;
}

// Reads an operand of `rows` rows and 32 bytes of K: out[row * row_step + k * k_step].
template <class Format, class Touch>
void read_operand(const Descriptor& from, int rows, bool transposed, float* out, int row_step, int k_step,
                  const unsigned char* window, Touch& touch) {
    typedef typename Format::Bits Bits;
    constexpr int E = 16 / sizeof(Bits), K = 2 * E;
    auto piece = [&](uint32_t address, float* values) {
        touch(static_cast<const void*>(window + address), 16);
        Bits bits[E];
        std::memcpy(bits, window + address, 16);
        for (int e = 0; e < E; e++) values[e] = Format::value(bits[e]);
    };
    float block[8][E];
    if constexpr (sizeof(Bits) == 2)
        if (transposed) {
            for (int k = 0; k < K; k++)
                for (int group = 0; group < rows / 8; group++) {
                    piece(from.along_rows(group, k), block[0]);
                    float* target = out + group * 8 * row_step + k * k_step;
                    if (row_step == 1) std::memcpy(target, block[0], sizeof block[0]);
                    else
                        for (int i = 0; i < 8; i++) target[i * row_step] = block[0][i];
                }
            return;
        }
    for (int group = 0; group < rows; group += 8)
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 8; i++) piece(from.along_k(group + i, half), block[i]);
            for (int e = 0; e < E; e++)
                for (int i = 0; i < 8; i++)
                    out[(group + i) * row_step + (half * E + e) * k_step] = block[i][e];
        }
}

// d[64][n] += a[64][k] b[k][n], each sum in the order of k, in tiles of 4 rows that stay in registers.
#ifdef __AVX__
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
template <int V> void multiply_columns(WgmmaScratch& scratch, int n, int k_size, int column) {
    for (int row = 0; row < 64; row += 4) {
        Vector sum[4][V];
        for (int i = 0; i < 4; i++)
            for (int v = 0; v < V; v++)
                sum[i][v] = *reinterpret_cast<Vector*>(&scratch.d[(row + i) * n + column + v * LANES]);
        for (int k = 0; k < k_size; k++)
            for (int i = 0; i < 4; i++)
                for (int v = 0; v < V; v++)
                    sum[i][v] += scratch.a[(row + i) * k_size + k] *
                                 *reinterpret_cast<const Vector*>(&scratch.b[k * n + column + v * LANES]);
        for (int i = 0; i < 4; i++)
            for (int v = 0; v < V; v++)
                *reinterpret_cast<Vector*>(&scratch.d[(row + i) * n + column + v * LANES]) = sum[i][v];
    }
}

// The accumulator's registers, d[thread][register], to (or from) scratch.d.
template <bool TO_SCRATCH> void move_accumulator(WgmmaScratch& scratch, int n, float* const* d) {
    for (int thread = 0; thread < 128; thread++) {
        float* line = &scratch.d[(thread / 32 * 16 + thread % 32 / 4) * n + thread % 4 * 2];
        float* registers = d[thread];
        for (int j = 0; j < n / 8; j++)
            for (int i = 0; i < 2; i++) {
                float *here = line + i * 8 * n + j * 8, *there = registers + j * 4 + i * 2;
                if (TO_SCRATCH) std::memcpy(here, there, 8);
                else std::memcpy(there, here, 8);
            }
    }
}

// Operations of one warpgroup on one accumulator (the same n and d) in order. d and a_registers have a pointer
// for each of the 128 threads; a_registers is looked at by the operations with a_in_registers. window: the
// host address of shared address 0. touch(pointer, bytes) is called before each piece of shared memory is
// read. Whoever calls often keeps the scratch.
template <class Touch>
void wgmma(const WgmmaOp* ops, int count, float* const* d, const uint32_t* const* a_registers,
           const unsigned char* window, Touch touch, WgmmaScratch* kept = nullptr) {
    const std::unique_ptr<WgmmaScratch> own(kept ? nullptr : new WgmmaScratch);
    WgmmaScratch& scratch = kept ? *kept : *own;
    const int n = ops[0].n;
    for (int i = 0; i < count; i++) {
        const WgmmaOp& op = ops[i];
        if (!op.accumulate) std::memset(scratch.d, 0, sizeof(float) * 64 * n);
        else if (i == 0) move_accumulator<true>(scratch, n, d);
        int k_size = 0;
        with_formats(op.kind, [&](auto format_a, auto format_b) {
            typedef decltype(format_a) A;
            typedef decltype(format_b) B;
            k_size = 32 / sizeof(typename B::Bits);
            if (op.a_in_registers)
                for (int thread = 0; thread < 128; thread++)
                    unpack_a<A>(a_registers[thread], thread % 32, &scratch.a[thread / 32 * 16 * k_size], k_size);
            else
                read_operand<A>(Descriptor(op.a), 64, op.transpose_a, scratch.a, k_size, 1, window, touch);
            read_operand<B>(Descriptor(op.b), n, op.transpose_b, scratch.b, 1, n, window, touch);
        });
        int column = 0;
        for (; column + 3 * LANES <= n; column += 3 * LANES) multiply_columns<3>(scratch, n, k_size, column);
        for (; column < n; column += LANES) multiply_columns<1>(scratch, n, k_size, column);
    }
    move_accumulator<false>(scratch, n, d);
}

// A single operation.
template <class Touch>
void wgmma(const WgmmaOp& op, float* const* d, const uint32_t* const* a_registers, const unsigned char* window,
           Touch touch, WgmmaScratch* kept = nullptr) {
    wgmma(&op, 1, d, a_registers, window, touch, kept);
}

}  // namespace tensor
