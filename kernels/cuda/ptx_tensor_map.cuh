// ptx_tensor_map.cuh - tensor copies (TMA): one thread starts the copy of a box of a tensor that a tensor
// map describes. All from sm_90 on.
//
// Coordinates are innermost dimension first and may lie outside of the tensor: loads fill what is outside
// (and report the whole box's bytes), stores leave it out. The innermost one is a multiple of 16 bytes, and
// those of stores are not negative: an H100 stops with "an illegal instruction" otherwise. Shared memory of a box is aligned to 128 bytes,
// and to 1024, 512 or 256 if the map has a swizzle of 128, 64 or 32 bytes and code relies on its pattern.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// A tensor map, made on the host by gpunn.emulator.TensorMap. A kernel takes it by value,
// `const __grid_constant__ ptx::TensorMap map`, and passes &map.
struct alignas(64) TensorMap {
    unsigned char opaque[128];
};

// Fetches the map itself ahead of its first use. By one thread.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
    PTX((void)map, asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory"));
}

// ---- loads --------------------------------------------------------------------------------------------

#define PTX_TENSOR_LOAD(SHAPE, COORDINATES, ...)                                                         \
    asm volatile("cp.async.bulk.tensor." SHAPE ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" \
                 " [%0], [%1, {" COORDINATES "}], [%2];"                                                 \
                 :: "r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), __VA_ARGS__     \
                 : "memory")

