// ptx_math.cuh - arithmetic that CUDA C++ has no plain word for.
#pragma once
#include "ptx_base.cuh"

namespace ptx {

// 2^x by one instruction: at most 2 units in the last place off; 0 where the result is below 2^-126.
__device__ __forceinline__ float power_of_2(float x) {
    float y;
    PTX(y = exp2f(x); if (y < 0x1p-126f) y = 0.f, asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)));
    return y;
}

}  // namespace ptx
