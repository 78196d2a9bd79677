"""Where an export listens: operations of autograd, layers, new Tensors, kernels on raw arrays.

While no export runs, none of this is there: `install` puts other functions in the place of
`Function.apply`, `Module.__call__` … and `remove` puts back the very objects that it found.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gpunn.nn.functional
import gpunn.nn.recurrent
from gpunn.autograd.function import Function
from gpunn.autograd.functions import common
from gpunn.autograd.tensor import Tensor
from gpunn.nn.containers import _FUSING
from gpunn.nn.module import Module
from gpunn.onnx.traced import ArrayModule, Traced, plain, running
from gpunn.primitives.call import Call

_ARRAYS = ArrayModule()
_TENSORS = importlib.import_module("gpunn.autograd.tensor")  # `gpunn.autograd.tensor` is a function


def _recording(original: Callable, listen: Callable) -> Callable:
    """`listen(recorder, original, …)` where an export runs in this thread, else the original."""

    @functools.wraps(original)
    def function(*args, **kwargs):
        recorder = running.recorder
        if recorder is None or recorder.inside:
            return original(*args, **kwargs)
        return listen(recorder, original, *args, **kwargs)

    return function


def _apply(recorder, original, function, *inputs) -> Tensor:
    return recorder.apply(original, function, inputs)


def _inside_layer(recorder, original, module, *args, **kwargs):
    name = recorder.names.get(id(module), recorder.path)
    recorder.layers.append(name)
    try:
        return original(module, *args, **kwargs)
    finally:
        recorder.layers.pop()


def _fill(recorder, original, tensor, array):
    return original(tensor, recorder.adopt(tensor, array))


def _array_module(recorder, original, device):
    found = original(device)
    return _ARRAYS if found is np else found


def _numpy(recorder, original, tensor):
    if isinstance(tensor._array, Traced):
        recorder.read(tensor._array, "Tensor.numpy()")
        return tensor._array.view(np.ndarray)
    return original(tensor)


def _dlpack(recorder, original, tensor, *args, **kwargs):
    if isinstance(tensor._array, Traced):
        recorder.read(tensor._array, "DLPack")
    return original(tensor, *args, **kwargs)


def _foreign(recorder, original, call, name, value):
    if isinstance(value, Traced):
        if recorder.value_of(value).array is None:
            recorder.refuse(
                f"the kernel {call.primitive.name} on raw arrays", "it is not followed there",
                "Call the function on Tensors.",
            )  # fmt: skip
        value = value.view(np.ndarray)
    return original(call, name, value)


def _check_lengths(recorder, original, name, lengths, steps, batch):
    array = lengths._array if isinstance(lengths, Tensor) else lengths
    if isinstance(array, Traced) and recorder.value_of(array).array is None:
        return array  # lengths that are an input are not looked at
    return original(name, lengths, steps, batch)


def _whole(recorder, original, *args, **kwargs):
    """A function of `nn.functional` that is one call, because ONNX can say it shorter."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = tuple(bound.arguments.values())
    return recorder.note(original.__name__, arguments, lambda: original(*plain(arguments)))


def _places() -> list[tuple[Any, str, Callable]]:
    """(owner, name, what listens)."""
    kinds = {base for kind in _FUSING for base in kind.__mro__}
    functional: Any = gpunn.nn.functional
    return [
        (Function, "apply", _apply),
        (Module, "__call__", _inside_layer),
        *((kind, "forward_activated", _inside_layer)
          for kind in kinds if "forward_activated" in vars(kind)),
        (_TENSORS, "_fill", _fill),
        (_TENSORS, "array_module", _array_module),
        (common, "array_module", _array_module),
        (Tensor, "numpy", _numpy),
        (Tensor, "__dlpack__", _dlpack),
        (Call, "_foreign", _foreign),
        (gpunn.nn.recurrent, "check_lengths", _check_lengths),
        (functional, "embedding", _whole),
        (functional, "embedding_bag", _whole),
    ]  # fmt: skip


_lock = threading.Lock()
_users = 0
_originals: list[tuple[Any, str, Any]] = []


def _install() -> None:
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for owner, name, listen in _places():
            original = vars(owner)[name]
            _originals.append((owner, name, original))
            method = isinstance(original, classmethod)
            made = _recording(original.__func__ if method else original, listen)
            setattr(owner, name, classmethod(made) if method else made)


def _remove() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            for owner, name, original in reversed(_originals):
                setattr(owner, name, original)
            _originals.clear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """The listening functions are in place inside the block."""
    _install()
    try:
        yield
    finally:
        _remove()
