"""What a step reaches without its arguments, and what of that changes.

A compiled step runs its Python a few times only. What the step itself changes by Python alone (a
list that grows, a counter, an attribute) would stay as it is from then on: `Reach.changes` finds
such things by comparing before and after, and names them. And what others change between two calls
(a number in the closure, a layer of the model, a hook) would not be seen by a replay:
`Reach.changed` finds those, in a few comparisons, so that the step can be traced anew.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.random import Generator
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module, structure
from gpunn.optim.lr_scheduler import LRScheduler
from gpunn.optim.optimizer import Optimizer

_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic)
_CONTAINERS = (list, dict, set, bytearray)
_CALLS = {"print": "print() shows nothing", "input": "input() waits for nothing",
          "open": "open() opens nothing"}  # fmt: skip
_DEPTH = 3  # attributes of attributes of attributes of what the step names
_FEW = 64  # items of a container that are compared at every call
_MISSING = object()


class Reach:
    """Modules, optimizers and other objects that a step refers to by its closure and globals.

    Parameters
    ----------
    function : the step
    uses : modules, optimizers and other objects of the step that cannot be found in it

    Attributes
    ----------
    modules, optimizers, tensors : those found, each once, in the order of the names
    side_calls : what the step calls that has an effect outside, in words
    """

    def __init__(self, function: Callable[..., Any], uses: tuple[Any, ...] = ()):
        self.modules: list[Module] = []
        self.optimizers: list[Optimizer] = []
        self.tensors: list[Tensor] = []
        self.side_calls: list[str] = []
        self._watched: dict[str, Any] = {}  # name -> object whose contents are compared
        self._cells: list[tuple[str, types.CellType]] = []
        self._globals: list[tuple[str, dict[str, Any], str]] = []  # name, namespace, key
        self._used: set[str] = set()  # the names that the step's code uses, of attributes too
        self._seen: set[int] = set()
        self._settings: list[tuple[str, Any, str]] = []  # of transforms of ours
        self._function(function)
        for value in uses:
            self._object(type(value).__name__, value)
            if not isinstance(value, (Module, Optimizer)) and hasattr(value, "__dict__"):
                self._watched[type(value).__name__] = value
                self._used.update(vars(value))
        # What the step's code reads of objects: their changes between calls are its concern.
        self._attributes = [
            (f"{name}.{key}", value, key)
            for name, value in self._watched.items()
            if not isinstance(value, _CONTAINERS)
            for key in vars(value)
            if key in self._used
        ] + self._settings
        self._containers = [
            (name, value) for name, value in self._watched.items() if isinstance(value, _CONTAINERS)
        ]
        self._parts: dict[str, Any] = {}
        self._version = -1
        self.remember()

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
        self._used.update(_all_names(code))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._cells.append((name, cell))
            value = _content(cell)
            if value is not _MISSING:  # assigned already
                self._object(name, value)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._object("a default argument", value)
        for name in _global_names(code):
            if name in function.__globals__:
                self._globals.append((name, function.__globals__, name))
                self._object(name, function.__globals__[name])
            elif name in _CALLS:
                self.side_calls.append(_CALLS[name])

    def _object(self, name: str, value: Any, depth: int = _DEPTH) -> None:
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
                self._object(name, part, depth)
        elif getattr(type(value), "on_device", False):  # `ImageAugmentation`: eval(), for example
            self._settings += [(f"{name}.{key}", value, key) for key in vars(value)]
        elif isinstance(value, LRScheduler) or not _is_ours(type(value).__module__):
            if hasattr(value, "__dict__"):
                self._watched[name] = value
                for attribute, part in list(vars(value).items()) if depth else ():
                    if attribute in self._used or not callable(part) or isinstance(part, Module):
                        self._object(f"{name}.{attribute}", part, depth - 1)

    def registered(self) -> dict[str, Tensor]:
        """The parameters and buffers of the modules, by name."""
        return {
            f"{root}.{path}": tensor
            for root, module in self._roots()
            for names in (module.named_parameters, module.named_buffers)
            for path, tensor in names()
        }

    def name_of(self, tensor: Tensor) -> str:
        """How a parameter or buffer is called."""
        for name, found in self.registered().items():
            if found is tensor:
                return name
        return f"a Tensor of shape {tensor.shape}"

    def _roots(self) -> Iterator[tuple[str, Module]]:
        kinds = [type(module).__name__ for module in self.modules]
        for number, (kind, module) in enumerate(zip(kinds, self.modules, strict=True)):
            if len(kinds) == 1:
                yield "model", module
            else:
                yield kind if kinds.count(kind) == 1 else f"{kind} {number + 1}", module

    # ---- what the step changes by Python ---------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Name -> what it holds now, down to the objects themselves."""
        found: dict[str, Any] = {}
        for name, cell in self._cells:
            found[name] = _Held(_content(cell))
        for name, where, key in self._globals:
            if isinstance(where.get(key), _PLAIN):
                found[name] = _Held(where.get(key))
        for name, value in self._watched.items():
            if isinstance(value, _CONTAINERS):
                found[f"{name} "] = _Contents(value)
            else:
                found.update(_attributes(name, value))
        return found | self._of_modules()

    def _of_modules(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for root, module in self._roots():
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

    # ---- what others change between calls --------------------------------------------------------

    def remember(self) -> None:
        """Note what there is now; `changed` compares with it."""
        self._values = self._read()
        self._contents = self._read_containers()
        if structure.changes != self._version:
            self._version, self._parts = structure.changes, self._of_modules()

    def changed(self) -> list[str]:
        """The names of what is not as it was when it was remembered; all that can be named."""
        found = []
        for number, (now, before) in enumerate(zip(self._read(), self._values, strict=True)):
            if now is not before and not _Held(now).same(_Held(before)):
                found.append((*self._cells, *self._globals, *self._attributes)[number][0])
        if self._containers:
            contents = zip(self._containers, self._read_containers(), self._contents, strict=True)
            found += [name for (name, _), now, before in contents if not before.same(now)]
        if structure.changes != self._version:
            parts = self._changed_parts()
            found += parts
            if not parts:
                self._version = structure.changes
        return list(dict.fromkeys(found))

    def _changed_parts(self) -> list[str]:
        before, now = self._parts, self._of_modules()
        return [
            name
            for name in dict.fromkeys((*before, *now))
            if not name.endswith(".training")  # another kind of call
            and not (name in before and name in now and before[name].same(now[name]))
        ]

    def _read(self) -> list[Any]:
        found = [_content(cell) for _, cell in self._cells]
        found += [where.get(key, _MISSING) for _, where, key in self._globals]
        found += [vars(value).get(key, _MISSING) for _, value, key in self._attributes]
        return found

    def _read_containers(self) -> list[Any]:
        few = ((value if len(value) <= _FEW else ()) for _, value in self._containers)
        return [_Contents(value) for value in few]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


class _Held:
    """A value, compared by itself if it is plain, else by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def same(self, other: Any) -> bool:
        if not isinstance(other, _Held):
            return False
        if self.value is other.value:
            return True
        if isinstance(self.value, _PLAIN) and isinstance(other.value, _PLAIN):
            same_kind = type(self.value) is type(other.value)
            return same_kind and (self.value == other.value or self.value != self.value)
        if isinstance(self.value, types.MethodType) and isinstance(other.value, types.MethodType):
            return self.value == other.value  # made anew each time it is asked for
        return False

    def __str__(self) -> str:
        value = self.value
        if value is _MISSING:
            return "nothing"
        return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


class _Contents:
    """What a container holds, compared item by item."""

    __slots__ = ("kind", "items")

    def __init__(self, value: Any):
        self.kind = type(value).__name__
        self.items = list(value.items()) if isinstance(value, dict) else list(value)

    def same(self, other: Any) -> bool:
        if not isinstance(other, _Contents):
            return False
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
    """The attributes of an object; of a Module also what it registers, each by itself."""
    is_module = isinstance(value, Module)
    for attribute, part in vars(value).items():
        if is_module and attribute in ("_parameters", "_buffers", "_modules"):
            for key, own in part.items():
                yield f"{name}.{key}", _Held(own)
        elif is_module and attribute == "_forward_hooks":
            yield f"the hooks of {name}", _Contents(part)
        else:
            key = f"{name}.{attribute}"
            yield key, _Contents(part) if isinstance(part, _CONTAINERS) else _Held(part)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Some code and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _global_names(code: types.CodeType) -> list[str]:
    found = (
        step.argval
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
    )
    return list(dict.fromkeys(found))


def _all_names(code: types.CodeType) -> set[str]:
    return {name for part in _codes(code) for name in part.co_names}


def _is_ours(module: str | None) -> bool:
    """Whether a module is gpunn's, or one whose objects a step may use freely."""
    first = (module or "").partition(".")[0]
    return first in ("gpunn", "builtins", "numpy", "cupy", "functools", "itertools", "math")
