"""Layer norm and RMS norm of rows, forward and backward: several threads a row.

    row_norm_forward     s = x + residual; y = (s - mean) * reciprocal * weight + bias
    row_norm_backward    out = reciprocal (u - mean of u - h * mean of u h) + extra, with
                         h = (x - mean) * reciprocal and u = grad * weight
    row_norm_sums        dweight[c] = sum over rows of grad h, dbias[c] = sum over rows of grad

Arrays are (rows, columns); one that is not there has size 0. RMS norm has no mean and no mean of
u. A block of `wide` x `high` threads works on `high` rows at a time; thread (t, r) visits columns
t, t + wide, … of row r. A tree in shared memory joins their sums: no atomics, the same bits each
time. Later passes over a row find it in the chip's second-level cache, so memory is read about
once: the limit is 2 elements moved an element forward and 3 backward, and 2 more for the sums.

There is one set of kernels for each of float32 and float64, because the type of shared memory is
fixed when a kernel is compiled.
"""

import math

import numpy as np
from numba import cuda, float32, float64

THREADS = 256  # of a block at most; powers of two along both axes


def _kernels(real):
    """The kernels whose shared memory holds `real`."""
    number = np.dtype(str(real)).type
    zero, one = number(0), number(1)

    @cuda.jit(device=True)
    def add(sums, total):
        """The sum of `total` over the threads of the row, for all of them."""
        t, me = cuda.threadIdx.x, cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        cuda.syncthreads()
        sums[me] = total
        cuda.syncthreads()
        half = cuda.blockDim.x // 2
        while half > 0:
            if t < half:
                sums[me] += sums[me + half]
            cuda.syncthreads()
            half //= 2
        return sums[me - t]

    @cuda.jit
    def row_norm_forward(
        x, residual, out, summed, weight, bias, mean, reciprocal, eps, share, centred
    ):
        sums = cuda.shared.array(THREADS, real)
        high, wide, columns = cuda.blockDim.y, cuda.blockDim.x, x.shape[1]
        for first in range(cuda.blockIdx.x * high, x.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < x.shape[0]  # no thread leaves early: all meet in the trees
            source, total = x, zero
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    value = x[row, column]
                    if residual.size > 0:
                        value += residual[row, column]
                        summed[row, column] = value
                    total += value
            if residual.size > 0:
                source = summed
            middle = zero
            if centred:
                middle = add(sums, total) * share
            total = zero
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    value = source[row, column] - middle
                    total += value * value
            scale = one / math.sqrt(add(sums, total) * share + eps)
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    value = (source[row, column] - middle) * scale
                    if weight.size > 0:
                        value *= weight[column]
                    if bias.size > 0:
                        value += bias[column]
                    out[row, column] = value
                if cuda.threadIdx.x == 0:
                    if mean.size > 0:
                        mean[row] = middle
                    if reciprocal.size > 0:
                        reciprocal[row] = scale

    @cuda.jit
    def row_norm_backward(grad, x, mean, reciprocal, weight, extra, out, share):
        sums = cuda.shared.array(THREADS, real)
        high, wide, columns = cuda.blockDim.y, cuda.blockDim.x, x.shape[1]
        for first in range(cuda.blockIdx.x * high, x.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < x.shape[0]
            middle, scale, total, product = zero, zero, zero, zero
            if active:
                scale = reciprocal[row]
                if mean.size > 0:
                    middle = mean[row]
                for column in range(cuda.threadIdx.x, columns, wide):
                    u = grad[row, column]
                    if weight.size > 0:
                        u *= weight[column]
                    total += u
                    product += u * ((x[row, column] - middle) * scale)
            total = add(sums, total) * share
            product = add(sums, product) * share
            if mean.size == 0:
                total = zero
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    u = grad[row, column]
                    if weight.size > 0:
                        # Plus zero: so that the product is rounded as it was in `total`, and not
                        # joined with the subtraction; in a row of one element they must cancel.
                        u = u * weight[column] + zero
                    h = (x[row, column] - middle) * scale
                    value = scale * (u - total - h * product)
                    if extra.size > 0:
                        value += extra[row, column]
                    out[row, column] = value

    @cuda.jit
    def row_norm_sums(grad, x, mean, reciprocal, dweight, dbias):
        # A block adds 32 neighbouring columns with 8 threads each.
        weights = cuda.shared.array((8, 32), real)
        biases = cuda.shared.array((8, 32), real)
        t, down = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * 32 + t
        first, second = zero, zero
        if column < x.shape[1]:
            for row in range(down, x.shape[0], 8):
                middle = zero
                if mean.size > 0:
                    middle = mean[row]
                g = grad[row, column]
                first += g * ((x[row, column] - middle) * reciprocal[row])
                second += g
        weights[down, t] = first
        biases[down, t] = second
        cuda.syncthreads()
        if down == 0 and column < x.shape[1]:
            for other in range(1, 8):
                first += weights[other, t]
                second += biases[other, t]
            if dweight.size > 0:
                dweight[column] = first
            if dbias.size > 0:
                dbias[column] = second

    return row_norm_forward, row_norm_backward, row_norm_sums


for _real in (float32, float64):
    for _kernel, _name in zip(
        _kernels(_real), ("row_norm_forward", "row_norm_backward", "row_norm_sums"), strict=True
    ):
        globals()[f"{_name}_{_real}"] = _kernel
