// C[rows, columns] = A[rows, depth] @ B[depth, columns] in float32: the textbook kernel.
//
// A block of 16 x 16 threads owns a 16 x 16 tile of C, a thread one element. Tiles of A and B travel through
// shared memory, 2 x 1 KiB. Sizes need not be multiples of 16: what lies outside counts as zero.

constexpr int TILE = 16;

extern "C" __global__ void matmul_tiled(float* c, const float* a, const float* b, int rows, int columns,
                                        int depth) {
    __shared__ float tile_a[TILE][TILE], tile_b[TILE][TILE];
    const int x = threadIdx.x, y = threadIdx.y;
    const int row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float sum = 0.f;
    for (int start = 0; start < depth; start += TILE) {
#ifdef BUG_NO_ROW_GUARD
        tile_a[y][x] = start + x < depth ? a[row * depth + start + x] : 0.f;  // FAULT: BUG_NO_ROW_GUARD
#else
        const bool inside_a = row < rows && start + x < depth;
        // FAULT: BUG_NO_BARRIER_AFTER_LOAD, BUG_NO_BARRIER_BEFORE_REUSE
        tile_a[y][x] = inside_a ? a[row * depth + start + x] : 0.f;
#endif
        const bool inside_b = start + y < depth && column < columns;
        // FAULT: BUG_NO_BARRIER_AFTER_LOAD, BUG_NO_BARRIER_BEFORE_REUSE
        tile_b[y][x] = inside_b ? b[(start + y) * columns + column] : 0.f;
#ifndef BUG_NO_BARRIER_AFTER_LOAD
        __syncthreads();
#endif
#ifdef BUG_ONE_STEP_TOO_FAR
        for (int k = 0; k <= TILE; k++)
#else
        for (int k = 0; k < TILE; k++)
#endif
            // FAULT: BUG_NO_BARRIER_AFTER_LOAD, BUG_NO_BARRIER_BEFORE_REUSE, BUG_ONE_STEP_TOO_FAR
            sum += tile_a[y][k] * tile_b[k][x];
#ifndef BUG_NO_BARRIER_BEFORE_REUSE
        __syncthreads();
#endif
    }
#ifdef BUG_NO_COLUMN_GUARD
    if (row < rows) c[row * columns + column] = sum;  // FAULT: BUG_NO_COLUMN_GUARD
#else
    if (row < rows && column < columns) c[row * columns + column] = sum;  // FAULT: BUG_NO_COLUMN_GUARD
#endif
}
