// matmul_wgmma.cuh - the parts of the matrix product of sm_90a: shared memory and its ring of stages, the units
// of work, the loading warp, and the multiplying warpgroups. The ways out: matmul_wgmma_store.cuh.
//
// Letters: C (M x N) = A (M x K) B (K x N); a tile is BM x BN elements of C, a k block is one line of BK
// elements of K for each row of A and column of B of the tile.
#pragma once
#include "matmul_epilogue.cuh"
#include "matmul_order.cuh"
#include "ptx.cuh"

// What is done with a finished tile.
//   DIRECT     16-bit results, bias and at most relu: rounded in registers, out by an asynchronous tensor copy
//              that overlaps with the next tile
//   ROW_SUMS   DIRECT, and the sums over K of A's rows: the gradient of a bias beside that of a weight
//   FORWARD    anything that Epilogue does forward, slab by slab through shared memory
//   BACKWARD   the same backward
enum Ending { DIRECT, ROW_SUMS, FORWARD, BACKWARD };

template <typename T> struct KindOf;
template <> struct KindOf<__nv_bfloat16> { static constexpr ptx::Kind kind = ptx::Kind::bf16; };
template <> struct KindOf<__half> { static constexpr ptx::Kind kind = ptx::Kind::f16; };
template <> struct KindOf<float> { static constexpr ptx::Kind kind = ptx::Kind::tf32; };

constexpr int WARPGROUP = 128;

// Blocks on a multiprocessor. Most need more than half of the registers; of the smallest tiles two fit, and one
// block multiplies while the other stores or fills its ring.
template <int CONSUMERS, int PLANES, int BN>
constexpr int RESIDENT_BLOCKS = CONSUMERS == 1 && PLANES == 1 && BN <= 64 ? 2 : 1;

// Sizes that follow from the kernel's template parameters; bytes unless named otherwise. Their like in Python is
// `Tile` in gpunn/primitives/matmul_wgmma.py.
template <typename T, typename Out, int PLANES, int BM_, int BN_, int CONSUMERS_, bool PINGPONG_, int STAGES_,
          int CLUSTER_, bool SPLIT_, bool SWAPPED_, bool ROWS_A_, bool ROWS_B_, Ending ENDING_>
struct Shape {
    static constexpr int BM = BM_, BN = BN_, CONSUMERS = CONSUMERS_, STAGES = STAGES_, CLUSTER = CLUSTER_;
    static constexpr bool PINGPONG = PINGPONG_, SPLIT = SPLIT_, SWAPPED = SWAPPED_, ROWS_A = ROWS_A_, ROWS_B = ROWS_B_;
    static constexpr Ending ENDING = ENDING_;
    static constexpr ptx::Kind KIND = KindOf<T>::kind;

    // Three planes make stages so large that shorter lines are better: the ring needs several of them.
    static constexpr int LINE = PLANES > 1 ? 64 : 128, BK = LINE / sizeof(T), STEPS = LINE / 32;
    static constexpr ptx::Swizzle SWIZZLE = LINE == 64 ? ptx::Swizzle::bytes64 : ptx::Swizzle::bytes128;
    static constexpr int TILE_A = BM * LINE, TILE_B = BN * LINE, STAGE = PLANES * (TILE_A + TILE_B);

    static constexpr int SHARE = SPLIT ? 1 : CLUSTER;  // blocks that share the tiles of B
    static constexpr int M64 = BM / 64 / (PINGPONG ? 1 : CONSUMERS);  // wgmmas are 64 rows high
    static constexpr int SLAB = BN < 64 ? BN : 64;                    // columns on their way out together
    static constexpr int SLAB_PITCH = SWAPPED ? 68 : SLAB + 8;        // numbers; for stores free of conflicts
    static constexpr bool IS_DIRECT = ENDING == DIRECT || ENDING == ROW_SUMS;
    static constexpr int SLAB_BYTES = (SWAPPED ? SLAB : 64) * SLAB_PITCH * 4;
    static constexpr int FETCHES = sizeof(Out) == 2 ? 2 : 1;          // slabs of `saved` or `residual` fetched ahead
    static constexpr int FETCHED = 64 * SLAB * sizeof(Out);           // bytes of one
    static constexpr int STAGING = SPLIT ? 0 : IS_DIRECT ? M64 * 64 * BN * 2 :
                                   (SLAB_BYTES + FETCHES * FETCHED + 1023) / 1024 * 1024;
    static constexpr int WHOLE_PITCH = SWAPPED ? BM + 4 : BN + 8;     // SPLIT: the whole tile, in the ring's place

    static constexpr int ONES = STAGES * STAGE + CONSUMERS * STAGING;  // where the ones begin, and the barriers
    static constexpr int BARRIERS = ONES + (ENDING == ROW_SUMS ? 1024 : 0);

