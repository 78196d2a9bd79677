"""Convolutions of channels-last arrays and their gradients: one element of the result a thread.

    forward(x, w, …, out)            y[n, i, o] = sum over k, c of x[n, place(i, k), c] w[o, k, c]
    input_gradient(g, w, …, out)     dx[n, j, c] = sum over o, and i, k whose place is j, of
                                     g[n, i, o] w[o, k, c]
    weight_gradient(g, x, …, out)    dw[o, k, c] = sum over n, i of g[n, i, o] x[n, place(i, k), c]

with place(i, k) = s i + d k - p. Arrays have three spatial dimensions z, y, x; the dots stand for
the stride s, the zeros in front p and the dilation d of each, and the number of groups.

Neighbouring threads make neighbouring channels, so their loads of what the channels have in common
are one load, and the others are neighbours in memory. Sums run in the order of the loops: the same
bits each time.

The limit is the number of loads, two a multiply-add, from the first-level cache. The CUDA C++
kernels gather tiles into shared memory instead and read each element once for 64 to 128 products.

The type of a sum is fixed when a kernel is compiled: there is one of each for float32 and float64,
with the type's name at the end.
"""

from numba import cuda, float32, float64

THREADS = 128  # of a block


@cuda.jit(device=True)
def _place(position, stride, padding, tap, dilation):
    return position * stride + tap * dilation - padding


@cuda.jit(device=True)
def _position(place, stride, padding, tap, dilation, size):
    """The output position whose tap meets a place of the input, or -1."""
    at = place + padding - tap * dilation
    if at < 0 or at % stride != 0 or at // stride >= size:
        return -1
    return at // stride


def _kernels(number):
    @cuda.jit
    def forward(x, w, sz, sy, sx, pz, py, px, dz, dy, dx, groups, out):
        each, outputs = w.shape[4], out.shape[4] // groups
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            o, rest = i % out.shape[4], i // out.shape[4]
            ox, rest = rest % out.shape[3], rest // out.shape[3]
            oy, rest = rest % out.shape[2], rest // out.shape[2]
            oz, n = rest % out.shape[1], rest // out.shape[1]
            first = o // outputs * each
            total = number(0)
            for kz in range(w.shape[1]):
                z = _place(oz, sz, pz, kz, dz)
                if z < 0 or z >= x.shape[1]:
                    continue
                for ky in range(w.shape[2]):
                    y = _place(oy, sy, py, ky, dy)
                    if y < 0 or y >= x.shape[2]:
                        continue
                    for kx in range(w.shape[3]):
                        across = _place(ox, sx, px, kx, dx)
                        if across < 0 or across >= x.shape[3]:
                            continue
                        for c in range(each):
                            total += x[n, z, y, across, first + c] * w[o, kz, ky, kx, c]
            out[n, oz, oy, ox, o] = total

    @cuda.jit
    def input_gradient(g, w, sz, sy, sx, pz, py, px, dz, dy, dx, groups, out):
        each, outputs = w.shape[4], g.shape[4] // groups
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            c, rest = i % out.shape[4], i // out.shape[4]
            across, rest = rest % out.shape[3], rest // out.shape[3]
            y, rest = rest % out.shape[2], rest // out.shape[2]
            z, n = rest % out.shape[1], rest // out.shape[1]
            first = c // each * outputs
            total = number(0)
            for kz in range(w.shape[1]):
                oz = _position(z, sz, pz, kz, dz, g.shape[1])
                if oz < 0:
                    continue
                for ky in range(w.shape[2]):
                    oy = _position(y, sy, py, ky, dy, g.shape[2])
                    if oy < 0:
                        continue
                    for kx in range(w.shape[3]):
                        ox = _position(across, sx, px, kx, dx, g.shape[3])
                        if ox < 0:
                            continue
                        for o in range(first, first + outputs):
                            total += g[n, oz, oy, ox, o] * w[o, kz, ky, kx, c % each]
            out[n, z, y, across, c] = total

    @cuda.jit
    def weight_gradient(g, x, sz, sy, sx, pz, py, px, dz, dy, dx, groups, out):
        each, outputs = out.shape[4], out.shape[0] // groups
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            c, rest = i % each, i // each
            kx, rest = rest % out.shape[3], rest // out.shape[3]
            ky, rest = rest % out.shape[2], rest // out.shape[2]
            kz, o = rest % out.shape[1], rest // out.shape[1]
            channel = o // outputs * each + c
            total = number(0)
            for n in range(g.shape[0]):
                for oz in range(g.shape[1]):
                    z = _place(oz, sz, pz, kz, dz)
                    if z < 0 or z >= x.shape[1]:
                        continue
                    for oy in range(g.shape[2]):
                        y = _place(oy, sy, py, ky, dy)
                        if y < 0 or y >= x.shape[2]:
                            continue
                        for ox in range(g.shape[3]):
                            across = _place(ox, sx, px, kx, dx)
                            if across >= 0 and across < x.shape[3]:
                                total += g[n, oz, oy, ox, o] * x[n, z, y, across, channel]
            out[o, kz, ky, kx, c] = total

    return forward, input_gradient, weight_gradient


forward_float32, input_gradient_float32, weight_gradient_float32 = _kernels(float32)
forward_float64, input_gradient_float64, weight_gradient_float64 = _kernels(float64)
