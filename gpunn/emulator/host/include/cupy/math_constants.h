// Stands in for CuPy's <cupy/math_constants.h>: the constants of NVIDIA's file of that name.
#pragma once

#include <math_constants.h>
