"""New tensors of random numbers: rand, randn, normal, randint, randperm, bernoulli, multinomial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike, Size
from gpunn.autograd.creation import empty, finished, like, placed
from gpunn.autograd.dtypes import as_dtype, float32, is_float
from gpunn.autograd.functions.common import sizes
from gpunn.autograd.random import Generator, default_generator
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, as_device, device_of, to_device
from gpunn.device import empty as empty_array
from gpunn.primitives import random as primitives


def fill_random(
    array: Any, kind: str, generator: Generator | None, first: float, second: float
) -> None:
    """Fill `array` with "uniform" numbers from [first, second) or "normal" (mean, std) ones."""
    draw = (generator or default_generator).draw(device_of(array))._asdict()
    target = array
    if not array.flags.c_contiguous:
        target = empty_array(array.shape, array.dtype, device_of(array))
    if kind == "uniform":
        primitives.random_uniform(target, **draw, low=first, high=second)
    else:
        primitives.random_normal(target, **draw, mean=first, std=second)
    if target is not array:
        array[...] = target


def _random(
    kind: Any,
    size: Sequence[Size],
    dtype: DTypeLike,
    device: DeviceLike,
    requires_grad: bool,
    generator: Generator | None,
    first: float = 0.0,
    second: float = 1.0,
) -> Tensor:
    dtype = as_dtype(dtype or float32)
    if not is_float(dtype):
        raise TypeError(f"random: dtype {dtype} is not floating; use randint for integers")
    made = empty(*sizes(size), dtype=dtype, device=device)
    fill_random(made._array, kind, generator, first, second)
    return made.requires_grad_() if requires_grad else made


def rand(
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform numbers from [0, 1)."""
    return _random("uniform", size, dtype, device, requires_grad, generator)


def randn(
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Normal numbers with mean 0 and standard deviation 1."""
    return _random("normal", size, dtype, device, requires_grad, generator)


def normal(
    mean: float,
    std: float,
    size: Any,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal numbers of a mean and a standard deviation."""
    return _random("normal", size, dtype, device, False, generator, mean, std)


def rand_like(
    input: Tensor,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers from [0, 1) with the shape, dtype and device of `input`."""
    return rand(*input.shape, requires_grad=requires_grad, **like(input, dtype, device))


def randn_like(
    input: Tensor,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of `input`."""
    return randn(*input.shape, requires_grad=requires_grad, **like(input, dtype, device))


def _words(count: int, device: DeviceLike, generator: Generator | None) -> Any:
    """`count` random uint64 numbers."""
    words = empty_array((2 * count,), np.uint32, device)
    draw = (generator or default_generator).draw(device)
    primitives.random_bits(words, **draw._asdict())
    return words.view(np.uint64)


def randint(
    low: int,
    high: Any = None,
    size: Size | None = None,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Integers from low to high - 1: ``randint(high, size)`` or ``randint(low, high, size)``.

    Drawn as 64 random bits modulo the range (a bias below range / 2^64). Raises ValueError for an
    empty range.
    """
    if size is None:
        low, high, size = 0, low, high
    if high <= low:
        raise ValueError(
            f"randint: the range from {low} to {high} is empty; high must be above low"
        )
    shape = sizes((size,))
    count = int(np.prod(shape, dtype=np.int64))
    words = _words(count, as_device(device), generator) % np.uint64(high - low)
    values = (words.astype(np.int64) + low).reshape(shape)
    return finished(values.astype(as_dtype(dtype or np.int64), copy=False), requires_grad)


def randperm(
    n: int,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    generator: Generator | None = None,
) -> Tensor:
    """The integers 0 … n - 1 in random order, the same order for a seed on every device."""
    order = np.argsort(_words(n, as_device("cpu"), generator), kind="stable")
    return wrap(placed(order, dtype or np.int64, device))


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that `input` holds at each place, else 0; no gradient."""
    draws = rand(*input.shape, device=input.device, generator=generator)
    return wrap(
        (draws._array < array_module(input.device).asarray(input._array)).astype(input.dtype)
    )


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Indices drawn by the weights in the last dimension of `input` ((C,) or (N, C)), int64.

    Raises ValueError for negative or all-zero weights, or too few of them without replacement.
    """
    weights = np.atleast_2d(input.detach().cpu().numpy().astype(np.float64))
    total = weights.sum(axis=1, keepdims=True)
    if (weights < 0).any() or not np.isfinite(total).all() or (total <= 0).any():
        raise ValueError("multinomial: weights must be finite, not negative, and not all zero")
    if not replacement and ((weights > 0).sum(axis=1) < num_samples).any():
        raise ValueError(
            f"multinomial: {num_samples} samples without replacement need as many positive weights"
        )
    shape = (len(weights), num_samples if replacement else weights.shape[1])
    draws = rand(*shape, dtype=np.float64, device="cpu", generator=generator)._array
    if replacement:
        edges = np.cumsum(weights / total, axis=1)
        edges[:, -1] = 1.0
        found = np.stack(
            [np.searchsorted(e, d, "right") for e, d in zip(edges, draws, strict=True)]
        )
    else:  # the largest of u^(1/w) are a weighted sample (Efraimidis and Spirakis, 2006)
        with np.errstate(divide="ignore"):
            keys = np.where(weights > 0, np.log(draws) / weights, -np.inf)
        found = np.argsort(-keys, axis=1, kind="stable")[:, :num_samples]
    found = found.astype(np.int64)
    return wrap(to_device(found if input.ndim > 1 else found[0], input.device))
