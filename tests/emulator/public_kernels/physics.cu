// Stencils, particles, finance, random numbers. Typed anew after the sources named.

// Heat equation, explicit 2-D five-point stencil, block tile with halo in shared memory.
#define BX 16
#define BY 16
extern "C" __global__ void heat2d(const float* __restrict__ u, float* __restrict__ v, int nx, int ny, float alpha) {
    __shared__ float s[BY + 2][BX + 2];
    const int gx = blockIdx.x * BX + threadIdx.x, gy = blockIdx.y * BY + threadIdx.y;
    const int lx = threadIdx.x + 1, ly = threadIdx.y + 1;
    const bool inside = gx < nx && gy < ny;
    if (inside) {
        s[ly][lx] = u[gy * nx + gx];
        if (threadIdx.x == 0 && gx > 0) s[ly][0] = u[gy * nx + gx - 1];
        if ((threadIdx.x == BX - 1 || gx == nx - 1) && gx < nx - 1) s[ly][lx + 1] = u[gy * nx + gx + 1];
        if (threadIdx.y == 0 && gy > 0) s[0][lx] = u[(gy - 1) * nx + gx];
        if ((threadIdx.y == BY - 1 || gy == ny - 1) && gy < ny - 1) s[ly + 1][lx] = u[(gy + 1) * nx + gx];
    }
    __syncthreads();
    if (!inside) return;
    float c = s[ly][lx];
    if (gx > 0 && gx < nx - 1 && gy > 0 && gy < ny - 1)
        c += alpha * (s[ly][lx - 1] + s[ly][lx + 1] + s[ly - 1][lx] + s[ly + 1][lx] - 4.0f * c);
    v[gy * nx + gx] = c;
}

