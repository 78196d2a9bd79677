// bench/launch_cost.cu - kernels that do nothing, for `gpunn bench launch`: what does a launch cost the host?
//
// The name says how many arguments there are: pointers, and numbers of the types that our kernels take.
// Nothing is read or written; on the GPU such a kernel lasts one to two microseconds, all of it overhead.
typedef long long int64;

extern "C" __global__ void launch_1(float*) {}

extern "C" __global__ void launch_8(float*, float*, float*, float*, int64, float, int, bool) {}

extern "C" __global__ void launch_20(float*, float*, float*, float*, float*, float*, float*, float*, float*, float*,
                                     int64, float, int, bool, int64, float, int, bool, int64, double) {}
