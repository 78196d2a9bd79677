// Stands in for NVIDIA's <math_functions.h>: the shim has what it declares.
#pragma once
