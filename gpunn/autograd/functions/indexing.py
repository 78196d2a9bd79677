"""Reading and writing by index: ints, slices, ellipsis, None, boolean masks and integer arrays."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.aliases import DeviceLike, Operand
from gpunn.autograd.dtypes import is_float, is_low
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import array_xp, sum_to
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import device_of, to_device
from gpunn.primitives.embedding import embedding_backward


class Index(Function):
    """x[key]; the gradient is scattered back to the elements that were read"""

    def forward(self, x, key):
        self.shape, self.key = x.shape, key
        return x[key]

    def backward(self, grad):
        out = array_xp(grad).zeros(self.shape, grad.dtype)
        if is_basic(self.key) or _is_mask(self.key):
            out[_places(self.key)] = grad  # no element is read twice
        else:
            scatter_add(out, self.key, grad)
        return out


class View(Index):
    """Index with ints and slices alone: the result shares the memory of x"""

    is_view = True

    def forward(self, x, key):
        # NumPy gives a view of a single element, not a number, only with an ellipsis.
        parts = key if isinstance(key, tuple) else (key,)
        return super().forward(x, parts if Ellipsis in parts else (*parts, Ellipsis))


class SetIndex(Function):
    """x with x[key] = value: what was overwritten gets no gradient, the value gets it instead"""

    is_view = True  # it is the same memory, written

    def forward(self, x, value, key):
        self.key = key
        self.value_shape = value.shape if hasattr(value, "shape") else ()
        write(x, key, value)
        return x

    def backward(self, grad):
        grad_x = grad_value = None
        if self.needs[0]:
            grad_x = grad.copy()
            write(grad_x, self.key, 0)
        if self.needs[1]:
            part = grad[self.key]
            lead = len(self.value_shape) - part.ndim
            if lead > 0:  # NumPy lets a value have leading dimensions of size 1 too many
                part = part.reshape((1,) * lead + part.shape)
            grad_value = sum_to(part, self.value_shape)
        return grad_x, grad_value


def is_basic(key: Any) -> bool:
    """Whether `key` has only ints, slices, None and ellipsis, so that it gives a view."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        part is None or part is Ellipsis or isinstance(part, (int, slice)) and part is not True
        and part is not False
        for part in parts
    )  # fmt: skip


def _is_mask(key) -> bool:
    return hasattr(key, "dtype") and key.dtype == np.bool_


def _places(key):
    """`key` for writing: CuPy writes arrays through positions, not through masks."""
    return key.nonzero() if _is_mask(key) and key.ndim else key


def write(array: Any, key: Any, value: Operand) -> None:
    """``array[key] = value``; one number through a mask without counting, which would wait."""
    if _is_mask(key) and key.ndim and getattr(value, "ndim", 0) == 0:
        if key.shape != array.shape[: key.ndim]:
            raise IndexError(
                f"a mask of shape {key.shape} does not fit its first {key.ndim} dimensions"
            )
        mask = key.reshape(key.shape + (1,) * (array.ndim - key.ndim))
        array_xp(array).copyto(array, value, casting="unsafe", where=mask)
    else:
        array[_places(key)] = value


def normal_key(key: Any, device: DeviceLike) -> Any:
    """`key` with Tensors, lists and NumPy scalars as ints or as arrays on `device`."""
    if isinstance(key, tuple):
        return tuple(_normal_part(part, device) for part in key)
    return _normal_part(key, device)


def _normal_part(part, device):
    if part is None or part is Ellipsis or isinstance(part, (int, bool)):
        return part
    if isinstance(part, slice):
        edges = (part.start, part.stop, part.step)
        return slice(*(None if edge is None else edge.__index__() for edge in edges))
    array = part._array if isinstance(part, Tensor) else part
    if isinstance(array, (list, range)):
        array = raw_array(list(array), None if len(array) else np.int64)
    if isinstance(array, (np.ndarray, np.generic)) or hasattr(array, "dtype"):
        if array.dtype.kind not in "iub":
            raise TypeError(
                f"index: a tensor of dtype {array.dtype} (shape {array.shape}) cannot be an index; "
                "use integers or a bool mask. Convert it with .long()."
            )
        if array.ndim == 0 and array.dtype != np.bool_:
            return int(array)
        return to_device(np.asarray(array) if isinstance(array, np.generic) else array, device)
    raise TypeError(
        f"index: {type(part).__name__} cannot be an index; use ints, slices, None, ..., bool masks "
        "or integer tensors"
    )


def getitem(input: Tensor, key: Any) -> Tensor:
    """``input[key]`` as in NumPy. Ints and slices give a view, arrays and masks a copy.

    Raises IndexError for what is out of range and TypeError for floating indices.
    """
    array = input._array
    key = normal_key(key, device_of(array))
    try:
        return (View if is_basic(key) else Index).apply(input, key)
    except IndexError as error:
        raise IndexError(f"index: tensor of shape {input.shape}: {error}") from None


def setitem(input: Tensor, key: Any, value: Operand) -> None:
    """``input[key] = value`` in place; `value` is broadcast and cast to the tensor's dtype.

    Where gradients are recorded, the written elements take their gradient to `value` and none to
    what stood there. Raises RuntimeError for a leaf that requires a gradient (outside `no_grad`).
    """
    array = input._array
    key = normal_key(key, device_of(array))
    tracked = mode.state.enabled and (
        input._requires_grad or (isinstance(value, Tensor) and value._requires_grad)
    )
    try:
        if not tracked:
            check_writable("setitem", input)
            write(array, key, _plain_value(value, array))
            input._cell[0] += 1
            return
        check_tracked_write("setitem", input)
        source = _plain_value(value, array)
        if isinstance(value, Tensor):
            source = value if value.device is input.device else value.to(input.device)
        if isinstance(source, Tensor) and source._cell is input._cell:
            input._seen = source._cell[1]  # `y[0] += z` has written a view of y and hands it back
        result = SetIndex.apply(input, source, key)
    except IndexError as error:
        raise IndexError(f"setitem: tensor of shape {input.shape}: {error}") from None
    adopt(input, result)


