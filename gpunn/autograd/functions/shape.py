"""Shapes: reshape view permute transpose expand squeeze flatten cat stack split repeat clone.

On contiguous memory these give views, as in PyTorch: writing to one shows in the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpunn.autograd.aliases import Dims, Size
from gpunn.autograd.dtypes import promote
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import array_xp, cast, joined, normal_dim, sizes, sum_to
from gpunn.autograd.functions.layout import (
    MemoryFormat,
    channels_first_view,
    channels_last_view,
    lies,
)
from gpunn.autograd.tensor import Tensor, numel


class Reshape(Function):
    """The same elements in another shape"""

    is_view = True

    def forward(self, x, shape):
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, grad):
        return grad.reshape(self.shape)


class Permute(Function):
    """The dimensions in another order"""

    is_view = True

    def forward(self, x, order):
        self.order = order
        return x.transpose(order)

    def backward(self, grad):
        return grad.transpose(np.argsort(self.order).tolist())


class Expand(Function):
    """Dimensions of size 1 repeated without copies; the gradient is summed over the repeats"""

    is_view = True

    def forward(self, x, shape):
        self.shape = x.shape
        return array_xp(x).broadcast_to(x, shape)

    def backward(self, grad):
        return sum_to(grad, self.shape)


class Clone(Function):
    """A copy in C order, or with the channels innermost"""

    def forward(self, x, channels_last=False):
        return channels_first_view(channels_last_view(x).copy()) if channels_last else x.copy()

    def backward(self, grad):
        return grad


class Flip(Function):
    """The reverse order along axes"""

    def forward(self, x, axes):
        self.axes = axes
        return array_xp(x).flip(x, axes).copy()

    def backward(self, grad):
        return array_xp(grad).flip(grad, self.axes)


class Cat(Function):
    """Tensors one after the other along an axis; each gets its part of the gradient"""

    def forward(self, axis, *arrays):
        self.axis = axis
        self.ends = np.cumsum([array.shape[axis] for array in arrays])[:-1].tolist()
        return joined(arrays, axis)

    def backward(self, grad):
        return (None, *array_xp(grad).split(grad, self.ends, self.axis))


class Triangle(Function):
    """The elements on and below (or above) a diagonal, zeros elsewhere"""

    def forward(self, x, diagonal, lower):
        self.diagonal, self.lower = diagonal, lower
        xp = array_xp(x)
        return (xp.tril if lower else xp.triu)(x, diagonal)

    def backward(self, grad):
        xp = array_xp(grad)
        return (xp.tril if self.lower else xp.triu)(grad, self.diagonal)


# ---- public functions ---------------------------------------------------------------------------


def reshape(input: Tensor, *shape: int | Sequence[int]) -> Tensor:
    """The same elements in another shape; one size may be -1. A view where the memory allows it."""
    return Reshape.apply(input, _resolve("reshape", input, shape))


def view(input: Tensor, *shape: int | Sequence[int]) -> Tensor:
    """Like `reshape`, but RuntimeError where only a copy could have that shape.

    ``view(dtype)``, which reinterprets bytes in PyTorch, is not offered.
    """
    target = _resolve("view", input, shape)
    result = Reshape.apply(input, target)
    if not input._array.flags.c_contiguous and not _shares(result._array, input._array):
        raise RuntimeError(
            f"view: a tensor of shape {input.shape} and strides {input.stride()} cannot be seen as "
            f"{target} without a copy. Use .reshape() or .contiguous().view()."
        )
    return result


def _shares(a, b) -> bool:
    return a.size == 0 or bool(array_xp(a).may_share_memory(a, b))


def _resolve(name: str, input: Tensor, shape) -> tuple[int, ...]:
    """The shape with -1 worked out; ValueError if the elements do not fit."""
    shape = sizes(shape)
    count, known = input._array.size, numel(size for size in shape if size != -1)
    unknown = shape.count(-1)
    if unknown == 1 and known and count % known == 0:
        return tuple(count // known if size == -1 else size for size in shape)
    if unknown or known != count or min(shape, default=1) < 0:
        raise ValueError(
            f"{name}: a tensor of shape {input.shape} ({count} elements) cannot be {shape}; "
            "the number of elements must stay, with at most one -1."
        )
    return shape


def permute(input: Tensor, *dims: int | Sequence[int]) -> Tensor:
    """The dimensions in the order `dims`; a view."""
    order = tuple(normal_dim("permute", dim, input.ndim) for dim in sizes(dims))
    if sorted(order) != list(range(input.ndim)):
        raise ValueError(f"permute: dims {dims} must name each of the {input.ndim} dimensions once")
    return Permute.apply(input, order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged; a view."""
    order = list(range(input.ndim))
    a, b = (normal_dim("transpose", dim, input.ndim) for dim in (dim0, dim1))
    if order:
        order[a], order[b] = order[b], order[a]
    return Permute.apply(input, tuple(order))


