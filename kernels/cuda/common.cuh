// common.cuh - what every kernel file shares: number types, 16-byte packs, warp and block reductions.
//
// Number types. Values are stored as T (float, double, __half, __nv_bfloat16) and computed in
// Accumulator<T>: float for the 16-bit types and float, double for double. load<A>(x) widens,
// store<T>(a) rounds once to nearest even.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long int64;
typedef unsigned int uint32;
typedef unsigned long long uint64;

// Dynamic shared memory of the launch, seen as an array of T. One name for the whole project, because
// every kernel of a block shares the same bytes.
#define DYNAMIC_SHARED(T, name)                                  \
    extern __shared__ __align__(16) unsigned char dyn_smem[];    \
    T* name = reinterpret_cast<T*>(dyn_smem)

constexpr int WARP = 32;
constexpr uint32 FULL_WARP = 0xffffffffu;

// ---- number types ---------------------------------------------------------------------------

template <typename T> struct AccumulatorOf { typedef float type; };
template <> struct AccumulatorOf<double> { typedef double type; };
template <typename T> using Accumulator = typename AccumulatorOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T narrow(Accumulator<T> x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ double narrow<double>(double x) { return x; }
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

template <typename A> __device__ __forceinline__ A infinity();
template <> __device__ __forceinline__ float infinity<float>() { return __int_as_float(0x7f800000); }
template <> __device__ __forceinline__ double infinity<double>() {
    return __longlong_as_double(0x7ff0000000000000ll);
}

// Float and double under one name, so that a formula is written once for both.
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float exponential_minus_1(float x) { return expm1f(x); }
__device__ __forceinline__ double exponential_minus_1(double x) { return expm1(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float logarithm_of_1_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm_of_1_plus(double x) { return log1p(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }
__device__ __forceinline__ float complementary_error_function(float x) { return erfcf(x); }
__device__ __forceinline__ double complementary_error_function(double x) { return erfc(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }
// NaN travels through these two as in NumPy (fmaxf and fminf would drop it).
template <typename A> __device__ __forceinline__ A maximum(A a, A b) { return (a > b || a != a) ? a : b; }
template <typename A> __device__ __forceinline__ A minimum(A a, A b) { return (a < b || a != a) ? a : b; }

// ---- packs: N neighbouring elements moved by one instruction -----------------------------------

template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T item[N];
};
// As many elements as 16 bytes hold: the widest load that one thread can make.
template <typename T> constexpr int PACK = 16 / sizeof(T);

template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T, N>*>(source);
}
template <typename T, int N> __device__ __forceinline__ void store_pack(T* target, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(target) = pack;
}

// ---- who am I ------------------------------------------------------------------------------------

__device__ __forceinline__ int64 global_thread() {
    return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64 grid_threads() { return static_cast<int64>(gridDim.x) * blockDim.x; }

// ---- reductions: a fixed tree, so that the same input gives the same bits ---------------------------

struct Sum {
    template <typename A> static __device__ __forceinline__ A identity() { return A(0); }
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return a + b; }
};
struct Maximum {
    template <typename A> static __device__ __forceinline__ A identity() { return -infinity<A>(); }
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return maximum(a, b); }
};

// Every lane gets the result over the first LANES lanes of its group (LANES a power of two).
template <typename Op, int LANES = WARP, typename A> __device__ __forceinline__ A warp_reduce(A value) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        value = Op::template apply<A>(value, __shfl_xor_sync(FULL_WARP, value, offset));
    return value;
}

// Every thread of the block gets the result. Needs `scratch` of WARP values in shared memory; the block
// is a whole number of warps, at most 32. Safe to call again with the same scratch.
template <typename Op, typename A> __device__ __forceinline__ A block_reduce(A value, A* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_reduce<Op>(value);
    if (warps == 1) return value;
    __syncthreads();  // the scratch may still be read by an earlier call
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = lane < warps ? scratch[lane] : Op::template identity<A>();
    return warp_reduce<Op>(value);
}
