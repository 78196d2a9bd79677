// Stands in for NVIDIA's <cuda_runtime.h>: what of it concerns device code. The shim has the rest; the host's
// API (cudaMalloc, <<<>>>) is not emulated: kernels are launched from Python.
#pragma once

#include <vector_functions.h>
#include <vector_types.h>
