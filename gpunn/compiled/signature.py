"""What makes two calls of a step alike: the shapes of its Tensors and the values of all else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.errors import StepError

_VALUES = (int, float, complex, str, bytes, bool, type(None), np.dtype, np.generic)


def split(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], Any]:
    """(the Tensors among the arguments, the signature of all), in a fixed order.

    Raises StepError for an argument that is neither a Tensor nor a plain value, nor a tuple, list
    or dict of such, and for a Tensor whose gradient would be asked for.
    """
    tensors: list[Tensor] = []
    key = [_key(name, f"argument {i}", value, tensors) for i, value in enumerate(args)]
    for word in sorted(kwargs):
        key.append((word, _key(name, word, kwargs[word], tensors)))
    return tensors, tuple(key)


def _key(name: str, where: str, value: Any, tensors: list[Any]) -> Any:
    if isinstance(value, Tensor):
        if value._requires_grad and mode.state.enabled:
            raise StepError(
                f"compiled step {name}: {where} requires a gradient, which would end at the step's "
                "copy of it; pass x.detach(), or let the step reach the tensor by its closure"
            )
        array = value._array
        tensors.append(value)
        kind = "cpu" if type(array) is np.ndarray else str(value.device)
        return (kind, array.shape, array.dtype.num, array.strides)
    if isinstance(value, (tuple, list)):
        inner = tuple(_key(name, where, part, tensors) for part in value)
        return (type(value), inner)
    if isinstance(value, dict):
        inner = tuple((word, _key(name, where, value[word], tensors)) for word in _words(value))
        return (dict, inner)
    if isinstance(value, _VALUES):
        if isinstance(value, (float, complex, np.inexact)):
            # 0.0 and -0.0 are equal and a NaN is not even itself, so the bits are compared.
            return (type(value), repr(value), np.array(value).tobytes())
        return (type(value), value, b"")
    remedy = "a Tensor or a plain value, or let the step reach it by its closure"
    if isinstance(value, np.ndarray):
        remedy = "gpunn.tensor(array)"
    raise StepError(
        f"compiled step {name}: {where} is {type(value).__name__}, which can be neither copied "
        f"into place nor compared; give {remedy}"
    )


def _words(value: dict[str, Any]) -> list[Any]:
    """The keys of a dict in an order that does not depend on how it was made, if there is one."""
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def rebuild(
    args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other Tensors, in the order of `split`."""
    remaining = iter(tensors)
    new_args = tuple(_replace(value, remaining) for value in args)
    new_kwargs = {word: _replace(kwargs[word], remaining) for word in sorted(kwargs)}
    return new_args, new_kwargs


def _replace(value: Any, remaining: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(remaining)
    if isinstance(value, (tuple, list)):
        return _like(value, [_replace(part, remaining) for part in value])
    if isinstance(value, dict):
        replaced = {word: _replace(value[word], remaining) for word in _words(value)}
        return {word: replaced[word] for word in value}
    return value


def _like(value: Any, parts: list[Any]) -> Any:
    """A tuple, named tuple or list of the kind of `value`."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """A result with `function` applied to each Tensor in it; tuples, lists and dicts stay."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return _like(value, [map_tensors(part, function) for part in value])
    if isinstance(value, dict):
        return {word: map_tensors(part, function) for word, part in value.items()}
    return value


def check_result(name: str, value: Any) -> None:
    """Raise StepError for a result that a replay could not give anew."""
    if isinstance(value, (tuple, list)):
        for part in value:
            check_result(name, part)
    elif isinstance(value, dict):
        for part in value.values():
            check_result(name, part)
    elif not isinstance(value, (Tensor, *_VALUES)):
        remedy = "the Tensor itself" if hasattr(value, "dtype") else "its Tensors"
        raise StepError(
            f"compiled step {name}: it returns {type(value).__name__}, which a replay could not "
            f"give anew; return {remedy}, or a tuple, list or dict of Tensors and plain values"
        )


def shown(key: Any) -> str:
    """A signature as text: "(32, 64), (32,), 0.1"."""
    parts: list[str] = []

    def walk(part: Any) -> None:
        if not isinstance(part, tuple):
            return
        if len(part) == 4 and isinstance(part[0], str):
            parts.append(str(part[1]))
        elif len(part) == 3 and isinstance(part[2], bytes):
            parts.append(part[1] if part[2] else repr(part[1]))
        else:
            for inner in part:
                walk(inner)

    walk(key)
    return ", ".join(parts) or "no arguments"


def detached(tensor: Tensor) -> Tensor:
    """The memory of a result without its history, so that the graph behind it goes."""
    return wrap(tensor._array)
