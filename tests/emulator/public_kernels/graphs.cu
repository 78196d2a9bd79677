// Graphs, strings and clustering. Typed anew after the sources named.

// Harish & Narayanan, "Accelerating large graph algorithms on the GPU using CUDA": breadth-first search by levels. Other
// threads change levels by atomics meanwhile, hence volatile.
extern "C" __global__ void bfs_level(const int* row, const int* column, int* level, int depth, int* changed, int n) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v < n && ((volatile int*)level)[v] == depth) {
        for (int e = row[v]; e < row[v + 1]; e++) {
            int w = column[e];
            if (atomicCAS(&level[w], -1, depth + 1) == -1) *changed = 1;
        }
    }
}

// The same with a plain read, as often seen: it races, though no GPU is known to fail on it.
extern "C" __global__ void bfs_level_plain(const int* row, const int* column, int* level, int depth, int* changed,
                                           int n) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v < n && level[v] == depth) {
        for (int e = row[v]; e < row[v + 1]; e++) {
            int w = column[e];
            if (atomicCAS(&level[w], -1, depth + 1) == -1) *changed = 1;
        }
    }
}

// Merrill, Garland & Grimshaw: a queue of vertices, filled through an atomic tail.
extern "C" __global__ void bfs_frontier(const int* row, const int* column, int* level, const int* frontier,
                                        int frontier_size, int* next, int* next_size, int depth) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= frontier_size) return;
    int v = frontier[i];
    for (int e = row[v]; e < row[v + 1]; ++e) {
        int w = column[e];
        if (atomicCAS(level + w, -1, depth) == -1) next[atomicAdd(next_size, 1)] = w;
    }
}

// Connected components: hooking with atomicMin, then pointer jumping, repeated by the host until nothing changes.
extern "C" __global__ void components_hook(const int2* edges, int* parent, int* changed, int m) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m) return;
    int2 edge = edges[e];
    int a = ((volatile int*)parent)[edge.x], b = ((volatile int*)parent)[edge.y];
    if (a != b) {
        atomicMin(&parent[max(a, b)], min(a, b));
        *changed = true;
    }
}
extern "C" __global__ void components_jump(volatile int* parent, int n) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= n) return;
    int p = parent[v];
    while (p != parent[p]) p = parent[p];
    parent[v] = p;
}

// Longest common subsequence, one block walks the anti-diagonals; three of them live in shared memory.
extern "C" __global__ void lcs_wavefront(const char* a, int n, const char* b, int m, int* length) {
    extern __shared__ int diagonals[];
    int width = n + 1;
    for (int i = threadIdx.x; i < 3 * width; i += blockDim.x) diagonals[i] = 0;
    __syncthreads();
    for (int d = 2; d <= n + m; d++) {
        int* now = diagonals + (d % 3) * width;
        const int* one = diagonals + ((d - 1) % 3) * width;
        const int* two = diagonals + ((d - 2) % 3) * width;
        for (int i = max(0, d - m) + threadIdx.x; i <= min(n, d); i += blockDim.x) {
            int j = d - i;
            if (i == 0 || j == 0)
                now[i] = 0;
            else
                now[i] = a[i - 1] == b[j - 1] ? two[i - 1] + 1 : max(one[i - 1], one[i]);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *length = diagonals[((n + m) % 3) * width + n];
}

// Smith & Waterman's local alignment, one pair of sequences a warp: lane i holds row i, neighbours by shuffle.
extern "C" __global__ void smith_waterman_warp(const signed char* query, const signed char* target, int target_length,
                                               int match, int mismatch, int gap, int* best) {
    const int lane = threadIdx.x;
    const int q = query[blockIdx.x * 32 + lane];
    int left = 0, diagonal = 0, highest = 0;
    for (int step = 0; step < target_length + 31; step++) {
        int up = __shfl_up_sync(0xffffffff, left, 1);
        if (lane == 0) up = 0;
        int j = step - lane;
        int score = 0;
        if (j >= 0 && j < target_length) {
            int s = target[blockIdx.x * target_length + j] == q ? match : mismatch;
            score = __vimax3_s32_relu(diagonal + s, up + gap, left + gap);
            highest = max(highest, score);
            left = score;
        }
        diagonal = up;
    }
    highest = __reduce_max_sync(0xffffffff, highest);
    if (lane == 0) best[blockIdx.x] = highest;
}

// Lloyd's k-means: assignment, then sums by atomics, then the division.
extern "C" __global__ void kmeans_assign(const float* points, const float* centers, int* labels, int n, int k, int d) {
    extern __shared__ float s_centers[];
    for (int i = threadIdx.x; i < k * d; i += blockDim.x) s_centers[i] = centers[i];
    __syncthreads();
    int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= n) return;
    float best = 3.402823466e+38f;
    int which = -1;
    for (int c = 0; c < k; ++c) {
        float dist = 0.f;
        for (int j = 0; j < d; ++j) {
            float diff = points[p * d + j] - s_centers[c * d + j];
            dist = fmaf(diff, diff, dist);
        }
        if (dist < best) {
            best = dist;
            which = c;
        }
    }
    labels[p] = which;
}
extern "C" __global__ void kmeans_accumulate(const float* points, const int* labels, float* sums, int* counts, int n,
                                             int d) {
    int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= n) return;
    atomicAdd(&counts[labels[p]], 1);
    for (int j = 0; j < d; ++j) atomicAdd(&sums[labels[p] * d + j], points[p * d + j]);
}
extern "C" __global__ void kmeans_divide(const float* sums, const int* counts, float* centers, int d) {
    int c = blockIdx.x, j = threadIdx.x;
    if (j < d && counts[c] > 0) centers[c * d + j] = sums[c * d + j] / counts[c];
}
