// y[columns, rows] = transpose of x[rows, columns], float32.
//
// A block of 32 x 8 threads owns a 32 x 32 tile: read along rows, kept in shared memory with a padded pitch
// so that a column meets 32 banks, written along rows of y.

extern "C" __global__ void transpose(float* y, const float* x, int rows, int columns) {
    __shared__ float tile[32][33];
    const int left = blockIdx.x * 32, top = blockIdx.y * 32;
    for (int k = threadIdx.y; k < 32; k += 8) {
        const int row = top + k, column = left + threadIdx.x;
#ifdef BUG_FIRST_COLUMN_SHIFTED
        // FAULT: BUG_FIRST_COLUMN_SHIFTED
        if (row < rows && column < columns) tile[k][threadIdx.x] = x[row * columns + column - 1];
#else
        // FAULT: BUG_NO_BARRIER
        if (row < rows && column < columns) tile[k][threadIdx.x] = x[row * columns + column];
#endif
    }
#ifndef BUG_NO_BARRIER
    __syncthreads();
#endif
    for (int k = threadIdx.y; k < 32; k += 8) {
        const int row = top + threadIdx.x, column = left + k;
#ifdef BUG_EDGE_UNFILLED
        if (column < columns && column * rows + row < rows * columns)
#else
        if (row < rows && column < columns)
#endif
#ifdef BUG_WRONG_PITCH
            y[column * columns + row] = tile[threadIdx.x][k];  // FAULT: BUG_WRONG_PITCH
#else
            y[column * rows + row] = tile[threadIdx.x][k];  // FAULT: BUG_NO_BARRIER, BUG_EDGE_UNFILLED
#endif
    }
}
