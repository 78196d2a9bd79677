"""Loops of depthwise convolutions in two dimensions: over the taps, with the channels innermost.

The input is (N, H, W, C) with its zeros around it: the place (h, w) of the output begins to read at
``(h step_h, w step_w)``, and the taps of a kernel lie ``far_h`` and ``far_w`` apart.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def forward(x, factor, width, step_h, step_w, far_h, far_w, out):
    """The factors are (taps, C), `width` to a row; the taps are added in turn."""
    channels, height = out.shape[3], factor.shape[0] // width
    for n in range(out.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                to = out[n, h, w]
                for i in range(height):
                    base, first, left = h * step_h + i * far_h, w * step_w, width
                    if i == 0:
                        a, f = x[n, base, first], factor[0]
                        for c in range(channels):
                            to[c] = a[c] * f[c]
                        left -= 1
                    while left >= 3:
                        j = width - left
                        t, at = i * width + j, first + j * far_w
                        a, b, d = x[n, base, at], x[n, base, at + far_w], x[n, base, at + 2 * far_w]
                        f, g, k = factor[t], factor[t + 1], factor[t + 2]
                        for c in range(channels):
                            to[c] = ((to[c] + a[c] * f[c]) + b[c] * g[c]) + d[c] * k[c]
                        left -= 3
                    while left > 0:
                        j = width - left
                        a, f = x[n, base, first + j * far_w], factor[i * width + j]
                        for c in range(channels):
                            to[c] += a[c] * f[c]
                        left -= 1


@compiled
def weight_gradient(x, grad, width, step_h, step_w, far_h, far_w, total):
    """Adds to `total` (taps, C) the gradient times what is under a tap, by rows of places."""
    channels, taps = grad.shape[3], total.shape[0]
    part = np.empty(channels, x.dtype)
    for n in range(grad.shape[0]):
        for h in range(grad.shape[1]):
            for t in range(taps):
                base, first = h * step_h + t // width * far_h, t % width * far_w
                part[:] = 0
                for w in range(grad.shape[2]):
                    a, g = x[n, base, first + w * step_w], grad[n, h, w]
                    for c in range(channels):
                        part[c] += a[c] * g[c]
                to = total[t]
                for c in range(channels):
                    to[c] += part[c]


@compiled
def input_gradient(grad, factor, width, step_h, step_w, far_h, far_w, low_h, low_w, out):
    """Of one image (H, W, C): each place's gradient times each factor, added to where it read."""
    channels = out.shape[2]
    out[:] = 0
    for h in range(grad.shape[0]):
        for w in range(grad.shape[1]):
            g = grad[h, w]
            for t in range(factor.shape[0]):
                y = h * step_h + t // width * far_h - low_h
                x = w * step_w + t % width * far_w - low_w
                if 0 <= y < out.shape[0] and 0 <= x < out.shape[1]:
                    to, f = out[y, x], factor[t]
                    for c in range(channels):
                        to[c] += g[c] * f[c]
