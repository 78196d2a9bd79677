"""Parity samples and benchmark inputs of the random primitives."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.random import (
    advance_counter,
    dropout,
    random_bits,
    random_normal,
    random_uniform,
)
from gpunn.primitives.samples import ELEMENTWISE_SHAPES, FLOATING, Fixed, Sample


def _known_answers():
    """Counter and key of the test vectors that come with the authors' Random123 library."""
    yield "zeros", 0, 0, 0
    yield "ones", (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1
    yield "digits of pi", 0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88


def _outputs(dtypes):
    """Samples' (name, shape, dtypes, what differs from the usual): tails, views, many elements."""
    first = dtypes[:1]
    yield "one element", (1,), first, {}
    yield "no axis", (), first, {}
    yield "nothing", (0, 3), first, {}
    yield "odd 7x13", (7, 13), dtypes, {}
    yield "4096", (4096,), dtypes, {"numba": False}
    yield "unaligned 45", (45,), dtypes, {"unaligned": True}
    yield "more than a grid", (70001,), first, {"numba": False}


_SEED = {"seed": 0x1234_5678_9ABC_DEF0, "offset": (1 << 40) + 7}
# The same numbers in the same places, but the seed and most of the offset in device memory.
_COUNTED = {
    "seed": 0, "offset": 7,
    "counter": Fixed(np.array([_SEED["seed"], 1 << 40], np.uint64)),
}  # fmt: skip
_FLOATING = (np.dtype(np.float32), *(d for d in FLOATING if d != np.float32))


@random_bits.samples
def _(rng):
    for name, seed, offset, block in _known_answers():
        arguments = {"seed": seed, "offset": offset, "first_block": block}
        yield Sample(f"known answer, {name}", (np.zeros(9, np.uint32),), arguments)
    arguments = {"seed": 1, "first_block": (1 << 32) - 2}
    yield Sample("carry into the second word", (np.zeros(16, np.uint32),), arguments)
    for name, shape, _, more in _outputs(_FLOATING[:1]):
        yield Sample(name, (np.zeros(shape, np.uint32),), _SEED, **more)
    end = Fixed(np.array([5, (1 << 64) - 2], np.uint64))  # the sum of the offsets is 1
    arguments = {"seed": 9, "offset": 3, "counter": end}
    yield Sample("a counter near its end", (np.zeros(9, np.uint32),), arguments)


def _fill_samples(**options):
    for name, shape, dtypes, more in _outputs(_FLOATING):
        yield Sample(name, (np.zeros(shape),), _SEED, dtypes, exact=True, **more)
    for name, values in options.items():
        arguments = _COUNTED | values
        yield Sample(name, (np.zeros(99),), arguments, _FLOATING, exact=True)


@random_uniform.samples
def _(rng):
    return _fill_samples(interval={"low": -0.3, "high": 1.7}, point={"low": 0.1, "high": 0.1})


@random_normal.samples
def _(rng):
    return _fill_samples(scaled={"mean": -0.3, "std": 0.07}, constant={"mean": 0.1, "std": 0.0})


@dropout.samples
def _(rng):
    for name, shape, dtypes, more in _outputs(_FLOATING):
        arguments = _SEED | {"p": 0.3}
        x = rng.normal(size=shape)
        yield Sample(name, (np.asarray(x),), arguments, dtypes, exact=True, **more)
    for p in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0):
        yield Sample(
            f"p = {p}", (rng.normal(size=99),), _SEED | {"p": p}, _FLOATING, exact=True
        )
    special = np.tile([np.nan, np.inf, -np.inf, -0.0, 1e-310, 1e-40, 6e-8, 6e4, 3e38, 1.7e308], 3)
    arguments = _COUNTED | {"p": 0.5}
    yield Sample("not finite, tiny and huge", (special,), arguments, _FLOATING, exact=True)
    view = rng.normal(size=(9, 22))[:, ::2]
    yield Sample("strided view", (view,), arguments, exact=True)


@advance_counter.samples
def _(rng):
    for seed, offset, draws in ((3, 5, 0), (1, (1 << 32) - 1, 2), (1 << 63, (1 << 64) - 1, 7)):
        counter = Fixed(np.array([seed, offset], np.uint64))
        yield Sample(f"{offset} + {draws}", (counter,), {"draws": draws}, exact=True)


@random_bits.inputs
def _(rng, shape):
    return (np.empty(shape, np.uint32),), {"seed": 0}


@random_uniform.inputs
def _(rng, shape):
    return (np.empty(shape, np.float32),), {"seed": 0}


@random_normal.inputs
def _(rng, shape):
    return (np.empty(shape, np.float32),), {"seed": 0}


@dropout.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {"p": 0.1, "seed": 0}


@advance_counter.inputs
def _(rng, shape):
    return (np.zeros(2, np.uint64),), {"draws": 1}


advance_counter.bench_shapes = ((1,),)
for _made in (random_bits, random_uniform, random_normal, dropout):
    _made.bench_shapes = ELEMENTWISE_SHAPES
