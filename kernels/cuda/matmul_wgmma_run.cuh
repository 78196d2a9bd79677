// matmul_wgmma_run.cuh - what the sm_90a kernels do beside loading, whatever is loaded: their barriers, and the
// way of the multiplying warpgroups from tile to tile. Kernels: matmul_wgmma.cu, convolution_wgmma.cu.
#pragma once
#include "matmul_wgmma_store.cuh"

// The barriers of the ring's stages: `full` is told by the tensor copies, `empty` by the warps that have read.
template <typename S> struct Stages {
    uint64 *full, *empty;
    __device__ __forceinline__ Stages(unsigned char* ring)
        : full(reinterpret_cast<uint64*>(ring + S::BARRIERS)), empty(full + S::STAGES) {}
};

// Makes the barriers, and the ones of ROW_SUMS, ready for every thread of the cluster.
template <typename S, typename T>
__device__ __forceinline__ void open_ring(unsigned char* ring, const Stages<S>& stages) {
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            ptx::mbarrier_init(&stages.full[s], 1);
            // the warps that release it
            ptx::mbarrier_init(&stages.empty[s], 4 * (S::PINGPONG ? 1 : S::CONSUMERS) * S::SHARE);
        }
        ptx::fence_mbarrier_init();
    }
    if (S::ENDING == ROW_SUMS) {
        T* ones = reinterpret_cast<T*>(ring + S::ONES);
        for (int i = threadIdx.x; i < 1024 / static_cast<int>(sizeof(T)); i += blockDim.x) ones[i] = narrow<T>(1.0f);
        ptx::fence_proxy_async();
    }
    if (S::CLUSTER > 1) ptx::cluster_meet();
    if (S::CLUSTER == 1 || S::ENDING == ROW_SUMS) __syncthreads();
}

// What a multiplying warpgroup does: all its tiles, from the ring to the result. `partial`: see Target.
template <typename S, int PLANES, typename Out>
__device__ __forceinline__ void multiply_units(unsigned char* ring, const Stages<S>& stages, const Work& work,
                                               uint32 first, uint32 step, int rank, const ptx::TensorMap* map_out,
                                               const Epilogue<Out, S::ENDING == BACKWARD>& epilogue, float* partial,
                                               float* column_sums, bool vector, Out* row_sums) {
    const int consumer = threadIdx.x / WARPGROUP - 1, barrier = 1 + consumer;
    const int first_row = S::PINGPONG ? 0 : consumer * S::M64 * 64;
    const uint32 units = count_units<S>(work);
    Slot<S::STAGES> slot;
    for (uint32 number = first, turn = 0; number < units; number += step, turn++) {
        const Unit unit = find_unit<S>(work, number, rank);
        if (S::PINGPONG && static_cast<int>(turn % 2) != consumer) {
            slot.skip(unit.count);
            continue;
        }
        // Barrier 3 + c: consumer c may multiply. The first turn is consumer 0's.
        if (S::PINGPONG && turn > 0) ptx::barrier_sync(3 + consumer, 2 * WARPGROUP);
        const int m = unit.m + first_row;
        const int64 rows = S::SWAPPED ? work.N : work.M, columns = S::SWAPPED ? work.M : work.N, size = rows * columns;
        const Target<Out, S::ENDING == BACKWARD> target = {
            epilogue, partial == nullptr ? nullptr : partial + size * work.batch * unit.part, size * unit.matrix,
            rows,     columns,                                                               vector};
        unsigned char* staging = ring + S::STAGES * S::STAGE + consumer * S::STAGING;
        const Slabs<S, Out> slabs(staging, target, m, unit.n);
        if (!S::IS_DIRECT && !S::SPLIT) slabs.fetch(0);
        typename MultiplyFor<S, PLANES>::type product;
        product.run(ring, stages.full, stages.empty, ring + S::ONES, unit.n == 0, first_row, unit.count, slot);
        if (S::PINGPONG && number + step < units) ptx::barrier_arrive(3 + (consumer ^ 1), 2 * WARPGROUP);

        if constexpr (S::ENDING == ROW_SUMS) {
            const Fragment at;
#pragma unroll
            for (int b = 0; b < S::M64; b++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = m + b * 64 + at.row + 8 * half;
                    if (unit.n == 0 && at.column == 0 && row < work.M)
                        row_sums[row] = narrow<Out>(product.of_rows[b][2 * half]);
                }
        }
        if constexpr (S::IS_DIRECT) {
            store_direct<S, Out>(product.sums, staging, map_out, epilogue, m, unit.n, static_cast<int>(unit.matrix),
                                 work.M, work.N, barrier);
        } else if constexpr (S::SPLIT) {
            float* whole = reinterpret_cast<float*>(ring);
            ptx::barrier_sync(3, S::CONSUMERS * WARPGROUP);  // nobody reads the ring any more
            stage_whole<S>(product.sums, whole, first_row);
            ptx::cluster_sync();
            add_split<S, Out>(whole, target, unit.m, unit.n, rank);
        } else {
            constexpr int LINES = S::SWAPPED ? S::SLAB : 64;
            float* sums_here = column_sums == nullptr ? nullptr :
                column_sums + (rows + LINES - 1) / LINES * columns * unit.matrix;
            slabs.store(product.sums, sums_here, barrier);
        }
    }
    if (S::IS_DIRECT && threadIdx.x % WARPGROUP == 0) ptx::bulk_wait<0>();
    __syncwarp();
}