    static_assert(BM % (64 * (PINGPONG ? 1 : CONSUMERS)) == 0 && BN % 8 == 0, "whole wgmmas");
    static_assert(!ROWS_B || BN % 64 == 0, "contiguous columns of B come in boxes of 64");
    static_assert(!IS_DIRECT || (BN % 64 == 0 && sizeof(Out) == 2 && !SWAPPED && !SPLIT), "boxes of 64 columns");
    static_assert(PLANES == 1 || !(ROWS_A || ROWS_B), "planes are made with contiguous K");
    static_assert(!PINGPONG || (CONSUMERS == 2 && !SPLIT), "two take turns");
};

// A place in the ring of stages. Phases have parity 0, 1, 0 …
template <int STAGES> struct Slot {
    int index = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, parity ^= 1;
    }
    __device__ __forceinline__ void skip(int count) {
        index += count;
        parity ^= index / STAGES & 1;
        index %= STAGES;
    }
};

// ---- units of work: a tile of a matrix, or a part of K of one ----------------------------------------------

// The whole problem, as the kernel is told. `inner`: how many matrices the inner batch dimension has; `part`: k
// blocks of one part of K. The operands' maps have two more dimensions i and j: i = inner index * near, j =
// outer index * far; or with planes i = inner index * near + outer index * far, j the plane.
struct Work {
    int M, N, K;
    uint32 batch, inner;
    int a_near, a_far, b_near, b_far, part, parts;
};

struct Unit {
    int m, n;              // the tile's corner
    uint32 matrix;
    int part, first, count;  // k blocks
};

// Rows of tiles that are walked together, so that they share B in the L2 cache. What is at work at one time, on 132
// multiprocessors, is about a square of the result then, which needs the least of A and B.
template <typename S> constexpr uint32 GROUP = S::BN >= 2 * S::BM ? 16 : 8;

template <typename S> __device__ __forceinline__ uint32 count_units(const Work& w) {
    const uint32 high = (w.M + S::BM * S::SHARE - 1) / (S::BM * S::SHARE), wide = (w.N + S::BN - 1) / S::BN;
    return high * wide * w.batch * w.parts;
}

// Blocks that share B stand one above the other. Blocks that split K take the k blocks in turn.
template <typename S> __device__ __forceinline__ Unit find_unit(const Work& w, uint32 number, int rank) {
    constexpr uint32 TALL = GROUP<S> / S::SHARE;
    const uint32 high = (w.M + S::BM * S::SHARE - 1) / (S::BM * S::SHARE), wide = (w.N + S::BN - 1) / S::BN;
    const TilePlace at = find_tile(number, high, wide, w.batch, TALL);
    Unit unit;
    unit.m = (static_cast<int>(at.row) * S::SHARE + (S::SPLIT ? 0 : rank)) * S::BM;
    unit.n = static_cast<int>(at.column) * S::BN;
    unit.matrix = at.matrix;
    unit.part = static_cast<int>(at.part);
    const int blocks = (w.K + S::BK - 1) / S::BK;
    unit.first = unit.part * w.part;
    unit.count = min(w.part, blocks - unit.first);
    if (S::SPLIT) {
        const int share = (unit.count + S::CLUSTER - 1) / S::CLUSTER;
        unit.first += rank * share;
        unit.count = max(0, min(share, unit.count - rank * share));
    }
    return unit;
}

// ---- loading: one thread keeps the ring full ------------------------------------------------------------------

// One tile of one operand for a k block: SIZE rows; with SHARE > 1 this block's share of it goes to all.
template <typename S, int SIZE, bool ROWS, int SHARE>
__device__ __forceinline__ void load_tile(unsigned char* shared, const ptx::TensorMap* map, uint64* full, int row,
                                          int k, int i, int j, int rank) {
    constexpr int BOXES = ROWS ? SIZE / 64 : 1;
#pragma unroll
    for (int box = 0; box < BOXES; box++) {
        // Contiguous K: lines of K, a share is some of the rows. Contiguous rows: lines of 64 rows, some of the k.
        const int shift = ROWS ? rank * (S::BK / SHARE) : rank * (SIZE / SHARE);
        unsigned char* target = shared + (box * (ROWS ? S::BK : 0) + (SHARE > 1 ? shift : 0)) * S::LINE;
        const int at[4] = {ROWS ? row + box * 64 : k, ROWS ? k + (SHARE > 1 ? shift : 0) : row + (SHARE > 1 ? shift : 0),
                           i, j};
        if constexpr (SHARE > 1) ptx::tensor_load_multicast<4>(target, map, full, at, (1 << SHARE) - 1);
        else ptx::tensor_load<4>(target, map, full, at);
    }
}