def t(input: Tensor) -> Tensor:
    """The transpose of a matrix (vectors stay). Raises ValueError above two dimensions."""
    if input.ndim > 2:
        raise ValueError(
            f"t: input has shape {input.shape}; expected at most 2 dimensions. Use .mT"
        )
    return Permute.apply(input, tuple(range(input.ndim))[::-1])


def moveaxis(input: Tensor, source: int, destination: int) -> Tensor:
    """Dimension `source` moved to place `destination`; the others keep their order."""
    source = normal_dim("moveaxis", source, input.ndim)
    order = [dim for dim in range(input.ndim) if dim != source]
    order.insert(normal_dim("moveaxis", destination, input.ndim), source)
    return Permute.apply(input, tuple(order))


def expand(input: Tensor, *size: int | Sequence[int]) -> Tensor:
    """Dimensions of size 1 repeated to `size` without a copy; -1 keeps a size."""
    size = sizes(size)
    lead = len(size) - input.ndim
    target = tuple(
        input.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(size)
    )
    if lead < 0 or any(
        have not in (1, want) for have, want in zip(input.shape, target[lead:], strict=True)
    ):
        raise ValueError(
            f"expand: a tensor of shape {input.shape} cannot be expanded to {size}; "
            "only dimensions of size 1 can grow, and new ones come in front."
        )
    return Expand.apply(input, target)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """`input` expanded to `size`."""
    return expand(input, *size)


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """`input` expanded to the shape of `other`."""
    return expand(input, *other.shape)


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """`input` as a view in the shape of `other`."""
    return view(input, *other.shape)


def squeeze(input: Tensor, dim: Dims = None) -> Tensor:
    """Without the dimensions of size 1, or only without `dim` (one or several) where it is 1."""
    if dim is None:
        shape = tuple(size for size in input.shape if size != 1)
    else:
        dims = (dim,) if isinstance(dim, int) else dim
        drop = {normal_dim("squeeze", d, input.ndim) for d in dims}
        shape = tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in drop)
    return Reshape.apply(input, shape)


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new dimension of size 1 at `dim`."""
    dim = normal_dim("unsqueeze", dim, input.ndim + 1)
    return Reshape.apply(input, input.shape[:dim] + (1,) + input.shape[dim:])


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The dimensions from `start_dim` to `end_dim` as one."""
    first = normal_dim("flatten", start_dim, input.ndim)
    last = normal_dim("flatten", end_dim, input.ndim)
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    merged = numel(input.shape[first : last + 1])
    return Reshape.apply(input, input.shape[:first] + (merged,) + input.shape[last + 1 :])


