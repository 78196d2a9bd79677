"""Sum, mean, max and argmax over the middle axis, the teaching version: one block a result.

    reduce_sum(x, out, divisor)    out[o, i] = sum over a of x[o, a, i] / divisor  (mean: divisor n)
    reduce_max(x, out)             out[o, i] = the largest x[o, a, i]; NaN if there is one
    reduce_argmax(x, out)          out[o, i] = the first a with the largest x[o, a, i], NaN first

With n threads a block (a power of two), thread t visits a = t, t + n, ... and keeps its part of the
result in a register; a tree in shared memory then joins the parts. The type of shared memory is
fixed when a kernel is compiled, so there is one set of kernels for each type, with its name at
their end.
"""

from numba import cuda, float32, float64, int32, int64, uint8

MAX_BLOCK = 256


@cuda.jit(device=True)
def larger(a, b):
    # NaN is kept, as NumPy does
    return a if a > b or a != a else b


@cuda.jit(device=True)
def comes_first(value, index, other_value, other_index):
    """Whether (value, index) is the better one: larger, NaN before all, the first among equals."""
    nan, other_nan = value != value, other_value != other_value
    if value == other_value or (nan and other_nan):
        return index < other_index
    return nan or value > other_value


def _kernels(number, total):
    """(sum, max, argmax) for elements of type `number` that are summed in type `total`."""

    @cuda.jit
    def reduce_sum(x, out, divisor):
        scratch = cuda.shared.array(MAX_BLOCK, total)
        t = cuda.threadIdx.x
        for element in range(cuda.blockIdx.x, out.size, cuda.gridDim.x):
            o, i = element // out.shape[1], element % out.shape[1]
            value = total(0)
            for a in range(t, x.shape[1], cuda.blockDim.x):
                value += x[o, a, i]
            scratch[t] = value
            cuda.syncthreads()
            half = cuda.blockDim.x // 2
            while half > 0:
                if t < half:
                    scratch[t] += scratch[t + half]
                cuda.syncthreads()
                half //= 2
            if t == 0:
                out[o, i] = scratch[0] if divisor == 1 else scratch[0] / divisor
            cuda.syncthreads()  # before the next element overwrites the scratch

    @cuda.jit
    def reduce_max(x, out):
        scratch = cuda.shared.array(MAX_BLOCK, number)
        t = cuda.threadIdx.x
        for element in range(cuda.blockIdx.x, out.size, cuda.gridDim.x):
            o, i = element // out.shape[1], element % out.shape[1]
            value = x[o, 0, i]  # every thread starts with a true element
            for a in range(t, x.shape[1], cuda.blockDim.x):
                value = larger(value, x[o, a, i])
            scratch[t] = value
            cuda.syncthreads()
            half = cuda.blockDim.x // 2
            while half > 0:
                if t < half:
                    scratch[t] = larger(scratch[t], scratch[t + half])
                cuda.syncthreads()
                half //= 2
            if t == 0:
                out[o, i] = scratch[0]
            cuda.syncthreads()

    @cuda.jit
    def reduce_argmax(x, out):
        values = cuda.shared.array(MAX_BLOCK, number)
        indices = cuda.shared.array(MAX_BLOCK, int64)
        t = cuda.threadIdx.x
        for element in range(cuda.blockIdx.x, out.size, cuda.gridDim.x):
            o, i = element // out.shape[1], element % out.shape[1]
            value, index = x[o, 0, i], 0  # every thread starts with a true element
            for a in range(t, x.shape[1], cuda.blockDim.x):
                if comes_first(x[o, a, i], a, value, index):
                    value, index = x[o, a, i], a
            values[t], indices[t] = value, index
            cuda.syncthreads()
            half = cuda.blockDim.x // 2
            while half > 0:
                if t < half and comes_first(
                    values[t + half], indices[t + half], values[t], indices[t]
                ):
                    values[t], indices[t] = values[t + half], indices[t + half]
                cuda.syncthreads()
                half //= 2
            if t == 0:
                out[o, i] = indices[0]
            cuda.syncthreads()

    return reduce_sum, reduce_max, reduce_argmax


for _number in (float32, float64, int32, int64, uint8):
    _total = _number if _number in (float32, float64) else int64
    for _name, _kernel in zip(
        ("reduce_sum", "reduce_max", "reduce_argmax"), _kernels(_number, _total), strict=True
    ):
        globals()[f"{_name}_{_number}"] = _kernel
