"""Making tensors: from data, filled, counted, random."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.dtypes import as_dtype, float32, is_float
from gpunn.autograd.functions.common import sizes
from gpunn.autograd.random import Generator, default_generator
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import (
    array_module,
    as_array,
    as_device,
    device_of,
    to_device,
)
from gpunn.device import (
    empty as empty_array,
)
from gpunn.primitives import random as primitives


def _finish(array, requires_grad: bool) -> Tensor:
    tensor = wrap(array)
    if requires_grad:
        tensor.requires_grad = True
    return tensor


def tensor(data: Any, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A new Tensor with a copy of `data`: numbers, nested lists, arrays of any library, Tensors.

    Python floats become float32, ints int64, bools bool; arrays keep their dtype. `device` None is
    the default device.

    Raises ValueError for ragged lists, TypeError for what holds no numbers.
    """
    array = raw_array(data, None if dtype is None else as_dtype(dtype))
    moved = to_device(array, as_device(device))
    if isinstance(data, (np.ndarray, Tensor)) or hasattr(data, "__dlpack_device__"):
        if moved is array:
            moved = moved.copy(order="C")
    return _finish(moved, requires_grad)


def as_tensor(data: Any, dtype=None, device=None) -> Tensor:
    """`data` as a Tensor, without a copy where none is needed; a Tensor that fits is itself."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if device is None and not (hasattr(data, "__dlpack_device__") or isinstance(data, np.ndarray)):
        device = as_device(None)
    return wrap(raw_array(data, None if dtype is None else as_dtype(dtype), device))


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A Tensor on the memory of a NumPy array; copied to the default device if that is a GPU."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(ndarray).__name__}")
    return wrap(to_device(raw_array(ndarray), as_device(None)))


def from_dlpack(source: Any) -> Tensor:
    """A Tensor on the memory of another library's array, on the CPU or a GPU."""
    return wrap(as_array(source))


