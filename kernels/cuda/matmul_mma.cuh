// matmul_mma.cuh - the parts of a matrix product on tensor cores by mma.sync: how a panel lies in shared memory,
// how it gets there (cp.async), how a warp reads its fragments (ldmatrix), and the three kinds of arithmetic.
//
// Letters: C (M x N) = A (M x K) B (K x N). "Rows" are the rows of A, or the columns of B. A chunk is 16 bytes:
// what one cp.async brings and what one lane names to ldmatrix. A step is 32 bytes along K of both operands: the
// K of one mma.sync (16 elements of 16 bits, or 8 of TF32). A block of an operand is 16 rows of one step: four
// registers a lane, with h = which eight rows and c = which 16 bytes of K: register h + 2 c for A, as mma takes
// it, and 2 h + c for B, so that the two of 8 columns are neighbours, as the instruction wants them.
#pragma once
#include "matmul.cuh"
#include "ptx_memory.cuh"
#include "ptx_tensor_core.cuh"

// NATIVE: 16-bit elements. TF32: float32 rounded to 11 bits. SPLIT: float32 as three bfloat16 numbers.
enum Mode { NATIVE, TF32, SPLIT };

// What a product is for, named after the passes of a linear layer: the epilogue applies an activation
// (FORWARD, WEIGHT_GRADIENT) or multiplies by its derivative; WEIGHT_GRADIENT also sums the rows of A.
enum Pass { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT };

// ---- a panel in shared memory: ROWS x BK elements of one operand -------------------------------------------
//
// It lies there as in global memory, without gaps: lines of rows with K contiguous, or (ALONG_ROWS) lines of one
// k with rows contiguous; single elements are put in lines of rows. In each line the numbers of the chunks are
// XORed with a number made of the line's, so that the 8 chunks of one pass are in 8 different groups of 4 banks
// in both directions: 8 neighbours of a line (cp.async), and one chunk number in 8 neighbouring lines (ldmatrix).
template <typename T, int ROWS, int BK, Load LOAD> struct Panel {
    static constexpr bool ROWS_INNER = LOAD == ALONG_ROWS;
    // 32-bit elements with rows inside: ldmatrix cannot transpose them; a lane reads some rows of one k itself.
    static constexpr bool BY_LANE = ROWS_INNER && sizeof(T) == 4;
    static constexpr int WIDTH = PACK<T>, LINES = ROWS_INNER ? BK : ROWS;
    static constexpr int CHUNKS = (ROWS_INNER ? ROWS : BK) / WIDTH, LINE = CHUNKS * 16, BYTES = LINES * LINE;
    static_assert(CHUNKS % 4 == 0 && (!BY_LANE || CHUNKS % 8 == 0), "a line is 64 bytes or a multiple of 128");

    // Byte offset of a chunk.
    static __device__ __forceinline__ int place(int line, int chunk) {
        const int turn = BY_LANE ? line % 4 * 2 : CHUNKS >= 8 ? line % 8 : line / 2 % 4;
        return line * LINE + (chunk ^ turn) * 16;
    }
};

// ---- from global to shared memory ---------------------------------------------------------------------------
//
// Two kinds with one interface. The constructor takes the element (first row, first k) of the block, the strides,
// how many rows the matrix has from there and how many k it is to walk over. load(panel) starts the next tile on
// its way and store(panel) must follow before the barrier. Zeros stand beyond the last row and the last k.

// Moves whole chunks of an operand that is contiguous along K or along its rows. Pointer, extent and the other
// stride are multiples of 16 bytes.
// Who does what: neighbouring threads take neighbouring chunks of a line, COUNT of them LINE_STEP lines apart.
template <typename T, int ROWS, int BK, int THREADS, Load LOAD> struct PackMover {
    typedef Panel<T, ROWS, BK, LOAD> P;
    static constexpr int LINE_STEP = THREADS / P::CHUNKS, COUNT = P::LINES / LINE_STEP;
    static_assert(THREADS % P::CHUNKS == 0 && COUNT * LINE_STEP == P::LINES, "every thread moves as many chunks");

    const T* next;       // the first chunk of the next tile
    int64 step, across;  // elements from tile to tile, and from chunk to chunk
    int rows, left;      // rows and k from the first chunk to the end
    int line, chunk;

    __device__ __forceinline__ PackMover(const T* origin, int64 row_stride, int64 k_stride, int64 rows_left,
                                         int depth) {
        line = threadIdx.x / P::CHUNKS;
        chunk = threadIdx.x % P::CHUNKS;
        const int64 stride = P::ROWS_INNER ? k_stride : row_stride;
        const int row = P::ROWS_INNER ? chunk * P::WIDTH : line, k = P::ROWS_INNER ? line : chunk * P::WIDTH;
        next = origin + line * stride + chunk * P::WIDTH;
        step = P::ROWS_INNER ? BK * k_stride : BK;
        across = LINE_STEP * stride;
        rows = static_cast<int>((rows_left < ROWS ? rows_left : ROWS) - row);
        left = P::ROWS_INNER && rows <= 0 ? 0 : depth - k;
    }

    __device__ __forceinline__ void load(unsigned char* panel) {
        const int lines = P::ROWS_INNER ? left : left > 0 ? rows : 0;
        const T* source = next;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            ptx::copy_async<16>(panel + P::place(line + j * LINE_STEP, chunk), source, j * LINE_STEP < lines);
            source += across;
        }
        next += step;
        left -= BK;
    }
    __device__ __forceinline__ void store(unsigned char*) const {}
};

