// control.cu - conformance kernels of the controls in ptx_barrier.cuh, from sm_90 on.
#include "ptx.cuh"

// 64 threads: how many lanes of each warp are elected; a launch without dependents passes the two controls.
__global__ void controls(int* out) {
    ptx::wait_for_dependencies();
    const uint32 elected = __ballot_sync(0xffffffffu, ptx::elect_one());
    ptx::launch_dependents();
    out[threadIdx.x] = __popc(elected);
}

// Three warpgroups share the registers anew, as a matrix multiply with one producer does.
__global__ void __launch_bounds__(384, 1) share_registers(const int* source, int* out) {
    const int thread = threadIdx.x;
    if (thread < 128) {
        ptx::registers_lower<40>();
        out[thread] = source[thread] + 1;
    } else {
        ptx::registers_raise<232>();
        out[thread] = source[thread] + 2;
    }
}
