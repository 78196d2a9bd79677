// Stands in for NVIDIA's <device_launch_parameters.h>: the shim has what it declares.
#pragma once
