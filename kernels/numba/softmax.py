"""Softmax and log-softmax of rows, forward and backward: several threads a row.

    softmax_forward(x, out)                y = exp(x - max) / sum(exp(x - max))
    softmax_backward(grad, y, out)         out = y (grad - sum(grad y))
    log_softmax_forward(x, out)            y = x - max - log(sum(exp(x - max)))
    log_softmax_backward(grad, y, out)     out = grad - exp(y) sum(grad)

Arrays are (rows, columns). A block of `wide` x `high` threads works on `high` rows at a time;
thread (t, r) visits columns t, t + wide, … of row r, four under way at a time, and keeps its part
of the result in registers. A tree in shared memory joins the parts: no atomics, the same bits each
time.

Maximum and sum are found in one pass (Milakov & Gimelshein, Online normalizer calculation for
softmax, 2018): where a larger element comes, the sum so far is rescaled. The second pass, which
writes, finds the row in the chip's second-level cache, so that memory is read once: the limit is 2
elements moved an element forward and 3 backward.

NaN passes by the maximum and makes the sum NaN; so does +inf, and so a row with either is all NaN.
The type of shared memory is fixed when a kernel is compiled: there is one set of kernels for each
of float32 and float64, with the type's name at the end of theirs.
"""

import math

import numpy as np
from numba import cuda, float32, float64

THREADS = 256  # of a block at most; powers of two along both axes


def row_functions(real):
    """(scan, join, add) for kernels that reduce rows in the type `real`."""
    lowest, zero = np.dtype(str(real)).type(-np.inf), np.dtype(str(real)).type(0)

    @cuda.jit(device=True)
    def larger(a, b):
        return b if b > a else a  # drops a NaN in b

    @cuda.jit(device=True)
    def scan(x, row, top, total):
        """(largest, sum of exp(x - largest)) of this thread's columns of a row, from a start."""
        wide, columns = cuda.blockDim.x, x.shape[1]
        for column in range(cuda.threadIdx.x, columns, 4 * wide):
            a, b, c, d = x[row, column], lowest, lowest, lowest
            if column + wide < columns:
                b = x[row, column + wide]
            if column + 2 * wide < columns:
                c = x[row, column + 2 * wide]
            if column + 3 * wide < columns:
                d = x[row, column + 3 * wide]
            new = larger(larger(top, a), larger(larger(lowest, b), larger(larger(lowest, c), d)))
            # exp(-inf - 0) is 0, where exp(-inf + inf) would be NaN.
            reference = new if new > lowest else zero
            added = math.exp(a - reference) + math.exp(b - reference)
            added += math.exp(c - reference) + math.exp(d - reference)
            total = total * math.exp(top - reference) + added
            top = new
        return top, total

    @cuda.jit(device=True)
    def join(tops, sums, top, total):
        """What `scan` found, of all threads of the row and for all of them."""
        t, me = cuda.threadIdx.x, cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        cuda.syncthreads()  # the memory may still be read from the last time
        tops[me] = top
        sums[me] = total
        cuda.syncthreads()
        half = cuda.blockDim.x // 2
        while half > 0:
            if t < half:
                mine, other = tops[me], tops[me + half]
                new = larger(mine, other)
                reference = new if new > lowest else zero
                sums[me] = sums[me] * math.exp(mine - reference) + sums[me + half] * math.exp(
                    other - reference
                )
                tops[me] = new
            cuda.syncthreads()
            half //= 2
        return tops[me - t], sums[me - t]

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

    return scan, join, add


def _kernels(real):
    """The four kernels whose shared memory holds `real`."""
    scan, join, add = row_functions(real)
    lowest, zero = np.dtype(str(real)).type(-np.inf), np.dtype(str(real)).type(0)
    one = np.dtype(str(real)).type(1)

    @cuda.jit(device=True)
    def normalizer(tops, sums, x, row, active):
        """(largest, sum of exp(x - largest)) of a row; the sum is NaN where it must be."""
        top, total = lowest, zero
        if active:
            top, total = scan(x, row, top, total)
        top, total = join(tops, sums, top, total)
        return top, total + (top - top)  # inf - inf is NaN: of +inf, and of -inf alone

    @cuda.jit
    def softmax_forward(x, out):
        tops = cuda.shared.array(THREADS, real)
        sums = cuda.shared.array(THREADS, real)
        high = cuda.blockDim.y
        for first in range(cuda.blockIdx.x * high, x.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < x.shape[0]  # no thread leaves early: all meet in the trees
            top, total = normalizer(tops, sums, x, row, active)
            if active:
                share = one / total
                for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                    out[row, column] = math.exp(x[row, column] - top) * share

    @cuda.jit
    def log_softmax_forward(x, out):
        tops = cuda.shared.array(THREADS, real)
        sums = cuda.shared.array(THREADS, real)
        high = cuda.blockDim.y
        for first in range(cuda.blockIdx.x * high, x.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < x.shape[0]
            top, total = normalizer(tops, sums, x, row, active)
            if active:
                logarithm = math.log(total)
                for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                    out[row, column] = x[row, column] - top - logarithm

    @cuda.jit
    def softmax_backward(grad, y, out):
        sums = cuda.shared.array(THREADS, real)
        high, wide, columns = cuda.blockDim.y, cuda.blockDim.x, y.shape[1]
        for first in range(cuda.blockIdx.x * high, y.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < y.shape[0]
            total, other = zero, zero
            if active:
                for column in range(cuda.threadIdx.x, columns, 2 * wide):
                    a, b, c, d = grad[row, column], y[row, column], zero, zero
                    if column + wide < columns:
                        c, d = grad[row, column + wide], y[row, column + wide]
                    total += a * b
                    other += c * d
            total = add(sums, total + other)
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    out[row, column] = y[row, column] * (grad[row, column] - total)

    @cuda.jit
    def log_softmax_backward(grad, y, out):
        sums = cuda.shared.array(THREADS, real)
        high, wide, columns = cuda.blockDim.y, cuda.blockDim.x, y.shape[1]
        for first in range(cuda.blockIdx.x * high, y.shape[0], cuda.gridDim.x * high):
            row = first + cuda.threadIdx.y
            active = row < y.shape[0]
            total, other = zero, zero
            if active:
                for column in range(cuda.threadIdx.x, columns, 4 * wide):
                    a, b, c, d = grad[row, column], zero, zero, zero
                    if column + wide < columns:
                        b = grad[row, column + wide]
                    if column + 2 * wide < columns:
                        c = grad[row, column + 2 * wide]
                    if column + 3 * wide < columns:
                        d = grad[row, column + 3 * wide]
                    total += a + b
                    other += c + d
            total = add(sums, total + other)
            if active:
                for column in range(cuda.threadIdx.x, columns, wide):
                    out[row, column] = grad[row, column] - math.exp(y[row, column]) * total

    return softmax_forward, softmax_backward, log_softmax_forward, log_softmax_backward


for _real in (float32, float64):
    _made = _kernels(_real)
    for _kernel, _name in zip(
        _made,
        ("softmax_forward", "softmax_backward", "log_softmax_forward", "log_softmax_backward"),
        strict=True,
    ):
        globals()[f"{_name}_{_real}"] = _kernel
