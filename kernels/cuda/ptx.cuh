// ptx.cuh - every instruction that CUDA C++ has no word for, as small functions in namespace ptx.
//
// This is the only place of the project with inline PTX. Each function has two bodies side by side, as
// the two arguments of PTX(emulated, device): what the emulator does on the host, and the instruction.
// Layouts follow NVIDIA's PTX ISA document; gpunn/emulator/conformance.py has a tiny kernel for each
// function, to be run on both sides and compared.
//
// Nothing else of the project is needed: copy ptx.cuh and ptx_*.cuh and include this file. A function
// may be called where the architecture has the instruction (named in its comment; none means sm_80) and
// does no harm where it is not called.
#pragma once
#include "ptx_barrier.cuh"
#include "ptx_base.cuh"
#include "ptx_bulk.cuh"
#include "ptx_cluster.cuh"
#include "ptx_math.cuh"
#include "ptx_memory.cuh"
#include "ptx_tensor_core.cuh"
#include "ptx_tensor_map.cuh"
#include "ptx_wgmma.cuh"
