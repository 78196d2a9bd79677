"""`autocast`: products in 16 bits, and what has to be more exact in float32, op by op.

Parameters stay float32, the masters that an optimizer updates, and get gradients in float32.

A parameter is cast once for a block, and the parameters of an optimizer together, in one launch
(`gpunn.optim.low_copies`). A write to a parameter inside the block is noticed by its version. A
gradient comes back in 16 bits and is widened on its way to its place (`function.accumulate`), those
of an optimizer's parameters together at the end of the walk.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, cast

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.dtypes import as_dtype, bfloat16, float16, float64, is_float, is_low
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import Cast
from gpunn.autograd.mode import F, state
from gpunn.autograd.tensor import Tensor
from gpunn.device import Device

_DEVICES = {"cuda": float16, "cpu": bfloat16, "emulator": bfloat16}  # PyTorch's default dtypes


class _Block:
    """What lasts from the entry into the outermost block to its end: who holds a copy."""

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders: dict[int, weakref.ref[Tensor]] = {}  # by their id, which may come again

    def note(self, tensor: Tensor) -> None:
        """To be called with each leaf that holds a copy; the block does not keep it alive."""
        self.holders[id(tensor)] = weakref.ref(tensor)

    def clear(self) -> None:
        for reference in self.holders.values():
            tensor = reference()
            if tensor is not None:
                tensor._low = None
        self.holders.clear()


class autocast:
    """Context manager and decorator: run products in `dtype` and keep the rest exact.

    >>> with gpunn.autocast("bfloat16"):
    ...     loss = loss_function(model(x), y)
    >>> loss.backward()

    The backward pass belongs outside the block; it uses the dtypes of the forward pass. float16
    also needs a loss scale: `gpunn.amp.GradScaler`. On the CPU 16 bits only save memory: products
    there are made in float32 and rounded, which is no faster.

    ==================  =======================================================================
    in 16 bits          linear, matmul (bmm, mm, dot, @), convolutions, transposed ones too,
                        attention, recurrent layers, linear_cross_entropy: floating inputs and
                        weights are cast; the products add up in float32 all the same
    in float32          exp expm1 log log2 log10 log1p pow reciprocal rsqrt tan, softmax,
                        log_softmax, softplus, sum mean prod var std norm cumsum logsumexp, and
                        losses: 16-bit inputs are cast, the result is float32
    in the input's own  the norms, pooling, activations, dropout, shapes, embeddings. The norms'
                        kernels take 16-bit inputs with float32 weights, hold their statistics in
                        float32 and write 16 bits: half of the memory that moves
    in the wider one    + - * / where, cat and so on, if dtypes differ, as everywhere
    ==================  =======================================================================

    cross_entropy of labels, and ctc_loss, take 16-bit inputs as they are: their kernels compute in
    float32 and so is the loss. These lists are PyTorch's but for layer_norm and group_norm, which
    go to float32 there, and mean, which stays in 16 bits. float64 is left alone: functions with a
    float64 input behave as outside.

    Parameters
    ----------
    device_type : the dtype, "bfloat16" or "float16"; or, as in PyTorch, "cuda" or "cpu" with
        `dtype` after it (default: float16 and bfloat16). It holds for tensors on every device.
    dtype : as above
    enabled : False switches autocast off inside the block
    cache_enabled : False casts a parameter each time it is used

    Raises ValueError for a dtype that has not 16 bits.
    """

    def __init__(
        self,
        device_type: Any = "bfloat16",
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ):
        if isinstance(device_type, Device):
            device_type = device_type.type
        if isinstance(device_type, str) and device_type in _DEVICES:
            dtype = _DEVICES[device_type] if dtype is None else dtype
        elif dtype is None:
            dtype = device_type
        self.dtype, self.enabled = _low_dtype(dtype), bool(enabled)
        self.cache_enabled = cache_enabled is None or bool(cache_enabled)
        self._before: list[tuple[Any, ...]] = []

    def __enter__(self) -> autocast:
        self._before.append((state.low, state.block))
        state.low = self.dtype if self.enabled else None
        if not self.cache_enabled:
            state.block = None
        elif state.block is None:
            state.block = _Block()
        return self

    def __exit__(self, *exception: object) -> None:
        low, block = self._before.pop()
        if state.block is not block and state.block is not None:
            state.block.clear()
        state.low, state.block = low, block

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.dtype, None, self.enabled, self.cache_enabled):
                return function(*args, **kwargs)

        return cast(F, wrapped)


def _low_dtype(dtype: DTypeLike) -> Any:
    try:
        found = as_dtype(dtype)
    except TypeError:
        found = None
    if found is None or not is_low(found):
        raise ValueError(
            f"autocast: {dtype!r} is no 16-bit floating dtype; use 'bfloat16' or 'float16'"
        )
    return found


def is_autocast_enabled() -> bool:
    """Whether functions called now are inside an `autocast` block."""
    return state.low is not None


def get_autocast_dtype() -> Any:
    """The dtype of products inside the `autocast` block; None outside."""
    return state.low


def forget() -> None:
    """Cast every parameter anew when it is next used in the running block, if there is one.

    For whoever records launches and repeats them: a copy made before would not be made again.
    """
    if state.block is not None:
        state.block.clear()
        state.block = _Block()


# ---- for the functions of gpunn.autograd.functions, which ask whether state.low is None first ----


class LowCopy(Function):
    """A parameter as the arena of its optimizer has it in 16 bits

    So has the arena a place for its gradient in 16 bits. All of these are widened in one launch at
    the end of the walk; a gradient that could not be written there is, as that of a `Cast`, on its
    way to the parameter.
    """

    def forward(self, x: Any, made: Any, copies: Any, place: Any) -> Any:
        self.copies, self.place = copies, place
        return made

    def own_slot(self, walk: Any) -> Any:
        slot = self.copies.claim(self.place, self)
        if slot is not None:
            walk.late[id(self.copies)] = self.copies
        return slot

    def backward(self, grad: Any) -> Any:
        return None if self.copies.receive(self.place, self, grad) else grad


def lowered(*tensors: Any) -> Any:
    """Floating tensors in the dtype of the block (None stays), or all as they are beside float64.

    Called inside a block alone.
    """
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor._array.dtype == float64:
            return tensors
    return tuple(_lowered(tensor) if isinstance(tensor, Tensor) else tensor for tensor in tensors)


def widened(tensor: Any) -> Any:
    """A 16-bit tensor in float32, anything else as it is."""
    if isinstance(tensor, Tensor) and is_low(tensor._array.dtype):
        return Cast.apply(tensor, "float32")
    return tensor


def _lowered(tensor: Tensor) -> Tensor:
    array, dtype, block = tensor._array, state.low, state.block
    if array.dtype == dtype or not is_float(array.dtype):
        return tensor
    if block is None:
        return Cast.apply(tensor, dtype)
    recorded = state.enabled and tensor._requires_grad
    good = (block, tensor._cell[0], array, recorded)
    if tensor._low is not None:
        result, *when = tensor._low
        same = when[0] is block and when[1] == good[1] and when[2] is array and when[3] == recorded
        if same and result._array.dtype == dtype:
            return result
    copies = _of_arena(tensor, dtype, block)
    if copies is None:
        result = Cast.apply(tensor, dtype)
    else:
        place = tensor._low_source[1]
        result = LowCopy.apply(tensor, copies.views[place], copies, place)
        result._cell = copies.cells[place]  # by it a graph that saved the copy notices a new one
    if tensor._node is None:
        block.note(tensor)
    tensor._low = (result, *good)
    return result


def _of_arena(tensor: Tensor, dtype: DTypeLike, block: Any) -> Any:
    """The copies in an optimizer's arena, with a fresh one of `tensor`; None if it is in none."""
    source = tensor._low_source
    arena = None if source is None else source[0]()
    return None if arena is None else arena.low_copies(source[1], dtype, block)


__all__ = ["autocast", "forget", "get_autocast_dtype", "is_autocast_enabled"]
