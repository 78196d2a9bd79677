// row.cuh - the common core of kernels that work on rows: softmax, cross-entropy, norms, sums over the last axis.
//
// A row is `cols` neighbouring elements of a C-contiguous (rows, cols) array. A *team* of threads shares
// one row. The launch side (`row_plan` in gpunn/primitives/rows.py) picks the team by the row's length:
//
//   group     1 to 32 threads, a power of two: that many lanes of a warp, several rows a warp
//   block     all threads of a block, a power of two
//   cluster   2, 4 or 8 blocks (from sm_90 on), a template parameter because CuPy can launch clusters only
//             by __cluster_dims__. 8 is the largest size that may be asked for on every GPU with clusters;
//             a chip or a MIG slice with fewer free multiprocessors in a GPC may still not take it, so
//             row_plan gives no cluster more than half of the chip's multiprocessors
//   parts     any number of blocks, which meet in memory between two launches
//
// Thread `rank` of a team owns the packs (16 bytes) p = rank, rank + team, rank + 2 team, …, in each pass,
// so what it keeps of a row in registers or shared memory needs no barrier. Only what is
// reduced over the row (a maximum, a sum) crosses threads: by shuffles, shared memory, the cluster's
// distributed shared memory. A kernel looks like this:
//
//     __shared__ float scratch[WARP + CLUSTER];
//     const bool vector = …;                            // kernel argument: all pointers are multiples of 16
//     team_enter<CLUSTER>();
//     for (RowLoop at(rows, threads, CLUSTER); at.more(); at.next()) {  // no thread leaves early: all reduce
//         const Row<T> row(at.row(), cols, vector, at.active());
//         for (int64 p = at.rank; p < row.packs; p += at.team) {
//             Pack<T, PACK<T>> x = load_row(array, row, p, fill);   // elements outside the row are `fill`
//             …
//         }
//         total = team_reduce<Sum, CLUSTER>(partial, threads, scratch);     // every thread gets it
//     }
//     team_leave<CLUSTER>();
//
// Packs are counted from the aligned address at or just before the row's start, so rows of any length
// are moved in 16-byte loads and stores; only the pack at each end goes element by element. Where a
// pointer is not a multiple of 16 (vector == false) every element goes by itself. Neither ever touches
// memory outside the row.
#pragma once
#include "common.cuh"
#include "ptx_cluster.cuh"

// Below sm_90 there are no clusters, and the launch side takes the instance CLUSTER = 1.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#undef __cluster_dims__
#define __cluster_dims__(...)
#endif

// ---- where a row's elements lie -------------------------------------------------------------------

// Index counts within the row: int where rows are short saves registers, int64 is always right.
template <typename T, typename Index = int64> struct Row {
    int64 start;        // index of the row's first element in the array
    Index cols;
    Index packs;        // how many packs touch the row; 0 for a group without a row
    Index whole, whole_end;  // packs that lie wholly inside the row and may go as 16 bytes
    int shift;          // elements of pack 0 that lie before the row

    __device__ __forceinline__ Row(int64 row, Index cols, bool vector, bool active = true)
        : start(row * cols), cols(active ? cols : 0) {
        shift = vector ? static_cast<int>(start % PACK<T>) : 0;
        packs = active ? (shift + cols + PACK<T> - 1) / PACK<T> : 0;
        whole = shift > 0;
        whole_end = vector && active ? (shift + cols) / PACK<T> : 0;
    }
    // Column of the first element of pack p; negative if the pack begins before the row.
    __device__ __forceinline__ Index column(Index p) const { return p * PACK<T> - shift; }
    __device__ __forceinline__ bool inside(Index column) const { return column >= 0 && column < cols; }
};

// Pack p of the row; elements outside the row, also all of a pack beyond its end, are `fill`.
template <typename T, typename Index>
__device__ __forceinline__ Pack<T, PACK<T>> load_row(const T* array, const Row<T, Index>& row, Index p, T fill) {
    const T* first = array + row.start;
    const Index column = row.column(p);
    // Both branches end in four words, or the compiler would spread 16-bit elements over a register each.
    uint4 words;
    if (p >= row.whole && p < row.whole_end) {
        words = *reinterpret_cast<const uint4*>(first + column);
    } else {
        Pack<T, PACK<T>> pack;
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) pack.item[e] = row.inside(column + e) ? first[column + e] : fill;
        words = *reinterpret_cast<uint4*>(&pack);
    }
    return *reinterpret_cast<Pack<T, PACK<T>>*>(&words);
}

