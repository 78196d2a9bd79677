"""An array in another floating type: the teaching version.

    cast(x, out)    out[i] = x[i], rounded to the type of `out`

One element a thread at a time; neighbouring threads touch neighbouring elements, so that a warp's
access is one piece of memory on both sides. Memory is the limit: 12 bytes an element between
float32 and float64.
"""

from numba import cuda


@cuda.jit
def cast(x, out):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        out[i] = x[i]
