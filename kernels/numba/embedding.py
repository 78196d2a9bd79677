"""Rows of a table by their numbers, and sums of gradients into those rows: the teaching version.

    embedding_forward(weight, indices, out)     out[i, d] = weight[indices[i], d]
    embedding_clear(out)                        zeros
    embedding_backward(grad, indices, padding, by_frequency, one, out)
                                                out[v, d] += sum of grad[i, d] where indices[i] == v

Forward and zeros: one element a thread, neighbours side by side. Backward: a block for each index,
which works only if its number did not occur before, and a thread for each column, which then walks
over all later places of that number. Nobody else writes that row, and the order is fixed: no
atomics, the same bits each time. It looks at indices a number of times that grows with the square
of their number; the CUDA C++ version sorts them instead. `one` is 1 in the dtype: a literal would
make float64 of all that follows.

Indices outside the table: NaN forward, passed over backward.
"""

import math

from numba import cuda


@cuda.jit
def embedding_forward(weight, indices, out):
    columns = out.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        row, column = i // columns, i % columns
        index = indices[row]
        if 0 <= index < weight.shape[0]:
            out[row, column] = weight[index, column]
        else:
            out[row, column] = math.nan


@cuda.jit
def embedding_clear(out):
    columns = out.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i // columns, i % columns] = 0


@cuda.jit
def embedding_backward(grad, indices, padding, by_frequency, one, out):
    for i in range(cuda.blockIdx.x, indices.size, cuda.gridDim.x):
        index = indices[i]
        first = 0 <= index < out.shape[0] and index != padding
        before = 0
        while first and before < i:
            first = indices[before] != index
            before += 1
        if first:
            for column in range(cuda.threadIdx.x, out.shape[1], cuda.blockDim.x):
                total, count = grad[i, column], one
                for j in range(i + 1, indices.size):
                    if indices[j] == index:
                        total += grad[j, column]
                        count += one
                if by_frequency:
                    total /= count
                out[index, column] += total
