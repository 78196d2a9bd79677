// Stands in for NVIDIA's <sm_60_atomic_functions.h>: the shim has what it declares.
#pragma once
