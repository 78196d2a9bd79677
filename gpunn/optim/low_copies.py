"""`LowCopies`: the parameters of an arena in 16 bits, and their gradients, for `autocast`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.function import accumulate as add_gradient
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import empty
from gpunn.primitives.cast import cast
from gpunn.primitives.scale import accumulate_parts

if TYPE_CHECKING:
    from gpunn.optim.arena import Arena


class LowCopies:
    """All parameters of an arena in a 16-bit dtype, made by one launch.

    The products of a forward pass take the parts; on the way back their gradients are written into
    parts of another such array, and at the end of the walk one launch widens them into the arena.

    Attributes
    ----------
    parameters, views : one array with the arena's offsets, and the part of each parameter
    cells : of each part: its version, as `Tensor._cell`
    block : the `autocast` block that they were cast in
    versions : of the parameters, when they were cast
    gradients, slots : an array and its parts for gradients; None until the first is asked for
    """

    def __init__(self, arena: Arena, dtype: DTypeLike):
        self._arena: Callable[[], Any] = weakref.ref(arena)
        self.parameters = empty((arena.size,), dtype, arena.device)
        self.views = [arena.part(self.parameters, i) for i in range(len(arena.tensors))]
        self.cells = [[0, 0] for _ in arena.tensors]
        self.block: Any = None
        self.versions: list[int] = []
        self.gradients: Any = None
        self.slots: list[Any] = []
        self._claims: dict[int, Any] = {}  # place -> the node whose gradient may be written there
        self._received: list[int] = []

    def refresh(self, block: Any) -> None:
        """Cast all parameters; whether one has changed is known from its version."""
        arena = self._arena()
        cast(arena.parameters, out=self.parameters)
        versions = [tensor._cell[0] for tensor in arena.tensors]
        for cell, before, now in zip(self.cells, self.versions, versions, strict=False):
            cell[0] += before != now
        self.block, self.versions = block, versions

    def make_gradients(self) -> None:
        """Take the memory of the gradients, if it is not there yet."""
        arena = self._arena()
        if self.gradients is None:
            self.gradients = empty((arena.size,), self.parameters.dtype, arena.device)
            self.gradients.view(np.uint8)[...] = 0  # the gaps between the parameters stay zeros
            self.slots = [arena.part(self.gradients, i) for i in range(len(arena.tensors))]

    # ---- in a walk back --------------------------------------------------------------------------

    def claim(self, place: int, node: Any) -> Any:
        """Where the gradient of a copy may be written for `node`; None if there is no place."""
        arena = self._arena()
        if arena is None or arena.dtype != np.float32:
            return None
        if self._claims.setdefault(place, node) is not node:
            return None  # another copy of the same parameter in this walk
        self.make_gradients()
        return self.slots[place]

    def receive(self, place: int, node: Any, grad: Any) -> bool:
        """Whether `grad` is what `node` had claimed, so that nobody else has to deliver it."""
        if self._claims.get(place) is not node:
            return False
        if grad is not self.slots[place]:
            del self._claims[place]
            return False
        self._received.append(place)
        return True

    def deliver(self) -> None:
        """Widen what was received into the gradients of the parameters, or add it to them."""
        received = sorted(self._received)
        self.drop()
        self._bring(received)

    def deliver_to(self, *tensors: Tensor) -> None:
        """The same for some parameters, and before the walk ends: for who needs theirs at once."""
        arena, places = self._arena(), []
        for tensor in tensors:
            source = tensor._low_source
            if source is not None and source[0]() is arena and source[1] in self._received:
                self._received.remove(source[1])
                places.append(source[1])
        self._bring(sorted(places))

    def _bring(self, received: list[int]) -> None:
        arena, new, more = self._arena(), [], []
        for place in received:
            tensor = arena.tensors[place]
            if tensor.grad is None and tensor._grad_slot is arena.slots[place]:
                tensor.grad = wrap(arena.slots[place])
                new.append(place)
            elif tensor.grad is not None and tensor.grad._array is arena.slots[place]:
                tensor.grad._cell[0] += 1
                more.append(place)
            else:  # the gradient, or the parameter itself, has left the arena
                add_gradient(tensor, self.slots[place])
        for places, add in ((new, False), (more, True)):
            if places:
                accumulate_parts(arena.gradients, self.gradients, arena.runs(places), add=add)

    def drop(self) -> None:
        """Forget what a walk has brought."""
        self._claims.clear()
        self._received.clear()
