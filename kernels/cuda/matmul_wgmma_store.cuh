// matmul_wgmma_store.cuh - how finished sums of the sm_90a product leave the registers: rounded there and by tensor
// copies (DIRECT), slab by slab through shared memory (FORWARD, BACKWARD), or added over the cluster (SPLIT).
#pragma once
#include "matmul_wgmma.cuh"

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
