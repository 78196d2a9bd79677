"""What several families share: making operands meet, summing what broadcasting repeated."""

from __future__ import annotations

import numpy as np

from gpunn.autograd.dtypes import float32, is_float, is_low, result_type
from gpunn.autograd.function import Function, check_devices, converted
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import array_module, device_of


def array_xp(array):
    """The module that computes with `array`: numpy, cupy or the emulator's."""
    return np if type(array) is np.ndarray else array_module(device_of(array))


def joined(arrays, axis: int):
    """Arrays of one dtype and device, one after the other along an axis.

    On a GPU by one copy each: CuPy's own function brings a table of addresses there first, which no
    captured step can repeat.
    """
    xp = array_xp(arrays[0])
    if xp is np:
        return np.concatenate(arrays, axis)
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    out = xp.empty(tuple(shape), arrays[0].dtype)
    start = 0
    for array in arrays:
        stop = start + array.shape[axis]
        out[(slice(None),) * axis + (slice(start, stop),)] = array
        start = stop
    return out


class Cast(Function):
    """The same values in another dtype; the gradient is cast back

    That of a leaf goes there as it came: it is cast on its way into the place where gradients are
    collected, see `function.accumulate`.
    """

    def forward(self, x, dtype):
        self.dtype = x.dtype
        return converted(x, dtype)

    def backward(self, grad):
        return grad if isinstance(self.edges[0], Tensor) else converted(grad, self.dtype)


def cast(x: Tensor, dtype) -> Tensor:
    """`x` in `dtype`, itself if it is that already."""
    return x if x._array.dtype == dtype else Cast.apply(x, dtype)


def as_tensor_like(value, other: Tensor) -> Tensor:
    """`value` as a Tensor on the device of `other`."""
    return value if isinstance(value, Tensor) else wrap(raw_array(value, None, other.device))


def as_float(x: Tensor) -> Tensor:
    """Integers and booleans in float32, as functions like exp and mean need them."""
    return x if is_float(x._array.dtype) else Cast.apply(x, float32)


def scalar(value):
    """A Python number from a Python or NumPy scalar; None if it is neither."""
    kind = type(value)
    if kind is float or kind is int or kind is bool:
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        return value.item()
    if isinstance(value, (float, int)):
        return float(value) if isinstance(value, float) else int(value)
    return None


def operands(name: str, a, b):
    """Both operands of one dtype on one device: two Tensors, or a Tensor and a Python number.

    Integers meeting floats become floats, and a Python number never widens a tensor (PyTorch's
    promotion). Raises ValueError for two devices.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        x, y = a._array, b._array
        if type(x) is not np.ndarray or type(y) is not np.ndarray:
            check_devices(name, a, b)
        if x.dtype is y.dtype or x.dtype == y.dtype:
            return a, b
        dtype = result_type(x, y)
        return cast(a, dtype), cast(b, dtype)
    tensor, other, first = (a, b, True) if isinstance(a, Tensor) else (b, a, False)
    number = scalar(other)
    if number is None:
        if isinstance(other, (str, dict, type(None))) or isinstance(other, type):
            raise TypeError(f"{name}: cannot combine a tensor with {type(other).__name__}")
        other = as_tensor_like(other, tensor)
        return operands(name, tensor, other) if first else operands(name, other, tensor)
    if type(number) is float and not is_float(tensor._array.dtype):
        tensor = Cast.apply(tensor, float32)
    elif type(number) is int and tensor._array.dtype == np.bool_:
        tensor = Cast.apply(tensor, np.int64)
    return (tensor, number) if first else (number, tensor)


def check_broadcast(name: str, *shapes) -> None:
    """Raise the error if `shapes` do not broadcast."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(
            f"{name}: shapes {listed} do not broadcast together; counted from the last dimension, "
            "sizes must be equal or 1. Use .reshape or .unsqueeze."
        ) from None


def shape_of(value) -> tuple[int, ...]:
    """The shape of an array, () for a number."""
    return getattr(value, "shape", ())


def sum_to(grad, shape):
    """`grad` summed over the dimensions that broadcasting added to or stretched from `shape`."""
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    axes = tuple(range(added)) + tuple(
        axis + added
        for axis, size in enumerate(shape)
        if size == 1 and grad.shape[axis + added] != 1
    )
    low = is_low(grad.dtype)
    total = grad.sum(axis=axes, dtype=np.float32 if low else grad.dtype)
    if low:
        total = total.astype(grad.dtype)
    return (
        np.asarray(total).reshape(shape) if isinstance(total, np.generic) else total.reshape(shape)
    )


def normal_dim(name: str, dim: int, ndim: int) -> int:
    """`dim` counted from the front; IndexError if it is out of range."""
    limit = max(ndim, 1)
    if not -limit <= dim < limit:
        raise IndexError(
            f"{name}: dim {dim} is out of range for {ndim} dimensions; use {-limit} to {limit - 1}"
        )
    return dim + limit if dim < 0 else dim


def normal_dims(name: str, dim, ndim: int) -> tuple[int, ...]:
    """`dim` (None for all, an int or several) as a sorted tuple; an error for repeats."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, (int, np.integer)) else tuple(dim)
    found = tuple(sorted(normal_dim(name, int(d), ndim) for d in dims))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: dim {dim} names a dimension twice")
    return found if ndim else ()


def sizes(size) -> tuple[int, ...]:
    """Sizes given as ``f(2, 3)`` or ``f((2, 3))`` as one tuple."""
    if len(size) == 1 and not isinstance(size[0], (int, np.integer, Tensor)):
        size = size[0]
    return tuple(int(n) for n in size)


def named(function, name: str, text: str):
    """A function made for a number of dimensions, with the name and docstring of its own."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function
