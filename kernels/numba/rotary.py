"""Rotary position embedding, the teaching version: pairs of columns turned by an angle.

    rotary_turn(x, cos, sin, positions, offset, step, between, inverse, out)

x and out are (groups, outer, time, inner, columns), the tables (positions, pairs), positions
(groups, time), (1, time), or of size 0 for 0, 1, 2 … Pair k is the columns k step and
k step + between. One pair a thread at a time, or one of the columns that are only copied;
neighbouring threads have neighbouring pairs. Memory is the limit: each element is read and written
once. A position outside the tables gives NaN.
"""

import math

from numba import cuda


@cuda.jit
def rotary_turn(x, cos, sin, positions, offset, step, between, inverse, out):
    groups, outer, time, inner, columns = x.shape
    half = cos.shape[1]
    work = columns - half  # of a row: pairs, then single columns
    for i in range(cuda.grid(1), groups * outer * time * inner * work, cuda.gridsize(1)):
        place, row = i % work, i // work
        n, row = row % inner, row // inner
        t, row = row % time, row // time
        o, g = row % outer, row // outer
        if place >= half:
            column = place + half
            out[g, o, t, n, column] = x[g, o, t, n, column]
        else:
            position = t + offset
            if positions.size > 0:
                position = positions[min(g, positions.shape[0] - 1), t] + offset
            first, second = place * step, place * step + between
            a, b = x[g, o, t, n, first], x[g, o, t, n, second]
            if 0 <= position < cos.shape[0]:
                c, s = cos[position, place], sin[position, place]
                if inverse:
                    s = -s
                out[g, o, t, n, first] = a * c - b * s
                out[g, o, t, n, second] = b * c + a * s
            else:
                out[g, o, t, n, first] = math.nan
                out[g, o, t, n, second] = math.nan
