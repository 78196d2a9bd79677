// ptx_tensor_core.cuh - mma.sync: a warp multiplies small matrices that lie in its registers.
//
// With g = lane / 4, t = lane % 4, and E elements to a 32-bit register (element e in the lower bits first):
//   A (16 x 8E, rows):    a[i], element e = A[g + 8 (i % 2)][E t + e + 4 E (i / 2)]
//   B (8E x 8, columns):  b[i], element e = B[E t + e + 4 E i][g]
//   D (16 x 8):           d[i]            = D[g + 8 (i / 2)][2 t + i % 2]
#pragma once
#include "ptx_base.cuh"

namespace ptx {

#define PTX_MMA(TYPES)                                                                                   \
    asm volatile("mma.sync.aligned." TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d += a b. 16-bit kinds m16n8k16; tf32 m16n8k8 (the lowest 13 bits are not looked at); fp8 m16n8k32, from
// sm_89 on. By all lanes of the warp.
template <Kind K>
__device__ __forceinline__ void mma(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    static_assert(K != Kind::f64 && K != Kind::s8, "mma_f64 and mma_s8 are functions of their own");
    PTX(emu_mma(d, a, b, d, static_cast<int>(K)),
        if constexpr (K == Kind::bf16) PTX_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
        else if constexpr (K == Kind::f16) PTX_MMA("m16n8k16.row.col.f32.f16.f16.f32");
        else if constexpr (K == Kind::tf32) PTX_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
        else if constexpr (K == Kind::e4m3) PTX_MMA("m16n8k32.row.col.f32.e4m3.e4m3.f32");
        else if constexpr (K == Kind::e5m2) PTX_MMA("m16n8k32.row.col.f32.e5m2.e5m2.f32");
        else if constexpr (K == Kind::e4m3_e5m2) PTX_MMA("m16n8k32.row.col.f32.e4m3.e5m2.f32");
        else PTX_MMA("m16n8k32.row.col.f32.e5m2.e4m3.f32"));
}

// d += a b in double, m8n8k4: a = A[g][t], b = B[t][g], d[i] = D[g][2 t + i]. By all lanes of the warp.
__device__ __forceinline__ void mma_f64(double (&d)[2], double a, double b) {
    PTX(emu_mma(d, reinterpret_cast<const uint32*>(&a), reinterpret_cast<const uint32*>(&b), d,
                static_cast<int>(Kind::f64)),
        asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+d"(d[0]), "+d"(d[1]) : "d"(a), "d"(b)));
}

// d += a b of signed bytes, four to a register, summed in int, m16n8k32. By all lanes of the warp.
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    PTX(emu_mma(d, a, b, d, static_cast<int>(Kind::s8)),
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

}  // namespace ptx
