"""Cross-entropy of a linear layer's output without the logits: for large vocabularies.

The logits of a language model are often the largest array of all: 8192 tokens of 128,256 classes
are 2.1 GB in bfloat16, and their gradient as much again. Here they exist a chunk of rows at a time,
in one scratch array Z of `chunk_rows` x classes:

    Z = x[chunk] W^T + b,  the loss of its rows,  Z <- the gradient of that loss, in place,
    grad_x[chunk] = Z W,  grad_W += Z^T x[chunk],  grad_b += the column sums of Z

All of it happens in the forward pass, where a gradient is wanted; backward multiplies by what
comes back and divides by the mean's divisor. So Z holds the gradient of the plain sum, whose
elements are of the order of 1: they do not vanish in float16, however many rows there are.

Sums over chunks are kept in float32 for 16-bit types. Each chunk's product is rounded to 16 bits
once before it is added, which for n chunks leaves a relative error of about 2^-9 / sqrt(n)
(bfloat16), no more than the last rounding of the gradient itself.

float16 ends at 65504, and a plain sum over rows may go beyond. There a chunk has at most 2048 rows,
its weight product is made at a sixteenth of its size, and the totals are float32 also with one
chunk. An element of Z is at most the largest class weight, so nothing overflows while class weights
are up to 31 and, times the mean of |x| over a chunk, up to 511; only the finished gradient is
rounded to float16, as that of the two functions. What vanishes: elements of Z below 2^-25 and
elements of a chunk's weight product below 2^-21, about 5e-7, beside a sum over up to 2048 rows.

Source of the idea: Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, 2024.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.autograd.autocast import lowered, widened
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.loss import check_constant, check_reduction
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.device import Device
from gpunn.device.launch import device_properties
from gpunn.device.quiet import quiet
from gpunn.primitives.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
)
from gpunn.primitives.matmul import matmul
from gpunn.primitives.matmul_backward import bias_gradient
from gpunn.primitives.samples import FLOAT16, INTEGERS, accumulator_dtype
from gpunn.primitives.scale import accumulate, scale

# Bytes of the scratch array: at 128,256 classes of 16 bits it has 1024 rows. On a GPU of more than
# 16 GiB they are a 64th of its memory, up to four times as many.
SCRATCH_BYTES, _MOST_SCRATCH, _SHARE = 256 * 2**20, 2**30, 64

# Rows of a tile of the matrix product: a chunk is a multiple of it.
_TILE = 128

# In float16: rows of a chunk at most, and what its weight product is multiplied by, a power of two
# so that nothing is rounded by it.
FLOAT16_ROWS = 2048
_FLOAT16_SCALE = 1 / 16

# Elements whose multiple the rows of Z are in 16 bits on a GPU, a line of 128 bytes, from so many
# classes on; see `_Head`.
_LINE, _MANY_CLASSES = 64, 1024


def scratch_bytes(device: Device) -> int:
    """Bytes of the scratch array on a device; by the size of its memory, not by what is free of it,
    so that sums are cut into the same chunks each time."""
    if device.type != "cuda":
        return SCRATCH_BYTES
    memory = int(device_properties(device.index)["totalGlobalMem"])
    return min(_MOST_SCRATCH, max(SCRATCH_BYTES, memory // _SHARE))


def default_chunk_rows(
    rows: int, classes: int, itemsize: int, most: int | None = None, scratch: int = SCRATCH_BYTES
) -> int:
    """Rows of a chunk: at most `most` and what `scratch` bytes hold, all of about one size.

    What a chunk of n rows costs beside its three products, which are 6 n operations an element of
    W, is the sum grad_W: 12 bytes an element with 16 bits (the product's 2 written and read, the
    total's 4 read and written), 8 in float32. So n / 2 operations a byte; a GPU of 800 TFLOP/s and
    4 TB/s makes 200 in the time of one, and its sum takes 400 / n of the time of the products: two
    fifths with 1024 rows, a tenth with 4096; nothing, if all rows are one chunk, where no total is
    kept beside the product. (On paper; not timed yet.)
    """
    limit = scratch // (classes * itemsize)
    limit = max(_TILE, (limit if most is None else min(limit, most)) // _TILE * _TILE)
    chunks = max(1, -(-rows // limit))
    even = -(-rows // chunks)
    return max(1, min(rows, -(-even // _TILE) * _TILE))


class LinearCrossEntropy(Function):
    """The loss and, where they are wanted, the gradients by x, W and b, chunk by chunk

    With reduction "none" the gradient of each row's loss is known in backward alone: the logits of
    a chunk are then computed a second time.
    """

    def forward(
        self, x, weight, bias, target, class_weight, ignore_index, smoothing, reduction, chunk_rows
    ):
        self.reduction, self.chunk_rows, self.dtype = reduction, chunk_rows, x.dtype
        self.options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        self.class_weight = class_weight
        if reduction == "none":
            return self._losses(x, weight, bias, target)
        xp, wide = array_xp(x), accumulator_dtype(x.dtype)
        counts = (target != ignore_index).any()  # on the device, as what follows from it
        head = _Head(weight, bias, class_weight, target, **self.options)
        options = {**self.options, "weight": head.class_weight, "reduction": "sum"}
        loss, total = xp.zeros((), wide), xp.zeros((), wide)
        sums = _Sums(x, head.weight, chunk_rows, self.needs) if any(self.needs) else None
        for some, logits in head.chunks(x, chunk_rows):
            if sums is None:
                part, _, own = cross_entropy_forward(logits, head.target[some], **options)
            else:
                part, _, own, slopes = cross_entropy_forward_backward(
                    logits, head.target[some], gradient=logits, **options
                )
                sums.add(some, x, head.weight, slopes)
            loss += part
            total += own
        if sums is not None:
            self.save(*head.without_padding(sums.arrays), total, counts)
        with quiet():
            return loss / total if reduction == "mean" else loss

    def _losses(self, x, weight, bias, target):
        """The rows' losses; what a second look at the logits needs is kept."""
        xp = array_xp(x)
        losses = xp.empty((len(x),), x.dtype)
        normalizer = xp.empty((len(x),), accumulator_dtype(x.dtype))
        head = _Head(weight, bias, self.class_weight, target, **self.options)
        for some, logits in head.chunks(x, self.chunk_rows):
            cross_entropy_forward(
                logits, head.target[some], out=losses[some], log_normalizer=normalizer[some],
                reduction="none", weight=head.class_weight, **self.options,
            )  # fmt: skip
        self.save(x, weight, bias, target, normalizer)
        return losses

    def backward(self, grad):
        if self.reduction == "none":
            return self._gradients_of_losses(grad)
        (*arrays, total, counts), owned = self.take_saved()
        factor = grad
        if self.reduction == "mean":
            with quiet():  # no row counts: no gradient, as of ignored rows
                factor = array_xp(total).where(counts, grad / total, 0).astype(total.dtype)
        elif self.starts_with_one:
            factor = None
        return self._finished(arrays, factor, owned)

    def _gradients_of_losses(self, grad):
        x, weight, bias, target, normalizer = self.saved
        unused = array_xp(x).ones((), normalizer.dtype)  # the mean's divisor
        head = _Head(weight, bias, self.class_weight, target, **self.options)
        sums = _Sums(x, head.weight, self.chunk_rows, self.needs)
        for some, logits in head.chunks(x, self.chunk_rows):
            slopes = cross_entropy_backward(
                grad[some], logits, head.target[some], normalizer[some], unused, reduction="none",
                out=logits, weight=head.class_weight, **self.options,
            )  # fmt: skip
            sums.add(some, x, head.weight, slopes)
        return self._finished(head.without_padding(sums.arrays), None, True)

    def _finished(self, arrays, factor, owned: bool) -> tuple[Any, ...]:
        """The gradients times `factor` (None: 1) in the dtype of x.

        They are written into the optimizer's arena where there is one, else in place if the arrays
        are ours to change.
        """
        found: list[Any] = []
        for position, array in enumerate(arrays):
            if array is None:
                found.append(None)
                continue
            out = self.slot(position)
            if out is None and owned and array.dtype == self.dtype:
                out = array
            if out is None:
                out = array_xp(array).empty(array.shape, self.dtype)
            if not (out is array and factor is None):
                scale(array, factor, out=out)
            found.append(out)
        return tuple(found)


class _Head:
    """The layer, its classes' weights and the target as the kernels take them.

    Rows of 50,257 numbers of 16 bits begin at odd places: no tensor copy can store or read them,
    so that Z would be stored number by number, and written anew for each of the two products that
    read it. On a GPU such a layer therefore gets classes that nobody is in: their weights are 0,
    and their logits -inf, so that their share of the softmax and their gradients are exactly 0.
    What that takes is a copy of W. (With label smoothing each class has a share, as many as there
    are counts, and nothing is added.)
    """

    def __init__(self, weight, bias, class_weight, target, ignore_index, label_smoothing):
        self.classes = len(weight)
        uneven = weight.dtype.itemsize == 2 and self.classes % 8 != 0
        many = self.classes >= _MANY_CLASSES and array_xp(weight) is not np
        if uneven and many and not label_smoothing:
            more = -self.classes % _LINE
            weight = _longer(weight, more)
            bias = None if bias is None else _longer(bias, more)
            class_weight = None if class_weight is None else _longer(class_weight, more)
            target = self._known(target, ignore_index)
        self.weight, self.bias, self.class_weight, self.target = weight, bias, class_weight, target

    def _known(self, target, ignore_index):
        """The target, where a label that is no class of ours is none of the added ones either."""
        unknown = np.iinfo(target.dtype).max
        unknown = target.dtype.type(unknown - (unknown == ignore_index))
        wrong = (target >= self.classes) & (target != ignore_index)
        return array_xp(target).where(wrong, unknown, target)

    def chunks(self, x, chunk_rows: int):
        """(slice of rows, their logits) for each chunk, all logits in the same memory in turn."""
        padded, dtype = len(self.weight), x.dtype
        scratch = array_xp(x).empty((min(chunk_rows, len(x)), padded), dtype)
        for start in range(0, len(x), chunk_rows):
            some = slice(start, min(start + chunk_rows, len(x)))
            place = scratch[: some.stop - start]
            matmul(x[some], self.weight, transpose_b=True, bias=self.bias, out=place)
            if padded > self.classes:  # as integers: CuPy computes nothing with bfloat16
                nothing = np.array(-np.inf, dtype).view(np.uint16).item()
                place.view(np.uint16)[:, self.classes :] = nothing
            yield some, place

    def without_padding(self, arrays):
        """The gradients by x, W and b without those of the added classes."""
        if len(self.weight) == self.classes:
            return arrays
        grad_x, *others = arrays
        return grad_x, *(None if each is None else each[: self.classes] for each in others)


def _longer(array, more: int):
    """A copy with `more` rows of zeros behind it."""
    xp, (rows, *rest) = array_xp(array), array.shape
    bits = np.dtype(f"u{array.itemsize}")  # CuPy computes nothing with bfloat16
    out = xp.empty((rows + more, *rest), array.dtype)
    out.view(bits)[:rows] = array.view(bits)
    out.view(bits)[rows:] = 0
    return out


class _Sums:
    """The gradients by x, W and b of the sum of the rows' losses, as the chunks come in."""

    def __init__(self, x, weight, chunk_rows: int, needs):
        widened = len(x) > chunk_rows or x.dtype == FLOAT16
        wide = accumulator_dtype(x.dtype) if widened else x.dtype
        made = ((x.shape, x.dtype), (weight.shape, wide), (weight.shape[:1], wide))
        new = array_xp(x).empty if len(x) else array_xp(x).zeros
        self.arrays = [
            new(*what) if needed else None for needed, what in zip(needs, made, strict=False)
        ]
        self.begun = False  # the first chunk writes the sums, the others add to them
        self.scale = _FLOAT16_SCALE if x.dtype == FLOAT16 else 1.0

    def add(self, some: slice, x, weight, slopes) -> None:
        """Take in a chunk: `slopes` is the gradient by its logits."""
        grad_x, grad_weight, grad_bias = self.arrays
        if grad_x is not None:
            matmul(slopes, weight, out=grad_x[some])
        if grad_weight is not None:
            if grad_weight.dtype == x.dtype:
                before = grad_weight if self.begun else None
                matmul(slopes, x[some], transpose_a=True, residual=before, out=grad_weight)
            else:
                part = matmul(slopes, x[some], transpose_a=True, scale=self.scale)
                accumulate(grad_weight, part, scale=1 / self.scale, add=self.begun)
        if grad_bias is not None:
            if grad_bias.dtype == x.dtype and not self.begun:
                bias_gradient(slopes, out=grad_bias)
            else:
                accumulate(grad_bias, bias_gradient(slopes), add=self.begun)
        self.begun = True


# ---- public function -----------------------------------------------------------------------------


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """``cross_entropy(linear(input, weight, bias), target)`` without ever holding all logits.

    For a head with many classes: memory is that of the gradients and of one scratch array of
    `chunk_rows` x classes. Values and gradients are those of the two functions up to rounding.

    Parameters
    ----------
    input : (..., in_features), floating
    weight : (classes, in_features), bias : (classes,) or None, of the same dtype
    target : (...) class indices, integers of any kind
    class_weight : (classes,) a factor for each class; "mean" divides by the targets' weights' sum
    ignore_index, label_smoothing, reduction : as in `cross_entropy`. "none" computes the logits
        twice, since the gradient of each loss is known in backward alone.
    chunk_rows : rows whose logits exist at a time; None for as many as fit in 256 MiB, on large
        GPUs in a 64th of their memory up to 1 GiB. In float16 no more than 2048, with which the
        sums over a chunk stay in its range.

    Where no row counts, "mean" is NaN and its gradients are 0. Where rows count but their weights'
    sum is 0, the gradients are not finite, as those of the two functions; here this reaches the
    ignored rows of input too.

    Returns a scalar in float32 (float64 for float64), or (...) in the dtype of input for "none".

    Raises ValueError for shapes or devices that do not fit, for no classes and, on the CPU, for a
    label outside 0 … classes - 1 (on a GPU the loss becomes NaN); TypeError for dtypes that do not.
    """
    name = "linear_cross_entropy"
    check_reduction(name, reduction)
    check_constant(name, target=target, class_weight=class_weight)
    if state.low is not None:
        input, weight, bias = lowered(input, weight, bias)
    rows, labels = _checked(name, input, weight, bias, target, ignore_index)
    most = FLOAT16_ROWS if rows.dtype == FLOAT16 else max(1, rows.shape[0])
    if chunk_rows is None:
        sizes, scratch = (rows.shape[0], weight.shape[0]), scratch_bytes(rows.device)
        chunk_rows = default_chunk_rows(*sizes, input.itemsize, most, scratch)
    elif chunk_rows < 1:
        raise ValueError(f"{name}: chunk_rows is {chunk_rows}; expected 1 or more, or None")
    chunk_rows = min(chunk_rows, most)
    loss = LinearCrossEntropy.apply(
        rows,
        weight,
        bias,
        labels,
        None if class_weight is None else class_weight._array,
        ignore_index,
        float(label_smoothing),
        reduction,
        chunk_rows,
    )
    if state.low is not None:
        loss = widened(loss)
    return reshape(loss, target.shape) if reduction == "none" else loss


def _checked(name: str, input, weight, bias, target, ignore_index):
    """(input as rows, labels of as many rows)."""
    x, w, labels = input._array, weight._array, target._array
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{name}: input has shape {x.shape} and weight {w.shape}; expected input (..., "
            "in_features) and weight (classes, in_features)"
        )
    if w.shape[0] == 0:
        raise ValueError(
            f"{name}: weight has shape {w.shape}, no classes; give it at least one row"
        )
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"{name}: bias has shape {bias.shape}; expected {w.shape[:1]}")
    if x.dtype != w.dtype or (bias is not None and bias.dtype != w.dtype):
        raise TypeError(
            f"{name}: input has dtype {x.dtype} and weight {w.dtype}"
            f"{'' if bias is None else f', bias {bias.dtype}'}; they must be equal. "
            f"Convert the input with .to({w.dtype.name!r}), or the model."
        )
    if labels.dtype.kind not in "iu" or labels.shape != x.shape[:-1]:
        raise (ValueError if labels.dtype.kind in "iu" else TypeError)(
            f"{name}: target has shape {labels.shape} and dtype {labels.dtype}; expected class "
            f"indices (int64) of shape {x.shape[:-1]}. With probabilities, which are as large as "
            "the logits, use cross_entropy of linear."
        )
    check_devices(name, *(t for t in (input, weight, bias, target) if t is not None))
    rows = math.prod(x.shape[:-1])
    labels = labels.reshape(rows)
    if type(labels) is np.ndarray:
        wrong = (labels != ignore_index) & ((labels < 0) | (labels >= w.shape[0]))
        if wrong.any():
            raise ValueError(
                f"{name}: target holds the label {labels[wrong][0]}; expected 0 to "
                f"{w.shape[0] - 1}, or ignore_index ({ignore_index})"
            )
    if labels.dtype not in INTEGERS:
        labels = labels.astype(np.int64)  # of the kinds of integers the kernels take two
    return (input if x.ndim == 2 else reshape(input, rows, x.shape[-1])), labels
