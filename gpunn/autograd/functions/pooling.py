"""Pooling: the largest or the mean of windows of images, over their kernels.

A tensor is (N, C, *spatial), or (C, *spatial) without a batch, and a view of channels-last memory
to the kernels, see `layout`; with ``channels_last=True`` it is (N, *spatial, C).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.autograd.aliases import Size
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import array_xp, named
from gpunn.autograd.functions.layout import channels_first_view, channels_last_view
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.primitives import pooling as primitives
from gpunn.primitives.reduce import reduce_mean


class ImageFunction(Function):
    """What functions of images share: to the kernels' layout and back.

    `images` gives (N, *spatial, C) of a tensor's array, `tensor` the reverse; a batch of one is put
    around an image without a batch.
    """

    def images(self, array):
        """The array as (N, *spatial, C); the same memory."""
        array = array[None] if self.single else array
        return array if self.last else channels_last_view(array)

    def tensor(self, images):
        """(N, *spatial, C) in the tensor's shape; the same memory."""
        array = images if self.last else channels_first_view(images)
        return array[0] if self.single else array


class MaxPool(ImageFunction):
    """The largest of each window; the indices go into the list `found` where one is given"""

    def forward(self, x, options, single, last, found):
        self.single, self.last, self.options = single, last, options
        images = self.images(x)
        wanted = self.needs[0] or found is not None
        y, indices = primitives.max_pool_forward(images, return_indices=wanted, **options)
        if found is not None:
            found.append(self.tensor(indices.astype(np.int64)))
        if self.needs[0]:
            self.spatial = images.shape[1:-1]
            self.save(indices)
        return self.tensor(y)

    def backward(self, grad):
        grad = primitives.max_pool_backward(
            self.images(grad), *self.saved, spatial=self.spatial, **self.options
        )
        return self.tensor(grad)


class AvgPool(ImageFunction):
    """The mean of each window; of whole images by a reduction, which cuts large ones up"""

    def forward(self, x, options, single, last):
        self.single, self.last, self.options = single, last, options
        images = self.images(x)
        self.spatial = n, *_ = images.shape[1:-1]
        if options.get("output_size") == (1,) * len(self.spatial) and n:
            mean = reduce_mean(images, axis=tuple(range(1, images.ndim - 1)), keepdims=True)
            return self.tensor(mean)
        return self.tensor(primitives.avg_pool_forward(images, **options))

    def backward(self, grad):
        grad = primitives.avg_pool_backward(self.images(grad), spatial=self.spatial, **self.options)
        return self.tensor(grad)


class MaxUnpool(ImageFunction):
    """Each value at the pixel that its index names, zeros elsewhere"""

    def forward(self, x, indices, spatial, single, last):
        self.single, self.last = single, last
        x, indices = self.images(x), self.images(indices)
        n, *pooled, c = self.shape = x.shape
        xp = array_xp(x)
        out = xp.zeros((n, math.prod(spatial), c), x.dtype)
        indices = indices.reshape(n, math.prod(pooled), c)
        xp.put_along_axis(out, indices, x.reshape(indices.shape), 1)
        self.save(indices)
        return self.tensor(out.reshape(n, *spatial, c))

    def backward(self, grad):
        images, (indices,) = self.images(grad), self.saved
        rows = images.reshape(len(images), -1, images.shape[-1])
        grad = array_xp(grad).take_along_axis(rows, indices, 1)
        return self.tensor(grad.reshape(self.shape))


# ---- public functions ----------------------------------------------------------------------------


def check_images(name: str, input: Tensor, dimensions: int, channels_last: bool) -> bool:
    """Whether `input` is a single image; an error unless it is one or a batch of them."""
    if input.ndim not in (dimensions + 1, dimensions + 2):
        sizes = ", ".join("DHW"[-dimensions:]) if dimensions > 1 else "L"
        image = f"{sizes}, C" if channels_last else f"C, {sizes}"
        raise ValueError(
            f"{name}: input has shape {input.shape}; expected (N, {image}), or ({image}) for one "
            "image"
        )
    return input.ndim == dimensions + 1


def spatial_of(input: Tensor, dimensions: int, channels_last: bool) -> tuple[int, ...]:
    """The spatial sizes of images."""
    sizes = input.shape[:-1] if channels_last else input.shape
    return tuple(sizes[len(sizes) - dimensions :])


def _max_pool(name, dimensions, input, options, return_indices, channels_last):
    single = check_images(name, input, dimensions, channels_last)
    found: list | None = [] if return_indices else None
    y = MaxPool.apply(input, options, single, bool(channels_last), found)
    return (y, wrap(found[0])) if return_indices else y


def _max(dimensions: int, shapes: str):
    name = f"max_pool{dimensions}d"

    def max_pool(
        input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0,
        dilation: Size = 1, ceil_mode: bool = False, return_indices: bool = False, *,
        channels_last: bool = False,
    ) -> Any:  # fmt: skip
        options = {
            "kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation,
            "ceil_mode": ceil_mode,
        }  # fmt: skip
        return _max_pool(name, dimensions, input, options, return_indices, channels_last)

    return named(max_pool, name, f"""The largest of each window of {shapes}.

    `kernel_size`, `stride` (the kernel's size if None), `padding` (at most half a window) and
    `dilation` are ints, or one for each dimension. `ceil_mode` keeps a last window that is only
    partly inside. With `return_indices` the result is (values, int64 indices): the number of the
    largest pixel in its image, rows first. With `channels_last` the channels come last.
    """)  # fmt: skip


