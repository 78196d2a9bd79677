"""What a step reaches without its arguments, and what of that it changed.

A compiled step runs its Python a few times only. So what it changes by Python alone (a list that
grows, a counter, an attribute) would stay as it is from then on; `Reach.changes` finds such things
by comparing before and after, and names them.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.random import Generator
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module
from gpunn.optim.lr_scheduler import LRScheduler
from gpunn.optim.optimizer import Optimizer

_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic)
_CONTAINERS = (list, dict, set, bytearray)
_REGISTERED = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_not_saved")
_CALLS = {"print": "print() shows nothing", "input": "input() waits for nothing",
          "open": "open() opens nothing"}  # fmt: skip


class Reach:
    """Modules, optimizers and other objects that a step refers to by its closure and globals.

    Attributes
    ----------
    modules, optimizers, tensors : those found, each once, in the order of the names
    side_calls : what the step calls that has an effect outside, in words
    """

    def __init__(self, function: Callable):
        self.modules: list[Module] = []
        self.optimizers: list[Optimizer] = []
        self.tensors: list[Tensor] = []
        self.side_calls: list[str] = []
        self._watched: dict[str, Any] = {}  # name -> object whose contents are compared
        self._cells: list[tuple[str, types.CellType]] = []
        self._globals: list[tuple[str, dict]] = []
        self._seen: set[int] = set()
        self._function(function)

    # ---- finding ---------------------------------------------------------------------------------

    def _function(self, function: Any) -> None:
        while isinstance(function, functools.partial):
            for value in (*function.args, *function.keywords.values()):
                self._object("an argument of partial", value)
            function = function.func
        if isinstance(function, types.MethodType):
            self._object("self", function.__self__)
            function = function.__func__
        if not isinstance(function, types.FunctionType):
            self._object("self", function)
            function = vars(type(function)).get("__call__")
            if not isinstance(function, types.FunctionType):
                return
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self._cells.append((name, cell))
            self._object(name, value)
        for value in (function.__defaults__ or ()):
            self._object("a default argument", value)
        for name in _names(code):
            if name in function.__globals__:
                value = function.__globals__[name]
                if isinstance(value, _PLAIN):
                    self._globals.append((name, function.__globals__))
                self._object(name, value)
            elif name in _CALLS:
                self.side_calls.append(_CALLS[name])

    def _object(self, name: str, value: Any, deep: bool = True) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            if not _is_ours(getattr(value, "__module__", None)):
                self._function(value)
            return
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, Generator)):
            return
        self._seen.add(id(value))
        if isinstance(value, Module):
            self.modules.append(value)
        elif isinstance(value, Optimizer):
            self.optimizers.append(value)
        elif isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, (*_CONTAINERS, tuple)):
            if not isinstance(value, tuple):
                self._watched[name] = value
            for part in (value.values() if isinstance(value, dict) else value):
                self._object(name, part, deep)
        elif isinstance(value, LRScheduler) or not _is_ours(type(value).__module__):
            if hasattr(value, "__dict__"):
                self._watched[name] = value
                for attribute, part in list(vars(value).items()) if deep else ():
                    self._object(f"{name}.{attribute}", part, deep=False)

    # ---- comparing -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Name -> what it holds now, down to the objects themselves."""
        found: dict[str, Any] = {}
        for name, cell in self._cells:
            found[name] = _Held(cell.cell_contents)
        for name, where in self._globals:
            found[name] = _Held(where.get(name))
        for name, value in self._watched.items():
            if isinstance(value, _CONTAINERS):
                found[f"{name} "] = _Contents(value)
            else:
                found.update(_attributes(name, value))
        for number, module in enumerate(self.modules):
            root = "model" if len(self.modules) == 1 else f"model {number + 1}"
            for path, part in module.named_modules():
                found.update(_attributes(f"{root}.{path}" if path else root, part))
        return found

    @staticmethod
    def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        """In words, what differs between two snapshots."""
        found = []
        for name, value in after.items():
            old = before.get(name)
            if old is None:
                found.append(f"{name.strip()} (new: {value})")
            elif not old.same(value):
                found.append(f"{name.strip()} ({old}, then {value})")
        return found


class _Held:
    """A value, compared by itself if it is plain, else by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def same(self, other: _Held) -> bool:
        if self.value is other.value:
            return True
        if isinstance(self.value, _PLAIN) and isinstance(other.value, _PLAIN):
            return self.value == other.value or self.value != self.value
        return False

    def __str__(self) -> str:
        value = self.value
        return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


class _Contents:
    """What a container holds, compared item by item."""

    __slots__ = ("kind", "items")

    def __init__(self, value: Any):
        self.kind = type(value).__name__
        self.items = list(value.items()) if isinstance(value, dict) else list(value)

    def same(self, other: _Contents) -> bool:
        return len(self.items) == len(other.items) and all(
            _same_item(a, b) for a, b in zip(self.items, other.items, strict=True)
        )

    def __str__(self) -> str:
        return f"a {self.kind} of {len(self.items)}"


def _same_item(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2:
        return _Held(a[0]).same(_Held(b[0])) and _Held(a[1]).same(_Held(b[1]))
    return _Held(a).same(_Held(b))


def _attributes(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, without those in which a Module registers its parts."""
    for attribute, part in vars(value).items():
        if attribute in _REGISTERED:
            continue
        key = f"{name}.{attribute}"
        yield key, _Contents(part) if isinstance(part, _CONTAINERS) else _Held(part)


def _names(code: types.CodeType) -> list[str]:
    """The global names that some code and the functions defined in it use."""
    found = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _names(constant)
    return list(dict.fromkeys(found))


def _is_ours(module: str | None) -> bool:
    """Whether a module is gpunn's, or one whose objects a step may use freely."""
    first = (module or "").partition(".")[0]
    return first in ("gpunn", "builtins", "numpy", "cupy", "functools", "itertools", "math")
