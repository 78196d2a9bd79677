// ptx_wgmma.cuh - wgmma: a warpgroup (4 warps, 128 threads) multiplies a 64-row tile asynchronously. sm_90a.
//
//     wgmma_fence();                        // registers and shared memory written before are seen
//     wgmma<128, Kind::bf16>(d, a, b);      // any number of them, on the same accumulator in order
//     wgmma_commit();
//     wgmma_wait<0>();                      // only now may d (and A's registers) be read or written
//
// All threads of the warpgroup call these together. With g = lane / 4, t = lane % 4 and warp 0 … 3:
//   D (64 x N): d[4 j + i] = D[16 warp + g + 8 (i / 2)][8 j + 2 t + i % 2]
//   A in registers (64 rows of 32 bytes): as for mma, the warp's 16 rows.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// ---- operands in shared memory ----------------------------------------------------------------------

enum class Swizzle { none, bytes32, bytes64, bytes128 };

// Describes an operand tile in shared memory. "Rows" are A's rows or B's columns; the tile is made of
// groups of 8 lines, S = 32, 64 or 128 bytes wide as the swizzle, or 16 without one.
//   K contiguous (not transposed), line r at (r % 8) S + (r / 8) stride_bytes:
//     swizzled: the 32 bytes of one wgmma lie side by side; the next 32 start 32 bytes further on, in the
//     same descriptor with a higher address (leading_bytes is not looked at);
//     none: the second 16 bytes of K lie leading_bytes after the first.
//   Rows contiguous (transposed; 16-bit kinds), line k, S / 2 rows wide, at (k % 8) S:
//     swizzled: the next 8 k at stride_bytes, the next S / 2 rows at leading_bytes;
//     none: the next 8 k at leading_bytes, the next 8 rows at stride_bytes.
// The swizzle XORs address bits 4-6 with bits 7-9 (64: 4-5 with 7-8; 32: 4 with 7), as tensor copies do,
// so the groups start at multiples of 8 S. Offsets are multiples of 16 below 256 KiB.
__device__ __forceinline__ uint64 matrix_descriptor(const void* shared, int leading_bytes, int stride_bytes,
                                                    Swizzle swizzle) {
    // The hardware numbers the layouts 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes.
    const uint64 layout = swizzle == Swizzle::none ? 0 : 4 - static_cast<int>(swizzle);
    return static_cast<uint64>((shared_address(shared) & 0x3ffff) >> 4) |
           static_cast<uint64>((leading_bytes & 0x3ffff) >> 4) << 16 |
           static_cast<uint64>((stride_bytes & 0x3ffff) >> 4) << 32 | layout << 62;
}

// ---- order --------------------------------------------------------------------------------------------

