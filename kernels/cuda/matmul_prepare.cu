// matmul_prepare.cu - operands of the tensor-core products of sm_90a, made ready for tensor copies (TMA).
//
// out[plane][outer][inner][row][k], with K contiguous and padded with zeros to 16 bytes, from an operand of any
// strides ("rows" are the rows of A, or the columns of B). What a plane holds:
//   one plane    the operand itself, rounded to Out's type; float32 stays float32 but rounded to TF32 (11 bits)
//   two, three   float32 as a sum of bfloat16 numbers of 8 bits each: 16 of its 24 bits, or all
//
// Who does what: a block of 256 threads moves tiles of 64 rows x 64 k through shared memory: it reads along
// whichever of the two is contiguous and writes 16-byte packs along K. A thread has 16 loads under way.
// Shared memory: 64 x 65 numbers; the odd pitch spreads a column over all banks.
// The limit: reads an element once, writes 2 bytes a plane (4 for TF32): 10 bytes for three planes. For 4096^3 that
// is 0.3 GB beside 137 GFLOP x 6: a tenth of the product's time.
// Accuracy: hi = round(x), mid = round(x - hi), lo = round(x - hi - mid): the differences are exact, so the sum of
// three is x, where x is 0 or at least 2^-110; below, lo runs out of exponents, an error below 2^-133.
// Several planes of inf or NaN would make inf - inf, and so would finite ones whose product overflows: +inf from the
// first planes and -inf from others. Where an element is not below 2^56 (then no small product overflows), flags (unfit, fit) become (1, 0), and the kernels that follow, each of which looks at one of
// them, make the product in float32 instead.
#include "common.cuh"

constexpr int SIDE = 64, THREADS = 256;

// The 11 leading bits, rounded to nearest, ties away from zero; inf and NaN stay what they are.
__device__ __forceinline__ float round_to_tf32(float x) {
    const uint32 bits = __float_as_uint(x);
    if (x != x) return __uint_as_float(bits | 0x400000u);  // in a bit that is kept
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}

template <typename Out> __device__ __forceinline__ Out round_operand(float x) { return narrow<Out>(x); }
template <> __device__ __forceinline__ float round_operand<float>(float x) { return round_to_tf32(x); }

// x = planes[0] + planes[1] + …, and whether x is beyond what the products can take.
template <typename Out, int PLANES> __device__ __forceinline__ bool split(float x, Out (&planes)[PLANES]) {
    const bool unfit = !(absolute(x) < 0x1p56f);
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        planes[p] = round_operand<Out>(x);
        const float kept = widen(planes[p]);
        x -= kept;
    }
    return unfit;
}

// Assumes: `pitch` (elements from row to row of `out`) is K rounded up to 16 bytes. Any rows, K >= 1.
template <typename In, typename Out, int PLANES>
__global__ void __launch_bounds__(THREADS)
prepare(const In* in, Out* out, int64 rows, int64 K, int64 row_stride, int64 k_stride, int64 pitch, uint32 outer,
        uint32 inner, int64 outer_stride, int64 inner_stride, int* flags) {
    constexpr int W = PACK<Out>;
    __shared__ float tile[SIDE][SIDE + 1];
    const int t = threadIdx.x;
    const bool along_k = (k_stride < 0 ? -k_stride : k_stride) <= (row_stride < 0 ? -row_stride : row_stride);
    const int64 high = (rows + SIDE - 1) / SIDE, wide = (pitch + SIDE - 1) / SIDE;
    const int64 tiles = high * wide * outer * inner, plane = static_cast<int64>(outer) * inner * rows * pitch;
    bool met = false;
    for (int64 number = blockIdx.x; number < tiles; number += gridDim.x) {
        const int64 matrix = number / (high * wide), within = number % (high * wide);
        const int64 first_row = within / wide * SIDE, first_k = within % wide * SIDE;
        const In* source = in + matrix / inner * outer_stride + matrix % inner * inner_stride;
        float value[SIDE * SIDE / THREADS];
#pragma unroll
        for (int i = 0; i < SIDE * SIDE / THREADS; i++) {
            const int at = t + i * THREADS;
            const int64 row = first_row + (along_k ? at / SIDE : at % SIDE);
            const int64 k = first_k + (along_k ? at % SIDE : at / SIDE);
            value[i] = row < rows && k < K ? widen(source[row * row_stride + k * k_stride]) : 0.0f;
        }
        __syncthreads();  // the last tile has been written
#pragma unroll
        for (int i = 0; i < SIDE * SIDE / THREADS; i++) {
            const int at = t + i * THREADS;
            tile[along_k ? at / SIDE : at % SIDE][along_k ? at % SIDE : at / SIDE] = value[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < SIDE * SIDE / W / THREADS; i++) {
            const int p = t + i * THREADS, row = p / (SIDE / W), k = p % (SIDE / W) * W;
            if (first_row + row >= rows || first_k + k >= pitch) continue;
            Pack<Out, W> packs[PLANES];
#pragma unroll
            for (int e = 0; e < W; e++) {
                Out planes[PLANES];
                met |= split<Out, PLANES>(tile[row][k + e], planes);
#pragma unroll
                for (int s = 0; s < PLANES; s++) packs[s].item[e] = planes[s];
            }
            Out* target = out + (matrix * rows + first_row + row) * pitch + first_k + k;
#pragma unroll
            for (int s = 0; s < PLANES; s++) store_pack(target + s * plane, packs[s]);
        }
    }
    if (PLANES > 1 && met) {
        // Many threads may write, but all the same; what no other thread reads before the kernel's end.
        flags[0] = 1;
        flags[1] = 0;
    }
}

// Before the operands of a product are split.
extern "C" __global__ void clear_flags(int* flags) {
    flags[0] = 0;
    flags[1] = 1;
}