def unflatten(input: Tensor, dim: int, shape: Size) -> Tensor:
    """Dimension `dim` split into `shape` (one size may be -1)."""
    dim, shape = normal_dim("unflatten", dim, input.ndim), sizes((shape,))
    if -1 in shape:
        known = numel(size for size in shape if size != -1)
        shape = tuple(input.shape[dim] // max(known, 1) if n == -1 else n for n in shape)
    return reshape(input, *input.shape[:dim], *shape, *input.shape[dim + 1 :])


def contiguous(
    input: Tensor, memory_format: MemoryFormat = MemoryFormat.contiguous_format
) -> Tensor:
    """Itself if its memory lies so, else a copy that does.

    `memory_format` is `gpunn.contiguous_format` (C order) or `gpunn.channels_last`, in which the
    layers of images compute and give their results: a tensor that comes so is not copied there.
    """
    if lies(input._array, memory_format):
        return input
    return Clone.apply(input, memory_format is MemoryFormat.channels_last)


def clone(input: Tensor) -> Tensor:
    """A copy, through which gradients flow."""
    return Clone.apply(input)


def flip(input: Tensor, *dims: int | Sequence[int]) -> Tensor:
    """The elements in reverse order along `dims`; a copy."""
    return Flip.apply(input, tuple(normal_dim("flip", dim, input.ndim) for dim in sizes(dims)))


def repeat(input: Tensor, *size: int | Sequence[int]) -> Tensor:
    """The tensor repeated `size` times along each dimension (NumPy's tile)."""
    size = sizes(size)
    if len(size) < input.ndim:
        raise ValueError(
            f"repeat: {len(size)} sizes for {input.ndim} dimensions; give one for each"
        )
    lead = (1,) * (len(size) - input.ndim) + input.shape
    paired = [n for have in lead for n in (1, have)]
    target = [n for times, have in zip(size, lead, strict=True) for n in (times, have)]
    wide = expand(reshape(input, *paired), *target)
    return reshape(wide, *(a * b for a, b in zip(size, lead, strict=True)))


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two dimensions, zeros above."""
    return Triangle.apply(input, diagonal, True)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two dimensions, zeros below."""
    return Triangle.apply(input, diagonal, False)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along `dim`; the other sizes must be equal."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: expected at least one tensor, got none")
    first = tensors[0]
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"cat: tensors[{position}] is {type(tensor).__name__}; expected a Tensor"
            )
    dim = normal_dim("cat", dim, first.ndim)
    for position, tensor in enumerate(tensors):
        sides = tensor.shape[:dim] + tensor.shape[dim + 1 :]
        if tensor.ndim != first.ndim or sides != first.shape[:dim] + first.shape[dim + 1 :]:
            raise ValueError(
                f"cat: tensors[{position}] has shape {tensor.shape}, tensors[0] has {first.shape}; "
                f"all sizes but that of dim {dim} must be equal"
            )
    if first.ndim == 0:
        raise ValueError("cat: tensors without dimensions cannot be joined; use stack")
    check_devices("cat", *tensors)
    dtype = first.dtype
    for tensor in tensors[1:]:
        dtype = promote(dtype, tensor.dtype)
    return Cat.apply(dim, *(cast(tensor, dtype) for tensor in tensors))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors, all of one shape, along a new dimension `dim`."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: expected at least one tensor, got none")
    for position, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f"stack: tensors[{position}] has shape {tensor.shape}, tensors[0] has "
                f"{tensors[0].shape}; they must be equal"
            )
    return cat(
        [unsqueeze(tensor, dim) for tensor in tensors],
        normal_dim("stack", dim, tensors[0].ndim + 1),
    )


def split(input: Tensor, split_size_or_sections: Size, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts along `dim`: of one size (the last may be smaller), or of the sizes listed."""
    dim = normal_dim("split", dim, input.ndim)
    total = input.shape[dim]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step < 1:
            raise ValueError(f"split: split_size is {step}; expected at least 1")
        starts = range(0, total, step) if total else (0,)
        parts = [min(step, total - start) for start in starts]
    else:
        parts = list(split_size_or_sections)
        if sum(parts) != total:
            raise ValueError(f"split: sizes {parts} add up to {sum(parts)}; dim {dim} has {total}")
    lead, start, pieces = (slice(None),) * dim, 0, []
    for size in parts:
        pieces.append(input[(*lead, slice(start, start + size))])
        start += size
    return tuple(pieces)


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal size along `dim` (the last may be smaller)."""
    if chunks < 1:
        raise ValueError(f"chunk: chunks is {chunks}; expected at least 1")
    size = input.shape[normal_dim("chunk", dim, input.ndim)]
    return split(input, max(1, -(-size // chunks)), dim)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, without it."""
    dim = normal_dim("unbind", dim, input.ndim)
    lead = (slice(None),) * dim
    return tuple(input[(*lead, index)] for index in range(input.shape[dim]))


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A view of `length` elements along `dim` from `start`."""
    dim = normal_dim("narrow", dim, input.ndim)
    return input[(*(slice(None),) * dim, slice(start, start + length))]
