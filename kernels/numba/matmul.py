"""Matrix products and column sums.

    matmul(a, b, bias, out)          out[z, m, n] = sum over k of a[z, m, k] b[z, k, n] + bias[n]
    column_sums(grad, partial)       partial[p, n] = sum over the rows m of part p of grad[m, n]

Arrays may have any strides: Numba's indexing follows them. The type of shared memory and of local
arrays is fixed when a kernel is compiled, so there is one of each for float32 and float64, with
the type's name at its end.

Local arrays with constant indices become registers, and four neighbours in shared memory one load
of 16 bytes, where the compiler knows the alignment: hence the loops of constant length.
"""

from numba import config, cuda, float32, float64

SIDE = 16  # a block has 16 x 16 threads
THREADS = SIDE * SIDE
DEPTH = 8  # k that lie in shared memory at a time
# Rows and columns of the result that a block owns. A thread owns 8 x 4 or 4 x 4 elements.
TILE = {"float32": (128, 64), "float64": (64, 64)}
# Numba's simulator knows neither alignment nor a limit of registers. With 128 a thread two blocks
# fit on a multiprocessor; left alone the compiler spends more on addresses.
ALIGNMENT = None if config.ENABLE_CUDASIM else 16
jit = cuda.jit if config.ENABLE_CUDASIM else cuda.jit(max_registers=128)


def _matmul_kernel(number):
    rows_of_block, columns_of_block = TILE[str(number)]
    own_rows, own_columns = rows_of_block // SIDE, columns_of_block // SIDE
    # A row of a panel. The 4 more move neighbouring k, which one warp stores, to different banks.
    pitch_a, pitch_b = rows_of_block + 4, columns_of_block + 4
    count_a, count_b = rows_of_block * DEPTH // THREADS, columns_of_block * DEPTH // THREADS
    # From a thread's first element of a panel to its next: across k, or across rows.
    across_a, across_b = THREADS // rows_of_block, THREADS // columns_of_block
    along = THREADS // DEPTH

    @jit
    def matmul(a, b, bias, out):
        """A block of 16 x 16 threads owns 128 x 64 elements of one result (float64: 64 x 64).

        It walks along K in slices of 8, which lie in shared memory as [k][row] and [k][column]. A
        thread reads 8 + 4 numbers at each k and makes 32 multiply-adds of them (float64: 4 + 4 and
        16), where a thread that owns one element would read 2 for 1. Its rows are 4 y … 4 y + 3
        and the same 64 below, so that a warp reads packs of four that follow one another. An
        operand with one matrix serves the whole batch; an empty bias is none.

        Loads of a slice go into registers first, so that all of them are under way together, and
        begin before the barrier behind the products of the slice before.
        """
        panel_a = cuda.shared.array((DEPTH, pitch_a), number, ALIGNMENT)
        panel_b = cuda.shared.array((DEPTH, pitch_b), number, ALIGNMENT)
        sums = cuda.local.array((own_rows, own_columns), number)
        from_a = cuda.local.array(own_rows, number)
        from_b = cuda.local.array(own_columns, number)
        coming_a = cuda.local.array(count_a, number)
        coming_b = cuda.local.array(count_b, number)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        t = y * SIDE + x
        # Rows along the grid's x, which may have 2^31 blocks; its y has 65535 at most.
        top, left = cuda.blockIdx.x * rows_of_block, cuda.blockIdx.y * columns_of_block
        rows, columns, depth = out.shape[1], out.shape[2], a.shape[2]
        # Neighbouring threads fetch what are neighbours in memory: along k, or along the rows.
        row, row_step, k_a, k_step_a = t % rows_of_block, 0, t // rows_of_block, across_a
        if a.strides[2] <= a.strides[1]:
            row, row_step, k_a, k_step_a = t // DEPTH, along, t % DEPTH, 0
        column, column_step = t % columns_of_block, 0
        k_b, k_step_b = t // columns_of_block, across_b
        if b.strides[1] < b.strides[2]:
            column, column_step, k_b, k_step_b = t // DEPTH, along, t % DEPTH, 0
        for z in range(cuda.blockIdx.z, out.shape[0], cuda.gridDim.z):
            of_a = z if a.shape[0] > 1 else 0
            of_b = z if b.shape[0] > 1 else 0
            for i in range(own_rows):
                for j in range(own_columns):
                    sums[i, j] = number(0)
            for start in range(0, depth, DEPTH):
                for i in range(count_a):
                    m, k = top + row + i * row_step, start + k_a + i * k_step_a
                    coming_a[i] = number(0)
                    if m < rows and k < depth:
                        coming_a[i] = a[of_a, m, k]
                for i in range(count_b):
                    n, k = left + column + i * column_step, start + k_b + i * k_step_b
                    coming_b[i] = number(0)
                    if n < columns and k < depth:
                        coming_b[i] = b[of_b, k, n]
                cuda.syncthreads()  # the slice before has been read by all
                for i in range(count_a):
                    panel_a[k_a + i * k_step_a, row + i * row_step] = coming_a[i]
                for i in range(count_b):
                    panel_b[k_b + i * k_step_b, column + i * column_step] = coming_b[i]
                cuda.syncthreads()
                for k in range(DEPTH):
                    for i in range(own_rows):
                        from_a[i] = panel_a[k, i // 4 * 64 + 4 * y + i % 4]
                    for j in range(own_columns):
                        from_b[j] = panel_b[k, 4 * x + j]
                    for i in range(own_rows):
                        for j in range(own_columns):
                            sums[i, j] += from_a[i] * from_b[j]
            for j in range(own_columns):
                n = left + 4 * x + j
                from_b[j] = bias[n] if n < bias.size else number(0)
            for i in range(own_rows):
                m = top + i // 4 * 64 + 4 * y + i % 4
                if m < rows:
                    for j in range(own_columns):
                        n = left + 4 * x + j
                        if n < columns:
                            out[z, m, n] = sums[i, j] + from_b[j]

    return matmul


def _column_sums_kernel(number):
    @cuda.jit
    def column_sums(grad, partial):
        """A block of 32 x 8 threads owns 32 columns and one part of the rows, 1 / len(partial).

        Neighbouring threads read neighbouring columns; thread (x, y) sums every 8th row of the
        part in column x, four under way at a time. Sums are added in a fixed order, so the result
        is always the same. Where there are several parts, a second launch adds them.
        """
        sums = cuda.shared.array((8, 32), number)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        n = cuda.blockIdx.x * 32 + x
        rows, parts, part = grad.shape[0], partial.shape[0], cuda.blockIdx.y
        size = (rows + parts - 1) // parts
        end = min(rows, (part + 1) * size)
        zero = number(0)
        first, second, third, fourth = zero, zero, zero, zero
        if n < grad.shape[1]:
            for m in range(part * size + y, end, 32):
                first += grad[m, n]
                second += grad[m + 8, n] if m + 8 < end else zero
                third += grad[m + 16, n] if m + 16 < end else zero
                fourth += grad[m + 24, n] if m + 24 < end else zero
        total = (first + second) + (third + fourth)
        sums[y, x] = total
        cuda.syncthreads()
        if y == 0 and n < grad.shape[1]:
            for other in range(1, 8):
                total += sums[other, x]
            partial[part, n] = total

    return column_sums


matmul_float32, matmul_float64 = _matmul_kernel(float32), _matmul_kernel(float64)
column_sums_float32 = _column_sums_kernel(float32)
column_sums_float64 = _column_sums_kernel(float64)
