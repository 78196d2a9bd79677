// The CUDA Math API for kernels that the host compiler compiles: what device code may call and <cmath> lacks.
//
// Four parts, each a file that can be read alone:
//   shim_math_integer.h    integer intrinsics, bit casts, dot products, loads and stores with cache hints
//   shim_math_simd.h       "video" instructions on two 16-bit or four 8-bit lanes, and the DPX functions
//   shim_math_rounding.h   arithmetic and conversions with a stated rounding (_rn, _rz, _ru, _rd)
//   shim_math_functions.h  fast functions, special functions, min and max
//
// Where the GPU's result is defined bit by bit (integers, conversions, IEEE arithmetic) this one is the same.
// Where the Math API only bounds the error (__expf, rsqrtf, erfinv, …) this one is the accurate value, rounded.
#pragma once

// <math.h> and <stdlib.h>, not <cmath> and <cstdlib>: only they bring the overloads for float and long long
// (sqrt(float), abs(float), isnan(float) …) into the global namespace, where CUDA has them.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <limits>
#include <type_traits>
#include <vector_functions.h>
#include <vector_types.h>

// Small functions are always inlined: the checker then reports the line of the kernel, not a line in here.
#define EMU_INLINE inline __attribute__((always_inline, unused))

#include "shim_math_integer.h"
#include "shim_math_rounding.h"
#include "shim_math_simd.h"
#include "shim_math_functions.h"
