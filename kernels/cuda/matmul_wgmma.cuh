// matmul_wgmma.cuh - the parts of the matrix product of sm_90a: shared memory and its ring of stages, the units
// of work, the loading warp, the multiplying warpgroups, and the ways out of the registers.
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

// ---- the ways out ------------------------------------------------------------------------------------------------

// Where this thread's d[4 j + i] stands in a 64 x N result: row + 8 (i / 2), column 8 j + column + i % 2.
struct Fragment {
    int row, column;
    __device__ __forceinline__ Fragment() {
        const int thread = threadIdx.x % WARPGROUP;
        row = thread / WARP * 16 + thread % WARP / 4;
        column = thread % 4 * 2;
    }
};

// Two numbers rounded and packed by one instruction.
template <typename T> __device__ __forceinline__ uint32 narrow_pair(float low, float high);
template <> __device__ __forceinline__ uint32 narrow_pair<__half>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32*>(&pair);
}
template <> __device__ __forceinline__ uint32 narrow_pair<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32*>(&pair);
}

// DIRECT: rounded in registers, stored as 8 x 8 matrices into boxes of 64 x 64 in the tensor copy's swizzle,
// and copied out while the warpgroup goes on. `staging` is this warpgroup's.
template <typename S, typename Out>
__device__ __forceinline__ void store_direct(const float (&sums)[S::M64][S::BN / 2], unsigned char* staging,
                                             const ptx::TensorMap* map, const Epilogue<Out, false>& epilogue, int m,
                                             int n, int matrix, int M, int N, int barrier) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    const Fragment at;
    if (thread == 0) ptx::bulk_wait_read<0>();  // the last tile's boxes have left
    ptx::barrier_sync(barrier, WARPGROUP);
    const bool relu = epilogue.activation == 3;
    // The lane's row of an 8 x 8 matrix: matrices 0 and 1 lie below each other, 2 and 3 to their right.
    const int line = thread / WARP * 16 + lane % 16, beside = lane / 16;
#pragma unroll
    for (int block = 0; block < S::M64; block++)
#pragma unroll
        for (int j = 0; j < S::BN / 8; j += 2) {
            uint32 packed[4];  // q % 2: upper or lower rows; q / 2: left or right columns
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int column = n + (j + side) * 8 + at.column;  // even, as N is: both exist or none
                Pack<Out, 2> bias = {narrow<Out>(0.0f), narrow<Out>(0.0f)};
                if (epilogue.bias != nullptr && column < N) bias = load_pack<Out, 2>(epilogue.bias + column);
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    const float* sum = &sums[block][4 * (j + side) + 2 * lower];
                    float left = sum[0] * epilogue.scale + widen(bias.item[0]);
                    float right = sum[1] * epilogue.scale + widen(bias.item[1]);
                    if (relu) left = Relu::value(left, 0.0f), right = Relu::value(right, 0.0f);
                    packed[2 * side + lower] = narrow_pair<Out>(left, right);
                }
            }
            unsigned char* box = staging + (block * (S::BN / 64) + j / 8) * 8192 + line * 128;
            ptx::store_matrix(box + ((j % 8 + beside) ^ line % 8) * 16, packed);
        }
    ptx::fence_proxy_async();
    ptx::barrier_sync(barrier, WARPGROUP);
    if (thread == 0) {
        for (int block = 0; block < S::M64; block++)
            for (int c = 0; c < S::BN / 64; c++) {
                const int to[3] = {n + c * 64, m + block * 64, matrix};
                if (to[0] < N && to[1] < M)
                    ptx::tensor_store<3>(map, staging + (block * (S::BN / 64) + c) * 8192, to);
            }
        ptx::bulk_commit();
    }
}

