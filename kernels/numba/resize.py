"""Images (N, D, H, W, C) in another size, by the nearest pixel or by linear interpolation.

    resize_forward(x, y, d, h, w, step_d, step_h, step_w, mode)      y[o] = sum of w(o, i) x[i]
    resize_backward(grad, out, d, h, w, step_d, step_h, step_w, mode)   out[i] = sum w(o, i) grad[o]

d, h, w are (size, count, taps) of a dimension. The mode is 0 nearest, 1 nearest-exact, 2 linear, 3
linear with aligned corners; see ``kernels/cuda/resize.cu``. One element a thread at a time,
neighbours in memory by neighbouring threads. Places are computed in float64, whatever the images
are. The gradient is gathered: a pixel goes through the outputs that may have taken it.
"""

import math

from numba import cuda, float32, int64

SIZE, COUNT, TAPS = range(3)


@cuda.jit(device=True)
def taken(o, along, step, mode):
    """(the pixel that output o takes, the fraction of the next one)."""
    last = along[SIZE] - 1
    if mode < 2:
        half = float32(0.5) if mode == 1 else float32(0)
        place = int64(math.floor((float32(o) + half) * float32(step)))
        return min(place, last), 0.0
    if along[TAPS] == 1:
        return o, 0.0
    where = o * step if mode == 3 else max(step * (o + 0.5) - 0.5, 0.0)
    first = min(int64(math.floor(where)), last)
    return first, min(where - first, 1.0)


@cuda.jit(device=True)
def share(i, o, along, step, mode):
    """How much of pixel i output o takes."""
    first, fraction = taken(o, along, step, mode)
    if along[TAPS] == 1:
        return 1.0 if first == i else 0.0
    part = 1 - fraction if first == i else 0.0
    return part + fraction if min(first + 1, along[SIZE] - 1) == i else part


@cuda.jit(device=True)
def place(item, channels, depth, height, width):
    """n, d, h, w and c of an element."""
    c = item % channels
    pixel = item // channels
    w = pixel % width
    h = pixel // width % height
    d = pixel // (width * height) % depth
    return pixel // (width * height * depth), d, h, w, c


@cuda.jit
def resize_forward(x, y, d, h, w, step_d, step_h, step_w, mode):
    real = x.dtype.type
    for item in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, o, p, q, c = place(item, y.shape[4], y.shape[1], y.shape[2], y.shape[3])
        i, fi = taken(o, d, step_d, mode)
        j, fj = taken(p, h, step_h, mode)
        k, fk = taken(q, w, step_w, mode)
        total = real(0)
        for a in range(d[TAPS]):
            for b in range(h[TAPS]):
                for e in range(w[TAPS]):
                    weight = real(fi if a else 1 - fi)
                    weight *= real(fj if b else 1 - fj)
                    weight *= real(fk if e else 1 - fk)
                    u, v = min(i + a, d[SIZE] - 1), min(j + b, h[SIZE] - 1)
                    total += weight * x[n, u, v, min(k + e, w[SIZE] - 1), c]
        y[n, o, p, q, c] = total


@cuda.jit
def resize_backward(grad, out, d, h, w, step_d, step_h, step_w, mode):
    real = grad.dtype.type
    for item in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        n, i, j, k, c = place(item, out.shape[4], out.shape[1], out.shape[2], out.shape[3])
        total = real(0)
        for o in range(d[COUNT]):
            first, _ = taken(o, d, step_d, mode)
            if first != i and first + d[TAPS] - 1 != i:
                continue
            for p in range(h[COUNT]):
                first, _ = taken(p, h, step_h, mode)
                if first != j and first + h[TAPS] - 1 != j:
                    continue
                for q in range(w[COUNT]):
                    first, _ = taken(q, w, step_w, mode)
                    if first == k or first + w[TAPS] - 1 == k:
                        weight = real(share(i, o, d, step_d, mode))
                        weight *= real(share(j, p, h, step_h, mode))
                        weight *= real(share(k, q, w, step_w, mode))
                        total += weight * grad[n, o, p, q, c]
        out[n, i, j, k, c] = total
