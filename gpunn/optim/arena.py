"""`Arena`: the parameters of a group in one flat array, beside their gradients and their state.

One launch then updates all of them. The parameters' Tensors become views of the arena, and their
gradients are written straight into it by `backward`. Every parameter starts at a multiple of 32
bytes; the gaps behind it are zeros in every array and stay zeros under every update.

For `autocast` an arena of float32 also has its parameters in 16 bits (`Arena.low`): one launch
casts them all.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.functions.layout import in_axes, is_channels_last, memory_order
from gpunn.device import Device, device_of, empty, to_device
from gpunn.device.transfer import uploader
from gpunn.optim.low_copies import LowCopies
from gpunn.optim.sharding import Part, Ranks
from gpunn.primitives.samples import accumulator_dtype

# Bytes: the widest load of a thread has 16, and half of 32 is left of a parameter in 16 bits.
ALIGNMENT = 32


def zeros(size: int, dtype: DTypeLike, device: Device | str) -> Any:
    """A flat array of zeros."""
    array = empty((size,), dtype, device)
    array.view(np.uint8)[...] = 0  # as bytes, because CuPy computes nothing with bfloat16
    return array


class Cohort:
    """Parameters of an arena that have made the same steps, and so share one `hyper` array.

    All parameters of an arena are one cohort, until a step finds gradients for some of them only.
    """

    def __init__(self, members: list[int], hyper: Any):
        self.members, self.hyper = members, hyper
        self.values: tuple[Any, ...] | None = None  # of the hyperparameters now in `hyper`

    def write(self, values: tuple[float, ...]) -> None:
        """Put the hyperparameters into `hyper`, if they changed."""
        if values == self.values:
            return
        host = np.array(values, np.float64)
        # Through pinned memory: a plain copy would wait for all that the GPU has to do.
        uploader(device_of(self.hyper)).upload(host, out=self.hyper[: host.size])
        self.values = values


class Arena:
    """Parameters of one dtype on one device.

    Attributes
    ----------
    tensors : the parameters, in their order in the arena
    indices : the place of each in its parameter group
    parameters, gradients : flat arrays of their dtype
    orders : of the axes in memory, for each parameter; None for their own order
    own : the `Part` that this rank updates; all of it unless the optimizer is sharded
    state : name -> flat array of float32 (float64 for float64), as long as that part
    views, slots : the part of `parameters` and of `gradients` that belongs to each parameter
    cohorts : see `Cohort`
    bounds : of an optimizer that is sharded: (start, stop) in the flat arrays of each rank's part
    """

    def __init__(
        self,
        tensors: list[Any],
        indices: list[int],
        hyper: np.ndarray,
        group: Ranks | None = None,
    ):
        first = tensors[0]._array
        self.device, self.dtype = device_of(first), first.dtype
        self.tensors, self.indices = tensors, indices
        step = ALIGNMENT // self.dtype.itemsize
        self.shapes = [tensor._array.shape for tensor in tensors]
        # The weight of a convolution, whose memory is channels-last, keeps that order.
        self.orders = [
            memory_order(array) if array.ndim > 2 and is_channels_last(array) else None
            for array in (tensor._array for tensor in tensors)
        ]
        self.sizes = [tensor._array.size for tensor in tensors]
        self.offsets = [0]
        for size in self.sizes:
            self.offsets.append(self.offsets[-1] + -(-size // step) * step)
        self.own = Part(self.offsets.pop(), step, group)
        self.size = self.own.size
        self.parameters = zeros(self.size, self.dtype, self.device)
        self.gradients = zeros(self.size, self.dtype, self.device)
        self.state: dict[str, Any] = {}
        self.views = [self.part(self.parameters, i) for i in range(len(tensors))]
        self.slots = [self.part(self.gradients, i) for i in range(len(tensors))]
        self.lows: dict[np.dtype, LowCopies] = {}
        self.cohorts = [Cohort(list(range(len(tensors))), to_device(hyper.copy(), self.device))]
        for i in range(len(tensors)):
            self.take_parameter(i)

    def part(self, flat: Any, i: int) -> Any:
        """The part of a flat array of this arena that belongs to parameter `i`, in its shape."""
        return self._in_shape(flat[self.offsets[i] : self.offsets[i] + self.sizes[i]], i)

    def _in_shape(self, flat: Any, i: int) -> Any:
        shape, order = self.shapes[i], self.orders[i]
        if order is None:
            return flat.reshape(shape)
        return in_axes(flat.reshape([shape[axis] for axis in order]), order)

    @property
    def bounds(self) -> list[tuple[int, int]] | None:
        """(start, stop) in the flat arrays of each rank's part; None if it is not sharded."""
        return self.own.bounds

    # ---- parameters and gradients ---------------------------------------------------------------

    def fits(self, array: Any) -> bool:
        """Whether an array could be a parameter of this arena."""
        return array.dtype == self.dtype and device_of(array) == self.device

    def check_shape(self, i: int) -> None:
        """Raise ValueError if parameter `i` no longer has the shape it had."""
        if self.tensors[i]._array.shape != self.shapes[i]:
            raise ValueError(
                f"optimizer: parameter {self.indices[i]} of its group changed its shape from "
                f"{self.shapes[i]} to {self.tensors[i]._array.shape}. Make a new optimizer."
            )

    def take_parameter(self, i: int) -> None:
        """Copy the data of parameter `i` into the arena and make its Tensor a view of it."""
        tensor, view = self.tensors[i], self.views[i]
        view[...] = tensor._array
        tensor._array = view
        tensor._grad_slot = self.slots[i]
        tensor._low_source = (weakref.ref(self), i)
        tensor._low = None
        for copies in self.lows.values():
            copies.block = None  # they were made of what was here before

    def take_gradients(self) -> list[int]:
        """The parameters that have a gradient; gradients that lie elsewhere are copied in."""
        active = []
        for i, tensor in enumerate(self.tensors):
            grad = tensor.grad
            if grad is None:
                continue
            if grad._array is not self.slots[i]:
                self.take_gradient(i)
            active.append(i)
        return active

    def take_gradient(self, i: int) -> None:
        """Copy the gradient of parameter `i` into its place, where it then lies."""
        grad, slot = self.tensors[i].grad, self.slots[i]
        array = grad._array
        if array.shape != slot.shape or device_of(array) != self.device:
            raise ValueError(
                f"optimizer: the gradient of parameter {self.indices[i]} of its group has shape "
                f"{array.shape} on {device_of(array)}, the parameter has {slot.shape} on "
                f"{self.device}. Assign a gradient like the parameter."
            )
        slot[...] = array
        grad._array = slot

    def clear_gradients(self) -> None:
        """Fill all gradients with zeros."""
        self.gradients.view(np.uint8)[...] = 0
        for i, tensor in enumerate(self.tensors):
            if tensor.grad is not None and tensor.grad._array is not self.slots[i]:
                tensor.grad._array[...] = 0

    # ---- parameters in 16 bits, for autocast -----------------------------------------------------

    def low(self, dtype: np.dtype[Any]) -> Any:
        """The parameters in a 16-bit dtype, cast now: a flat array with the arena's offsets."""
        copies = self.copies_in(dtype)
        copies.refresh(None)
        return copies.parameters

    def copies_in(self, dtype: np.dtype[Any]) -> LowCopies:
        """The place for copies in a 16-bit dtype, whatever they are now."""
        if dtype not in self.lows:
            self.lows[dtype] = LowCopies(self, dtype)
        return self.lows[dtype]

    def low_copies(self, i: int, dtype: np.dtype[Any], block: Any) -> LowCopies | None:
        """All parameters in a 16-bit dtype, `i` as it is now; None if that is no longer here.

        All are cast together when the first is asked for in an `autocast` block, and again when one
        that is asked for was written to since.
        """
        tensor = self.tensors[i]
        if tensor._array is not self.views[i]:
            return None
        copies = self.copies_in(dtype)
        if copies.block is not block or copies.versions[i] != tensor._cell[0]:
            copies.refresh(block)
        return copies

    # ---- what a step works on -------------------------------------------------------------------

    def active_cohorts(self, active: list[int]) -> list[Cohort]:
        """The cohorts whose members are just the `active` parameters; mixed ones are split."""
        if len(self.cohorts) == 1 and len(active) == len(self.tensors):
            return self.cohorts
        wanted, found, rest = set(active), [], []
        for cohort in self.cohorts:
            inside = [i for i in cohort.members if i in wanted]
            if len(inside) == len(cohort.members):
                found.append(cohort)
                continue
            if inside:
                found.append(Cohort(inside, cohort.hyper.copy()))
                cohort.members = [i for i in cohort.members if i not in wanted]
            rest.append(cohort)
        self.cohorts = found + rest
        return found

    def runs(self, members: list[int], tight: bool = False) -> list[tuple[int, int]]:
        """(start, stop) in the flat arrays of neighbouring members, with the gaps between them.

        `tight` leaves the gaps out, for updates that would not keep them zero.
        """
        found: list[tuple[int, int]] = []
        previous = None
        for i in members:
            start, stop = self.offsets[i], self.offsets[i] + self.sizes[i]
            if found and previous == i - 1 and not (tight and found[-1][1] != start):
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
            previous = i
        return [run for run in found if run[0] < run[1]]

    def require_state(self, name: str, value: float = 0.0) -> Any:
        """The state array `name` of the own part, made and filled with `value` at first."""
        if name not in self.state:
            dtype, size = accumulator_dtype(self.dtype), self.own.stop - self.own.start
            self.state[name] = zeros(size, dtype, self.device)
            if value:
                self.state[name] += value
        return self.state[name]

    # ---- state of single parameters -------------------------------------------------------------

    def state_of(self, step_slot: int) -> dict[int, dict[str, Any]]:
        """Place in the group -> step and state arrays (views), of parameters that made a step.

        Of a sharded one they are views of NumPy arrays that all ranks gather; all take part.
        """
        found: dict[int, dict[str, Any]] = {}
        steps = [(float(cohort.hyper[step_slot]), cohort.members) for cohort in self.cohorts]
        if any(step for step, _ in steps):
            state = {name: self.own.whole(own) for name, own in self.state.items()}
        for step, members in steps:
            for i in members if step else ():
                arrays = {name: self.part(flat, i) for name, flat in state.items()}
                found[self.indices[i]] = {"step": step, **arrays}
        return found

    def set_state(
        self, saved: dict[int, dict[str, Any]], names: dict[str, float], hyper: Any, step_slot: int
    ) -> None:
        """Take over states as `state_of` gives them; parameters without one start anew.

        `names` are the arrays to have in any case and what they are filled with.
        """
        steps: dict[float, list[int]] = {}
        self.state.clear()
        for name, value in names.items():
            self.require_state(name, value)
        for i, index in enumerate(self.indices):
            state = dict(saved.get(index, {}))
            steps.setdefault(float(state.pop("step", 1 if state else 0)), []).append(i)
            for name, array in state.items():
                self._put_state(self.require_state(name), i, array)
        self.cohorts = []
        for step, members in steps.items():
            hyper[step_slot] = step
            self.cohorts.append(Cohort(members, to_device(hyper.copy(), self.device)))

    def _put_state(self, own: Any, i: int, array: Any) -> None:
        """Take what lies in the own part of a whole state array of parameter `i`."""
        if self.bounds is None:
            self.part(own, i)[...] = to_device(array, self.device)
            return
        first = self.offsets[i]
        for start, stop in self.own.inside(self.runs([i])):
            whole = empty((self.sizes[i],), own.dtype, self.device)
            self._in_shape(whole, i)[...] = to_device(array, self.device)
            own[self.own.held(start, stop)] = whole[start - first : stop - first]
