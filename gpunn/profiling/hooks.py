"""Where a profile listens: calls of modules, operations of autograd, steps of optimizers.

While no profile runs, none of this is there: `install` puts other functions in the place of
`Module.__call__`, `Function.apply`, … and `remove` puts back the very objects that it found. They
are in place for all threads, and pass on at once in a thread that has no profile.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from gpunn.autograd import function
from gpunn.autograd.function import Function
from gpunn.nn.containers import _FUSING
from gpunn.nn.module import Module
from gpunn.optim.low_copies import LowCopies
from gpunn.optim.optimizer import Optimizer
from gpunn.profiling.recording import Recording


class _Running(threading.local):
    """The profile of this thread, and the same once more if it wants to see layers."""

    profile: Recording | None = None
    recording: Recording | None = None
    names: LayerNames | None = None


running = _Running()


class LayerNames:
    """Names of modules: as in the model that was given, or in the outermost one that is called."""

    def __init__(self, model: Module | None = None):
        self._names: dict[int, str] = {}
        self._kept: list[Module] = []  # so that no id is used twice
        self.stack: list[Module] = []
        if model is not None:
            self._learn(model, "")

    def _learn(self, model: Module, prefix: str) -> None:
        for name, module in model.named_modules(prefix=prefix):
            if id(module) not in self._names:
                self._names[id(module)] = name or type(model).__name__
                self._kept.append(module)

    def of(self, module: Module) -> str:
        """The name of a module; one that was never seen is learned with all that is inside it."""
        found = self._names.get(id(module))
        if found is None:
            # The names inside the first model stand alone; those of a second one must differ.
            first = not self._names and bool(module._modules)
            self._learn(module, "" if first else type(module).__name__)
            found = self._names[id(module)]
        return found


def _call(original: Callable) -> Callable:
    @functools.wraps(original)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if running.recording is None:
            return original(self, *args, **kwargs)
        return _inside(self, type(self).__name__, original, args, kwargs)

    return __call__


def _activated(original: Callable) -> Callable:
    """`forward_activated`, which Sequential calls past `__call__` to run two layers as one."""

    @functools.wraps(original)
    def forward_activated(self, input, activation, alpha, *rest):
        arguments = (input, activation, alpha, *rest)
        if running.recording is None or running.names.stack[-1:] == [self]:
            return original(self, *arguments)
        return _inside(self, f"{type(self).__name__} + {activation}", original, arguments, {})

    return forward_activated


def _inside(module: Module, what: str, original: Callable, args: tuple, kwargs: dict) -> Any:
    recording, names = running.recording, running.names
    name = names.of(module)
    before = recording.enter("layer", name, name, what, recording.phase)
    names.stack.append(module)
    try:
        return original(module, *args, **kwargs)
    finally:
        names.stack.pop()
        recording.leave(before)


def _apply(original: Callable) -> Callable:
    """`Function.apply`: a node remembers the layer in which it was made."""

    @functools.wraps(original)
    def apply(cls, *inputs):
        recording = running.recording
        if recording is None:
            return original(cls, *inputs)
        name = cls.__name__
        layer = recording.layer or f"({name})"
        kind = "view" if cls.is_view else "operation"
        before = recording.enter(kind, name, layer, recording.what, recording.phase)
        entry = recording.innermost
        try:
            result = original(cls, *inputs)
        finally:
            recording.leave(before)
        if recording.knows(result._array):
            entry.kind = "view"
        if result._node is not None:
            result._node._profiled = (layer, recording.what)
        return result

    return apply


def _step_back(original: Callable) -> Callable:
    """One node's backward belongs to the layer of its forward."""

    @functools.wraps(original)
    def step_back(node, grad, retain_graph):
        recording = running.recording
        if recording is None:
            return original(node, grad, retain_graph)
        layer, what = getattr(node, "_profiled", (f"({type(node).__name__})", ""))
        kind = "view" if node.is_view else "operation"
        before = recording.enter(kind, type(node).__name__, layer, what, "backward")
        try:
            return original(node, grad, retain_graph)
        finally:
            recording.leave(before)

    return step_back


def _optimizer(original: Callable) -> Callable:
    @functools.wraps(original)
    def method(self, *args, **kwargs):
        recording = running.recording
        if recording is None:
            return original(self, *args, **kwargs)
        name = type(self).__name__
        before = recording.enter("layer", name, name, "optimizer", "update")
        try:
            return original(self, *args, **kwargs)
        finally:
            recording.leave(before)

    return method


def _delivery(original: Callable) -> Callable:
    """16-bit gradients of an arena, widened together when the walk back ends."""

    @functools.wraps(original)
    def deliver(self):
        recording = running.recording
        if recording is None:
            return original(self)
        before = recording.enter("layer", "gradients", "gradients", "autocast", "backward")
        try:
            return original(self)
        finally:
            recording.leave(before)

    return deliver


def _places() -> list[tuple[Any, str, Callable]]:
    """(owner, name, what makes the listening function of the original)."""
    kinds = {base for kind in _FUSING for base in kind.__mro__}
    fusing = [base for base in kinds if "forward_activated" in vars(base)]
    return [
        (Module, "__call__", _call),
        *((owner, "forward_activated", _activated) for owner in fusing),
        (Function, "apply", _apply),
        (function, "_step_back", _step_back),
        (LowCopies, "deliver", _delivery),
        (Optimizer, "step", _optimizer),
        (Optimizer, "zero_grad", _optimizer),
    ]


_lock = threading.Lock()
_users = 0
_originals: list[tuple[Any, str, Any]] = []


def install() -> None:
    """Listen, if nobody does yet."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for owner, name, listen in _places():
            original = vars(owner)[name]
            _originals.append((owner, name, original))
            method = isinstance(original, classmethod)
            made = listen(original.__func__ if method else original)
            setattr(owner, name, classmethod(made) if method else made)


def remove() -> None:
    """Put the originals back after the last profile."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            for owner, name, original in _originals:
                setattr(owner, name, original)
            _originals.clear()
