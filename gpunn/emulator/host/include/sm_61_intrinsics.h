// Stands in for NVIDIA's <sm_61_intrinsics.h>: the shim has what it declares.
#pragma once
