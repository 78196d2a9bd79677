// Stands in for NVIDIA's <device_functions.h>: the shim has what it declares.
#pragma once