def _average(dimensions: int, shapes: str):
    name = f"avg_pool{dimensions}d"

    def avg_pool(
        input: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None, *, channels_last: bool = False,
    ) -> Tensor:  # fmt: skip
        single = check_images(name, input, dimensions, channels_last)
        options = {
            "kernel_size": kernel_size, "stride": stride, "padding": padding,
            "ceil_mode": ceil_mode, "count_include_pad": count_include_pad,
            "divisor_override": divisor_override,
        }  # fmt: skip
        return AvgPool.apply(input, options, single, bool(channels_last))

    return named(avg_pool, name, f"""The mean of each window of {shapes}.

    Arguments as of max_pool{dimensions}d. A window's sum is divided by its size, padding included
    if `count_include_pad`, or by `divisor_override`.
    """)  # fmt: skip


def _adaptive(kind: str, dimensions: int, shapes: str):
    name = f"adaptive_{kind}_pool{dimensions}d"

    def options_of(input, output_size, channels_last):
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
        single = check_images(name, input, dimensions, channels_last)
        if len(sizes) == 1:
            sizes = sizes * dimensions
        if len(sizes) != dimensions:
            raise ValueError(
                f"{name}: output_size is {output_size!r}; expected one size, or {dimensions}"
            )
        spatial = spatial_of(input, dimensions, channels_last)
        sizes = (own if size is None else size for own, size in zip(spatial, sizes, strict=True))
        return {"output_size": tuple(sizes)}, single

    def adaptive_avg_pool(
        input: Tensor, output_size: Any, *, channels_last: bool = False
    ) -> Tensor:
        options, single = options_of(input, output_size, channels_last)
        return AvgPool.apply(input, options, single, bool(channels_last))

    def adaptive_max_pool(
        input: Tensor,
        output_size: Any,
        return_indices: bool = False,
        *,
        channels_last: bool = False,
    ) -> Any:
        options, _ = options_of(input, output_size, channels_last)
        return _max_pool(name, dimensions, input, options, return_indices, channels_last)

    what = "mean" if kind == "avg" else "largest"
    return named(adaptive_avg_pool if kind == "avg" else adaptive_max_pool, name,
                  f"""The {what} of windows that cut {shapes} into `output_size` parts.

    Output o of m sees the pixels floor(o n / m) to ceil((o + 1) n / m) - 1 of n. `output_size` is
    an int, or one for each dimension; None leaves a dimension as it is.
    """)  # fmt: skip


def _unpool(dimensions: int, shapes: str):
    name = f"max_unpool{dimensions}d"

    def max_unpool(
        input: Tensor, indices: Tensor, kernel_size: Size, stride: Size | None = None,
        padding: Size = 0, output_size: Any = None, *, channels_last: bool = False,
    ) -> Tensor:  # fmt: skip
        single = check_images(name, input, dimensions, channels_last)
        if indices.shape != input.shape or indices.dtype != np.int64:
            raise ValueError(
                f"{name}: indices has shape {indices.shape} and dtype {indices.dtype}; expected "
                f"those of max_pool{dimensions}d, int64 of shape {input.shape}"
            )

        def each(value: Any) -> Any:
            return value if isinstance(value, (tuple, list)) else (value,) * dimensions

        kernel, pads = each(kernel_size), each(padding)
        steps = kernel if stride is None else each(stride)
        pooled = spatial_of(input, dimensions, channels_last)
        sizes = tuple(
            (n - 1) * s - 2 * p + k
            for n, s, p, k in zip(pooled, steps, pads, kernel, strict=True)
        )
        if output_size is not None:
            given = tuple(output_size)
            given = given[:-1] if channels_last and len(given) > dimensions else given
            given = given[-dimensions:]
            near = zip(given, sizes, steps, strict=True)
            if not all(abs(size - own) < s for size, own, s in near):
                raise ValueError(
                    f"{name}: output_size {output_size} is none that pools to {pooled}; expected "
                    f"{sizes}, each less than a stride {stride} away"
                )
            sizes = given
        places = indices._array
        if type(places) is np.ndarray and places.size:
            low, high = int(places.min()), int(places.max())
            if low < 0 or high >= math.prod(sizes):
                raise ValueError(
                    f"{name}: indices go from {low} to {high}; expected 0 to "
                    f"{math.prod(sizes) - 1} for an image of {sizes}"
                )
        return MaxUnpool.apply(input, places, sizes, single, bool(channels_last))

    return named(max_unpool, name, f"""What max_pool{dimensions}d took from {shapes}, put back.

    Each value goes to the pixel that its index names; all others are 0. `output_size` picks among
    the image sizes that would have been pooled to this one.
    """)  # fmt: skip


_SHAPES = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
max_pool1d, max_pool2d, max_pool3d = (_max(n, shapes) for n, shapes in _SHAPES.items())
avg_pool1d, avg_pool2d, avg_pool3d = (_average(n, shapes) for n, shapes in _SHAPES.items())
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    _adaptive("max", n, shapes) for n, shapes in _SHAPES.items()
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    _adaptive("avg", n, shapes) for n, shapes in _SHAPES.items()
)
max_unpool1d, max_unpool2d, max_unpool3d = (_unpool(n, shapes) for n, shapes in _SHAPES.items())