template <typename S, int PLANES>
__device__ __forceinline__ void keep_loading(unsigned char* ring, uint64* full, uint64* empty, const ptx::TensorMap* map_a,
                                             const ptx::TensorMap* map_b, const Work& work, uint32 first, uint32 step,
                                             int rank) {
    Slot<S::STAGES> slot;
    const uint32 units = count_units<S>(work);
    for (uint32 number = first; number < units; number += step) {
        const Unit unit = find_unit<S>(work, number, rank);
        const int outer = unit.matrix / work.inner, inner = unit.matrix % work.inner;
        const int a_i = inner * work.a_near + (PLANES > 1 ? outer * work.a_far : 0), a_j = outer * work.a_far;
        const int b_i = inner * work.b_near + (PLANES > 1 ? outer * work.b_far : 0), b_j = outer * work.b_far;
        for (int block = 0; block < unit.count; block++, slot.next()) {
            const int k = (unit.first + block) * S::BK;
            unsigned char* stage = ring + slot.index * S::STAGE;
            ptx::mbarrier_wait(&empty[slot.index], slot.parity ^ 1);
            ptx::mbarrier_arrive_expect(&full[slot.index], S::STAGE);
#pragma unroll
            for (int plane = 0; plane < PLANES; plane++) {
                load_tile<S, S::BM, S::ROWS_A, 1>(stage + plane * S::TILE_A, map_a, &full[slot.index], unit.m, k, a_i,
                                                  PLANES > 1 ? plane : a_j, 0);
                load_tile<S, S::BN, S::ROWS_B, S::SHARE>(stage + PLANES * S::TILE_A + plane * S::TILE_B, map_b,
                                                         &full[slot.index], unit.n, k, b_i, PLANES > 1 ? plane : b_j,
                                                         rank);
            }
        }
    }
}

// ---- multiplying: a warpgroup's 64 M64 x BN of the tile ---------------------------------------------------------

// The descriptor of 32 bytes of K (step `step`) of a tile of SIZE rows, from row `row` (a multiple of 64) on.
template <typename S, int SIZE, bool ROWS>
__device__ __forceinline__ uint64 operand(const unsigned char* tile, int row, int step) {
    // Contiguous rows: boxes of BK lines of 64 rows; a step is 16 lines, the next 64 rows are the next box.
    if (ROWS)
        return ptx::matrix_descriptor(tile + row / 64 * S::BK * 128 + step * 16 * 128, S::BK * 128, 1024, S::SWIZZLE);
    return ptx::matrix_descriptor(tile + row * S::LINE + step * 32, 16, 8 * S::LINE, S::SWIZZLE);
}

// Tells the loading threads of all blocks that wrote into this slot that the warp is done with it.
template <typename S> __device__ __forceinline__ void release(uint64* empty, int index) {
    const int lane = threadIdx.x % WARP;
    if constexpr (S::SHARE > 1) {
        // Without a fence: the slot was only read by wgmmas that are complete.
        if (lane < S::SHARE) ptx::mbarrier_release_remote(&empty[index], lane);
    } else if (lane == 0) {
        ptx::mbarrier_arrive(&empty[index]);
    }
}

template <int COUNT> __device__ __forceinline__ void clear(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) d[i] = 0.0f;
}

// One product for each k block. A slot is released one block later, when its wgmmas must be complete: so there
// is always a group of wgmmas behind the one that is waited for.
template <typename S, int PLANES> struct Multiply {
    float sums[S::M64][S::BN / 2];
    float of_rows[S::ENDING == ROW_SUMS ? S::M64 : 1][4];  // ROW_SUMS: A times a column of ones

    // `sum_rows`: of_rows is wanted. It costs a small wgmma for each large one, so in the first column of tiles alone.
    __device__ __forceinline__ void run(const unsigned char* ring, uint64* full, uint64* empty, const unsigned char* ones,
                                        bool sum_rows, int row, int count, Slot<S::STAGES>& slot) {
        if (S::ENDING == ROW_SUMS && sum_rows) go<true>(ring, full, empty, ones, row, count, slot);
        else go<false>(ring, full, empty, ones, row, count, slot);
    }

    template <bool SUM_ROWS>
    __device__ __forceinline__ void go(const unsigned char* ring, uint64* full, uint64* empty,
                                       const unsigned char* ones, int row, int count, Slot<S::STAGES>& slot) {
#pragma unroll
        for (int m = 0; m < S::M64; m++) clear(sums[m]);
#pragma unroll
        for (int m = 0; m < (SUM_ROWS ? S::M64 : 0); m++) {
            clear(of_rows[m]);
            ptx::wgmma_hold(of_rows[m]);
        }
        int before = -1;
        for (int block = 0; block < count; block++, slot.next()) {
            const unsigned char* stage = ring + slot.index * S::STAGE;
            ptx::mbarrier_wait(&full[slot.index], slot.parity);
#pragma unroll
            for (int m = 0; m < S::M64; m++) ptx::wgmma_hold(sums[m]);
            ptx::wgmma_fence();
#pragma unroll
            for (int step = 0; step < S::STEPS; step++)
#pragma unroll
                for (int m = 0; m < S::M64; m++) {
                    const uint64 a = operand<S, S::BM, S::ROWS_A>(stage, row + m * 64, step);
                    const uint64 b = operand<S, S::BN, S::ROWS_B>(stage + S::TILE_A, 0, step);
                    ptx::wgmma<S::BN, S::KIND, S::ROWS_A, S::ROWS_B>(sums[m], a, b);
                    if constexpr (SUM_ROWS)
                        ptx::wgmma<8, S::KIND, S::ROWS_A, false>(
                            of_rows[m], a, ptx::matrix_descriptor(ones, 16, 1024, ptx::Swizzle::bytes128));
                }
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            if (before >= 0) release<S>(empty, before);
            before = slot.index;
        }
        ptx::wgmma_wait<0>();
#pragma unroll
        for (int m = 0; m < S::M64; m++) ptx::wgmma_hold(sums[m]);
        if constexpr (SUM_ROWS) {
#pragma unroll
            for (int m = 0; m < S::M64; m++) ptx::wgmma_hold(of_rows[m]);
        }
        if (before >= 0) release<S>(empty, before);
    }
};