// The 16 bytes of a pack. 16-bit elements are joined in pairs by hand: a plain copy goes through memory.
template <typename T> __device__ __forceinline__ uint4 words_of(const Pack<T, PACK<T>>& pack) {
    uint4 words;
    if constexpr (sizeof(T) == 2) {
        const unsigned short* bits = reinterpret_cast<const unsigned short*>(&pack);
        words.x = bits[0] | static_cast<uint32>(bits[1]) << 16;
        words.y = bits[2] | static_cast<uint32>(bits[3]) << 16;
        words.z = bits[4] | static_cast<uint32>(bits[5]) << 16;
        words.w = bits[6] | static_cast<uint32>(bits[7]) << 16;
    } else {
        words = *reinterpret_cast<const uint4*>(&pack);
    }
    return words;
}

// Write pack p of the row; elements outside the row are left alone.
template <typename T, typename Index>
__device__ __forceinline__ void store_row(
    T* array, const Row<T, Index>& row, Index p, const Pack<T, PACK<T>>& pack) {
    T* first = array + row.start;
    const Index column = row.column(p);
    if (p >= row.whole && p < row.whole_end) {
        // "Streaming": the first to leave the L2 cache where it is full, before what is still to be read. And
        // a plain assignment is sometimes split into four stores.
        __stcs(reinterpret_cast<uint4*>(first + column), words_of(pack));
        return;
    }
#pragma unroll
    for (int e = 0; e < PACK<T>; e++)
        if (row.inside(column + e)) first[column + e] = pack.item[e];
}

// ---- which row a team works on -----------------------------------------------------------------------

// Walks over all rows, one for each team at a time; clusters lie along x. Every thread of a block, and every
// block of a cluster, makes the same number of rounds, so that reductions always meet all their threads;
// a team beyond the last row is not active. With a cluster, `threads` is the whole block.
struct RowLoop {
    int64 first;  // of this block's rows in this round
    int64 rows, step;
    int group, rank, team;

    __device__ __forceinline__ RowLoop(int64 rows, int threads, int cluster = 1) : rows(rows) {
        const int shift = __ffs(threads) - 1;  // a power of two: spare three divisions
        const int per_block = blockDim.x >> shift;
        group = threadIdx.x >> shift;
        rank = blockIdx.x % cluster * threads + (threadIdx.x & (threads - 1));
        team = cluster * threads;
        first = static_cast<int64>(blockIdx.x / cluster) * per_block;
        step = static_cast<int64>(gridDim.x / cluster) * per_block;
    }
    __device__ __forceinline__ bool more() const { return first < rows; }
    __device__ __forceinline__ void next() { first += step; }
    __device__ __forceinline__ int64 row() const { return first + group; }
    __device__ __forceinline__ bool active() const { return row() < rows; }
};

// ---- what a thread keeps of its row between two passes --------------------------------------------------

// Shared memory: the first `kept` packs of each thread, at most. Neighbouring threads' packs are neighbours.
template <typename T> struct Kept {
    Pack<T, PACK<T>>* place;  // of this thread's first pack
    int kept;

    __device__ __forceinline__ Kept(void* memory, int kept)
        : place(static_cast<Pack<T, PACK<T>>*>(memory) + threadIdx.x), kept(kept) {}
    // First pass: the thread's k-th pack, p of the row, is kept if there is room. Load several before the first
    // is put away, which waits for it: so they are under way together.
    template <typename Index>
    __device__ __forceinline__ void put(
        const Pack<T, PACK<T>>& pack, const Row<T, Index>& row, Index p, Index k) const {
        if (k < kept && p < row.packs) place[k * blockDim.x] = pack;
    }
    // Later passes: from where it is.
    template <typename Index>
    __device__ __forceinline__ Pack<T, PACK<T>> again(
        const T* array, const Row<T, Index>& row, Index p, Index k, T fill) const {
        return k < kept && p < row.packs ? place[k * blockDim.x] : load_row(array, row, p, fill);
    }
};

// Where the last of the rounds of AHEAD packs begins that a thread needs for its packs; negative for none.
// Later passes run backwards: what was read last is what the L2 cache still holds, where not all was kept.
template <int AHEAD, typename Index>
__device__ __forceinline__ Index last_round(Index packs, Index rank, Index team) {
    if (packs <= rank) return -1;
    return (packs - rank - 1) / team / AHEAD * AHEAD;
}

// ---- reductions over a group ----------------------------------------------------------------------------

template <typename A> __device__ __forceinline__ A shuffle_xor(A value, int offset) {
    return __shfl_xor_sync(FULL_WARP, value, offset);
}

