// Stands in for NVIDIA's <cuda_pipeline.h>; see cuda_pipeline_primitives.h.
#pragma once

#include "cuda_pipeline_primitives.h"
