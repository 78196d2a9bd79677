"""Whether a captured graph does what a call does, on every primitive."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.bench.cases import Case, workload
from gpunn.bench.timing import Contestant, captured, clock_for
from gpunn.device import arrays
from gpunn.device.device import Device


def check(item: dict, device: Device) -> dict:
    """A captured graph gives what the call gives, bit for bit; so does the call again."""
    made = gpunn.kernels.table()[item["primitive"]]
    shape = tuple(min(n, 128) for n in item["shape"])
    with clock_for(device) as clock:
        work = workload(Case(made.name, shape, "float32"), device, copies=2)
        # Two equal sets: primitives that work in place change the set that they are given.
        first, second = work.sets
        _same_start(first, second)
        direct = _everything(first, first.call(made))
        if device.type == "cpu":
            again = _everything(second, second.call(made))
            return _compare_bits(direct, again, "called again on a CPU, which has no graphs")
        kept: list[Any] = []
        contestant = Contestant(made.name, lambda i: kept.append(second.call(made)))
        before = [arrays.to_numpy(v) for v in _arrays(second)]
        captured_graph = captured(contestant, clock, 1)
        for value, old in zip(_arrays(second), before, strict=True):
            value.set(old)
        captured_graph.run(0)
        clock.synchronize()
        return _compare_bits(direct, _everything(second, kept[-1]), "replayed from a graph")


def _arrays(inputs) -> list:
    values = [*inputs.args, *inputs.kwargs.values(), inputs.out]
    return [value for value in values if hasattr(value, "shape")]


def _same_start(first, second) -> None:
    for a, b in zip(_arrays(first), _arrays(second), strict=True):
        b[...] = a


def _everything(inputs, result) -> list[np.ndarray]:
    results = result if isinstance(result, tuple) else (result,)
    found = [*_arrays(inputs), *(r for r in results if hasattr(r, "shape"))]
    return [arrays.to_numpy(value).copy() for value in found]


def _compare_bits(a: list[np.ndarray], b: list[np.ndarray], how: str) -> dict:
    differ = sum(x.tobytes() != y.tobytes() for x, y in zip(a, b, strict=True))
    failures = [{"case": how, "reason": f"{differ} of {len(a)} arrays differ"}] if differ else []
    return {"passed": not differ, "checked": 1, "failures": failures, "how": how}
