// Stands in for NVIDIA's <sm_35_intrinsics.h>: the shim has what it declares.
#pragma once
