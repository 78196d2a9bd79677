// runtime.cpp - runs CUDA kernels that the host compiler has compiled: one translation unit, read in this order.
//
//   state.h      what there is: launch, gang, block, thread, and what they wait for
//   schedule.h   whose turn it is
//   report.h     findings
//   clocks.h     which access comes before which
//   checker.h    every access in checked mode
//   hooks.h      the calls that the sanitizers' instrumentation makes
//   barrier.h    warp-wide operations, barriers, atomics
//   tensor_core.h  the numbers of mma and wgmma, the layouts of tensor maps
//   matrix.h     ldmatrix, mma.sync, wgmma
//   copy.h       cp.async, mbarriers, copy engines
//   bulk.h       bulk and tensor copies
//   cluster.h    clusters, distributed shared memory, barriers of the grid
//   memory.h     the kernel's copies of arrays
//   block.h      one block
//   launch.h     from the launch to the last block
#include "runtime/launch.h"
