"""Pooling: the largest or the mean of each window of an image, and the gradients.

Images are (N, *spatial, C) with 1 to 3 spatial dimensions. Windows are given by `kernel_size`,
`stride`, `padding`, `dilation` and `ceil_mode` as in PyTorch, or by `output_size` for adaptive
ones; see ``pooling_windows.py``. Gradients are gathered: every pixel sums, in a fixed order, what
comes back from the windows that it lies in. So the same input gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import images, pooling_reference, pooling_samples
from gpunn.primitives.pooling_windows import Windows, windows_of
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

INT32 = np.dtype(np.int32)

# ---- specification -------------------------------------------------------------------------------


def _image(call, name: str, x):
    x = call.array(name, x, dtypes=FLOATING)
    return x, images.spatial_dimensions(call, name, x)


def _outputs(windows: Windows, dimensions: int) -> tuple[int, ...]:
    return windows.counts[3 - dimensions :]


def _check_gradient(call, grad_output, windows: Windows, dimensions: int, spatial) -> None:
    expected = (grad_output.shape[0], *_outputs(windows, dimensions), grad_output.shape[-1])
    if grad_output.shape != expected:
        call.refuse("grad_output", grad_output, f"shape {expected} for images of {spatial}")


def _spatial(call, value, dimensions: int) -> tuple[int, ...]:
    return images.per_dimension(call, "spatial", tuple(value), dimensions, 1)


@primitive(family="pooling", cuda="pooling.cu", numba="pooling.py")
def max_pool_forward(
    call, x, *, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode: bool = False,
    output_size=None, return_indices: bool = True, out=None,
):  # fmt: skip
    """The largest pixel of each window, and which one it is.

    ``y[n, o, c] = max over the window of o of x[n, i, c]``. NaN counts as larger than all others.
    Of equal pixels the first one is noted, of several NaN the last one, as in PyTorch.

    Parameters
    ----------
    x : (N, *spatial, C), float16, bfloat16, float32 or float64; less than 2^31 pixels an image
    kernel_size, stride, padding, dilation : ints, or one for each dimension; the stride is the
        kernel's size if None. Padding lies around the image and is never the largest.
    ceil_mode : keep a last window that is only partly inside
    output_size : for adaptive windows, instead of `kernel_size`
    return_indices : whether the second result is wanted
    out : array for y to write

    Returns
    -------
    y : (N, *outputs, C), of x's dtype
    indices : int32 like y: the number of the pixel in its image, rows first; -1, and y = -inf, for
        a window that dilation lets miss every pixel. None unless asked for.

    Raises
    ------
    TypeError, ValueError : a dtype or number of dimensions that does not suit, more padding than
        half a window, no room for a window
    """
    x, dimensions = _image(call, "x", x)
    windows = windows_of(
        call, "x", x.shape[1:-1], kernel_size, stride, padding, dilation, ceil_mode, output_size
    )
    shape = (x.shape[0], *_outputs(windows, dimensions), x.shape[-1])
    out = call.output("out", out, shape=shape, dtype=x.dtype)
    indices = call.empty(shape, INT32) if return_indices else None
    volumes = images.volumes
    call.run(volumes(x), volumes(out), volumes(indices) if return_indices else None, windows)
    return out, indices


@primitive(family="pooling", cuda="pooling.cu", numba="pooling.py")
def max_pool_backward(
    call, grad_output, indices, *, spatial, kernel_size=None, stride=None, padding=0, dilation=1,
    ceil_mode: bool = False, output_size=None, out=None,
):  # fmt: skip
    """The gradient through max pooling: to the pixels that were the largest.

    ``out[n, i, c]`` is the sum of ``grad_output[n, o, c]`` over the windows o that hold i and have
    ``indices[n, o, c] = i``, in float32 (float64 for float64), rounded once.

    Parameters
    ----------
    grad_output : (N, *outputs, C), float16, bfloat16, float32 or float64
    indices : int32 of the same shape, from the forward call
    spatial : the sizes of the images that were pooled
    kernel_size, stride, padding, dilation, ceil_mode, output_size : as in the forward call
    out : array of shape (N, *spatial, C) to write
    """
    grad_output, dimensions = _image(call, "grad_output", grad_output)
    indices = call.array("indices", indices, dtypes=(INT32,))
    call.same_shape(grad_output=grad_output, indices=indices)
    spatial = _spatial(call, spatial, dimensions)
    windows = windows_of(
        call, "spatial", spatial, kernel_size, stride, padding, dilation, ceil_mode, output_size
    )
    _check_gradient(call, grad_output, windows, dimensions, spatial)
    shape = (grad_output.shape[0], *spatial, grad_output.shape[-1])
    out = call.output("out", out, shape=shape, dtype=grad_output.dtype)
    call.run(*map(images.volumes, (grad_output, indices, out)), windows)
    return out


def _divisor(call, divisor) -> int:
    if divisor is None:
        return 0
    call.require(
        isinstance(divisor, (int, np.integer)) and divisor != 0, "divisor_override",
        f"is {divisor!r}", "give an int other than 0, or None for the size of the window",
    )  # fmt: skip
    return int(divisor)


@primitive(family="pooling", cuda="pooling.cu", numba="pooling.py")
def avg_pool_forward(
    call, x, *, kernel_size=None, stride=None, padding=0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None, output_size=None, out=None,
):  # fmt: skip
    """The mean of each window: ``y[n, o, c] = (sum over the window of o of x[n, i, c]) / d``.

    Summed in float32 (float64 for float64) and rounded once. NaN and inf travel.

    Parameters
    ----------
    x : (N, *spatial, C), float16, bfloat16, float32 or float64; less than 2^31 pixels an image
    kernel_size, stride, padding, ceil_mode, output_size : as for `max_pool_forward`
    count_include_pad : whether d counts the window's padding (never what ceil_mode adds to it), or
        only its pixels
    divisor_override : d for all windows
    out : array of shape (N, *outputs, C) to write
    """
    x, dimensions = _image(call, "x", x)
    windows = windows_of(
        call, "x", x.shape[1:-1], kernel_size, stride, padding, 1, ceil_mode, output_size
    )
    divisor = _divisor(call, divisor_override)
    shape = (x.shape[0], *_outputs(windows, dimensions), x.shape[-1])
    out = call.output("out", out, shape=shape, dtype=x.dtype)
    call.run(images.volumes(x), images.volumes(out), windows, bool(count_include_pad), divisor)
    return out


@primitive(family="pooling", cuda="pooling.cu", numba="pooling.py")
def avg_pool_backward(
    call, grad_output, *, spatial, kernel_size=None, stride=None, padding=0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    output_size=None, out=None,
):  # fmt: skip
    """The gradient through average pooling: ``out[n, i, c] = sum of grad_output[n, o, c] / d(o)``
    over the windows o that hold i.

    Parameters
    ----------
    grad_output : (N, *outputs, C), float16, bfloat16, float32 or float64
    spatial : the sizes of the images that were pooled
    kernel_size, …, output_size : as in the forward call
    out : array of shape (N, *spatial, C) to write
    """
    grad_output, dimensions = _image(call, "grad_output", grad_output)
    spatial = _spatial(call, spatial, dimensions)
    windows = windows_of(
        call, "spatial", spatial, kernel_size, stride, padding, 1, ceil_mode, output_size
    )
    _check_gradient(call, grad_output, windows, dimensions, spatial)
    divisor = _divisor(call, divisor_override)
    shape = (grad_output.shape[0], *spatial, grad_output.shape[-1])
    out = call.output("out", out, shape=shape, dtype=grad_output.dtype)
    call.run(*map(images.volumes, (grad_output, out)), windows, bool(count_include_pad), divisor)
    return out


# ---- reference -----------------------------------------------------------------------------------


@max_pool_forward.reference
def _(x, out, indices, windows):
    with quiet():
        pooling_reference.max_forward(x, out, indices, windows)


@max_pool_backward.reference
def _(grad, indices, out, windows):
    with quiet():
        pooling_reference.max_backward(grad, indices, out, windows)


@avg_pool_forward.reference
def _(x, out, windows, count_include_pad, divisor):
    with quiet():
        pooling_reference.average_forward(x, out, windows, count_include_pad, divisor)


@avg_pool_backward.reference
def _(grad, out, windows, count_include_pad, divisor):
    with quiet():
        pooling_reference.average_backward(grad, out, windows, count_include_pad, divisor)


# ---- launch --------------------------------------------------------------------------------------

_TAPS_EACH = 8  # of a window, that one thread goes through before others are to help it


def _geometry(windows: Windows, team: int, count_include_pad: bool = True):
    """struct PoolGeometry of pooling.cu."""
    flags = (int(windows.adaptive), int(count_include_pad), team)
    return images.structure("int32", (*(n for part in windows[:6] for n in part), *flags))


def _team(launch, items: int, taps: int) -> int:
    """Threads that share a window: more where windows are large and too few to fill the GPU."""
    team, wanted = 1, launch.multiprocessors * 1024
    while team < 32 and items * team < wanted and team * _TAPS_EACH < taps:
        team *= 2
    return team


def _forward(launch, name: str, x, out, windows: Windows, before: tuple, after: tuple, **geometry):
    if out.size == 0:
        return
    width = images.pack_width(launch, x.shape[-1], x, out, *before)
    items = out.size // width
    team = _team(launch, items, windows.taps)
    launch(
        f"{name}<{launch.ctype(x.dtype)}, {width}>",
        images.blocks(items * team),
        (images.BLOCK,),
        (x, out, *before, launch.int64(items), launch.int64(x.shape[-1] // width), *after,
         _geometry(windows, team, **geometry)),
    )  # fmt: skip


def _backward(launch, name: str, arrays: tuple, out, windows: Windows, after: tuple, **geometry):
    if out.size == 0:
        return
    width = images.pack_width(launch, out.shape[-1], *arrays, out)
    items = out.size // width
    launch(
        f"{name}<{launch.ctype(out.dtype)}, {width}>",
        images.blocks(items),
        (images.BLOCK,),
        (*arrays, out, launch.int64(items), launch.int64(out.shape[-1] // width), *after,
         _geometry(windows, 1, **geometry)),
    )  # fmt: skip


@max_pool_forward.cuda
def _(launch, x, out, indices, windows):
    _forward(launch, "max_pool_forward", x, out, windows, (indices,), ())


@max_pool_backward.cuda
def _(launch, grad, indices, out, windows):
    _backward(launch, "max_pool_backward", (grad, indices), out, windows, ())


@avg_pool_forward.cuda
def _(launch, x, out, windows, count_include_pad, divisor):
    number = accumulator_dtype(x.dtype).type(divisor)
    _forward(launch, "avg_pool_forward", x, out, windows, (), (number,),
             count_include_pad=count_include_pad)  # fmt: skip


@avg_pool_backward.cuda
def _(launch, grad, out, windows, count_include_pad, divisor):
    number = accumulator_dtype(grad.dtype).type(divisor)
    _backward(launch, "avg_pool_backward", (grad,), out, windows, (number,),
              count_include_pad=count_include_pad)  # fmt: skip


def _numbers(windows: Windows) -> tuple:
    """The windows as the Numba kernels take them: six numbers a dimension, and a flag."""
    along = zip(*windows[:6], strict=True)
    return (*(tuple(map(np.int64, each)) for each in along), np.bool_(windows.adaptive))


def _numba(launch, name: str, out, *args) -> None:
    if out.size:
        launch(name, images.numba_grid(out.size), (64,), args)


@max_pool_forward.numba
def _(launch, x, out, indices, windows):
    if indices is None:
        indices = launch.empty(out.shape, INT32)
    _numba(launch, "max_pool_forward", out, x, out, indices, *_numbers(windows))


@max_pool_backward.numba
def _(launch, grad, indices, out, windows):
    _numba(launch, "max_pool_backward", out, grad, indices, out, *_numbers(windows))


@avg_pool_forward.numba
def _(launch, x, out, windows, count_include_pad, divisor):
    last = (np.bool_(count_include_pad), np.int64(divisor))
    _numba(launch, "avg_pool_forward", out, x, out, *_numbers(windows), *last)


@avg_pool_backward.numba
def _(launch, grad, out, windows, count_include_pad, divisor):
    last = (np.bool_(count_include_pad), np.int64(divisor))
    _numba(launch, "avg_pool_backward", out, grad, out, *_numbers(windows), *last)


# ---- cost ----------------------------------------------------------------------------------------


def _looked_at(x, out, windows: Windows) -> float:
    """Bytes of the image that some window holds."""
    share = [
        min(1.0, count * kernel / size)
        for size, count, kernel in zip(windows.sizes, windows.counts, windows.kernel, strict=True)
    ]
    return math.prod(share) * x.nbytes


@max_pool_forward.cost
def _(x, out, indices, windows):
    written = out.nbytes + (0 if indices is None else indices.nbytes)
    read = _looked_at(x, out, windows)
    return Cost(flops=out.size * (windows.taps - 1), read=read, written=written)


@max_pool_backward.cost
def _(grad, indices, out, windows):
    return Cost(flops=grad.size, read=grad.nbytes + indices.nbytes, written=out.nbytes)


@avg_pool_forward.cost
def _(x, out, windows, count_include_pad, divisor):
    read = _looked_at(x, out, windows)
    return Cost(flops=out.size * windows.taps, read=read, written=out.nbytes)


@avg_pool_backward.cost
def _(grad, out, windows, count_include_pad, divisor):
    return Cost(flops=grad.size * (windows.taps + 1), read=grad.nbytes, written=out.nbytes)


pooling_samples.register({
    row.name: row for row in
    (max_pool_forward, max_pool_backward, avg_pool_forward, avg_pool_backward)
})  # fmt: skip
