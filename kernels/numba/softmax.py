"""Softmax and log-softmax of rows, forward and backward, the teaching version: one block a row.

    softmax_forward(x, out)                y = exp(x - max) / sum(exp(x - max))
    softmax_backward(grad, y, out)         out = y (grad - sum(grad y))
    log_softmax_forward(x, out)            y = x - max - log(sum(exp(x - max)))
    log_softmax_backward(grad, y, out)     out = grad - exp(y) sum(grad)

Arrays are (rows, columns). With n threads a block (a power of two), thread t visits columns t,
t + n, ... and keeps its part of the maximum or sum in a register; a tree in shared memory then
joins the parts. The row is read once for each of maximum, sum and output. The type of shared memory
is fixed when a kernel is compiled, so there is one set of kernels for each of float32 and float64,
with the type's name at the end of theirs.
"""

import math

from numba import cuda, float32, float64

MAX_BLOCK = 256


@cuda.jit(device=True)
def larger(a, b):
    # NaN is kept, as NumPy does
    return a if a > b or a != a else b


@cuda.jit(device=True)
def block_maximum(scratch, value):
    """The largest of every thread's `value`, for every thread."""
    t = cuda.threadIdx.x
    cuda.syncthreads()  # the scratch may still be read from the last time
    scratch[t] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            scratch[t] = larger(scratch[t], scratch[t + half])
        cuda.syncthreads()
        half //= 2
    return scratch[0]


@cuda.jit(device=True)
def block_sum(scratch, value):
    """The sum of every thread's `value`, for every thread."""
    t = cuda.threadIdx.x
    cuda.syncthreads()  # the scratch may still be read from the last time
    scratch[t] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            scratch[t] += scratch[t + half]
        cuda.syncthreads()
        half //= 2
    return scratch[0]


@cuda.jit(device=True)
def row_maximum(scratch, x, row):
    top = x[row, 0]  # every thread starts with a true element: none need to be left without one
    for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
        top = larger(top, x[row, column])
    return block_maximum(scratch, top)


def _kernels(real):
    """The four kernels whose scratch memory holds `real`."""

    @cuda.jit
    def softmax_forward(x, out):
        scratch = cuda.shared.array(MAX_BLOCK, real)
        for row in range(cuda.blockIdx.x, x.shape[0], cuda.gridDim.x):
            top = row_maximum(scratch, x, row)
            total = real(0)
            for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                total += math.exp(x[row, column] - top)
            total = block_sum(scratch, total)
            for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                out[row, column] = math.exp(x[row, column] - top) / total

    @cuda.jit
    def softmax_backward(grad, y, out):
        scratch = cuda.shared.array(MAX_BLOCK, real)
        for row in range(cuda.blockIdx.x, y.shape[0], cuda.gridDim.x):
            total = real(0)
            for column in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
                total += grad[row, column] * y[row, column]
            total = block_sum(scratch, total)
            for column in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
                out[row, column] = y[row, column] * (grad[row, column] - total)

    @cuda.jit
    def log_softmax_forward(x, out):
        scratch = cuda.shared.array(MAX_BLOCK, real)
        for row in range(cuda.blockIdx.x, x.shape[0], cuda.gridDim.x):
            top = row_maximum(scratch, x, row)
            total = real(0)
            for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                total += math.exp(x[row, column] - top)
            logarithm = math.log(block_sum(scratch, total))
            for column in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
                out[row, column] = x[row, column] - top - logarithm

    @cuda.jit
    def log_softmax_backward(grad, y, out):
        scratch = cuda.shared.array(MAX_BLOCK, real)
        for row in range(cuda.blockIdx.x, y.shape[0], cuda.gridDim.x):
            total = real(0)
            for column in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
                total += grad[row, column]
            total = block_sum(scratch, total)
            for column in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
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
