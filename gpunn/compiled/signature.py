"""What makes two calls of a step alike: the shapes of its Tensors and the values of all else."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, wrap
from gpunn.errors import StepError

_VALUES = (int, float, complex, str, bytes, bool, type(None), np.dtype, np.generic)


def split(name: str, args: tuple, kwargs: dict) -> tuple[list[Tensor], Any]:
    """(the Tensors among the arguments, the signature of all), in a fixed order.

    Raises StepError for an argument that is neither a Tensor nor a plain value, nor a tuple, list
    or dict of such.
    """
    tensors: list[Tensor] = []
    key = [_key(name, f"argument {i}", value, tensors) for i, value in enumerate(args)]
    for word in sorted(kwargs):
        key.append((word, _key(name, word, kwargs[word], tensors)))
    return tensors, tuple(key)


def _key(name: str, where: str, value: Any, tensors: list) -> Any:
    if isinstance(value, Tensor):
        array = value._array
        tensors.append(value)
        kind = "cpu" if type(array) is np.ndarray else str(value.device)
        return (kind, array.shape, array.dtype.num, array.strides, value._requires_grad)
    if isinstance(value, (tuple, list)):
        inner = tuple(_key(name, where, part, tensors) for part in value)
        return (type(value).__name__, inner)
    if isinstance(value, dict):
        inner = tuple((word, _key(name, where, value[word], tensors)) for word in sorted(value))
        return ("dict", inner)
    if isinstance(value, _VALUES):
        return (type(value), value)
    remedy = "gpunn.tensor(array)" if isinstance(value, np.ndarray) else "a Tensor or a number"
    raise StepError(
        f"compiled step {name}: {where} is {type(value).__name__}, which can be neither copied "
        f"into place nor compared; give {remedy}"
    )


def rebuild(args: tuple, kwargs: dict, tensors: list[Tensor]) -> tuple[tuple, dict]:
    """The arguments with other Tensors, in the order of `split`."""
    remaining = iter(tensors)
    new_args = tuple(_replace(value, remaining) for value in args)
    new_kwargs = {word: _replace(kwargs[word], remaining) for word in sorted(kwargs)}
    return new_args, new_kwargs


def _replace(value: Any, remaining: Any) -> Any:
    if isinstance(value, Tensor):
        return next(remaining)
    if isinstance(value, (tuple, list)):
        return type(value)(_replace(part, remaining) for part in value)
    if isinstance(value, dict):
        replaced = {word: _replace(value[word], remaining) for word in sorted(value)}
        return {word: replaced[word] for word in value}
    return value


def map_tensors(value: Any, function: Any) -> Any:
    """A result with `function` applied to each Tensor in it; tuples, lists and dicts stay."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, function) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(part, function) for part in value)
    if isinstance(value, dict):
        return {word: map_tensors(part, function) for word, part in value.items()}
    return value


def shown(key: Any) -> str:
    """A signature as text: "(32, 64) float32, (32,) int64"."""
    parts: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, tuple) and len(part) == 5 and isinstance(part[1], tuple):
            parts.append(str(part[1]))
        elif isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], type):
            parts.append(repr(part[1]))
        elif isinstance(part, tuple):
            for inner in part:
                walk(inner)

    walk(key)
    return ", ".join(parts) or "no arguments"


def detached(tensor: Tensor) -> Tensor:
    """The memory of a result without its history, so that the graph behind it goes."""
    return wrap(tensor._array)
