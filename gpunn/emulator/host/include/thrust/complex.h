// Stands in for <thrust/complex.h>; see ../cupy/complex.cuh.
#pragma once

#include "../cupy/complex.cuh"
