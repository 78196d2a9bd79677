"""What an LSTM's step does beside its product and tanh, in as few passes as these leave.

Arrays of a step: gates are (rows, 4 hidden) in the order i, f, g, o; all else is (rows, hidden).
NumPy's tanh works on vectors and a compiled one would not, so the loops end where it comes in. Each
number is computed as the NumPy implementation does it.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def lstm_gates(gates, product, bias, factor, out):
    """What tanh is taken of: ``gates * factor + (product + bias)``."""
    for r in range(out.shape[0]):
        a, b, to = gates[r], product[r], out[r]
        for k in range(out.shape[1]):
            to[k] = a[k] * factor[k] + (b[k] + bias[k])


@compiled
def lstm_state(gate, c, copy):
    """From tanh to the activated gates, and the new state: in place, and once more to `copy`."""
    hidden, half = c.shape[1], c.dtype.type(0.5)
    for r in range(c.shape[0]):
        i, f, g = gate[r, :hidden], gate[r, hidden : 2 * hidden], gate[r, 2 * hidden : 3 * hidden]
        o, state, to = gate[r, 3 * hidden :], c[r], copy[r]
        for k in range(hidden):
            i[k] = i[k] * half + half
            f[k] = f[k] * half + half
            o[k] = o[k] * half + half
            state[k] = f[k] * state[k] + i[k] * g[k]
            to[k] = state[k]


@compiled
def lstm_output(gate, inner, h):
    """``h = o * tanh(c)``; `inner` is the tanh."""
    hidden = h.shape[1]
    for r in range(h.shape[0]):
        o, a, to = gate[r, 3 * hidden :], inner[r], h[r]
        for k in range(hidden):
            to[k] = o[k] * a[k]


@compiled
def lstm_backward(gate, inner, c_before, grad_h, grad_c, out):
    """The gradient by the gates before activation, and grad_c for the step before.

    `inner` is tanh(c). `out` may be `gate`: a row is made beside it.
    """
    hidden, one = grad_h.shape[1], grad_h.dtype.type(1)
    row = np.empty(4 * hidden, out.dtype)
    to_i, to_f = row[:hidden], row[hidden : 2 * hidden]
    to_g, to_o = row[2 * hidden : 3 * hidden], row[3 * hidden :]
    for r in range(grad_h.shape[0]):
        i, f, g = gate[r, :hidden], gate[r, hidden : 2 * hidden], gate[r, 2 * hidden : 3 * hidden]
        o, a, before = gate[r, 3 * hidden :], inner[r], c_before[r]
        by_h, by_c, to = grad_h[r], grad_c[r], out[r]
        for k in range(hidden):
            to_o[k] = ((one - o[k]) * o[k]) * (by_h[k] * a[k])
            total = by_c[k] + (one - a[k] * a[k]) * (by_h[k] * o[k])
            to_i[k] = ((one - i[k]) * i[k]) * (total * g[k])
            to_f[k] = ((one - f[k]) * f[k]) * (total * before[k])
            to_g[k] = (one - g[k] * g[k]) * (total * i[k])
            by_c[k] = total * f[k]
        for k in range(4 * hidden):
            to[k] = row[k]