// Moves single elements of an operand with any strides: 4 bytes by cp.async, 2 bytes (which cp.async cannot)
// through registers, from load to store.
// Who does what: neighbouring lanes take neighbouring elements in the direction of the smaller stride: BK of a
// row, or rows of one k. A thread moves COUNT elements at equal distances.
template <typename T, int ROWS, int BK, int THREADS> struct ElementMover {
    typedef Panel<T, ROWS, BK, STRIDED> P;
    static constexpr int COUNT = ROWS * BK / THREADS;
    static constexpr bool ASYNC = sizeof(T) == 4;
    static_assert(THREADS % BK == 0 && THREADS % ROWS == 0 && ROWS * BK % THREADS == 0, "equal distances");

    const T* next;
    int64 step, across;            // elements from tile to tile, and from element to element
    int row, k, row_step, k_step;  // in the tile: of the first element, and from element to element
    int rows, left;                // of the matrix, from the tile's corner
    uint16 staged[ASYNC ? 1 : COUNT];  // the bits of T

    __device__ __forceinline__ ElementMover(const T* origin, int64 row_stride, int64 k_stride, int64 rows_left,
                                            int depth) {
        const bool k_inner = (k_stride < 0 ? -k_stride : k_stride) <= (row_stride < 0 ? -row_stride : row_stride);
        const int t = threadIdx.x;
        row = k_inner ? t / BK : t % ROWS;
        k = k_inner ? t % BK : t / ROWS;
        row_step = k_inner ? THREADS / BK : 0;
        k_step = k_inner ? 0 : THREADS / ROWS;
        next = origin + row * row_stride + k * k_stride;
        step = BK * k_stride;
        across = row_step * row_stride + k_step * k_stride;
        rows = static_cast<int>(rows_left < ROWS ? rows_left : ROWS);
        left = depth;
    }

    __device__ __forceinline__ int place(int j) const {
        const int at = k + j * k_step;
        return P::place(row + j * row_step, at / P::WIDTH) + at % P::WIDTH * static_cast<int>(sizeof(T));
    }

    __device__ __forceinline__ void load(unsigned char* panel) {
        const T* source = next;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            const bool valid = row + j * row_step < rows && k + j * k_step < left;
            if constexpr (ASYNC) {
                ptx::copy_async<4>(panel + place(j), source, valid);
            } else {
                staged[j] = 0;
                if (valid) staged[j] = *reinterpret_cast<const uint16*>(source);
            }
            source += across;
        }
        next += step;
        left -= BK;
    }
    __device__ __forceinline__ void store(unsigned char* panel) const {
        if constexpr (!ASYNC) {
#pragma unroll
            for (int j = 0; j < COUNT; j++) *reinterpret_cast<uint16*>(panel + place(j)) = staged[j];
        }
    }
};

template <typename T, int ROWS, int BK, int THREADS, Load LOAD> struct MoverFor {
    typedef PackMover<T, ROWS, BK, THREADS, LOAD> type;
};
template <typename T, int ROWS, int BK, int THREADS> struct MoverFor<T, ROWS, BK, THREADS, STRIDED> {
    typedef ElementMover<T, ROWS, BK, THREADS> type;
};

// ---- from shared memory to a warp's registers ---------------------------------------------------------------

