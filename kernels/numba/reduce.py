"""Sum, mean, max and argmax over the middle axis of x (outer, n, inner).

    reduce_sum(x, out, size, divisor)  out[o, p, i] = sum over a of x[o, a, i] / divisor (mean: n)
    reduce_max(x, out, size)           out[o, p, i] = the largest x[o, a, i]; NaN if there is one
    reduce_argmax(x, out, size)        out[o, p, i] = the first a with the largest x[o, a, i],
                                       NaN first

Part p of the axis is a = p size … (p + 1) size - 1. Where there are too few results to fill the
chip with blocks, a first launch makes several parts of each and a second one joins them; argmax
always has one part.

A block of `across` x `down` threads owns `across` neighbouring results: threads that are neighbours
read neighbours in memory, along the inner axis, or along n itself where inner is 1 (across = 1).
Thread (x, y) visits a = y, y + down, …, four under way at a time, and keeps its part of the result
in registers; a tree in shared memory joins them. No atomics: the same bits each time. The limit is
memory, which is read once.

The type of shared memory is fixed when a kernel is compiled, so there is one set of kernels for
each type, with its name at their end.
"""

from numba import cuda, float32, float64, int32, int64, uint8

THREADS = 256  # of a block at most; a power of two


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


@cuda.jit(device=True)
def place_of(tile, x, out, size):
    """(o, p, i, first a, end of a) of this thread's result in a tile of the block."""
    tiles = (x.shape[2] + cuda.blockDim.x - 1) // cuda.blockDim.x
    i = tile % tiles * cuda.blockDim.x + cuda.threadIdx.x
    part = tile // tiles % out.shape[1]
    return tile // tiles // out.shape[1], part, i, part * size, min(x.shape[1], (part + 1) * size)


@cuda.jit(device=True)
def tiles_of(x, out):
    tiles = (x.shape[2] + cuda.blockDim.x - 1) // cuda.blockDim.x
    return out.shape[0] * out.shape[1] * tiles


def _kernels(number, total):
    """(sum, max, argmax) for elements of type `number` that are summed in type `total`."""

    if total is int64:

        @cuda.jit(device=True)
        def share(value, divisor):
            return value  # never a mean; a quotient would make float64 of it, with 53 bits

    else:

        @cuda.jit(device=True)
        def share(value, divisor):
            return value if divisor == 1 else value / divisor

    @cuda.jit
    def reduce_sum(x, out, size, divisor):
        scratch = cuda.shared.array(THREADS, total)
        y, across, down = cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
        me = y * across + cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles_of(x, out), cuda.gridDim.x):
            o, part, i, start, end = place_of(tile, x, out, size)
            zero = total(0)
            first, second, third, fourth = zero, zero, zero, zero
            if i < x.shape[2]:
                for a in range(start + y, end, 4 * down):
                    v, w = total(x[o, a, i]), zero
                    if a + down < end:
                        w = total(x[o, a + down, i])
                    s, t = zero, zero
                    if a + 2 * down < end:
                        s = total(x[o, a + 2 * down, i])
                    if a + 3 * down < end:
                        t = total(x[o, a + 3 * down, i])
                    first += v
                    second += w
                    third += s
                    fourth += t
            scratch[me] = (first + second) + (third + fourth)
            cuda.syncthreads()
            half = down // 2
            while half > 0:
                if y < half:
                    scratch[me] += scratch[me + half * across]
                cuda.syncthreads()
                half //= 2
            if y == 0 and i < x.shape[2]:
                out[o, part, i] = share(scratch[me], divisor)
            cuda.syncthreads()  # before the next tile overwrites the scratch

    @cuda.jit
    def reduce_max(x, out, size):
        scratch = cuda.shared.array(THREADS, number)
        y, across, down = cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
        me = y * across + cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles_of(x, out), cuda.gridDim.x):
            o, part, i, start, end = place_of(tile, x, out, size)
            value = number(0)
            if i < x.shape[2]:
                value = x[o, start, i]  # every thread starts with a true element
                for a in range(start + y, end, 4 * down):
                    v = x[o, a, i]
                    w, s, t = v, v, v
                    if a + down < end:
                        w = x[o, a + down, i]
                    if a + 2 * down < end:
                        s = x[o, a + 2 * down, i]
                    if a + 3 * down < end:
                        t = x[o, a + 3 * down, i]
                    value = larger(value, larger(larger(v, w), larger(s, t)))
            scratch[me] = value
            cuda.syncthreads()
            half = down // 2
            while half > 0:
                if y < half:
                    scratch[me] = larger(scratch[me], scratch[me + half * across])
                cuda.syncthreads()
                half //= 2
            if y == 0 and i < x.shape[2]:
                out[o, part, i] = scratch[me]
            cuda.syncthreads()

    @cuda.jit
    def reduce_argmax(x, out, size):
        values = cuda.shared.array(THREADS, number)
        indices = cuda.shared.array(THREADS, int64)
        y, across, down = cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
        me = y * across + cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles_of(x, out), cuda.gridDim.x):
            o, part, i, start, end = place_of(tile, x, out, size)
            value, index = number(0), start
            if i < x.shape[2]:
                value = x[o, start, i]
                for a in range(start + y, end, 2 * down):
                    v, other = x[o, a, i], a + down
                    w = v
                    if other < end:
                        w = x[o, other, i]
                    else:
                        other = a
                    if comes_first(v, a, value, index):
                        value, index = v, a
                    if comes_first(w, other, value, index):
                        value, index = w, other
            values[me], indices[me] = value, index
            cuda.syncthreads()
            half = down // 2
            while half > 0:
                if y < half:
                    other = me + half * across
                    if comes_first(values[other], indices[other], values[me], indices[me]):
                        values[me], indices[me] = values[other], indices[other]
                cuda.syncthreads()
                half //= 2
            if y == 0 and i < x.shape[2]:
                out[o, part, i] = indices[me]
            cuda.syncthreads()

    return reduce_sum, reduce_max, reduce_argmax


for _number in (float32, float64, int32, int64, uint8):
    _total = _number if _number in (float32, float64) else int64
    for _name, _kernel in zip(
        ("reduce_sum", "reduce_max", "reduce_argmax"), _kernels(_number, _total), strict=True
    ):
        globals()[f"{_name}_{_number}"] = _kernel
