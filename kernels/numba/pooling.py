"""The largest or the mean of each window of images (N, D, H, W, C), and the gradients.

    max_pool_forward(x, y, indices, d, h, w, adaptive)     the largest of each window; its number
    max_pool_backward(grad, indices, out, d, h, w, …)      out[i] = sum of grad where indices = i
    avg_pool_forward(x, y, d, h, w, …, padded, divisor)    each window's sum over what divides it
    avg_pool_backward(grad, out, d, h, w, …)               out[i] = sum of grad / divisor

d, h, w say how the windows lie along a dimension: (size, count, kernel, stride, padding, dilation);
see ``kernels/cuda/pooling.cu``. One element a thread at a time, neighbours in memory by
neighbouring threads. Gradients are gathered: every pixel goes through the windows that hold it.
"""

from numba import cuda

SIZE, COUNT, KERNEL, STRIDE, PADDING, DILATION = range(6)


@cuda.jit(device=True)
def begin(o, along, adaptive):
    """The first pixel of window o that lies inside."""
    if adaptive:
        return o * along[SIZE] // along[COUNT]
    start = o * along[STRIDE] - along[PADDING]
    if start < 0:
        start += (along[DILATION] - 1 - start) // along[DILATION] * along[DILATION]
    return start


@cuda.jit(device=True)
def end(o, along, adaptive):
    """One past the last pixel of window o."""
    if adaptive:
        return ((o + 1) * along[SIZE] + along[COUNT] - 1) // along[COUNT]
    reach = (along[KERNEL] - 1) * along[DILATION] + 1
    return min(o * along[STRIDE] - along[PADDING] + reach, along[SIZE])


@cuda.jit(device=True)
def first(i, along, adaptive):
    """The first window that can hold pixel i."""
    if adaptive:
        return i * along[COUNT] // along[SIZE]
    low = i + along[PADDING] - (along[KERNEL] - 1) * along[DILATION]
    return 0 if low <= 0 else (low + along[STRIDE] - 1) // along[STRIDE]


@cuda.jit(device=True)
def last(i, along, adaptive):
    """One past the last window that can hold pixel i."""
    if adaptive:
        return ((i + 1) * along[COUNT] - 1) // along[SIZE] + 1
    return min((i + along[PADDING]) // along[STRIDE] + 1, along[COUNT])


@cuda.jit(device=True)
def extent(o, along, adaptive, padded):
    """What the sum over window o is divided by, along this dimension."""
    if padded and not adaptive:
        start = o * along[STRIDE] - along[PADDING]
        return min(start + along[KERNEL], along[SIZE] + along[PADDING]) - start
    return end(o, along, adaptive) - begin(o, along, adaptive)


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
def max_pool_forward(x, y, indices, d, h, w, adaptive):
    for item in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, o, p, q, c = place(item, y.shape[4], y.shape[1], y.shape[2], y.shape[3])
        best, where = x.dtype.type(-float("inf")), -1
        for i in range(begin(o, d, adaptive), end(o, d, adaptive), d[DILATION]):
            for j in range(begin(p, h, adaptive), end(p, h, adaptive), h[DILATION]):
                for k in range(begin(q, w, adaptive), end(q, w, adaptive), w[DILATION]):
                    value = x[n, i, j, k, c]
                    if where < 0 or value > best or value != value:
                        best, where = value, (i * h[SIZE] + j) * w[SIZE] + k
        y[n, o, p, q, c] = best
        indices[n, o, p, q, c] = where


@cuda.jit
def max_pool_backward(grad, indices, out, d, h, w, adaptive):
    for item in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        n, i, j, k, c = place(item, out.shape[4], out.shape[1], out.shape[2], out.shape[3])
        pixel = (i * h[SIZE] + j) * w[SIZE] + k
        total = grad.dtype.type(0)
        for o in range(first(i, d, adaptive), last(i, d, adaptive)):
            for p in range(first(j, h, adaptive), last(j, h, adaptive)):
                for q in range(first(k, w, adaptive), last(k, w, adaptive)):
                    if indices[n, o, p, q, c] == pixel:
                        total += grad[n, o, p, q, c]
        out[n, i, j, k, c] = total


@cuda.jit
def avg_pool_forward(x, y, d, h, w, adaptive, padded, divisor):
    for item in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, o, p, q, c = place(item, y.shape[4], y.shape[1], y.shape[2], y.shape[3])
        total = x.dtype.type(0)
        for i in range(begin(o, d, adaptive), end(o, d, adaptive)):
            for j in range(begin(p, h, adaptive), end(p, h, adaptive)):
                for k in range(begin(q, w, adaptive), end(q, w, adaptive)):
                    total += x[n, i, j, k, c]
        over = divisor
        if over == 0:
            over = extent(o, d, adaptive, padded) * extent(p, h, adaptive, padded)
            over *= extent(q, w, adaptive, padded)
        y[n, o, p, q, c] = total / x.dtype.type(over)


@cuda.jit
def avg_pool_backward(grad, out, d, h, w, adaptive, padded, divisor):
    real = grad.dtype.type
    for item in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        n, i, j, k, c = place(item, out.shape[4], out.shape[1], out.shape[2], out.shape[3])
        total = real(0)
        for o in range(first(i, d, adaptive), last(i, d, adaptive)):
            for p in range(first(j, h, adaptive), last(j, h, adaptive)):
                plane = extent(o, d, adaptive, padded) * extent(p, h, adaptive, padded)
                for q in range(first(k, w, adaptive), last(k, w, adaptive)):
                    over = plane * extent(q, w, adaptive, padded) if divisor == 0 else divisor
                    total += grad[n, o, p, q, c] / real(over)
        out[n, i, j, k, c] = total