// A pack of W numbers of the result, or of a part of it.
template <typename Out, bool BACKWARD_> struct Target {
    Epilogue<Out, BACKWARD_> epilogue;
    float* partial;  // this part of K, or null
    int64 corner;    // of the matrix
    int64 rows, columns;
    bool vector;

    // Finishes element (row, column) and its right-hand neighbours, if there; whether they are.
    template <int W>
    __device__ __forceinline__ bool put(float (&value)[W], int64 row, int64 column, const Out* fetched = nullptr) const {
        if (row >= rows || column >= columns) return false;
        const int count = columns - column < W ? static_cast<int>(columns - column) : W;
        const int64 at = corner + row * columns + column;
        if (partial != nullptr) store_row<float, W>(partial + at, value, count, vector);
        else epilogue.template finish<W>(value, at, column, count, vector, fetched);
        return true;
    }
};

// Puts the part of one warpgroup's sums that belongs to a slab into shared memory, as rows of the result.
template <typename S> __device__ __forceinline__ void stage_slab(const float (&sums)[S::BN / 2], float* slab, int which) {
    const Fragment at;
#pragma unroll
    for (int s = 0; s < S::BN / S::SLAB; s++) {
        if (s != which) continue;
#pragma unroll
        for (int j = 0; j < S::SLAB / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float *pair = &sums[(s * S::SLAB / 8 + j) * 4 + 2 * half];
                const int row = at.row + 8 * half, column = j * 8 + at.column;
                if (S::SWAPPED) {
                    slab[column * S::SLAB_PITCH + row] = pair[0];
                    slab[(column + 1) * S::SLAB_PITCH + row] = pair[1];
                } else {
                    *reinterpret_cast<float2*>(slab + row * S::SLAB_PITCH + column) = make_float2(pair[0], pair[1]);
                }
            }
    }
}

// FORWARD, BACKWARD: slabs of 64 x SLAB through shared memory, so that what is read and written beside the sums
// moves in whole rows of 16-byte packs, and the code of the epilogue exists once. What is read (`saved` or
// `residual`) is fetched a slab ahead, the first one before the products: each thread fetches what it will use.
template <typename S, typename Out> struct Slabs {
    static constexpr int W = PACK<Out>, LINES = S::SWAPPED ? S::SLAB : 64, LENGTH = S::SWAPPED ? 64 : S::SLAB;
    static constexpr int ACROSS = S::BN / S::SLAB, COUNT = S::M64 * ACROSS;
    typedef Target<Out, S::ENDING == BACKWARD> To;

    float* slab;
    Out* fetched;  // FETCHES slabs, or null: nothing to fetch, or not in packs
    const To& target;
    int m, n;  // the corner of this warpgroup's part of the tile

    __device__ __forceinline__ Slabs(unsigned char* staging, const To& target, int m, int n)
        : slab(reinterpret_cast<float*>(staging)), fetched(reinterpret_cast<Out*>(staging + S::SLAB_BYTES)),
          target(target), m(m), n(n) {
        if (!target.vector || target.partial != nullptr || target.epilogue.fetched_from() == nullptr) fetched = nullptr;
    }

    __device__ __forceinline__ int64 row(int which) const {
        return S::SWAPPED ? n + which % ACROSS * S::SLAB : m + which / ACROSS * 64;
    }
    __device__ __forceinline__ int64 column(int which) const {
        return S::SWAPPED ? m + which / ACROSS * 64 : n + which % ACROSS * S::SLAB;
    }
    __device__ __forceinline__ Out* place(int which, int pack) const {
        return fetched == nullptr ? nullptr : fetched + which % S::FETCHES * (LINES * LENGTH) + pack * W;
    }

    __device__ __forceinline__ void fetch(int which) const {
        if (fetched == nullptr) return;
#pragma unroll 1
        for (int p = threadIdx.x % WARPGROUP; p < LINES * LENGTH / W; p += WARPGROUP) {
            const int64 r = row(which) + p / (LENGTH / W), c = column(which) + p % (LENGTH / W) * W;
            const bool exists = which < COUNT && r < target.rows && c < target.columns;
            const Out* source = target.epilogue.fetched_from() + (exists ? target.corner + r * target.columns + c : 0);
            if (which < COUNT) ptx::copy_async<16>(place(which, p), source, exists);
        }
        ptx::copy_async_commit();
    }

    __device__ __forceinline__ void store(const float (&sums)[S::M64][S::BN / 2], float* column_sums, int barrier) const {
        const int thread = threadIdx.x % WARPGROUP;
        auto wait = [=] { ptx::barrier_sync(barrier, WARPGROUP); };
#pragma unroll
        for (int block = 0; block < S::M64; block++)
#pragma unroll 1
            for (int s = 0; s < ACROSS; s++) {
                const int which = block * ACROSS + s;
                if (S::FETCHES > 1) fetch(which + 1);
                wait();
                stage_slab<S>(sums[block], slab, s);
                ptx::copy_async_wait<S::FETCHES - 1>();
                wait();
                float total[W];
                clear(total);
#pragma unroll 1
                for (int p = thread; p < LINES * LENGTH / W; p += WARPGROUP) {
                    float value[W];
                    const int line = p / (LENGTH / W), at = p % (LENGTH / W) * W;
#pragma unroll
                    for (int e = 0; e < W; e += 4) {
                        const Pack<float, 4> piece = load_pack<float, 4>(slab + line * S::SLAB_PITCH + at + e);
#pragma unroll
                        for (int i = 0; i < 4; i++) value[e + i] = piece.item[i];
                    }
                    if (target.put(value, row(which) + line, column(which) + at, place(which, p)) &&
                        S::ENDING == BACKWARD) {
#pragma unroll
                        for (int e = 0; e < W; e++) total[e] += value[e];
                    }
                }
                if (S::FETCHES == 1) fetch(which + 1);
                if (S::ENDING == BACKWARD && column_sums != nullptr && row(which) < target.rows)
                    add_columns<WARPGROUP, LENGTH, W>(total, slab,
                                                      column_sums + row(which) / LINES * target.columns + column(which),
                                                      thread, target.columns - column(which), wait);
            }
        wait();
    }
};

