// Stands in for NVIDIA's <sm_20_intrinsics.h>: the shim has what it declares.
#pragma once
