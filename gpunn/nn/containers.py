"""Modules that hold modules: Sequential, ModuleList, ModuleDict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from gpunn.autograd.tensor import Tensor
from gpunn.nn.activation import FUSABLE
from gpunn.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from gpunn.nn.linear import Linear
from gpunn.nn.module import Module, structure

# The exact classes that can have an activation in their kernel; a subclass could do something else.
_FUSING = frozenset(
    {Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d}
)
_EXACT = (np.dtype(np.float32), np.dtype(np.float64))


class _Indexed(Module):
    """Modules named "0", "1", … that can be indexed, sliced and appended to."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __contains__(self, module: object) -> bool:
        return any(own is module for own in self)

    def _key(self, index: int) -> str:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {size} modules"
            )
        return list(self._modules)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._modules[self._key(index)] = _checked(self, module)

    def __delitem__(self, index: int | slice) -> None:
        kept = list(self)
        del kept[index]
        self._refill(kept)

    def _refill(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        self._modules.clear()
        structure.changes += 1
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the container."""
        self._modules[str(len(self))] = _checked(self, module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the container."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put a module before position `index`."""
        modules = list(self)
        modules.insert(index, _checked(self, module))
        self._refill(modules)


def _checked(container: Module, module: Module) -> Module:
    if not isinstance(module, Module):
        raise TypeError(
            f"{type(container).__name__}: expected a Module, got {type(module).__name__}"
        )
    structure.changes += 1
    return module


class Sequential(_Indexed):
    """Modules run one after the other: ``Sequential(a, b)`` or ``Sequential({"name": a, …})``.

    A Linear or a convolution directly followed by an activation (the classes in
    `gpunn.nn.activation.FUSABLE`) runs as one kernel, which saves a pass over memory. This is done
    only where the result is the same: for float32 and float64, for exactly these classes, and
    where neither has a forward hook.
    Set `fuse` to False to run every module by itself.
    """

    fuse = True

    def __init__(self, *args: Module | Mapping[str, Module]):
        super().__init__()
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self._modules[name] = _checked(self, module)
        else:
            self.extend(args)  # type: ignore[arg-type]  # a mapping among several is refused

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return self._modules[self._key(index)]

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self._modules.values())
        last, position = len(modules) - 1, 0
        while position <= last:
            module = modules[position]
            if type(module) in _FUSING and position < last and self.fuse:
                following = modules[position + 1]
                if _fusable(module, following):
                    input = module.forward_activated(input, *following.kernel)
                    position += 2
                    continue
            input = module(input)
            position += 1
        return input


def _fusable(module: Module, following: Module) -> bool:
    return (
        type(following) in FUSABLE
        and not module._forward_hooks
        and not following._forward_hooks
        and module._parameters["weight"]._array.dtype in _EXACT
    )


class ModuleList(_Indexed):
    """A list of modules; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self)[index])
        return self._modules[self._key(index)]

    __iadd__ = _Indexed.extend


class ModuleDict(Module):
    """A dictionary of modules; it has no forward of its own."""

    def __init__(self, modules: Mapping[str, Module] | None = None):
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> Module:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self._modules[key] = _checked(self, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]
        structure.changes += 1

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> Any:
        """The names."""
        return self._modules.keys()

    def values(self) -> Any:
        """The modules."""
        return self._modules.values()

    def items(self) -> Any:
        """(name, module)."""
        return self._modules.items()

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace modules."""
        for name, module in modules.items():
            self[name] = module