// Every thread of the group gets the result, and the same bits: Op must be commutative to the bit. `scratch`
// holds WARP values in shared memory and is used only by groups larger than a warp; the block must then
// be the group. Safe to call again with the same scratch.
template <typename Op, typename V> __device__ __forceinline__ V group_reduce(V value, int threads, V* scratch) {
    for (int offset = (threads < WARP ? threads : WARP) / 2; offset > 0; offset /= 2)
        value = Op::apply(value, shuffle_xor(value, offset));
    if (threads <= WARP) return value;
    const int warps = threads / WARP, lane = threadIdx.x % WARP;
    __syncthreads();  // the scratch may still be read by an earlier call
    if (lane == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    value = scratch[lane & (warps - 1)];
    for (int offset = warps / 2; offset > 0; offset /= 2)
        value = Op::apply(value, shuffle_xor(value, offset));
    return value;
}

// ---- reductions over a team ------------------------------------------------------------------------------
//
// Blocks of a cluster write their results into each other's shared memory. The cluster's barrier stands
// in halves: a block arrives when its own memory is free to be written, and the others wait for that only
// when they write, which is a row later; and between team_enter and the first reduction it hides the
// time that the cluster's blocks take to start.

template <int CLUSTER> __device__ __forceinline__ void team_enter() {
    if constexpr (CLUSTER > 1) ptx::cluster_arrive();
}
template <int CLUSTER> __device__ __forceinline__ void team_leave() {
    if constexpr (CLUSTER > 1) ptx::cluster_wait();
}

// As group_reduce, over `threads` threads and CLUSTER blocks. `scratch` holds WARP + CLUSTER values.
template <typename Op, int CLUSTER, typename V>
__device__ __forceinline__ V team_reduce(V value, int threads, V* scratch) {
    value = group_reduce<Op>(value, threads, scratch);
    if constexpr (CLUSTER > 1) {
        V* blocks = scratch + WARP;  // one value from each block, in the order of their ranks
        ptx::cluster_wait();
        if (threadIdx.x < CLUSTER) *ptx::map_shared(blocks + ptx::cluster_rank(), threadIdx.x) = value;
        ptx::cluster_sync();
        value = blocks[0];
#pragma unroll
        for (int block = 1; block < CLUSTER; block++) value = Op::apply(value, blocks[block]);
        ptx::cluster_arrive();
    }
    return value;
}

// ---- softmax in one pass: the largest element and the sum of exp(x - largest), together -----------------
// Milakov & Gimelshein, Online normalizer calculation for softmax, 2018.

// `max` passes over NaN, but `sum` becomes NaN with it, so NaN reaches all that is computed from both.
// Of a row of -inf alone: max -inf and sum 0. +inf makes the sum NaN.
template <typename A> struct MaxSum {
    A max, sum;
    __device__ __forceinline__ A log_sum() const { return max + logarithm(sum); }  // log of the sum of exp(x)
};
template <typename A> __device__ __forceinline__ MaxSum<A> max_sum_identity() { return {-infinity<A>(), A(0)}; }

template <typename A> __device__ __forceinline__ MaxSum<A> shuffle_xor(MaxSum<A> value, int offset) {
    return {shuffle_xor(value.max, offset), shuffle_xor(value.sum, offset)};
}

// fmax under one name; unlike `maximum` of common.cuh it drops NaN, in one instruction.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

struct MergeMaxSum {
    template <typename A> static __device__ __forceinline__ MaxSum<A> apply(MaxSum<A> a, MaxSum<A> b) {
        const bool first = a.max >= b.max;
        const MaxSum<A> big = first ? a : b, small = first ? b : a;
        // Where both are -inf the difference would be NaN; their sums are 0.
        const A factor = small.max == -infinity<A>() ? A(0) : exponential(small.max - big.max);
        return {big.max, big.sum + small.sum * factor};
    }
};

// exp(x) for x <= 0 as exactly as T can show: the hardware's own exponential is off by 2 + |x| units in the
// last place of a float, which a 16-bit result never shows, and it saves the half of the instructions.
template <typename T> __device__ __forceinline__ Accumulator<T> row_exponential(Accumulator<T> x) {
    if constexpr (sizeof(T) == 2) return __expf(x);
    else return exponential(x);
}

// Take N more elements in; -inf stands for "no element". The running sum is rescaled once for all N.
// T is the type that the elements were stored in: max_sum_add<T>(state, values).
template <typename T, int N>
__device__ __forceinline__ void max_sum_add(MaxSum<Accumulator<T>>& state, const Accumulator<T> (&x)[N]) {
    typedef Accumulator<T> A;
    A top = state.max;
#pragma unroll
    for (int i = 0; i < N; i++) top = larger(top, x[i]);
    const A reference = top == -infinity<A>() ? A(0) : top;  // exp(-inf - 0) is 0, exp(-inf + inf) is not
    A sum = A(0);  // apart from the running sum, so that it grows by fewer and larger numbers
#pragma unroll
    for (int i = 0; i < N; i++) sum += row_exponential<T>(x[i] - reference);
    state = {top, sum + state.sum * row_exponential<T>(state.max - reference)};
}
