"""Images (N, D, H, W, C) with pixels put around them or cut off, and the gradient back.

    pad_forward(x, out, d, h, w, mode, value)   out[n, o, c] = x[n, source(o - before), c]
    pad_backward(grad, out, d, h, w, mode)      out[n, i, c] = sum of grad[n, o, c] over all o with
                                                source(o - before) = i

d, h, w are the pixels put before the image. The mode is 0 constant, 1 reflect, 2 replicate, 3
circular; see ``kernels/cuda/pad.cu``. One element a thread at a time, neighbours in memory by
neighbouring threads; a pixel of the gradient goes through the places where it may stand.
"""

from numba import cuda


@cuda.jit(device=True)
def source(o, before, n, mode):
    """The pixel of 0 … n - 1 that stands at place o; -1 for none."""
    i = o - before
    if 0 <= i < n:
        return i
    if mode == 1:
        return -i if i < 0 else 2 * (n - 1) - i
    if mode == 2:
        return 0 if i < 0 else n - 1
    if mode == 3:
        return i + n if i < 0 else i - n
    return -1


@cuda.jit
def pad_forward(x, out, before_d, before_h, before_w, mode, value):
    _, depth, height, width, channels = out.shape
    for item in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        c = item % channels
        place = item // channels
        w = place % width
        place //= width
        h = place % height
        place //= height
        d = place % depth
        n = place // depth
        i = source(d, before_d, x.shape[1], mode)
        j = source(h, before_h, x.shape[2], mode)
        k = source(w, before_w, x.shape[3], mode)
        if i < 0 or j < 0 or k < 0:
            out[n, d, h, w, c] = value
        else:
            out[n, d, h, w, c] = x[n, i, j, k, c]


@cuda.jit
def pad_backward(grad, out, before_d, before_h, before_w, mode):
    _, depth, height, width, channels = out.shape
    for item in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        c = item % channels
        place = item // channels
        w = place % width
        place //= width
        h = place % height
        place //= height
        d = place % depth
        n = place // depth
        total = grad.dtype.type(0)
        for i in range(grad.shape[1]):
            if source(i, before_d, depth, mode) != d:
                continue
            for j in range(grad.shape[2]):
                if source(j, before_h, height, mode) != h:
                    continue
                for k in range(grad.shape[3]):
                    if source(k, before_w, width, mode) == w:
                        total += grad[n, i, j, k, c]
        out[n, d, h, w, c] = total
