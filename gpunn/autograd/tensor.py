"""`Tensor`: an array on a device, with the node of the tape that made it.

This file holds what a Tensor is: its attributes, its conversions, and `backward`. The operations
(arithmetic, shapes, reductions …) live in `gpunn.autograd.functions` and are attached as methods
in `gpunn.autograd.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from gpunn.autograd import dlpack
from gpunn.autograd.aliases import DeviceLike, DTypeLike, Operand
from gpunn.autograd.dtypes import as_dtype, is_float
from gpunn.device import (
    Device,
    array_module,
    as_array,
    device_of,
    to_device,
    to_numpy,
    tracing,
)
from gpunn.device.emulated import EmulatorArray

if TYPE_CHECKING:
    from gpunn.autograd.function import Function
    from gpunn.autograd.tensor_methods import Methods
else:
    Methods = object  # the operations are attached by gpunn.autograd.methods


class Tensor(Methods):
    """A multi-dimensional array with gradients, as `torch.Tensor`.

    Made by `gpunn.tensor`, `gpunn.zeros`, `gpunn.randn` … or as the result of an operation.

    Attributes
    ----------
    array : the NumPy or CuPy array that holds the values
    data : the same memory as a Tensor without a history; writes to it are not noticed by the tape.
        Assigning a Tensor or an array replaces the memory.
    grad : Tensor or None, the gradient collected by `backward` (leaves that require one).
    requires_grad : whether operations on this tensor are recorded.
    grad_fn : the node that made it, None for a leaf.
    shape, dtype, device, ndim : as usual. dtype is a NumPy dtype, `gpunn.bfloat16` included.
    """

    __slots__ = (
        "_array",
        "_requires_grad",
        "_node",
        "_cell",  # [writes, writes that were recorded], shared by all tensors on this memory
        "_seen",  # the recorded writes this tensor's history knows of; -1: it has no history
        "grad",
        "_grad_slot",  # the place in an optimizer's arena where the first gradient is written
        "_low",  # a copy in 16 bits made inside `autocast`, and when it is good; or None
        "_low_source",  # (weak reference, place) of the arena that makes such copies of all at once
        "__weakref__",
    )
    _array: Any
    _requires_grad: bool
    _node: Function | None
    _cell: list[int]
    _seen: int
    grad: Tensor | None
    _grad_slot: Any
    _low: Any
    _low_source: Any
    __array_priority__ = 1000  # `ndarray + Tensor` comes to Tensor.__radd__
    __hash__ = object.__hash__  # == compares elements, so identity is what can be hashed

    def __init__(
        self,
        data: Any = (),
        dtype: DTypeLike = None,
        device: DeviceLike = None,
        requires_grad: bool = False,
    ):
        array = raw_array(data, dtype or (None if _has_dtype(data) else np.float32), device)
        _fill(self, array)
        self.requires_grad = requires_grad

    # ---- what it is -----------------------------------------------------------------------

    @property
    def array(self) -> Any:
        return self._array

    @property
    def data(self) -> Tensor:
        return wrap(self._array)

    @data.setter
    def data(self, value: Operand) -> None:
        array = as_array(value._array if isinstance(value, Tensor) else value)
        if self._requires_grad and not is_float(array.dtype):
            raise TypeError(
                f"data: this tensor requires a gradient, and an array of {array.dtype} cannot have "
                "one. Assign a floating array."
            )
        self._array = array

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not is_float(self._array.dtype):
            raise TypeError(
                f"requires_grad: only floating tensors can have gradients, this one is {self.dtype}"
                f" (shape {self.shape}). Convert it with .float()."
            )
        if not value and self._node is not None:
            raise RuntimeError(
                "requires_grad: can only be switched off on a leaf; this tensor is the result of "
                f"{self._node.name}. Use .detach()."
            )
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch the recording for this leaf on or off; returns itself."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> Function | None:
        return self._node

    @property
    def is_leaf(self) -> bool:
        return self._node is None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def device(self) -> Device:
        return device_of(self._array)

    @property
    def is_cuda(self) -> bool:
        return not isinstance(self._array, np.ndarray)  # arrays on the emulator are NumPy's

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def itemsize(self) -> int:
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def dim(self) -> int:
        """The number of dimensions."""
        return self._array.ndim

    @overload
    def size(self) -> tuple[int, ...]: ...
    @overload
    def size(self, dim: int) -> int: ...
    def size(self, dim: int | None = None) -> int | tuple[int, ...]:
        """The shape, or its entry `dim`."""
        return self._array.shape if dim is None else self._array.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return self._array.size

    def element_size(self) -> int:
        """The bytes of one element."""
        return self._array.itemsize

    def is_floating_point(self) -> bool:
        return is_float(self._array.dtype)

    def is_contiguous(self, memory_format: Any = None) -> bool:
        """Whether the memory is in C order, or in `memory_format` (`gpunn.channels_last`)."""
        if memory_format is None:
            return bool(self._array.flags.c_contiguous)
        from gpunn.autograd.functions.layout import lies

        return bool(lies(self._array, memory_format))

    @overload
    def stride(self) -> tuple[int, ...]: ...
    @overload
    def stride(self, dim: int) -> int: ...
    def stride(self, dim: int | None = None) -> int | tuple[int, ...]:
        """Steps between neighbours along each dimension, in elements."""
        strides = tuple(step // self._array.itemsize for step in self._array.strides)
        return strides if dim is None else strides[dim]

    def data_ptr(self) -> int:
        """The address of the first element."""
        from gpunn.device import pointer

        return pointer(self._array)

    # ---- gradients ------------------------------------------------------------------------

    def backward(
        self, gradient: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that requires a gradient.

        `gradient` (same shape) is the derivative of the final scalar by this tensor; it may be left
        out when this tensor has one element. The arrays saved for the way back are freed unless
        `retain_graph`.

        Raises RuntimeError if nothing here requires a gradient, if `gradient` is missing or of the
        wrong shape, if the graph was freed, or if a saved tensor was modified in place.
        """
        from gpunn.autograd.function import backward

        if create_graph:
            raise NotImplementedError(
                "backward: create_graph=True (gradients of gradients) is not available; "
                "use finite differences of the first gradient."
            )
        if not self._requires_grad:
            raise RuntimeError(
                f"backward: this tensor (shape {self.shape}) has no grad_fn and requires no "
                "gradient. Set requires_grad=True on an input and run outside no_grad()."
            )
        array, xp = self._array, self._xp
        if gradient is None:
            if array.size != 1:
                raise RuntimeError(
                    f"backward: without gradient= a tensor must have one element; this one has "
                    f"shape {self.shape}. Reduce it (.sum(), .mean()) or pass one of that shape."
                )
            seed = xp.ones_like(array)
        else:
            seed = raw_array(gradient, self.dtype, self.device)
            if seed.shape != array.shape:
                raise RuntimeError(
                    f"backward: gradient has shape {seed.shape}, the tensor {self.shape}; "
                    "they must be equal."
                )
        backward(self, seed, retain_graph, implicit=gradient is None)

    def retain_grad(self) -> None:
        """Keep `.grad` on this tensor too, although it is not a leaf."""
        if self._node is not None:
            self._node.retained = self

    def detach(self) -> Tensor:
        """The same memory without a history: no gradient flows through the result."""
        result = wrap(self._array)
        result._cell, result._seen = self._cell, -1
        return result

    def detach_(self) -> Tensor:
        """Cut this tensor off from its history; returns itself."""
        self._node, self._requires_grad, self._seen = None, False, -1
        return self

    @property
    def _xp(self) -> Any:
        return np if type(self._array) is np.ndarray else array_module(self.device)

    # ---- out of gpunn ---------------------------------------------------------------------

    def item(self) -> Any:
        """The only element as a Python number. Raises ValueError if there are more or none."""
        if self._array.size != 1:
            raise ValueError(
                f"item: needs a tensor with one element, this one has shape {self.shape}. "
                "Index it first, or use .tolist()."
            )
        tracing.host_read("Tensor.item()")
        value = self._array.item()
        return float(value) if is_float(self._array.dtype) else value

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        tracing.host_read("Tensor.tolist()")
        array = to_numpy(self._array)
        return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the same memory on the CPU, a copy from a GPU."""
        if self._requires_grad:
            raise RuntimeError(
                "numpy: this tensor requires a gradient, which a NumPy array cannot carry. "
                "Use .detach().numpy()."
            )
        tracing.host_read("Tensor.numpy()")
        return to_numpy(self._array)

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if isinstance(self._array, np.ndarray):
            raise AttributeError("__cuda_array_interface__: this tensor is on no GPU")
        if self._requires_grad:  # no AttributeError: it would read as if there were no such thing
            raise RuntimeError(
                "__cuda_array_interface__: this tensor requires a gradient, which other libraries "
                "do not carry on. Use .detach()."
            )
        return self._array.__cuda_array_interface__

    @property
    def __emulator_array__(self) -> Any:  # by which `as_array` finds it
        if not isinstance(self._array, EmulatorArray):
            raise AttributeError("__emulator_array__: this tensor is not on the emulator")
        return self._array

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """This memory for another library; arguments as the array API standard has them.

        BufferError if the tensor requires a gradient, and where a copy is asked for that cannot be.
        """
        if self._requires_grad:
            raise BufferError(
                "__dlpack__: this tensor requires a gradient, which other libraries do not carry "
                "on. Use .detach()."
            )
        return dlpack.export(
            self._array, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __len__(self) -> int:
        if self._array.ndim == 0:
            raise TypeError("len() of a tensor without dimensions; use .numel() or .item()")
        return self._array.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self._array.ndim == 0:
            raise TypeError("a tensor without dimensions cannot be iterated; use .item()")
        return (self[index] for index in range(self._array.shape[0]))

    def __bool__(self) -> bool:
        if self._array.size != 1:
            raise ValueError(
                f"bool: the truth of a tensor of shape {self.shape} is ambiguous. "
                "Use .any(), .all() or .item() of one element."
            )
        tracing.host_read("the truth of a Tensor (if, while, and, or, not)")
        return bool(self._array.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._array.dtype.kind not in "iub" or self._array.size != 1:
            raise TypeError(
                f"only an integer tensor with one element can be an index, not {self.dtype} "
                f"of shape {self.shape}"
            )
        tracing.host_read("a Tensor as an index")
        return int(self._array.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if self._array.ndim == 0 else str(self), spec)

    def __repr__(self) -> str:
        from gpunn.autograd.printing import describe

        tracing.host_read("the text of a Tensor")
        return describe(self)

    def __copy__(self) -> Tensor:
        return self.detach().requires_grad_(self._requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError("deepcopy: only leaves can be copied so; use .detach().clone()")
        result = _fill(type(self).__new__(type(self)), self._array.copy(order="K"))
        result._requires_grad = self._requires_grad
        memo[id(self)] = result
        if self.grad is not None:
            result.grad = wrap(self.grad._array.copy())
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), to_numpy(self._array), self._requires_grad))


def wrap(array: Any) -> Tensor:
    """A Tensor around `array`, without a copy, check or history."""
    return _fill(Tensor.__new__(Tensor), array)


def _fill(tensor: Any, array: Any) -> Any:
    """Set every slot of a new Tensor (or of a subclass)."""
    tensor._array = array
    tensor._requires_grad = False
    tensor._node = tensor.grad = tensor._grad_slot = tensor._low = tensor._low_source = None
    tensor._cell = [0, 0]
    tensor._seen = 0
    return tensor


def _rebuild(cls: Any, array: Any, requires_grad: bool) -> Any:
    tensor = _fill(cls.__new__(cls), array)
    tensor._requires_grad = requires_grad
    return tensor


def _has_dtype(data: Any) -> bool:
    return hasattr(data, "dtype")


def raw_array(data: Any, dtype: DTypeLike = None, device: DeviceLike = None) -> Any:
    """`data` (Tensor, array, number, nested lists) as an array of `dtype` on `device`.

    Without a dtype, Python numbers become float32, int64 or bool, arrays keep theirs. Without a
    device, arrays stay where they are. No copy where none is needed.
    """
    if isinstance(data, Tensor):
        array = data._array
    elif isinstance(data, np.ndarray) or _is_foreign_array(data):
        array = dlpack.foreign_array(data)
    else:
        array = _from_python(data, dtype)
    if dtype is not None and array.dtype != dtype:
        array = array.astype(as_dtype(dtype))
    if device is not None:
        array = to_device(array, device)
    return array


def _is_foreign_array(data: Any) -> bool:
    return hasattr(data, "__dlpack_device__") or hasattr(data, "__cuda_array_interface__")


def _from_python(data: Any, dtype: DTypeLike) -> Any:
    try:
        if isinstance(data, (list, tuple)) and any(isinstance(item, Tensor) for item in data):
            data = [item.tolist() if isinstance(item, Tensor) else item for item in data]
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(
            f"tensor: the nested lists do not form a rectangular array ({error}). "
            "Give each list at one depth the same length."
        ) from None
    if array.dtype.kind not in "fiubV" or (array.dtype.kind == "V" and not is_float(array.dtype)):
        raise TypeError(
            f"tensor: cannot make a tensor from {type(data).__name__} holding {array.dtype}; "
            "give numbers, booleans or arrays of them."
        )
    if dtype is None and array.dtype == np.float64 and not isinstance(data, np.generic):
        if not _holds_numpy(data):
            array = array.astype(np.float32)
    return array


def _holds_numpy(data: Any) -> bool:
    """Whether nested lists hold NumPy values, whose dtype then counts."""
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, (np.ndarray, np.generic))


def numel(shape: Iterable[int]) -> int:
    return math.prod(shape)
