// Stands in for NVIDIA's <cuda_runtime_api.h>: the shim has what it declares.
#pragma once
