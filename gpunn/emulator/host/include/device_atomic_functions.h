// Stands in for NVIDIA's <device_atomic_functions.h>: the shim has what it declares.
#pragma once
