"""Parity samples and benchmark inputs of the weight updates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpunn.primitives import optimizer as updates
from gpunn.primitives import optimizer_reference
from gpunn.primitives.samples import (
    ELEMENTWISE_SHAPES,
    FLOAT64,
    FLOATING,
    Accumulator,
    Fixed,
    Sample,
)


def _hyper(rule: str, step: int, **values: float) -> Fixed:
    """`hyper` as `advance_step` leaves it for the step with this number."""
    hyper = updates.hyper_array(rule, step=step - 1, **values)
    optimizer_reference.advance_step(hyper, rule)
    return Fixed(hyper)


def _lengths(rng) -> Iterator[tuple[str, int, dict]]:
    """(name, length, further arguments of Sample): whole packs, tails, several blocks."""
    yield "1", 1, {}
    yield "3", 3, {}
    yield "64", 64, {"dtypes": FLOATING}
    yield "1001", 1001, {"dtypes": FLOATING}
    yield "5000", 5000, {"numba": False}
    yield "1003 unaligned", 1003, {"dtypes": FLOATING, "unaligned": True, "numba": False}


def _skipped(*args, **kwargs) -> Sample:
    """The sample of a step that is left out: every bit stays, whatever the gradients hold."""
    kwargs["skip"] = Fixed(np.ones(1, np.float32))
    return Sample("skipped", args, kwargs, exact=True)


def _values(rng, size) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=size), 0.1 * rng.normal(size=size)


def _square(rng, size) -> Accumulator:
    """A running mean of squares that is neither zero nor tiny."""
    return Accumulator(0.01 * rng.uniform(0.5, 2.0, size))


def _mean(rng, size) -> Accumulator:
    return Accumulator(0.03 * rng.normal(size=size))


# Gradients and parameters at the edge. Their squares stay within float32.
_EDGE = np.array([0.0, -0.0, 1e-30, -1e-42, 1e15, -1e15, np.inf, -np.inf, np.nan, 1.0, -3.0])


def _edges(states: int) -> tuple:
    """Arguments at the edge: each gradient above at a parameter of 0.5, and the other way round."""
    half = np.full_like(_EDGE, 0.5)
    zeros = [Accumulator(np.zeros(2 * _EDGE.size)) for _ in range(states)]
    return np.concatenate((half, _EDGE)), np.concatenate((_EDGE, half)), *zeros


@updates.advance_step.samples
def _(rng):
    for rule, names in updates.HYPER.items():
        for step in (0, 1, 999):
            hyper = rng.uniform(0.1, 0.95, len(names))
            hyper[names.index("step")] = step
            yield Sample(f"{rule} after {step}", (Fixed(hyper),), {"rule": rule}, (FLOAT64,))
    yield _skipped(Fixed(updates.hyper_array("adam", beta1=0.9)), rule="adam")


@updates.sgd_update.samples
def _(rng):
    values = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}
    for name, size, more in _lengths(rng):
        args = (*_values(rng, size), _mean(rng, size), _hyper("sgd", 7, **values))
        yield Sample(f"{name}, momentum", args, {"nesterov": size % 2 == 1}, **more)
        args = (*_values(rng, size), None, _hyper("sgd", 7, lr=0.1))
        yield Sample(f"{name}, plain", args, {"maximize": size == 3}, **more)
    args = (*_values(rng, 99), Accumulator(np.zeros(99)), _hyper("sgd", 1, **values))
    yield Sample("first step, maximize", args, {"maximize": True})
    yield Sample("edges", (*_edges(1), _hyper("sgd", 1, lr=0.1, momentum=0.5)))
    yield _skipped(*_edges(1), Fixed(updates.hyper_array("sgd", lr=0.1, momentum=0.5)))


@updates.adam_update.samples
def _(rng):
    values = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    for name, size, more in _lengths(rng):
        for decoupled in (False, True):
            state = _mean(rng, size), _square(rng, size)
            args = (*_values(rng, size), *state, _hyper("adam", 5, **values))
            kwargs = {"decoupled": decoupled, "maximize": size == 3}
            yield Sample(f"{name}, {'AdamW' if decoupled else 'Adam'}", args, kwargs, **more)
        state = _mean(rng, size), _square(rng, size)
        args = (*_values(rng, size), *state, _hyper("adam", 50, **values))
        yield Sample(f"{name}, AMSGrad", args, {"max_exp_avg_sq": _square(rng, size)}, **more)
    state = Accumulator(np.zeros(99)), Accumulator(np.zeros(99))
    yield Sample("first step", (*_values(rng, 99), *state, _hyper("adam", 1, **values)))
    yield Sample("step 100000", (*_values(rng, 99), *state, _hyper("adam", 100000, **values)))
    edges = _hyper("adam", 1, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
    yield Sample("edges", (*_edges(2), edges), {"decoupled": True})
    yield _skipped(*_edges(2), edges)


@updates.rmsprop_update.samples
def _(rng):
    values = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.9}
    for name, size, more in _lengths(rng):
        for momentum in (False, True):
            for centered in (False, True):
                buffer = _mean(rng, size) if momentum else None
                mean = _mean(rng, size) if centered else None
                state = _square(rng, size), buffer, mean, _hyper("rmsprop", 5, **values)
                label = f"{name}{', momentum' * momentum}{', centered' * centered}"
                kwargs = {"maximize": size == 3}
                yield Sample(label, (*_values(rng, size), *state), kwargs, **more)
    parameters, gradients, square = _edges(1)
    hyper = _hyper("rmsprop", 1, lr=0.01, alpha=0.9, eps=1e-8)
    yield Sample("edges", (parameters, gradients, square, None, None, hyper))
    yield _skipped(parameters, gradients, square, None, None, hyper)
    # v = a² exactly: the difference may come out below zero.
    constant = np.full(50, 0.3)
    state = Accumulator(constant**2), None, Accumulator(constant)
    hyper = _hyper("rmsprop", 9, lr=1e-3, alpha=0.99, eps=1.0)
    yield Sample("centered, no variance", (constant, constant, *state, hyper))


@updates.adagrad_update.samples
def _(rng):
    values = {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "eps": 1e-10}
    for name, size, more in _lengths(rng):
        args = (*_values(rng, size), _square(rng, size), _hyper("adagrad", 5, **values))
        yield Sample(name, args, {"maximize": size == 3}, **more)
    yield Sample("edges", (*_edges(1), _hyper("adagrad", 1, lr=0.1, eps=1e-10)))
    yield _skipped(*_edges(1), _hyper("adagrad", 1, lr=0.1, eps=1e-10))


@updates.lion_update.samples
def _(rng):
    values = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    for name, size, more in _lengths(rng):
        args = (*_values(rng, size), _mean(rng, size), _hyper("lion", 5, **values))
        yield Sample(name, args, {"maximize": size == 3}, **more)
    yield Sample("edges", (*_edges(1), _hyper("lion", 1, lr=0.1, beta1=0.9, beta2=0.99)))
    yield _skipped(*_edges(1), _hyper("lion", 1, lr=0.1, beta1=0.9, beta2=0.99))


# ---- benchmark inputs ----------------------------------------------------------------------------


def _random(rng, shape, count: int) -> list[np.ndarray]:
    return list(0.1 * rng.standard_normal((count, *shape), dtype=np.float32))


@updates.advance_step.inputs
def _(rng, shape):
    values = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    return (updates.hyper_array("adam", **values),), {"rule": "adam"}


@updates.sgd_update.inputs
def _(rng, shape):
    hyper = _hyper("sgd", 2, lr=1e-3, momentum=0.9).array
    return (*_random(rng, shape, 3), hyper), {}


@updates.adam_update.inputs
def _(rng, shape):
    parameters, gradients, mean, square = _random(rng, shape, 4)
    values = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    hyper = _hyper("adam", 2, **values).array
    return (parameters, gradients, mean, np.abs(square), hyper), {"decoupled": True}


@updates.rmsprop_update.inputs
def _(rng, shape):
    parameters, gradients, square = _random(rng, shape, 3)
    hyper = _hyper("rmsprop", 2, lr=1e-3, alpha=0.99, eps=1e-8).array
    return (parameters, gradients, np.abs(square), None, None, hyper), {}


@updates.adagrad_update.inputs
def _(rng, shape):
    parameters, gradients, total = _random(rng, shape, 3)
    hyper = _hyper("adagrad", 2, lr=1e-3, eps=1e-10).array
    return (parameters, gradients, np.abs(total), hyper), {}


@updates.lion_update.inputs
def _(rng, shape):
    hyper = _hyper("lion", 2, lr=1e-3, beta1=0.9, beta2=0.99).array
    return (*_random(rng, shape, 3), hyper), {}


updates.advance_step.bench_shapes = ((1,),)
for _made in (
    updates.sgd_update,
    updates.adam_update,
    updates.rmsprop_update,
    updates.adagrad_update,
    updates.lion_update,
):
    _made.bench_shapes = ELEMENTWISE_SHAPES
