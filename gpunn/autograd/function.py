"""The tape: `Function`, a node that knows its forward and its backward, and the walk back.

Every differentiable operation is a subclass of `Function` with a `forward` and a `backward` on raw
arrays (NumPy or CuPy). `apply` runs the forward, and, where a gradient will be wanted, leaves the
node on the result (`Tensor.grad_fn`) with edges to the nodes of its inputs. `backward` visits the
nodes from the youngest to the oldest: a node is always younger than its inputs, so each has
received all of its gradient when its turn comes, and the order is the same on every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.dtypes import is_float, is_low
from gpunn.autograd.functions.layout import in_axes, memory_order
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import device_of
from gpunn.primitives.cast import cast
from gpunn.primitives.scale import accumulate as add_scaled

_sequence = itertools.count().__next__


class Walk(NamedTuple):
    """What the nodes of one walk back may ask about it."""

    uses: dict[int, int]  # how many nodes give a gradient to each edge, by its id
    retains: bool  # the graph stays, so that saved arrays are needed again
    unit: Function | None  # the node whose gradient is 1 because none was given
    late: dict[int, Any]  # what has gradients to bring to their places at the end, by its id
    watch: Any  # told of each gradient of a leaf that has come, see `mode.watching`; or None


class Function:
    """One differentiable operation, and, once applied, one node of the tape.

    Subclasses write ``forward(self, *inputs)``, which gets arrays where `apply` got Tensors and
    everything else as it was, keeps what the way back needs with `save`, and returns one array; and
    ``backward(self, grad)``, which returns a gradient (or None) for each leading input. A backward
    may return `grad` itself or a view of it; it never writes to `grad`, and changes or returns a
    saved array only as `take_saved` allows.

    Class attributes
    ----------------
    widens : float16 and bfloat16 inputs come as float32, and the results are rounded once
    is_view : the result may share memory with the first input
    """

    __slots__ = (
        "saved",  # the arrays kept for the way back; None once they were freed
        "needs",  # for each input of `apply`: is its gradient wanted
        "edges",  # for each input: its node, or the leaf Tensor that collects, or None
        "sequence",
        "grad",  # what has arrived so far on the way back
        "low",  # the 16-bit dtype to round to, where the class widens
        "retained",  # the Tensor whose .grad is to be kept although it is no leaf
        "walk",  # during one: what the nodes may ask about it
        "ahead",  # what the node that uses the result has done of this one's backward
        "_versions",
        "__dict__",
    )

    saved: Any
    needs: list[bool]
    edges: list[Any]
    sequence: int
    grad: Any
    low: Any
    retained: Any
    walk: Any
    ahead: Any
    _versions: Any
    widens = False
    is_view = False

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError

    def backward(self, grad: Any) -> Any:
        raise NotImplementedError

    def save(self, *arrays: Any) -> None:
        """Keep `arrays` for `backward`, where a write to a kept input or output is an error."""
        self.saved = arrays

    @property
    def name(self) -> str:
        """The name shown as grad_fn, as in PyTorch."""
        return type(self).__name__ + "Backward"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @classmethod
    def apply(cls, *inputs: Any) -> Tensor:
        """Run `forward` on `inputs` and record the node if some input needs a gradient."""
        node = cls()
        node.saved = ()
        record = mode.state.enabled
        recorded = False
        arrays: list[Any] = []
        needs: list[bool] = []
        edges: list[Function | Tensor | None] = []
        for value in inputs:
            if isinstance(value, Tensor):
                arrays.append(value._array)
                if record:
                    if value._seen != value._cell[1]:
                        check_fresh(cls.__name__, value)
                    if value._requires_grad:
                        needs.append(True)
                        edges.append(value._node or value)
                        recorded = True
                        continue
            else:
                arrays.append(value)
            needs.append(False)
            edges.append(None)
        node.needs = needs
        out = _run_forward(node, arrays)
        if isinstance(out, np.generic):
            out = np.asarray(out)
        result = wrap(out)
        if cls.is_view:
            source = inputs[0]
            result._cell = source._cell
            result._seen = source._cell[1]
        if recorded:
            node.edges = edges
            node.sequence = _sequence()
            node.grad = node.retained = node.ahead = node.walk = None
            if node.saved:
                node._versions = _watch(node.saved, (*inputs, result))
            result._node = node
            result._requires_grad = True
        return result

    @property
    def starts_with_one(self) -> bool:
        """In a backward: whether `grad` is the 1 that `Tensor.backward` starts with.

        A gradient that the forward computed can then be handed on as it is, and nobody has to look
        at the device to know that.
        """
        return self.walk.unit is self

    def take_saved(self) -> tuple[tuple[Any, ...], bool]:
        """In a backward: (what was saved, whether it is the caller's to change and to return).

        It is where the walk keeps no graph, and if it was made in the forward, of course: an input
        or the output belongs to others. The node then forgets it at once, so that a walk which
        breaks off cannot leave changed arrays to the next one.
        """
        saved = self.saved
        if self.walk.retains:
            return saved, False
        self.saved = None
        return saved, True

    def only_user_of(self, index: int) -> bool:
        """In a backward: whether no other gradient goes to input `index`, nor does anyone look."""
        edge = self.edges[index]
        alone = edge is not None and self.walk.uses.get(id(edge)) == 1
        return alone and getattr(edge, "retained", None) is None

    def slot(self, index: int) -> Any:
        """The arena slot of input `index` if its whole gradient may be written there, else None.

        Returning the array given here from `backward` saves the copy into the arena.
        """
        leaf = self.edges[index]
        if isinstance(leaf, Function):
            return leaf.own_slot(self.walk) if self.only_user_of(index) else None
        if leaf is None or leaf.grad is not None:
            return None
        for position, edge in enumerate(self.edges):
            if edge is leaf and position != index:
                return None  # a second gradient of this node goes there as well
        return leaf._grad_slot

    def own_slot(self, walk: Walk) -> Any:
        """Where the whole gradient of this node's output may be written in this walk, or None."""
        return None


def _run_forward(node: Function, arrays: list[Any]) -> Any:
    """The forward on the device of its first array, 16-bit floats widened if the class asks."""
    first = arrays[0] if hasattr(arrays[0], "dtype") else arrays[1]
    node.low = None
    if node.widens and is_low(first.dtype):
        node.low = first.dtype
        arrays = [_widen(array, node.low) for array in arrays]
    if isinstance(first, np.ndarray):
        out = node.forward(*arrays)
    else:
        with device_of(first).activate():
            out = node.forward(*arrays)
    return out if node.low is None else out.astype(node.low)


def _widen(array: Any, low: Any) -> Any:
    return array.astype(np.float32) if getattr(array, "dtype", None) == low else array


def _watch(saved: Any, tensors: Sequence[Tensor]) -> Any:
    """(version cell, version) for each Tensor whose own array was saved."""
    watched = []
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            array = tensor._array
            for kept in saved:
                if kept is array:
                    watched.append((tensor._cell, tensor._cell[0]))
                    break
    return watched


def check_fresh(name: str, tensor: Tensor) -> None:
    """Raise the error for a view of memory whose history was rewritten by a recorded write."""
    if tensor._seen >= 0 and tensor._seen != tensor._cell[1]:
        raise RuntimeError(
            f"{name}: this tensor of shape {tensor.shape} shares memory with one that "
            "was written in place with its gradient recorded, so its own history is out of date. "
            "Index or reshape the written tensor again, or work on a .clone()."
        )


def backward(
    root: Tensor, gradient: Any, retain_graph: bool = False, implicit: bool = False
) -> None:
    """Walk back from `root` with the array `gradient`, adding to the `.grad` of every leaf.

    `implicit` says that the gradient is 1, because none was given.
    """
    node = root._node
    if node is None:
        accumulate(root, gradient)
        return
    nodes, uses = _ordered(node)
    walk = Walk(uses, retain_graph, node if implicit else None, {}, mode.state.watch)
    node.grad = gradient
    try:
        for node in nodes:
            grad, node.grad = node.grad, None
            if grad is not None:
                node.walk = walk
                if node.retained is not None:
                    accumulate(node.retained, grad)
                _step_back(node, grad, retain_graph)
            node.walk = None
        for late in walk.late.values():
            late.deliver()
    except BaseException:
        for node in nodes:  # a half-finished walk must not leak into the next one
            node.grad = node.ahead = node.walk = None
        for late in walk.late.values():
            late.drop()
        raise


def _step_back(node: Function, grad: Any, retain_graph: bool) -> None:
    """Run one node's backward and hand its gradients to its edges."""
    if node.saved is None:
        raise RuntimeError(
            f"{node.name}: backward was called a second time, and the arrays it needs were freed "
            "after the first. Call the first backward with retain_graph=True, or run the forward "
            "again."
        )
    if node.saved:
        for cell, version in node._versions:
            if cell[0] != version:
                raise RuntimeError(
                    f"{node.name}: a tensor that it needs for the gradient was modified in place "
                    f"after the forward (version {cell[0]}, expected {version}). Use an operation "
                    "that makes a new tensor, or modify a .clone()."
                )
    if isinstance(grad, np.ndarray):
        _hand_on(node, grad)
    else:
        with device_of(grad).activate():
            _hand_on(node, grad)
    if node.saved and not retain_graph:
        node.saved = None


def _hand_on(node: Function, grad: Any) -> None:
    """Compute the gradients of a node's inputs and give each to its edge."""
    grads = node.backward(grad if node.low is None else grad.astype(np.float32))
    if not isinstance(grads, tuple):
        grads = (grads,)
    for position, (edge, given) in enumerate(zip(node.edges, grads, strict=False)):
        if edge is None or given is None:
            continue
        if isinstance(given, np.generic):
            given = np.asarray(given)
        if node.low is not None and given.dtype != node.low:
            given = given.astype(node.low)
        if isinstance(edge, Tensor):
            owned = given is not grad and given.base is None
            if owned and position:
                owned = not any(given is other for other in grads[:position])
            accumulate(edge, given, owned)
        elif edge.grad is None:
            edge.grad = given
        else:
            edge.grad = add_arrays(edge.grad, given)
    if node.walk.watch is not None:
        for edge in node.edges:
            if isinstance(edge, Tensor):
                node.walk.watch.came(edge, node.walk)


def _ordered(root: Function) -> tuple[list[Function], dict[int, int]]:
    """All nodes that `root` depends on, the youngest first, and how often each edge is used."""
    seen, stack, nodes = {root}, [root], [root]
    uses: dict[int, int] = {}
    while stack:
        for edge in stack.pop().edges:
            uses[id(edge)] = uses.get(id(edge), 0) + 1
            if isinstance(edge, Function) and edge not in seen:
                seen.add(edge)
                stack.append(edge)
                nodes.append(edge)
    nodes.sort(key=lambda node: node.sequence, reverse=True)
    return nodes, uses


def accumulate(leaf: Tensor, grad: Any, owned: bool = False) -> None:
    """Add `grad` to ``leaf.grad``; the first one goes into the leaf's arena slot if it has one.

    `owned` says that nobody else holds `grad`, so that it can be kept without a copy. A gradient in
    another dtype than the leaf's, as a low-precision copy of the leaf gets it, is widened here.
    """
    before, slot, dtype = leaf.grad, leaf._grad_slot, leaf._array.dtype
    if before is not None:
        if grad.dtype != before._array.dtype:
            add_converted(before._array, grad)
        else:
            add_arrays(before._array, grad, out=before._array)
        before._cell[0] += 1
        return
    if slot is not None:
        if grad.dtype != slot.dtype:
            convert_into(slot, grad)
        elif grad is not slot:
            slot[...] = grad
        grad = slot
    elif grad.dtype != dtype:
        grad = converted(grad, dtype)
    elif not owned:
        grad = grad.copy()
    leaf.grad = wrap(grad)


def add_arrays(a: Any, b: Any, out: Any = None) -> Any:
    """a + b of one type; 16-bit floats are added in float32 and rounded once."""
    if is_low(a.dtype):
        total = (a.astype(np.float32) + b.astype(np.float32)).astype(a.dtype)
        if out is None:
            return total
        out[...] = total
        return out
    if out is None:
        total = a + b
        return np.asarray(total) if isinstance(total, np.generic) else total
    out += b
    return out


def converted(array: Any, dtype: DTypeLike) -> Any:
    """`array` in another dtype, with the order of its axes in memory."""
    if not (is_float(array.dtype) and is_float(np.dtype(dtype))):
        return array.astype(dtype)
    order = memory_order(array)
    if order is None:
        return cast(array, dtype)
    return in_axes(cast(array.transpose(order), dtype), order)


def convert_into(out: Any, array: Any) -> None:
    """Write `array` into `out`, an array of another floating dtype."""
    order = memory_order(out)
    if order is not None:
        cast(array.transpose(order), out=out.transpose(order))
    elif out.flags.c_contiguous:
        cast(array, out=out)
    else:
        out[...] = converted(array, out.dtype)


def add_converted(total: Any, array: Any) -> None:
    """Add `array` to `total`, an array of another floating dtype."""
    order = memory_order(total)
    if order is not None:
        total, array = total.transpose(order), array.transpose(order)
    if total.flags.c_contiguous and total.dtype == np.float32 and is_low(array.dtype):
        add_scaled(total, array)
    else:
        add_arrays(total, converted(array, total.dtype), out=total)


def check_devices(name: str, *tensors: Tensor) -> None:
    """Raise the error for operands on different devices."""
    if all(type(tensor._array) is np.ndarray for tensor in tensors):
        return
    devices = {str(device_of(tensor._array)): tensor for tensor in tensors}
    if len(devices) > 1:
        came = ", ".join(f"{place} (shape {tensor.shape})" for place, tensor in devices.items())
        raise ValueError(
            f"{name}: its tensors are on different devices: {came}. Move them to one with "
            f".to({next(iter(devices))!r})."
        )
