// Stands in for NVIDIA's <sm_30_intrinsics.h>: the shim has what it declares.
#pragma once