// Float32 operands as sums of 2 or 3 bfloat16 planes: 3 or 6 products, those below 2^-24 of the whole left out.
//
// Tensor cores cut the lower bits off whenever they add, so long sums drift towards zero. The product of the first
// planes, which is nearly all of the result, therefore only runs over one k block in the tensor cores and is
// then added to the total by ordinary, rounding additions, while the tensor cores make the small products. Those
// together are 2^-8 of the whole and so is their drift: they stay in registers of their own to the end.
template <typename S, int PLANES> struct MultiplyPlanes {
    float sums[S::M64][S::BN / 2];
    float of_rows[1][4];

    __device__ __forceinline__ void run(const unsigned char* ring, uint64* full, uint64* empty, const unsigned char*,
                                        bool, int row, int count, Slot<S::STAGES>& slot) {
        float large[S::M64][S::BN / 2], small[S::M64][S::BN / 2];
#pragma unroll
        for (int m = 0; m < S::M64; m++) clear(sums[m]), clear(large[m]), clear(small[m]);
        int before = -1;
        for (int block = 0; block < count; block++, slot.next()) {
            const unsigned char* stage = ring + slot.index * S::STAGE;
            ptx::mbarrier_wait(&full[slot.index], slot.parity);
#pragma unroll
            for (int m = 0; m < S::M64; m++) ptx::wgmma_hold(large[m]), ptx::wgmma_hold(small[m]);
            ptx::wgmma_fence();
            multiply<0, 0>(large, stage, row, false);
            ptx::wgmma_commit();
            if constexpr (PLANES == 3) {
                multiply<2, 0>(small, stage, row, true);
                multiply<0, 2>(small, stage, row, true);
                multiply<1, 1>(small, stage, row, true);
            }
            multiply<1, 0>(small, stage, row, true);
            multiply<0, 1>(small, stage, row, true);
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();  // the large product of this block, and the small ones of the last
            if (before >= 0) release<S>(empty, before);
            before = slot.index;
#pragma unroll
            for (int m = 0; m < S::M64; m++) {
                ptx::wgmma_hold(large[m]);
#pragma unroll
                for (int i = 0; i < S::BN / 2; i++) sums[m][i] += large[m][i];
            }
        }
        ptx::wgmma_wait<0>();
#pragma unroll
        for (int m = 0; m < S::M64; m++) {
            ptx::wgmma_hold(small[m]);
#pragma unroll
            for (int i = 0; i < S::BN / 2; i++) sums[m][i] += small[m][i];
        }
        if (before >= 0) release<S>(empty, before);
    }

    template <int OF_A, int OF_B>
    static __device__ __forceinline__ void multiply(float (&d)[S::M64][S::BN / 2], const unsigned char* stage, int row,
                                                    bool add) {
        const unsigned char *a = stage + OF_A * S::TILE_A, *b = stage + PLANES * S::TILE_A + OF_B * S::TILE_B;
#pragma unroll
        for (int step = 0; step < S::STEPS; step++)
#pragma unroll
            for (int m = 0; m < S::M64; m++)
                ptx::wgmma<S::BN, S::KIND>(d[m], operand<S, S::BM, false>(a, row + m * 64, step),
                                           operand<S, S::BN, false>(b, 0, step), add || step > 0);
    }
};

template <typename S, int PLANES> struct MultiplyFor { typedef MultiplyPlanes<S, PLANES> type; };
template <typename S> struct MultiplyFor<S, 1> { typedef Multiply<S, 1> type; };
