// Stands in for CuPy's <cupy/carray.cuh>, without its CArray: element-wise kernels, which need that, are CuPy's own.
#pragma once

#include "float16.cuh"
