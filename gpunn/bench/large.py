"""Arrays of more than 2^31 elements: offsets that a 32-bit integer cannot hold.

The whole result would take the reference minutes, so only spans are compared: the beginning, the
places where a signed or an unsigned 32-bit offset would wrap around, and the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpunn import kernels
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.device.probe import import_cupy
from gpunn.primitives import parity

CHECKS: dict[str, tuple[float, Callable]] = {}
SPAN = 1024
COLUMNS = 2048
# The sums of this file add up in the same order of magnitude as their reference.
BOUNDS = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 1e-5}


def large_check(bytes_per_element: float) -> Callable:
    """Add a check: function(n, device) yields (what, got, expected) for n elements."""

    def add(function: Callable) -> Callable:
        CHECKS[function.__name__] = (bytes_per_element, function)
        return function

    return add


def check(name: str, device: Device, elements: int) -> dict:
    """Run one check with about that many elements."""
    per_element, function = CHECKS[name]
    if device.type == "cuda":
        with device.activate():
            free = import_cupy().cuda.runtime.memGetInfo()[0]
        needed = per_element * elements
        if needed > 0.9 * free:
            text = f"not run: needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
            return {"passed": True, "checked": 0, "failures": [], "note": text}
    failures, checked = [], 0
    for what, got, expected in function(elements, device):
        checked += 1
        got = arrays.to_numpy(got)
        bound = BOUNDS.get(got.dtype, 0.0)
        _, reason = parity.compare(got, np.asarray(expected), bound)
        if reason:
            failures.append({"case": what, "reason": reason})
    return {"passed": not failures, "checked": checked, "failures": failures, "elements": elements}


def spans(n: int, width: int = SPAN) -> Iterator[slice]:
    """Where to look in n elements; starts are multiples of 4."""
    wanted = [0, (1 << 31) - width // 2, (1 << 32) - width // 2, n - width]
    for start in sorted({max(0, s) // 4 * 4 for s in wanted if s < n}):
        yield slice(start, min(n, start + width))


def _random(n: int, dtype, device: Device, seed: int):
    return kernels.random_normal(arrays.empty((n,), dtype, device), seed=seed)


def _wide(array) -> np.ndarray:
    return arrays.to_numpy(array).astype(np.float64)


@large_check(4)
def activation_forward(n: int, device: Device):
    x = _random(n, np.float16, device, 1)
    y = kernels.activation_forward(x, activation="silu")
    for at in spans(n):
        yield f"{at}", y[at], kernels.activation_forward(_wide(x[at]), activation="silu")


@large_check(4)
def softmax_forward(n: int, device: Device):
    x = _random(n // COLUMNS * COLUMNS, np.float16, device, 2).reshape(-1, COLUMNS)
    y = kernels.softmax_forward(x)
    for at in spans(len(x), 1):
        yield f"row {at.start}", y[at], kernels.softmax_forward(_wide(x[at]))


@large_check(2.1)
def reduce_sum(n: int, device: Device):
    x = _random(n // COLUMNS * COLUMNS, np.float16, device, 3).reshape(-1, COLUMNS)
    total = kernels.reduce_sum(x, axis=1)
    for at in spans(len(x), 8):
        yield f"rows {at}", total[at], kernels.reduce_sum(_wide(x[at]), axis=1)


@large_check(2.2)
def matmul(n: int, device: Device):
    a = _random(n // COLUMNS * COLUMNS, np.float16, device, 4).reshape(-1, COLUMNS)
    b = _random(COLUMNS * 16, np.float16, device, 5).reshape(COLUMNS, 16)
    c = kernels.matmul(a, b)
    for at in spans(len(a), 8):
        yield f"rows {at}", c[at], _wide(a[at]) @ _wide(b)


@large_check(16)
def adam_update(n: int, device: Device):
    xp = arrays.array_module(device)
    arrays_ = [_random(n, np.float32, device, seed) for seed in (6, 7, 8, 9)]
    xp.abs(arrays_[3], out=arrays_[3])
    hyper = np.array([1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0, 0])
    kernels.advance_step(hyper, rule="adam")
    before = [[_wide(a[at]) for a in arrays_] for at in spans(n)]
    kernels.adam_update(*arrays_, xp.asarray(hyper), decoupled=True)
    for at, wide in zip(spans(n), before, strict=True):
        kernels.adam_update(*wide, hyper, decoupled=True)
        for name, got, expected in zip(("parameters", "", "mean", "square"), arrays_, wide,
                                       strict=True):  # fmt: skip
            if name:
                yield f"{name} {at}", got[at], expected


@large_check(4)
def random_bits(n: int, device: Device):
    out = kernels.random_bits(arrays.empty((n,), np.uint32, device), seed=10)
    for at in spans(n):
        expected = np.empty(at.stop - at.start, np.uint32)
        yield f"{at}", out[at], kernels.random_bits(expected, seed=10, first_block=at.start // 4)
