// Corners of the language that users' kernels touch: structures by value, templates, printf, function pointers,
// lambdas, recursion, complex numbers, bool, bytes, long long, switch, static arrays. Typed for these tests.

#include <cstdint>
#include <cuda_runtime.h>
#include <cupy/complex.cuh>

struct Camera {
    float3 position;
    float focal;
    int width, height;
    unsigned char flags[4];
};
struct Ray {
    float3 origin, direction;
};
__host__ __device__ inline float dot(float3 a, float3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ Ray make_ray(const Camera& camera, int px, int py) {
    Ray ray;
    ray.origin = camera.position;
    ray.direction = make_float3(px - 0.5f * camera.width, py - 0.5f * camera.height, camera.focal);
    float inv = rsqrtf(dot(ray.direction, ray.direction));
    ray.direction = make_float3(ray.direction.x * inv, ray.direction.y * inv, ray.direction.z * inv);
    return ray;
}
// A structure as a kernel's argument: one sphere at the origin, its depth for each pixel, or -1.
extern "C" __global__ void ray_sphere(Camera camera, float radius, float* depth) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= camera.width || y >= camera.height) return;
    Ray r = make_ray(camera, x, y);
    float b = dot(r.origin, r.direction), c = dot(r.origin, r.origin) - radius * radius;
    float d = b * b - c;
    depth[y * camera.width + x] = (d < 0 || camera.flags[3] != 7) ? -1.f : -b - sqrtf(d);
}

// Templates with a type and a functor, for name_expressions.
struct Square {
    template <typename T>
    __device__ T operator()(T x) const { return x * x; }
};
template <typename T>
struct Shift {
    static constexpr T amount = 3;
    __device__ T operator()(T x) const { return x + amount; }
};
template <typename T, typename Op>
__global__ void transform(const T* in, T* out, int n) {
    int i = blockDim.x * blockIdx.x + threadIdx.x;
    if (i < n) out[i] = Op()(in[i]);
}

extern "C" __global__ void hello(int n) {
    if (threadIdx.x < n) printf("block %d thread %u says %s %.3f %lld\n", blockIdx.x, threadIdx.x, "hi", 0.5f * threadIdx.x, 1LL << 40);
}

// Complex numbers as with CuPy: the Julia set by escape time.
extern "C" __global__ void julia(const complex<float>* z0, complex<float> c, int* steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    complex<float> z = z0[i];
    int k = 0;
    for (; k < 50 && abs(z) < 2.0f; k++) z = z * z + c;
    steps[i] = k;
}

typedef float (*Function)(float);
__device__ float twice(float x) { return 2 * x; }
__device__ float plus_one(float x) { return x + 1; }
__device__ unsigned long long fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

// bool, bytes, long long, switch, a table in constant memory, function pointers, recursion.
__constant__ int8_t table[4] = {-1, 0, 5, 100};
extern "C" __global__ void oddities(const bool* mask, const uint8_t* kind, float* values, long long* wide, int64_t base,
                                    int n) {
    unsigned int i = __mul24(blockIdx.x, blockDim.x) + threadIdx.x;
    if (i >= n) return;
    Function functions[2] = {twice, plus_one};
    float v = values[i];
    switch (kind[i]) {
        case 0: v = functions[0](v); break;
        case 1: v = functions[1](v); break;
        case 2: {
            auto cube = [=](float x) { return x * x * x; };
            v = cube(v);
            break;
        }
        default: v = NAN;
    }
    values[i] = mask[i] ? v : -v;
    wide[i] = base * (i + 1) + fibonacci(i % 10) + table[i & 3];
}

// Counters of the whole program, and integer tricks.
__device__ int launches;
__device__ float scale = 2.5f;
extern "C" __global__ void bits(const unsigned int* in, int4* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) atomicAdd(&launches, 1);
    if (i < n)
        out[i] = make_int4(__popc(in[i]), __clz(in[i]), __ffs(in[i]), (int)(__brev(in[i]) >> 1) + (int)scale);
}

// Writes past its array when n is not a multiple of the block: the classic.
extern "C" __global__ void no_bounds_check(float* x) { x[blockIdx.x * blockDim.x + threadIdx.x] *= 2; }
