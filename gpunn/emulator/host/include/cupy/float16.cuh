// Stands in for CuPy's <cupy/float16.cuh>: its class float16 is __half here.
#pragma once

#include <cuda_fp16.h>

typedef __half float16;
EMU_INLINE int isnan(float16 x) { return __hisnan(x); }
EMU_INLINE int isinf(float16 x) { return __hisinf(x) != 0; }
EMU_INLINE int isfinite(float16 x) { return !__hisnan(x) && !__hisinf(x); }
