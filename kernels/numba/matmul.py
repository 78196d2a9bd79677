"""Matrix products and column sums, the teaching version.

    matmul(a, b, bias, out)          out[z, m, n] = sum over k of a[z, m, k] b[z, k, n] + bias[n]
    bias_gradient(grad, out)         out[n] = sum over m of grad[m, n]

Arrays may have any strides: Numba's indexing follows them.
"""

from numba import cuda, float32, float64

TILE = 16


def _matmul_kernel(number):
    @cuda.jit
    def matmul(a, b, bias, out):
        """A block of 16 x 16 threads owns a 16 x 16 tile of one result, a thread one element.

        Each element of a panel is loaded once and used 16 times: both panels of 16 x 16 go through
        shared memory, tile by tile along K. An operand with one matrix serves the whole batch; an
        empty bias is none.
        """
        panel_a = cuda.shared.array((TILE, TILE), number)
        panel_b = cuda.shared.array((TILE, TILE), number)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        # Rows along the grid's x, which may have 2^31 blocks; its y has 65535 at most.
        m, n = cuda.blockIdx.x * TILE + y, cuda.blockIdx.y * TILE + x
        depth = a.shape[2]
        for z in range(cuda.blockIdx.z, out.shape[0], cuda.gridDim.z):
            of_a = z if a.shape[0] > 1 else 0
            of_b = z if b.shape[0] > 1 else 0
            total = number(0)
            for k in range(0, depth, TILE):
                inside = m < out.shape[1] and k + x < depth
                panel_a[y, x] = a[of_a, m, k + x] if inside else number(0)
                inside = n < out.shape[2] and k + y < depth
                panel_b[y, x] = b[of_b, k + y, n] if inside else number(0)
                cuda.syncthreads()
                for i in range(TILE):
                    total += panel_a[y, i] * panel_b[i, x]
                cuda.syncthreads()  # the panels are overwritten next
            if m < out.shape[1] and n < out.shape[2]:
                out[z, m, n] = total + bias[n] if bias.size > 0 else total

    return matmul


def _bias_gradient_kernel(number):
    @cuda.jit
    def bias_gradient(grad, out):
        """A block of 32 x 8 threads owns 32 columns; thread (x, y) sums every 8th row of column x.

        Neighbouring threads read neighbouring columns. The eight sums of a column are added in
        order, so the result is always the same.
        """
        sums = cuda.shared.array((8, 32), number)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        n = cuda.blockIdx.x * 32 + x
        total = number(0)
        if n < out.size:
            for m in range(y, grad.shape[0], 8):
                total += grad[m, n]
        sums[y, x] = total
        cuda.syncthreads()
        if y == 0 and n < out.size:
            for other in range(1, 8):
                total += sums[other, x]
            out[n] = total

    return bias_gradient


matmul_float32, matmul_float64 = _matmul_kernel(float32), _matmul_kernel(float64)
bias_gradient_float32 = _bias_gradient_kernel(float32)
bias_gradient_float64 = _bias_gradient_kernel(float64)
