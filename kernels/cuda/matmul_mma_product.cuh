// matmul_mma_product.cuh - the main loop of products on tensor cores by mma.sync, whatever moves the operands.
//
// Used by matmul_mma.cu (operands that lie as matrices) and convolution_mma.cu (operands that are gathered). A mover
// starts a tile on its way with load(panel), ends that with store(panel), and lays it out as Panel says.
#pragma once
#include "matmul_mma.cuh"

// Sizes that follow from a tile's shape. A warp owns WARP_M x WARP_N elements, TM x TN results of mma (16 x 8).
template <typename T, Mode MODE, int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, Load LOAD_A,
          Load LOAD_B>
struct MmaTile {
    typedef Panel<T, BM, BK, LOAD_A> PanelA;
    typedef Panel<T, BN, BK, LOAD_B> PanelB;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WARP_M = BM / WARPS_M, WARP_N = BN / WARPS_N, TM = WARP_M / 16, TN = WARP_N / 8;
    typedef Reader<PanelA, WARP_M, false> ReaderA;
    typedef Reader<PanelB, WARP_N, true> ReaderB;
    static constexpr int STAGE = PanelA::BYTES + PanelB::BYTES, END = STAGES * STAGE;
    static constexpr int STEPS = BK * sizeof(T) / 32 / (MODE == SPLIT ? 2 : 1);  // of one mma's K
    // Finished rows on their way out, 16 of each warp. The pitch keeps the stores below free of bank conflicts.
    static constexpr int SLAB_PITCH = WARP_N + (PanelB::BY_LANE ? 4 : 8), SLAB = 16 * SLAB_PITCH;
    // Blocks that shall have registers on a multiprocessor at once, by the sums that a thread holds.
    static constexpr int SUMS = TM * TN * 4;
    static constexpr int RESIDENT =
        THREADS > 128 ? 1 : LOAD_A == STRIDED ? 2 : (SUMS > 64 ? 2 : SUMS > 32 ? 3 : 4) - (MODE == SPLIT ? 1 : 0);
};

// The sums of a warp's part of the tile over the block's part of K.
//
// Four things overlap: the copies of the STAGES - 1 tiles ahead, the fragments of the next step on their way
// from shared memory to the other set of registers, the products of this step in the tensor cores, and (float32)
// the rounding or splitting in the ordinary units. The fragments of a tile's first step are read during the last
// step of the tile before, so that no barrier is followed by a wait for shared memory. One barrier a tile: whoever
// passed it has read the buffer of the tile before to its end, and that is the one filled next.
// Behind the last tile zeros are copied, which keeps the body free of branches.
template <typename S, typename T, Mode MODE, int BK, int STAGES, typename MoverA, typename MoverB, bool SUM_ROWS>
struct MmaProduct {
    MoverA& a;
    MoverB& b;
    unsigned char* shared;
    const bool summing;  // whether this warp sums the rows of A
    typename S::ReaderA read_a;
    typename S::ReaderB read_b;
    int from = 0, to = (STAGES - 1) * S::STAGE;  // the buffer that is read, and the one that is filled
    float sums[S::TM][S::TN][4];
    float row_sums[SUM_ROWS ? S::TM : 1][4];

    __device__ __forceinline__ MmaProduct(MoverA& a, MoverB& b, unsigned char* shared, int row, int column,
                                          bool summing)
        : a(a), b(b), shared(shared), summing(summing), read_a(row), read_b(column) {
#pragma unroll
        for (int i = 0; i < S::TM; i++)
#pragma unroll
            for (int j = 0; j < S::TN; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][j][e] = 0.f;
        if constexpr (SUM_ROWS) {
#pragma unroll
            for (int i = 0; i < S::TM; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) row_sums[i][e] = 0.f;
        }
    }

