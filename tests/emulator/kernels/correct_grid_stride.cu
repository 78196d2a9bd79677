// Correct: grid-stride loops over sizes that fit neither the blocks nor the vectors; the same array is read
// by all blocks; each element is written by one thread. Arguments that alias: in place (y is x), and two
// overlapping views that are only read.

extern "C" __global__ void axpy(float* y, const float* x, const float* table, float a, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        y[i] = a * x[i] + table[i % 7];
}

// y[i] = here[i] + there[i], where `there` is the same array one element further on.
extern "C" __global__ void neighbours(float* y, const float* here, const float* there, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = here[i] + 2.f * there[i];
}

// Two halves of one array, one written, one read.
extern "C" __global__ void halves(float* upper, const float* lower, int n) {
    for (int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += 4 * gridDim.x * blockDim.x) {
        float4 v = *reinterpret_cast<const float4*>(lower + i);
        v.x += 1.f, v.y += 2.f, v.z += 3.f, v.w += 4.f;
        *reinterpret_cast<float4*>(upper + i) = v;
    }
}