// Jacobi's iteration in three dimensions with a warp-reduced residual; dim3 grids, double.
extern "C" __global__ void jacobi3d(const double* in, const double* f, double* out, double* residual, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int j = blockIdx.y * blockDim.y + threadIdx.y;
    int k = blockIdx.z * blockDim.z + threadIdx.z;
    double r = 0.0;
    if (i > 0 && j > 0 && k > 0 && i < n - 1 && j < n - 1 && k < n - 1) {
        size_t c = ((size_t)k * n + j) * n + i;
        double sum = in[c - 1] + in[c + 1] + in[c - n] + in[c + n] + in[c - n * n] + in[c + n * n];
        double v = (sum - f[c]) / 6.0;
        r = fabs(v - in[c]);
        out[c] = v;
    }
    for (int m = 16; m; m >>= 1) r = fmax(r, __shfl_xor_sync(~0u, r, m));
    if (((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % 32 == 0)
        atomicMax((unsigned long long*)residual, (unsigned long long)__double_as_longlong(r));
}

// Nyland, Harris & Prins, "Fast N-Body Simulation with CUDA" (GPU Gems 3, chapter 31).
__constant__ float softeningSquared;
__device__ float3 bodyBodyInteraction(float4 bi, float4 bj, float3 ai) {
    float3 r;
    r.x = bj.x - bi.x;
    r.y = bj.y - bi.y;
    r.z = bj.z - bi.z;
    float distSqr = r.x * r.x + r.y * r.y + r.z * r.z + softeningSquared;
    float invDist = rsqrtf(distSqr);
    float s = bj.w * invDist * invDist * invDist;
    ai.x += r.x * s;
    ai.y += r.y * s;
    ai.z += r.z * s;
    return ai;
}
extern "C" __global__ void calculate_forces(const float4* globalX, float4* globalA, int N) {
    extern __shared__ float4 shPosition[];
    float3 acc = {0.0f, 0.0f, 0.0f};
    int gtid = blockIdx.x * blockDim.x + threadIdx.x;
    float4 myPosition = globalX[gtid];
    for (int i = 0, tile = 0; i < N; i += blockDim.x, tile++) {
        shPosition[threadIdx.x] = globalX[tile * blockDim.x + threadIdx.x];
        __syncthreads();
#pragma unroll 8
        for (int j = 0; j < blockDim.x; j++) acc = bodyBodyInteraction(myPosition, shPosition[j], acc);
        __syncthreads();
    }
    globalA[gtid] = make_float4(acc.x, acc.y, acc.z, 0.0f);
}

// Black & Scholes with the polynomial cumulative normal distribution, as in Podlozhnyuk's sample.
__device__ inline float cndGPU(float d) {
    const float A1 = 0.31938153f, A2 = -0.356563782f, A3 = 1.781477937f, A4 = -1.821255978f, A5 = 1.330274429f;
    const float RSQRT2PI = 0.39894228040143267793994605993438f;
    float K = __fdividef(1.0f, (1.0f + 0.2316419f * fabsf(d)));
    float cnd = RSQRT2PI * __expf(-0.5f * d * d) * (K * (A1 + K * (A2 + K * (A3 + K * (A4 + K * A5)))));
    if (d > 0) cnd = 1.0f - cnd;
    return cnd;
}
extern "C" __global__ __launch_bounds__(128) void black_scholes(float2* __restrict result, const float* S,
                                                                const float* X, const float* T, float R, float V,
                                                                int n) {
    const int opt = blockDim.x * blockIdx.x + threadIdx.x;
    if (opt >= n) return;
    float sqrtT = __fdividef(1.0F, rsqrtf(T[opt]));
    float d1 = __fdividef(__logf(S[opt] / X[opt]) + (R + 0.5f * V * V) * T[opt], V * sqrtT);
    float d2 = d1 - V * sqrtT;
    float CNDD1 = cndGPU(d1), CNDD2 = cndGPU(d2);
    float expRT = __expf(-R * T[opt]);
    result[opt] = make_float2(S[opt] * CNDD1 - X[opt] * expRT * CNDD2,
                              X[opt] * expRT * (1.0f - CNDD2) - S[opt] * (1.0f - CNDD1));
}

// Monte Carlo estimate of pi with Marsaglia's xorshift, one stream a thread, a vote-free block sum.
extern "C" __global__ void monte_carlo_pi(unsigned long long* hits, unsigned int seed, int samples) {
    unsigned int state = seed ^ (blockIdx.x * blockDim.x + threadIdx.x + 1) * 2654435761u;
    unsigned int inside = 0;
    for (int i = 0; i < samples; i++) {
        float xy[2];
        for (int c = 0; c < 2; c++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            xy[c] = (state >> 8) * (1.0f / 16777216.0f);
        }
        inside += xy[0] * xy[0] + xy[1] * xy[1] < 1.0f;
    }
    inside = __reduce_add_sync(0xffffffff, inside);
    if ((threadIdx.x & 31) == 0) atomicAdd(hits, inside);
}

// Cooley & Tukey's radix-2 FFT in shared memory, one transform a block.
__device__ float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
extern "C" __global__ void fft_radix2(float2* data, int log_n) {
    extern __shared__ float2 s_fft[];
    const int n = 1 << log_n, t = threadIdx.x;
    float2* mine = data + (size_t)blockIdx.x * n;
    for (int i = t; i < n; i += blockDim.x) s_fft[__brev(i) >> (32 - log_n)] = mine[i];
    __syncthreads();
    for (int half = 1; half < n; half <<= 1) {
        int k = t & (half - 1);
        int j = ((t - k) << 1) + k;
        float2 w;
        sincospif(-(float)k / half, &w.y, &w.x);
        float2 u = s_fft[j], v = s_fft[j + half] * w;
        s_fft[j] = make_float2(u.x + v.x, u.y + v.y);
        s_fft[j + half] = make_float2(u.x - v.x, u.y - v.y);
        __syncthreads();
    }
    for (int i = t; i < n; i += blockDim.x) mine[i] = s_fft[i];
}