    __device__ __forceinline__ void load(int buffer) {
        a.load(shared + buffer);
        b.load(shared + buffer + S::PanelA::BYTES);
    }
    __device__ __forceinline__ void store(int buffer) {
        a.store(shared + buffer);
        b.store(shared + buffer + S::PanelA::BYTES);
    }
    __device__ __forceinline__ void begin() {
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            load(s * S::STAGE);
            ptx::copy_async_commit();
            store(s * S::STAGE);
        }
        ptx::copy_async_wait<STAGES - 2>();
        __syncthreads();
    }
    // The next tile becomes the one that is read.
    __device__ __forceinline__ void advance() {
        store(to);
        ptx::copy_async_wait<STAGES - 2>();
        __syncthreads();
        from = from + S::STAGE == S::END ? 0 : from + S::STAGE;
        to = to + S::STAGE == S::END ? 0 : to + S::STAGE;
    }
    __device__ __forceinline__ void load_next() {
        load(to);
        ptx::copy_async_commit();
    }
    __device__ __forceinline__ void load_a(uint32 (&block)[1][4], int i, int step) const {
        read_a.load(block, shared + from, i, step);
    }
    __device__ __forceinline__ void load_b(uint32 (&pairs)[S::TN / 4][2][4], int step) const {
#pragma unroll
        for (int p = 0; p < S::TN / 4; p++) read_b.load(pairs[p], shared + from + S::PanelA::BYTES, 2 * p, step);
    }

    // The rows of a block of A, summed over the block's k: 16-bit numbers by a product with ones, in which all 8
    // columns are the sum; float32 by additions, each lane over its own k, unrounded.
    __device__ __forceinline__ void sum_rows(int i, const uint32 (&block)[4]) {
        if constexpr (SUM_ROWS && MODE == NATIVE) {
            constexpr uint32 ONE = KIND<T> == ptx::Kind::f16 ? 0x3c003c00u : 0x3f803f80u;
            const uint32 ones[2] = {ONE, ONE};
            if (summing) ptx::mma<KIND<T>>(row_sums[i], block, ones);
        } else if constexpr (SUM_ROWS) {
            if (summing) {
#pragma unroll
                for (int r = 0; r < 4; r++) row_sums[i][r % 2 * 2] += __int_as_float(block[r]);
            }
        }
    }

    // ---- one product for each step
    __device__ __forceinline__ void run_single(int depth) {
        uint32 blocks_a[2][S::TM][1][4], blocks_b[2][S::TN / 4][2][4];
        begin();
#pragma unroll
        for (int i = 0; i < S::TM; i++) load_a(blocks_a[0][i], i, 0);
        load_b(blocks_b[0], 0);
#pragma unroll 1
        for (int left = depth; left > 0; left -= BK) {
#pragma unroll
            for (int step = 0; step < S::STEPS; step++) {
                const int now = step % 2, then = (step + 1) % 2;
                if (step == S::STEPS - 1) advance();
#pragma unroll
                for (int i = 0; i < S::TM; i++) load_a(blocks_a[then][i], i, (step + 1) % S::STEPS);
                load_b(blocks_b[then], (step + 1) % S::STEPS);
                if (step == 0) load_next();
                if constexpr (MODE == TF32) {
#pragma unroll
                    for (int i = 0; i < S::TM; i++) {
                        sum_rows(i, blocks_a[now][i][0]);
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            uint32& bits = blocks_a[now][i][0][r];
                            bits = round_to_tf32(bits);
                        }
                    }
#pragma unroll
                    for (int j = 0; j < S::TN / 2; j++)
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            uint32& bits = blocks_b[now][j / 2][j % 2][r];
                            bits = round_to_tf32(bits);
                        }
                }
#pragma unroll
                for (int i = 0; i < S::TM; i++) {
                    const uint32 (&block)[4] = blocks_a[now][i][0];
                    if (MODE == NATIVE) sum_rows(i, block);
#pragma unroll
                    for (int j = 0; j < S::TN; j++)
                        multiply<KIND<T>>(sums[i][j], block, blocks_b[now][j / 4][j / 2 % 2], j % 2);
                }
            }
        }
    }

    // ---- six products for each step: high high, high middle, middle high, high low, low high, middle middle
    //
    // Tensor cores cut off what they add, so their sums must stay short: the six products of one step, the small
    // ones first, are summed there from zero and then added to the total by an ordinary addition, which rounds. For
    // one block of A the TN sums are worked on in turns, so that no product waits for the one before.
    __device__ __forceinline__ void run_split(int depth) {
        uint32 raw_a[2][2][1][4], raw_b[2][S::TN / 4][2][4];  // [which][step of 8] and [step of 8][pair][block]
        SplitBlock columns[S::TN / 2];
        constexpr int ITEMS = S::STEPS * S::TM;
        static_assert(ITEMS % 2 == 0, "the sets of registers change places");
        begin();
#pragma unroll
        for (int s = 0; s < 2; s++) {
            load_a(raw_a[0][s], 0, s);
            load_b(raw_b[s], s);
        }
#pragma unroll 1
        for (int left = depth; left > 0; left -= BK) {
#pragma unroll
            for (int item = 0; item < ITEMS; item++) {
                const int i = item % S::TM, now = item % 2, next = (item + 1) % ITEMS;
                if (i == 0) {
#pragma unroll
                    for (int j = 0; j < S::TN / 2; j++)
                        columns[j].make(raw_b[0][j / 2][j % 2], raw_b[1][j / 2][j % 2]);
                }
                if (item == ITEMS - 1) advance();
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    load_a(raw_a[1 - now][s], next % S::TM, next / S::TM * 2 + s);
                    if (next % S::TM == 0) load_b(raw_b[s], next / S::TM * 2 + s);
                }
                if (item == 0) load_next();
#pragma unroll
                for (int s = 0; s < 2; s++) sum_rows(i, raw_a[now][s][0]);
                SplitBlock rows;
                rows.make(raw_a[now][0][0], raw_a[now][1][0]);
                six_products(sums[i], rows, columns);
            }
        }
    }

    static __device__ __forceinline__ void six_products(float (&total)[S::TN][4], const SplitBlock& rows,
                                                        const SplitBlock (&columns)[S::TN / 2]) {
        constexpr int PART_A[6] = {1, 2, 0, 1, 0, 0}, PART_B[6] = {1, 0, 2, 0, 1, 0};
        float sum[S::TN][4];
#pragma unroll
        for (int j = 0; j < S::TN; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[j][e] = 0.f;
#pragma unroll
        for (int p = 0; p < 6; p++)
#pragma unroll
            for (int j = 0; j < S::TN; j++)
                multiply<ptx::Kind::bf16>(sum[j], rows.part[PART_A[p]], columns[j / 2].part[PART_B[p]], j % 2);
#pragma unroll
        for (int j = 0; j < S::TN; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[j][e] += sum[j][e];
    }

    // Whether a sum is infinite or not a number.
    __device__ __forceinline__ bool overflowed() const {
        float zero = 0.f;
#pragma unroll
        for (int i = 0; i < S::TM; i++)
#pragma unroll
            for (int j = 0; j < S::TN; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) zero = fmaf(sums[i][j][e], 0.f, zero);
        return zero != 0.f;
    }

    // 16 rows of the warp's part, the i-th, as rows of SLAB_PITCH in shared memory that only this warp uses.
    __device__ __forceinline__ void put(float* slab, int i) const {
        const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int k = 0; k < S::TM; k++) {
            if (k != i) continue;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float* row = slab + (g + 8 * h) * S::SLAB_PITCH;
                if constexpr (S::PanelB::BY_LANE) {
#pragma unroll
                    for (int j = 0; j < S::TN; j += 4)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            Pack<float, 4> four;
#pragma unroll
                            for (int q = 0; q < 4; q++) four.item[q] = sums[k][j + q][2 * h + e];
                            store_pack(row + j * 8 + (2 * t + e) * 4, four);
                        }
                } else {
#pragma unroll
                    for (int j = 0; j < S::TN; j++)
                        store_pack(row + j * 8 + 2 * t, Pack<float, 2>{sums[k][j][2 * h], sums[k][j][2 * h + 1]});
                }
            }
        }
    }

    // The sums of the rows of A, of which `rows` exist from the warp's first on.
    __device__ __forceinline__ void put_row_sums(float* target, int64 rows) {
        if constexpr (SUM_ROWS) {
            if (!summing) return;
            const int lane = threadIdx.x % WARP;
#pragma unroll
            for (int i = 0; i < S::TM; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float sum = row_sums[i][2 * h];
                    if (MODE != NATIVE) sum = warp_reduce<Sum, 4>(sum);  // the four lanes' k
                    const int row = S::ReaderA::row_of(i, lane / 4 + 8 * h);
                    if (lane % 4 == 0 && row < rows) target[row] = sum;
                }
        }
    }
};
