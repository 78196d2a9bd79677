// Stands in for NVIDIA's <sm_32_intrinsics.h>: the shim has what it declares.
#pragma once
