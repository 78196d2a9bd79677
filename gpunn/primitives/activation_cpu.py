"""Activations in NumPy, large arrays piece by piece.

A formula of ten steps over memory takes five times as long as over a core's cache. It takes the
place of the plain reference of `activation`, whose arithmetic it calls. It lies in a file of its
own because it is no part of what a GPU runs: measurements made there stay valid.
"""

from __future__ import annotations

from gpunn.primitives.activation import activation_backward, activation_forward

_PART = 1 << 15  # elements of which all intermediate values stay in a core's cache
_forward = activation_forward._reference
_backward = activation_backward._reference


def _parts(*arrays):
    """The same piece of each array, one after the other."""
    size = arrays[0].size
    if size <= _PART or not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [[a[start : start + _PART] for a in flat] for start in range(0, size, _PART)]


@activation_forward.reference
def _(x, out, activation, alpha):
    for x_part, out_part in _parts(x, out):
        _forward(x_part, out_part, activation, alpha)


@activation_backward.reference
def _(grad_output, x, out, activation, alpha):
    for grad_part, x_part, out_part in _parts(grad_output, x, out):
        _backward(grad_part, x_part, out_part, activation, alpha)