// Reads blocks of the WARP_ROWS rows of a warp: of A one at a time, of B (COLUMNS) two.
//
// In which order the rows are the rows of the blocks is free, as long as the epilogue knows. Usually as they
// come. With BY_LANE a lane reads 2 (A) or 4 (B) neighbouring rows of one k by one load, and these are row g of the
// two eights of one block, or of the four of two: see row_of and MmaProduct::put. The lanes of one pass are 4 k x
// 32 bytes, which the XOR puts into different groups of banks.
template <typename P, int WARP_ROWS, bool COLUMNS> struct Reader {
    static constexpr int COUNT = COLUMNS ? 2 : 1;  // blocks of one load()
    static_assert(WARP_ROWS % (16 * COUNT) == 0, "whole blocks");
    int base;  // byte offset of this lane's first piece

    __device__ __forceinline__ Reader(int first) {
        const int lane = threadIdx.x % WARP;
        // Eight lanes name the lines of one register's matrix.
        const int h = COLUMNS ? lane / 16 : lane / 8 % 2, c = COLUMNS ? lane / 8 % 2 : lane / 16;
        if constexpr (P::BY_LANE) {
            const int row = first + lane / 4 * 2 * COUNT;
            base = P::place(lane % 4, row / 4) + row % 4 * 4;
        } else if constexpr (P::ROWS_INNER) {
            base = P::place(c * 8 + lane % 8, first / 8 + h);
        } else {
            base = P::place(first + h * 8 + lane % 8, c);
        }
    }

    // The COUNT blocks from block `first` on. `first` and `step` are constants of the unrolled loops, and XOR
    // commutes with XOR: an address is one XOR of `base` or none, and a constant.
    __device__ __forceinline__ void load(uint32 (&blocks)[COUNT][4], const unsigned char* panel, int first,
                                         int step) const {
        if constexpr (P::BY_LANE) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                // 16 rows are 64 bytes, half of what the XOR moves about.
                const unsigned char* from =
                    panel + (base ^ first % 2 * 64) + first / 2 * 128 + (step * 8 + c * 4) * P::LINE;
                const Pack<uint32, 2 * COUNT> rows =
                    load_pack<uint32, 2 * COUNT>(reinterpret_cast<const uint32*>(from));
#pragma unroll
                for (int q = 0; q < 2 * COUNT; q++)
                    blocks[q / 2][COLUMNS ? q % 2 * 2 + c : q % 2 + c * 2] = rows.item[q];
            }
        } else {
#pragma unroll
            for (int b = 0; b < COUNT; b++) {
                if constexpr (P::ROWS_INNER)
                    ptx::load_matrix_transposed(blocks[b], panel + (base ^ (first + b) * 32) + step * 16 * P::LINE);
                else
                    ptx::load_matrix(blocks[b], panel + (base ^ step * 32) + (first + b) * 16 * P::LINE);
            }
        }
    }

    // The row of A, counted from the warp's first, that is row r (0..15) of a block.
    static __device__ __forceinline__ int row_of(int block, int r) {
        static_assert(!COLUMNS, "columns are put in order when they are stored");
        return block * 16 + (P::BY_LANE ? r % 8 * 2 + r / 8 : r);
    }
};

// ---- arithmetic -----------------------------------------------------------------------------------------------

// Which 16-bit format the tensor cores see; float32 goes as TF32.
template <typename T> constexpr ptx::Kind KIND = ptx::Kind::tf32;
template <> constexpr ptx::Kind KIND<__half> = ptx::Kind::f16;
template <> constexpr ptx::Kind KIND<__nv_bfloat16> = ptx::Kind::bf16;

// Rounds to TF32, ties away from zero, as cvt.rna.tf32 does: the tensor core drops the lowest 13 bits, so half a
// unit of TF32 is added before, 2^(e - 11) for a number with exponent e. An addition of floats, not of bits: those
// of some NaN would run over and become zero.
__device__ __forceinline__ uint32 round_to_tf32(uint32 bits) {
    const float power = __int_as_float(bits & 0xff800000u);  // 2^e with the sign; infinity for infinity and NaN
    return __float_as_int(fmaf(power, 0x1p-11f, __int_as_float(bits)));
}

// x and y as sums of three bfloat16 numbers each, rounded to nearest: 8 + 8 + 8 bits, exact for |x| >= 2^-110
// that does not round to infinity. Two to a register, x in the lower half.
__device__ __forceinline__ void split(float x, float y, uint32& high, uint32& middle, uint32& low) {
    uint32* const parts[3] = {&high, &middle, &low};
#pragma unroll
    for (int p = 0; p < 3; p++) {
        const __nv_bfloat162 rounded = __floats2bfloat162_rn(x, y);
        *parts[p] = reinterpret_cast<const uint32&>(rounded);
        x -= __int_as_float(*parts[p] << 16);
        y -= __int_as_float(*parts[p] & 0xffff0000u);
    }
}

// A block of SPLIT: 16 rows x 16 k, of two steps of 8. Which k is which element of mma does not matter, as long
// as it is the same for A and B: element 0 of a pair comes from the first step, element 1 from the second.
struct SplitBlock {
    uint32 part[3][4];
    __device__ __forceinline__ void make(const uint32 (&first)[4], const uint32 (&second)[4]) {
#pragma unroll
        for (int r = 0; r < 4; r++)
            split(__int_as_float(first[r]), __int_as_float(second[r]), part[0][r], part[1][r], part[2][r]);
    }
};

// d += a b for 8 of the 16 columns of a block of B.
template <ptx::Kind K>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[4], int half) {
    const uint32 columns[2] = {b[2 * half], b[2 * half + 1]};
    ptx::mma<K>(d, a, columns);
}