// SPLIT: every block of the cluster has summed a share of K. Each lays its tile into its shared memory, where the
// ring was; then each adds some of the lines, in the order of the blocks, and finishes them.
template <typename S>
__device__ __forceinline__ void stage_whole(const float (&sums)[S::M64][S::BN / 2], float* whole, int first_row) {
    const Fragment at;
#pragma unroll
    for (int block = 0; block < S::M64; block++)
#pragma unroll
        for (int i = 0; i < S::BN / 2; i++) {
            const int row = first_row + block * 64 + at.row + 8 * (i / 2 % 2), column = i / 4 * 8 + at.column + i % 2;
            whole[S::SWAPPED ? column * S::WHOLE_PITCH + row : row * S::WHOLE_PITCH + column] = sums[block][i];
        }
}

template <typename S, typename Out>
__device__ __forceinline__ void add_split(float* whole, const Target<Out, S::ENDING == BACKWARD>& target, int m, int n,
                                          int rank) {
    constexpr int W = PACK<Out>, LINES = S::SWAPPED ? S::BN : S::BM, LENGTH = S::SWAPPED ? S::BM : S::BN;
    static_assert(LINES % S::CLUSTER == 0, "every block has as many lines");
    constexpr int OWN = LINES / S::CLUSTER;
    const float* shares[S::CLUSTER];
#pragma unroll
    for (int r = 0; r < S::CLUSTER; r++) shares[r] = ptx::map_shared(whole, r);
#pragma unroll 1
    for (int p = threadIdx.x - WARPGROUP; p < OWN * LENGTH / W; p += S::CONSUMERS * WARPGROUP) {
        const int line = rank * OWN + p / (LENGTH / W), place = p % (LENGTH / W) * W;
        float value[W];
        clear(value);
#pragma unroll
        for (int r = 0; r < S::CLUSTER; r++)
#pragma unroll
            for (int e = 0; e < W; e += 4) {
                const Pack<float, 4> piece = load_pack<float, 4>(shares[r] + line * S::WHOLE_PITCH + place + e);
#pragma unroll
                for (int i = 0; i < 4; i++) value[e + i] += piece.item[i];
            }
        if (S::SWAPPED) target.put(value, n + line, m + place);
        else target.put(value, m + line, n + place);
    }
}