// Before the first wgmma, and before one that reads registers changed since.
__device__ __forceinline__ void wgmma_fence() {
    PTX(emu_wgmma_fence(), asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}

// Closes the group of the wgmmas since the last commit.
__device__ __forceinline__ void wgmma_commit() {
    PTX(emu_wgmma_commit(), asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}

// Waits until at most KEEP of the latest groups are unfinished.
template <int KEEP> __device__ __forceinline__ void wgmma_wait() {
    static_assert(KEEP >= 0 && KEEP <= 7, "wgmma.wait_group keeps 0 to 7 groups");
    PTX(emu_wgmma_wait(KEEP), asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(KEEP) : "memory"));
}

// Costs nothing, but the compiler moves no use of these registers across it: of d behind a wgmma_wait, before
// it is read; of registers that are A, behind the wait that ends their use.
template <int COUNT> __device__ __forceinline__ void wgmma_hold(float (&d)[COUNT]) {
    PTX((void)d, _Pragma("unroll") for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i]) :: "memory"));
}
template <int COUNT> __device__ __forceinline__ void wgmma_hold(uint32 (&a)[COUNT]) {
    PTX((void)a, _Pragma("unroll") for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+r"(a[i]) :: "memory"));
}

// ---- the instruction ------------------------------------------------------------------------------------

#ifndef GPUNN_EMULATOR
template <int N> struct Wgmma;  // the instructions for tiles N wide
#if __CUDA_ARCH__ >= 900

// The accumulator of a tile N wide is N / 2 registers: their names in the text, and their list.
#define PTX_NAMES_8 "%0, %1, %2, %3"
#define PTX_NAMES_16 PTX_NAMES_8 ", %4, %5, %6, %7"
#define PTX_NAMES_24 PTX_NAMES_16 ", %8, %9, %10, %11"
#define PTX_NAMES_32 PTX_NAMES_24 ", %12, %13, %14, %15"
#define PTX_NAMES_40 PTX_NAMES_32 ", %16, %17, %18, %19"
#define PTX_NAMES_48 PTX_NAMES_40 ", %20, %21, %22, %23"
#define PTX_NAMES_56 PTX_NAMES_48 ", %24, %25, %26, %27"
#define PTX_NAMES_64 PTX_NAMES_56 ", %28, %29, %30, %31"
#define PTX_NAMES_72 PTX_NAMES_64 ", %32, %33, %34, %35"
#define PTX_NAMES_80 PTX_NAMES_72 ", %36, %37, %38, %39"
#define PTX_NAMES_88 PTX_NAMES_80 ", %40, %41, %42, %43"
#define PTX_NAMES_96 PTX_NAMES_88 ", %44, %45, %46, %47"
#define PTX_NAMES_104 PTX_NAMES_96 ", %48, %49, %50, %51"
#define PTX_NAMES_112 PTX_NAMES_104 ", %52, %53, %54, %55"
#define PTX_NAMES_120 PTX_NAMES_112 ", %56, %57, %58, %59"
#define PTX_NAMES_128 PTX_NAMES_120 ", %60, %61, %62, %63"
#define PTX_NAMES_136 PTX_NAMES_128 ", %64, %65, %66, %67"
#define PTX_NAMES_144 PTX_NAMES_136 ", %68, %69, %70, %71"
#define PTX_NAMES_152 PTX_NAMES_144 ", %72, %73, %74, %75"
#define PTX_NAMES_160 PTX_NAMES_152 ", %76, %77, %78, %79"
#define PTX_NAMES_168 PTX_NAMES_160 ", %80, %81, %82, %83"
#define PTX_NAMES_176 PTX_NAMES_168 ", %84, %85, %86, %87"
#define PTX_NAMES_184 PTX_NAMES_176 ", %88, %89, %90, %91"
#define PTX_NAMES_192 PTX_NAMES_184 ", %92, %93, %94, %95"
#define PTX_NAMES_200 PTX_NAMES_192 ", %96, %97, %98, %99"
#define PTX_NAMES_208 PTX_NAMES_200 ", %100, %101, %102, %103"
#define PTX_NAMES_216 PTX_NAMES_208 ", %104, %105, %106, %107"
#define PTX_NAMES_224 PTX_NAMES_216 ", %108, %109, %110, %111"
#define PTX_NAMES_232 PTX_NAMES_224 ", %112, %113, %114, %115"
#define PTX_NAMES_240 PTX_NAMES_232 ", %116, %117, %118, %119"
#define PTX_NAMES_248 PTX_NAMES_240 ", %120, %121, %122, %123"
#define PTX_NAMES_256 PTX_NAMES_248 ", %124, %125, %126, %127"
#define PTX_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_TILE_8 PTX_FOUR(0)
#define PTX_TILE_16 PTX_TILE_8, PTX_FOUR(4)
#define PTX_TILE_24 PTX_TILE_16, PTX_FOUR(8)
#define PTX_TILE_32 PTX_TILE_24, PTX_FOUR(12)
#define PTX_TILE_40 PTX_TILE_32, PTX_FOUR(16)
#define PTX_TILE_48 PTX_TILE_40, PTX_FOUR(20)
#define PTX_TILE_56 PTX_TILE_48, PTX_FOUR(24)
#define PTX_TILE_64 PTX_TILE_56, PTX_FOUR(28)
#define PTX_TILE_72 PTX_TILE_64, PTX_FOUR(32)
#define PTX_TILE_80 PTX_TILE_72, PTX_FOUR(36)
#define PTX_TILE_88 PTX_TILE_80, PTX_FOUR(40)
#define PTX_TILE_96 PTX_TILE_88, PTX_FOUR(44)
#define PTX_TILE_104 PTX_TILE_96, PTX_FOUR(48)
#define PTX_TILE_112 PTX_TILE_104, PTX_FOUR(52)
#define PTX_TILE_120 PTX_TILE_112, PTX_FOUR(56)
#define PTX_TILE_128 PTX_TILE_120, PTX_FOUR(60)
#define PTX_TILE_136 PTX_TILE_128, PTX_FOUR(64)
#define PTX_TILE_144 PTX_TILE_136, PTX_FOUR(68)
#define PTX_TILE_152 PTX_TILE_144, PTX_FOUR(72)
#define PTX_TILE_160 PTX_TILE_152, PTX_FOUR(76)
#define PTX_TILE_168 PTX_TILE_160, PTX_FOUR(80)
#define PTX_TILE_176 PTX_TILE_168, PTX_FOUR(84)
#define PTX_TILE_184 PTX_TILE_176, PTX_FOUR(88)
#define PTX_TILE_192 PTX_TILE_184, PTX_FOUR(92)
#define PTX_TILE_200 PTX_TILE_192, PTX_FOUR(96)
#define PTX_TILE_208 PTX_TILE_200, PTX_FOUR(100)
#define PTX_TILE_216 PTX_TILE_208, PTX_FOUR(104)
#define PTX_TILE_224 PTX_TILE_216, PTX_FOUR(108)
#define PTX_TILE_232 PTX_TILE_224, PTX_FOUR(112)
#define PTX_TILE_240 PTX_TILE_232, PTX_FOUR(116)
#define PTX_TILE_248 PTX_TILE_240, PTX_FOUR(120)
#define PTX_TILE_256 PTX_TILE_248, PTX_FOUR(124)

// One instruction. P is the number of the operand that says whether to add to d; REST are the operands.
#define PTX_WGMMA_TEXT(N, TYPES, AB, P, SIGNS, ...)                                                      \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" P ", 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" PTX_NAMES_##N "}, " AB                \
                 ", add, 1, 1" SIGNS ";\n}"                                                              \
                 : PTX_TILE_##N : __VA_ARGS__)

// The instructions for tiles N wide. The numbers N / 2 … N / 2 + 6 are those of the operands after d.
#define PTX_WGMMA(N, P0, P1, P2, P3, P4, P5, P6)                                                         \
    template <> struct Wgmma<N> {                                                                        \
        template <Kind K, int TA, int TB>                                                                \
        static __device__ __forceinline__ void shared(float (&d)[N / 2], uint64 a, uint64 b, int add) {  \
            if constexpr (K == Kind::bf16) PTX_WGMMA_S16(N, "k16.f32.bf16.bf16", P0, P1, P2, P3, P4);    \
            else if constexpr (K == Kind::f16) PTX_WGMMA_S16(N, "k16.f32.f16.f16", P0, P1, P2, P3, P4);  \
            else if constexpr (K == Kind::tf32) PTX_WGMMA_S(N, "k8.f32.tf32.tf32", P0, P1, P2);          \
            else if constexpr (K == Kind::e4m3) PTX_WGMMA_S(N, "k32.f32.e4m3.e4m3", P0, P1, P2);         \
            else if constexpr (K == Kind::e5m2) PTX_WGMMA_S(N, "k32.f32.e5m2.e5m2", P0, P1, P2);         \
            else if constexpr (K == Kind::e4m3_e5m2) PTX_WGMMA_S(N, "k32.f32.e4m3.e5m2", P0, P1, P2);    \
            else PTX_WGMMA_S(N, "k32.f32.e5m2.e4m3", P0, P1, P2);                                        \
        }                                                                                                \
        template <Kind K, int TB>                                                                        \
        static __device__ __forceinline__ void registers(float (&d)[N / 2], const uint32 (&a)[4],        \
                                                         uint64 b, int add) {                            \
            if constexpr (K == Kind::bf16)                                                               \
                PTX_WGMMA_R16(N, "k16.f32.bf16.bf16", P0, P1, P2, P3, P4, P5, P6);                       \
            else if constexpr (K == Kind::f16)                                                           \
                PTX_WGMMA_R16(N, "k16.f32.f16.f16", P0, P1, P2, P3, P4, P5, P6);                         \
            else if constexpr (K == Kind::tf32)                                                          \
                PTX_WGMMA_R(N, "k8.f32.tf32.tf32", P0, P1, P2, P3, P4, P5);                              \
            else if constexpr (K == Kind::e4m3)                                                          \
                PTX_WGMMA_R(N, "k32.f32.e4m3.e4m3", P0, P1, P2, P3, P4, P5);                             \
            else if constexpr (K == Kind::e5m2)                                                          \
                PTX_WGMMA_R(N, "k32.f32.e5m2.e5m2", P0, P1, P2, P3, P4, P5);                             \
            else if constexpr (K == Kind::e4m3_e5m2)                                                     \
                PTX_WGMMA_R(N, "k32.f32.e4m3.e5m2", P0, P1, P2, P3, P4, P5);                             \
            else PTX_WGMMA_R(N, "k32.f32.e5m2.e4m3", P0, P1, P2, P3, P4, P5);                            \
        }                                                                                                \
    };
#define PTX_WGMMA_S(N, TYPES, P0, P1, P2)                                                                \
    PTX_WGMMA_TEXT(N, TYPES, "%" P0 ", %" P1, P2, "", "l"(a), "l"(b), "r"(add))
#define PTX_WGMMA_S16(N, TYPES, P0, P1, P2, P3, P4)                                                      \
    PTX_WGMMA_TEXT(N, TYPES, "%" P0 ", %" P1, P2, ", %" P3 ", %" P4, "l"(a), "l"(b), "r"(add), "n"(TA),  \
                   "n"(TB))
#define PTX_WGMMA_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define PTX_WGMMA_R(N, TYPES, P0, P1, P2, P3, P4, P5)                                                    \
    PTX_WGMMA_TEXT(N, TYPES, "{%" P0 ", %" P1 ", %" P2 ", %" P3 "}, %" P4, P5, "", PTX_WGMMA_A, "l"(b),  \
                   "r"(add))
#define PTX_WGMMA_R16(N, TYPES, P0, P1, P2, P3, P4, P5, P6)                                              \
    PTX_WGMMA_TEXT(N, TYPES, "{%" P0 ", %" P1 ", %" P2 ", %" P3 "}, %" P4, P5, ", %" P6, PTX_WGMMA_A,    \
                   "l"(b), "r"(add), "n"(TB))

PTX_WGMMA(8, "4", "5", "6", "7", "8", "9", "10")
PTX_WGMMA(16, "8", "9", "10", "11", "12", "13", "14")
PTX_WGMMA(24, "12", "13", "14", "15", "16", "17", "18")
PTX_WGMMA(32, "16", "17", "18", "19", "20", "21", "22")
PTX_WGMMA(40, "20", "21", "22", "23", "24", "25", "26")
PTX_WGMMA(48, "24", "25", "26", "27", "28", "29", "30")
PTX_WGMMA(56, "28", "29", "30", "31", "32", "33", "34")
PTX_WGMMA(64, "32", "33", "34", "35", "36", "37", "38")
PTX_WGMMA(72, "36", "37", "38", "39", "40", "41", "42")
PTX_WGMMA(80, "40", "41", "42", "43", "44", "45", "46")
PTX_WGMMA(88, "44", "45", "46", "47", "48", "49", "50")
PTX_WGMMA(96, "48", "49", "50", "51", "52", "53", "54")
PTX_WGMMA(104, "52", "53", "54", "55", "56", "57", "58")
PTX_WGMMA(112, "56", "57", "58", "59", "60", "61", "62")
PTX_WGMMA(120, "60", "61", "62", "63", "64", "65", "66")
PTX_WGMMA(128, "64", "65", "66", "67", "68", "69", "70")
PTX_WGMMA(136, "68", "69", "70", "71", "72", "73", "74")
PTX_WGMMA(144, "72", "73", "74", "75", "76", "77", "78")
PTX_WGMMA(152, "76", "77", "78", "79", "80", "81", "82")
PTX_WGMMA(160, "80", "81", "82", "83", "84", "85", "86")
PTX_WGMMA(168, "84", "85", "86", "87", "88", "89", "90")
PTX_WGMMA(176, "88", "89", "90", "91", "92", "93", "94")
PTX_WGMMA(184, "92", "93", "94", "95", "96", "97", "98")
PTX_WGMMA(192, "96", "97", "98", "99", "100", "101", "102")
PTX_WGMMA(200, "100", "101", "102", "103", "104", "105", "106")
PTX_WGMMA(208, "104", "105", "106", "107", "108", "109", "110")
PTX_WGMMA(216, "108", "109", "110", "111", "112", "113", "114")
PTX_WGMMA(224, "112", "113", "114", "115", "116", "117", "118")
PTX_WGMMA(232, "116", "117", "118", "119", "120", "121", "122")
PTX_WGMMA(240, "120", "121", "122", "123", "124", "125", "126")
PTX_WGMMA(248, "124", "125", "126", "127", "128", "129", "130")
PTX_WGMMA(256, "128", "129", "130", "131", "132", "133", "134")
#endif
#endif

// d = a b + d, or a b if not accumulate: m64nNk of 32 bytes (k16 for 16-bit kinds, k8 for tf32, k32 for fp8).
// a and b are matrix_descriptors; TRANSPOSE_* says that the operand's rows are contiguous instead of K.
template <int N, Kind K, bool TRANSPOSE_A = false, bool TRANSPOSE_B = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64 a, uint64 b, bool accumulate = true) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "wgmma is 8 to 256 columns wide in steps of 8");
    static_assert(K != Kind::f64 && K != Kind::s8, "this wgmma sums in float32");
    static_assert(K == Kind::bf16 || K == Kind::f16 || !(TRANSPOSE_A || TRANSPOSE_B),
                  "only 16-bit operands may be transposed");
    PTX(emu_wgmma(d, N, static_cast<int>(K), nullptr, a, b, accumulate, TRANSPOSE_A, TRANSPOSE_B),
        Wgmma<N>::template shared<K, TRANSPOSE_A, TRANSPOSE_B>(d, a, b, accumulate));
}

// The same with A from registers, which stay untouched until the wait.
template <int N, Kind K, bool TRANSPOSE_B = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32 (&a)[4], uint64 b,
                                      bool accumulate = true) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "wgmma is 8 to 256 columns wide in steps of 8");
    static_assert(K != Kind::f64 && K != Kind::s8, "this wgmma sums in float32");
    static_assert(K == Kind::bf16 || K == Kind::f16 || !TRANSPOSE_B,
                  "only 16-bit operands may be transposed");
    PTX(emu_wgmma(d, N, static_cast<int>(K), a, 0, b, accumulate, 0, TRANSPOSE_B),
        Wgmma<N>::template registers<K, TRANSPOSE_B>(d, a, b, accumulate));
}

}  // namespace ptx
