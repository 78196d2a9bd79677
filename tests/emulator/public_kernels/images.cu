// Images: histogram, convolution, bilateral filter, Sobel, Mandelbrot, Life. After Podlozhnyuk's and others' CUDA
// samples and their papers. Typed anew.

// Podlozhnyuk, "Histogram calculation in CUDA": one histogram a block in shared memory, merged by atomics.
extern "C" __global__ void histogram256(const unsigned char* data, unsigned int* histogram, int n) {
    __shared__ unsigned int bins[256];
    for (int b = threadIdx.x; b < 256; b += blockDim.x) bins[b] = 0;
    __syncthreads();
    int stride = blockDim.x * gridDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) atomicAdd(&bins[data[i]], 1);
    __syncthreads();
    for (int b = threadIdx.x; b < 256; b += blockDim.x) atomicAdd(&histogram[b], bins[b]);
}

// The same with the clearing barrier left out: counts get lost.
extern "C" __global__ void histogram256_racy(const unsigned char* data, unsigned int* histogram, int n) {
    __shared__ unsigned int bins[256];
    bins[threadIdx.x] = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&bins[data[i]], 1);
    __syncthreads();
    atomicAdd(&histogram[threadIdx.x], bins[threadIdx.x]);
}

// Podlozhnyuk, "Image Convolution with CUDA": separable filter, coefficients in constant memory, apron in shared.
#define KERNEL_RADIUS 4
__constant__ float c_Kernel[2 * KERNEL_RADIUS + 1];

extern "C" __global__ void convolution_rows(float* d_Dst, const float* d_Src, int imageW, int imageH) {
    __shared__ float s_Data[4][64 + 2 * KERNEL_RADIUS];
    const int x0 = blockIdx.x * 64, y = blockIdx.y * 4 + threadIdx.y;
    for (int i = threadIdx.x; i < 64 + 2 * KERNEL_RADIUS; i += blockDim.x) {
        int x = x0 + i - KERNEL_RADIUS;
        s_Data[threadIdx.y][i] = (x >= 0 && x < imageW && y < imageH) ? d_Src[y * imageW + x] : 0.f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 64; i += blockDim.x) {
        float sum = 0;
#pragma unroll
        for (int j = -KERNEL_RADIUS; j <= KERNEL_RADIUS; j++)
            sum += c_Kernel[KERNEL_RADIUS - j] * s_Data[threadIdx.y][i + KERNEL_RADIUS + j];
        if (x0 + i < imageW && y < imageH) d_Dst[y * imageW + x0 + i] = sum;
    }
}

extern "C" __global__ void convolution_columns(float* d_Dst, const float* d_Src, int imageW, int imageH) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= imageW || y >= imageH) return;
    float sum = 0;
    for (int k = -KERNEL_RADIUS; k <= KERNEL_RADIUS; k++) {
        int d = y + k;
        if (d >= 0 && d < imageH) sum += d_Src[d * imageW + x] * c_Kernel[KERNEL_RADIUS - k];
    }
    d_Dst[y * imageW + x] = sum;
}

// Tomasi & Manduchi's bilateral filter, the tile with its halo in dynamic shared memory, clamped at the border.
extern "C" __global__ void bilateral(const float* in, float* out, int w, int h, int radius, float sigma_d,
                                     float sigma_r) {
    extern __shared__ float tile[];
    const int tw = blockDim.x + 2 * radius, th = blockDim.y + 2 * radius;
    const int bx = blockIdx.x * blockDim.x - radius, by = blockIdx.y * blockDim.y - radius;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < tw * th; i += blockDim.x * blockDim.y) {
        int x = min(max(bx + i % tw, 0), w - 1);
        int y = min(max(by + i / tw, 0), h - 1);
        tile[i] = in[y * w + x];
    }
    __syncthreads();
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    const float center = tile[(threadIdx.y + radius) * tw + threadIdx.x + radius];
    float sum = 0, norm = 0;
    for (int dy = -radius; dy <= radius; ++dy)
        for (int dx = -radius; dx <= radius; ++dx) {
            float v = tile[(threadIdx.y + radius + dy) * tw + threadIdx.x + radius + dx];
            float g = __expf(-(dx * dx + dy * dy) / (2 * sigma_d * sigma_d) -
                             (v - center) * (v - center) / (2 * sigma_r * sigma_r));
            sum += g * v;
            norm += g;
        }
    out[y * w + x] = __fdividef(sum, norm);
}

// Sobel on bytes with uchar4-packed colours in, 8-bit grey out.
extern "C" __global__ void sobel_rgba(const uchar4* rgba, unsigned char* out, int w, int h) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x == 0 || y == 0 || x >= w - 1 || y >= h - 1) {
        if (x < w && y < h) out[y * w + x] = 0;
        return;
    }
    auto grey = [&](int dx, int dy) {
        uchar4 p = rgba[(y + dy) * w + x + dx];
        return (77 * p.x + 150 * p.y + 29 * p.z) >> 8;
    };
    int gx = grey(1, -1) + 2 * grey(1, 0) + grey(1, 1) - grey(-1, -1) - 2 * grey(-1, 0) - grey(-1, 1);
    int gy = grey(-1, 1) + 2 * grey(0, 1) + grey(1, 1) - grey(-1, -1) - 2 * grey(0, -1) - grey(1, -1);
    out[y * w + x] = (unsigned char)min(255, abs(gx) + abs(gy));
}

// Escape times of the Mandelbrot set.
extern "C" __global__ void mandelbrot(int* counts, int width, int height, float x0, float y0, float dx, float dy,
                                      int max_iter) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width * height; i += gridDim.x * blockDim.x) {
        float cr = x0 + (i % width) * dx, ci = y0 + (i / width) * dy;
        float zr = 0, zi = 0;
        int n = 0;
        while (n < max_iter && zr * zr + zi * zi <= 4.0f) {
            float t = zr * zr - zi * zi + cr;
            zi = 2.0f * zr * zi + ci;
            zr = t;
            n++;
        }
        counts[i] = n;
    }
}

// Conway's Game of Life on bytes, on a torus.
extern "C" __global__ void life(const unsigned char* now, unsigned char* next, int w, int h) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    int alive = 0;
    for (int dy = -1; dy <= 1; dy++)
        for (int dx = -1; dx <= 1; dx++)
            if (dx != 0 || dy != 0) alive += now[(y + dy + h) % h * w + (x + dx + w) % w];
    next[y * w + x] = alive == 3 || (alive == 2 && now[y * w + x]);
}
