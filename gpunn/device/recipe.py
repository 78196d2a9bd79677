"""Recipes: the launches of a primitive, noted once and repeated without its launch code.

Launch code looks at shapes, strides and alignments, chooses a kernel, counts blocks and writes a
name; all of that is the same for the next call of the same kind, only the addresses are others.
`Recorder` stands between the launch code and a launcher, notes the launches of one call as steps,
each argument as a number, as the address of the n-th array, or as a tensor map of it; `Recipe.run`
goes through the steps with other arrays. A small product spends ten times as long in its launch
code as in its launch.

Whoever keeps recipes must key them by all that the launch code looks at, and by which arrays are
the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.device.launch import Launcher

MAPS = 64  # tensor maps that a step remembers


class _At:
    """An address, as an array on a GPU shows it."""

    __slots__ = ("data", "ptr")

    def __init__(self, ptr: int):
        self.data, self.ptr = self, ptr


class _Map:
    """A tensor map of the array `slot`, made again for another address."""

    def __init__(self, slot: int, pattern):
        self.slot, self.pattern = slot, pattern
        self.known: dict[int, Any] = {}

    def at(self, address: int):
        """The map for the array at `address`, remembered: the driver takes microseconds."""
        found = self.known.get(address)
        if found is None:
            if len(self.known) >= MAPS:
                self.known.clear()
            found = self.known[address] = self._moved(address)
        return found

    def _moved(self, address: int):
        return self.pattern.with_array(self.pattern.array.at(address))


class _Step:
    """One launch: what stays, and for each argument that changes its position and its source."""

    __slots__ = ("launcher", "expression", "grid", "block", "shared", "args", "places", "maps")

    def __init__(self, launcher, expression, grid, block, shared, args):
        self.launcher, self.expression = launcher, expression
        self.grid, self.block, self.shared, self.args = grid, block, shared, list(args)
        self.places: list[tuple[int, int, int]] = []  # argument, slot, offset in bytes
        self.maps: list[tuple[int, _Map]] = []


class Recipe:
    """The steps of one kind of call."""

    def __init__(self, count: int):
        self.count = count  # of the caller's arrays; scratch comes behind
        self.repeatable = True
        self.scratch: list[tuple[tuple[int, ...], Any]] = []
        self.steps: list[_Step] = []

    def run(self, launch: Launcher, arrays: Sequence[Any]) -> None:
        """Repeat the launches with other arrays of the same kinds, None where there was None."""
        slots = list(arrays)
        for shape, dtype in self.scratch:
            slots.append(launch.empty(shape, dtype))
        for step in self.steps:
            args = step.args.copy()
            for position, slot, offset in step.places:
                array = slots[slot]
                args[position] = _At(array.data.ptr + offset) if offset else array
            for position, one in step.maps:
                args[position] = one.at(slots[one.slot].data.ptr)
            step.launcher(step.expression, step.grid, step.block, args, step.shared)


class Recorder(Launcher):
    """Passes launches on to another launcher and notes them."""

    def __init__(self, real: Launcher, arrays: Sequence[Any]):
        self._real, self.recipe = real, Recipe(len(arrays))
        self._known: dict[int, int] = {}  # address -> slot, the first of equal ones
        self._ranges: list[tuple[int, int, int]] = []  # of scratch: start, end, slot
        self._keep: list[Any] = []  # scratch, so that no address is used twice
        for slot, array in enumerate(arrays):
            if array is not None:
                self._known.setdefault(array.data.ptr, slot)
        self._adopt()

    def _adopt(self) -> None:
        real = self._real
        self.arch, self.multiprocessors = real.arch, real.multiprocessors
        self.shared_limit = real.shared_limit
        self.device = getattr(real, "device", None)

    def sibling(self, source: str) -> Recorder:
        """A recorder of another source's launches, in the same recipe."""
        other = object.__new__(Recorder)
        other.__dict__.update(self.__dict__)
        other._real = self._real.sibling(source)
        return other

    def empty(self, shape, dtype):
        """Scratch memory, made anew at each repetition."""
        array = self._real.empty(shape, dtype)
        slot = self.recipe.count + len(self.recipe.scratch)
        self.recipe.scratch.append((shape, dtype))
        self._ranges.append((array.data.ptr, array.data.ptr + array.nbytes, slot))
        self._keep.append(array)
        return array

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        self._real(expression, grid, block, args, shared)
        step = _Step(self._real, expression, grid, block, shared, args)
        for position, value in enumerate(args):
            if value is None or isinstance(value, np.generic):
                continue
            is_map = hasattr(value, "as_argument")
            slot, offset = self._find(value.array.data.ptr if is_map else value.data.ptr)
            if slot < 0 or (is_map and offset):
                self.not_repeatable()
            elif is_map:
                step.maps.append((position, _Map(slot, value)))
            else:
                step.places.append((position, slot, offset))
            step.args[position] = None
        self.recipe.steps.append(step)

    def _find(self, address: int) -> tuple[int, int]:
        slot = self._known.get(address)
        if slot is not None:
            return slot, 0
        for start, end, slot in self._ranges:
            if start <= address < end:
                return slot, address - start
        return -1, 0  # neither the caller's nor scratch

    def not_repeatable(self) -> None:
        self.recipe.repeatable = False

    @property
    def plain(self) -> Launcher:
        return self._real