def empty(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """An uninitialised tensor of `size`."""
    array = empty_array(sizes(size), as_dtype(dtype or float32), as_device(device))
    return _finish(array, requires_grad)


def full(size, fill_value, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of `size` filled with one value, whose Python type gives the dtype by default."""
    if dtype is None:
        kind = type(fill_value)
        dtype = np.bool_ if kind is bool else np.int64 if kind is int else float32
    size = (size,) if isinstance(size, int) else size
    made = empty(*size, dtype=dtype, device=device)
    made._array[...] = fill_value
    return made.requires_grad_() if requires_grad else made


def zeros(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 unless told otherwise."""
    return full(sizes(size), 0, dtype=dtype or float32, device=device, requires_grad=requires_grad)


def ones(*size, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 unless told otherwise."""
    return full(sizes(size), 1, dtype=dtype or float32, device=device, requires_grad=requires_grad)


def _like(input: Tensor, dtype, device) -> dict[str, Any]:
    return {"dtype": dtype or input.dtype, "device": device or input.device}


def empty_like(input: Tensor, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """An uninitialised tensor with the shape, dtype and device of `input`."""
    return empty(*input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


def zeros_like(input: Tensor, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Zeros with the shape, dtype and device of `input`."""
    return zeros(*input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


def ones_like(input: Tensor, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """Ones with the shape, dtype and device of `input`."""
    return ones(*input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


def full_like(
    input: Tensor, fill_value, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """One value in the shape, dtype and device of `input`."""
    options = _like(input, dtype, device)
    return full(input.shape, fill_value, requires_grad=requires_grad, **options)


def new_tensor(input: Tensor, data: Any, *, dtype=None, device=None, requires_grad=False) -> Tensor:
    """A tensor of `data` with the dtype and device of `input`."""
    return tensor(data, requires_grad=requires_grad, **_like(input, dtype, device))


def new_empty(input: Tensor, *size, dtype=None, device=None, requires_grad=False) -> Tensor:
    """An uninitialised tensor of `size` with the dtype and device of `input`."""
    return empty(*size, requires_grad=requires_grad, **_like(input, dtype, device))


def new_full(
    input: Tensor, size, fill_value, *, dtype=None, device=None, requires_grad=False
) -> Tensor:
    """One value in `size` with the dtype and device of `input`."""
    return full(size, fill_value, requires_grad=requires_grad, **_like(input, dtype, device))


def new_zeros(input: Tensor, *size, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Zeros of `size` with the dtype and device of `input`."""
    return zeros(*size, requires_grad=requires_grad, **_like(input, dtype, device))


def new_ones(input: Tensor, *size, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Ones of `size` with the dtype and device of `input`."""
    return ones(*size, requires_grad=requires_grad, **_like(input, dtype, device))


def arange(
    start, end=None, step=1, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """start, start + step, … below end; int64 if all are ints, else float32."""
    if end is None:
        start, end = 0, start
    if dtype is None:
        whole = all(isinstance(value, (int, np.integer)) for value in (start, end, step))
        dtype = np.int64 if whole else float32
    if as_dtype(dtype).kind in "iu":  # where the values are exact they are made on the device
        made = array_module(as_device(device)).arange(start, end, step, as_dtype(dtype))
        return _finish(made, requires_grad)
    return _finish(_placed(np.arange(start, end, step), dtype, device), requires_grad)


def linspace(
    start: float, end: float, steps: int, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """`steps` values from start to end, both included."""
    return _finish(_placed(np.linspace(start, end, steps), dtype or float32, device), requires_grad)


def eye(n: int, m: int | None = None, *, dtype=None, device=None, requires_grad=False) -> Tensor:
    """The identity matrix, (n, m) with ones on the diagonal."""
    return _finish(_placed(np.eye(n, m), dtype or float32, device), requires_grad)


def _placed(array: np.ndarray, dtype, device):
    return to_device(array.astype(as_dtype(dtype), copy=False), as_device(device))


# ---- random --------------------------------------------------------------------------------------


def fill_random(array, kind: str, generator: Generator | None, first: float, second: float) -> None:
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


def _random(kind, size, dtype, device, requires_grad, generator, first=0.0, second=1.0) -> Tensor:
    dtype = as_dtype(dtype or float32)
    if not is_float(dtype):
        raise TypeError(f"random: dtype {dtype} is not floating; use randint for integers")
    made = empty(*sizes(size), dtype=dtype, device=device)
    fill_random(made._array, kind, generator, first, second)
    return made.requires_grad_() if requires_grad else made


def rand(*size, dtype=None, device=None, requires_grad=False, generator=None) -> Tensor:
    """Uniform numbers from [0, 1)."""
    return _random("uniform", size, dtype, device, requires_grad, generator)


def randn(*size, dtype=None, device=None, requires_grad=False, generator=None) -> Tensor:
    """Normal numbers with mean 0 and standard deviation 1."""
    return _random("normal", size, dtype, device, requires_grad, generator)


def normal(mean: float, std: float, size, *, dtype=None, device=None, generator=None) -> Tensor:
    """Normal numbers of a mean and a standard deviation."""
    return _random("normal", size, dtype, device, False, generator, mean, std)


def rand_like(input: Tensor, *, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Uniform numbers from [0, 1) with the shape, dtype and device of `input`."""
    return rand(*input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


def randn_like(input: Tensor, *, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of `input`."""
    return randn(*input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


def _words(count: int, device, generator: Generator | None):
    """`count` random uint64 numbers."""
    words = empty_array((2 * count,), np.uint32, device)
    draw = (generator or default_generator).draw(device)
    primitives.random_bits(words, **draw._asdict())
    return words.view(np.uint64)


def randint(
    low: int, high=None, size=None, *, dtype=None, device=None, requires_grad=False, generator=None
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
    size, device = sizes((size,)), as_device(device)
    count = int(np.prod(size, dtype=np.int64))
    words = _words(count, device, generator) % np.uint64(high - low)
    values = (words.astype(np.int64) + low).reshape(size)
    return _finish(values.astype(as_dtype(dtype or np.int64), copy=False), requires_grad)


def randperm(n: int, *, dtype=None, device=None, generator=None) -> Tensor:
    """The integers 0 … n - 1 in random order, the same order for a seed on every device."""
    order = np.argsort(_words(n, as_device("cpu"), generator), kind="stable")
    return wrap(_placed(order, dtype or np.int64, device))


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that `input` holds at each place, else 0; no gradient."""
    draws = rand(*input.shape, device=input.device, generator=generator)
    return wrap(
        (draws._array < array_module(input.device).asarray(input._array)).astype(input.dtype)
    )


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator=None
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
