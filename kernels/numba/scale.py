"""An array times a number: the teaching version.

    scale(x, factor, out)                   out[i] = factor[0] x[i]
    accumulate(total, part, scale, add)     total[i] = scale part[i], plus total[i] if `add`

One element a thread at a time; neighbouring threads touch neighbouring elements, so that a warp's
access is one piece of memory. Memory is the limit: 8 and 12 bytes an element for one or two
operations.
"""

from numba import cuda


@cuda.jit
def scale(x, factor, out):
    c = factor[0]
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        out[i] = c * x[i]


@cuda.jit
def accumulate(total, part, scale, add):
    for i in range(cuda.grid(1), part.size, cuda.gridsize(1)):
        value = scale * part[i]
        if add:
            value += total[i]
        total[i] = value