def _plain_value(value, array):
    return value if isinstance(value, (int, float)) else raw_array(value, None, device_of(array))


def check_writable(name: str, tensor: Tensor) -> None:
    """Raise ValueError for memory that must not be written."""
    array = tensor._array
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise ValueError(
            f"{name}: this tensor of shape {tensor.shape} is read-only (an expanded view or a "
            "read-only array). Write to a .clone()."
        )


def check_tracked_write(name: str, tensor: Tensor) -> None:
    """Raise the errors for a recorded write: to a leaf, to integers, to read-only memory."""
    check_writable(name, tensor)
    if tensor._node is None and tensor._requires_grad:
        raise RuntimeError(
            f"{name}: a leaf that requires a gradient (shape {tensor.shape}) cannot be written in "
            "place while gradients are recorded. Do it inside no_grad(), or on a .clone()."
        )
    if not is_float(tensor.dtype):
        raise TypeError(
            f"{name}: a result with a gradient cannot be written to a tensor of dtype "
            f"{tensor.dtype}. Use a floating tensor."
        )


def adopt(tensor: Tensor, result: Tensor) -> None:
    """After a recorded write: `tensor` takes the history of `result`; older views become stale."""
    cell = tensor._cell
    cell[0] += 1
    cell[1] += 1
    tensor._seen = cell[1]
    tensor._node, tensor._requires_grad = result._node, result._requires_grad


# ---- scatter -------------------------------------------------------------------------------------


def scatter_add(out: Any, key: Any, values: Any) -> None:
    """out[key] += values, where `key` may name an element several times, the same on every run.

    On the CPU by `numpy.add.at`, in order. On a GPU as the gradient of an embedding, whose sums
    have a fixed order: additions by float atomics come in any and give other bits each time.
    """
    if type(out) is np.ndarray and not is_low(out.dtype):
        np.add.at(out, key, values)
    else:
        scatter_rows(array_xp(out), out, key, values)


def scatter_rows(xp: Any, out: Any, key: Any, values: Any, most: int = 2**30 - 1) -> None:
    """out[key] += values, row by row, with the array module `xp`; `out` is C-contiguous.

    `most` is how many rows and places the primitive takes at a time.
    """
    whole, columns = _leading_rows(out, key)
    rows = out.size // columns if columns else 0
    places = xp.arange(rows, dtype=np.int64).reshape(whole)[key].reshape(-1)
    if places.size == 0 or columns == 0:
        return
    flat, values = out.reshape(rows, columns), values.reshape(places.size, columns)
    for start in range(0, rows, most):
        part = flat[start : start + most]
        for first in range(0, places.size, most):
            some, its = values[first : first + most], places[first : first + most]
            if rows > most:
                inside = (its >= start) & (its < start + len(part))
                some, its = xp.where(inside[:, None], some, 0), xp.where(inside, its - start, 0)
            embedding_backward(
                some.astype(out.dtype, copy=False), its, num_embeddings=len(part),
                accumulate=True, out=part,
            )  # fmt: skip


def _leading_rows(out, key):
    """(shape of the dimensions the key speaks of, elements in each row of the others).

    Whole trailing rows are moved at once if `key` is one array or a tuple of arrays.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if not all(hasattr(part, "dtype") for part in parts):
        return out.shape, 1
    named = sum(part.ndim if part.dtype == np.bool_ else 1 for part in parts)
    return out.shape[:named], int(np.prod(out.shape[named:], dtype=np.int64))


# ---- helpers for classes and rows ---------------------------------------------------------------


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """int64 tensor (*shape, num_classes): 1 at each class index, 0 elsewhere.

    Raises TypeError unless `input` holds integers, ValueError for an index outside
    0 … num_classes - 1; on a GPU, where looking would mean waiting, its row is all zeros. With -1
    there are as many classes as the largest index needs, which has to be read.
    """
    array, xp = input._array, input._xp
    if array.dtype.kind not in "iu":
        raise TypeError(f"one_hot: input has dtype {array.dtype}; expected integers. Use .long().")
    if num_classes != -1 and type(array) is not np.ndarray:
        return wrap((array[..., None] == xp.arange(num_classes)).astype(np.int64))
    low, high = (int(array.min()), int(array.max())) if array.size else (0, -1)
    classes = high + 1 if num_classes == -1 else num_classes
    if low < 0 or high >= classes:
        raise ValueError(
            f"one_hot: input has class indices from {low} to {high}; expected 0 to {classes - 1}"
        )
    return wrap((array[..., None] == xp.arange(classes)).astype(np.int64))


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of `input` along `dim` at the positions of the 1-D integer tensor `index`."""
    from gpunn.autograd.functions.common import normal_dim

    dim = normal_dim("index_select", dim, input.ndim)
    return getitem(input, (*(slice(None),) * dim, index))


@overload
def nonzero(input: Tensor, as_tuple: Literal[False] = False) -> Tensor: ...
@overload
def nonzero(input: Tensor, as_tuple: Literal[True]) -> tuple[Tensor, ...]: ...
def nonzero(input: Tensor, as_tuple: bool = False) -> Tensor | tuple[Tensor, ...]:
    """The indices of elements that are not zero: (count, ndim), or one tensor a dimension."""
    found = input._array.nonzero()
    if as_tuple:
        return tuple(wrap(index) for index in found)
    return wrap(input._xp.stack(found, axis=1))