// The box whose first element is at `at`; its bytes are reported to the barrier.
template <int RANK>
__device__ __forceinline__ void tensor_load(void* shared, const TensorMap* map, uint64* barrier,
                                            const int (&at)[RANK]) {
    static_assert(RANK >= 1 && RANK <= 5, "a tensor map has 1 to 5 dimensions");
    PTX(emu_tensor_load(shared, map, barrier, RANK, at, nullptr, 0),
        if constexpr (RANK == 1) PTX_TENSOR_LOAD("1d", "%3", "r"(at[0]));
        else if constexpr (RANK == 2) PTX_TENSOR_LOAD("2d", "%3, %4", "r"(at[0]), "r"(at[1]));
        else if constexpr (RANK == 3)
            PTX_TENSOR_LOAD("3d", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
        else if constexpr (RANK == 4)
            PTX_TENSOR_LOAD("4d", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
        else
            PTX_TENSOR_LOAD("5d", "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
                            "r"(at[4])));
}

#define PTX_TENSOR_MULTICAST(SHAPE, COORDINATES, ...)                                                    \
    asm volatile("cp.async.bulk.tensor." SHAPE ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" \
                 ".multicast::cluster [%0], [%1, {" COORDINATES "}], [%2], %3;"                          \
                 :: "r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "h"(mask),      \
                    __VA_ARGS__ : "memory")

// The same to every block of the cluster whose bit is set in `mask`, at the same place in each, where
// the barrier at the same place is told.
template <int RANK>
__device__ __forceinline__ void tensor_load_multicast(void* shared, const TensorMap* map, uint64* barrier,
                                                      const int (&at)[RANK], uint16 mask) {
    static_assert(RANK >= 1 && RANK <= 5, "a tensor map has 1 to 5 dimensions");
    PTX(emu_tensor_load(shared, map, barrier, RANK, at, nullptr, mask),
        if constexpr (RANK == 1) PTX_TENSOR_MULTICAST("1d", "%4", "r"(at[0]));
        else if constexpr (RANK == 2) PTX_TENSOR_MULTICAST("2d", "%4, %5", "r"(at[0]), "r"(at[1]));
        else if constexpr (RANK == 3)
            PTX_TENSOR_MULTICAST("3d", "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
        else if constexpr (RANK == 4)
            PTX_TENSOR_MULTICAST("4d", "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
        else
            PTX_TENSOR_MULTICAST("5d", "%4, %5, %6, %7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]),
                                 "r"(at[3]), "r"(at[4])));
}

#define PTX_TENSOR_IM2COL(SHAPE, COORDINATES, OFFSETS, ...)                                              \
    asm volatile("cp.async.bulk.tensor." SHAPE ".shared::cluster.global.im2col.mbarrier::complete_tx::bytes" \
                 " [%0], [%1, {" COORDINATES "}], [%2], {" OFFSETS "};"                                  \
                 :: "r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), __VA_ARGS__     \
                 : "memory")

// A column of pixels of an im2col map: `at` is channel, then the first pixel (w, h, d …), then the image;
// `offset` is added to every pixel's place (w, h, d …): the filter's element. Pixels follow one another in
// the map's bounding box, which ignores `offset`.
template <int RANK>
__device__ __forceinline__ void tensor_load_im2col(void* shared, const TensorMap* map, uint64* barrier,
                                                   const int (&at)[RANK],
                                                   const uint16 (&offset)[RANK - 2]) {
    static_assert(RANK >= 3 && RANK <= 5, "an im2col map has 3 to 5 dimensions");
    PTX(emu_tensor_load(shared, map, barrier, RANK, at, offset, 0),
        if constexpr (RANK == 3)
            PTX_TENSOR_IM2COL("3d", "%3, %4, %5", "%6", "r"(at[0]), "r"(at[1]), "r"(at[2]),
                              "h"(offset[0]));
        else if constexpr (RANK == 4)
            PTX_TENSOR_IM2COL("4d", "%3, %4, %5, %6", "%7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]),
                              "r"(at[3]), "h"(offset[0]), "h"(offset[1]));
        else
            PTX_TENSOR_IM2COL("5d", "%3, %4, %5, %6, %7", "%8, %9, %10", "r"(at[0]), "r"(at[1]),
                              "r"(at[2]), "r"(at[3]), "r"(at[4]), "h"(offset[0]), "h"(offset[1]),
                              "h"(offset[2])));
}

// ---- stores: in the thread's open group, closed by bulk_commit ------------------------------------------

#define PTX_TENSOR_STORE(OPERATION, SHAPE, MODE, COORDINATES, ...)                                       \
    asm volatile(OPERATION ".async.bulk.tensor." SHAPE ".global.shared::cta" MODE ".bulk_group"          \
                 " [%0, {" COORDINATES "}], [%1];"                                                       \
                 :: "l"(map), "r"(shared_address(shared)), __VA_ARGS__ : "memory")

#define PTX_TENSOR_STORE_ANY(OPERATION, MODE)                                                            \
    if constexpr (RANK == 1) PTX_TENSOR_STORE(OPERATION, "1d", MODE, "%2", "r"(at[0]));                  \
    else if constexpr (RANK == 2)                                                                        \
        PTX_TENSOR_STORE(OPERATION, "2d", MODE, "%2, %3", "r"(at[0]), "r"(at[1]));                       \
    else if constexpr (RANK == 3)                                                                        \
        PTX_TENSOR_STORE(OPERATION, "3d", MODE, "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));       \
    else if constexpr (RANK == 4)                                                                        \
        PTX_TENSOR_STORE(OPERATION, "4d", MODE, "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]),    \
                         "r"(at[3]));                                                                    \
    else                                                                                                 \
        PTX_TENSOR_STORE(OPERATION, "5d", MODE, "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]),            \
                         "r"(at[2]), "r"(at[3]), "r"(at[4]))

// Writes the box at `at`.
template <int RANK>
__device__ __forceinline__ void tensor_store(const TensorMap* map, const void* shared,
                                             const int (&at)[RANK]) {
    static_assert(RANK >= 1 && RANK <= 5, "a tensor map has 1 to 5 dimensions");
    PTX(emu_tensor_store(map, shared, RANK, at, 0), PTX_TENSOR_STORE_ANY("cp", ".tile"));
}

// Adds the box at `at` to the tensor, each element atomically and in the map's number type.
template <int RANK>
__device__ __forceinline__ void tensor_add(const TensorMap* map, const void* shared,
                                           const int (&at)[RANK]) {
    static_assert(RANK >= 1 && RANK <= 5, "a tensor map has 1 to 5 dimensions");
    PTX(emu_tensor_store(map, shared, RANK, at, 1), PTX_TENSOR_STORE_ANY("cp.reduce", ".add.tile"));
}

}  // namespace ptx
