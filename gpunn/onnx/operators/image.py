"""Images in another size, and images sampled at any places.

Resizing is separable. Along each axis it is a choice of pixels, or the product with a matrix of
weights that is made on the host and multiplied by our kernels, so that all of ONNX's modes, ways
of counting coordinates and filters come down to where the weights lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.functions import arithmetic
from gpunn.autograd.functions.shape import moveaxis, permute, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import (
    Tables,
    along,
    as_dtype,
    channel_shape,
    floating,
    ints,
    plain,
)
from gpunn.onnx.operators.registry import Node, operator

_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)  # fmt: skip
_NEAREST: dict[str, Callable] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_POLICIES = ("stretch", "not_larger", "not_smaller")


def places(count: int, size: int, scale: float, mode: str, roi=(0.0, 1.0)) -> np.ndarray:
    """Where the pixels 0 … count - 1 of the result lie in an image of `size` pixels.

    Counted in the type of `scale`, on which it hangs where a place at an edge is rounded to.
    """
    at = np.arange(count, dtype=np.asarray(scale).dtype)
    wanted = scale * size
    if mode == "align_corners":
        return at * (size - 1) / (wanted - 1) if wanted > 1 else at * 0
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        span = (end - start) * (size - 1)
        return start * (size - 1) + (at * span / (wanted - 1) if wanted > 1 else at * 0 + span / 2)
    if mode == "pytorch_half_pixel" and count == 1:
        return at
    shift = size / 2 * (1 - count / wanted) if mode == "half_pixel_symmetric" else 0.0
    return shift + (at + 0.5) / scale - 0.5


def _tent(x: np.ndarray, a: float) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic: 1981, IEEE Transactions on Acoustics, Speech, and Signal Processing 29."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


_FILTERS = {"linear": (_tent, 1), "cubic": (_keys, 2)}


def weights(
    at: np.ndarray, size: int, scale: float, mode: str, a: float, antialias: bool, inside: bool
) -> np.ndarray:
    """The matrix (results, pixels) of one axis; with `inside` pixels off the image do not count."""
    function, reach = _FILTERS[mode]
    shrink = min(scale, 1.0) if antialias else 1.0
    radius = math.ceil(reach / shrink)
    pixels = np.floor(at)[:, None].astype(np.int64) + np.arange(1 - radius, radius + 1)
    found = function((pixels - at[:, None]) * shrink, a)
    if inside:
        found = np.where((pixels < 0) | (pixels >= size), 0, found)
    if inside or antialias:
        found = found / found.sum(1, keepdims=True)
    matrix = np.zeros((len(at), size))
    rows = np.arange(len(at))[:, None]
    np.add.at(matrix, (rows, np.clip(pixels, 0, size - 1)), found)  # the edge goes on for ever
    return matrix


class Resizing:
    """What the attributes of a Resize say."""

    def __init__(self, node: Node):
        self.mode = node.choice("mode", "nearest", ("nearest", "linear", "cubic"))
        early = node.version < 11
        self.coordinates = node.choice(
            "coordinate_transformation_mode", "asymmetric" if early else "half_pixel", _COORDINATES
        )
        self.rounding = node.choice(
            "nearest_mode", "floor" if early else "round_prefer_floor", tuple(_NEAREST)
        )
        self.a, self.inside = node.float("cubic_coeff_a", -0.75), node.flag("exclude_outside")
        self.antialias, self.axes = node.flag("antialias"), node.ints("axes")
        self.fill = node.float("extrapolation_value", 0.0)
        self.tables = Tables()
        self.policy = node.choice("keep_aspect_ratio_policy", "stretch", _POLICIES)

    def targets(self, shape, scales, sizes) -> list[tuple[int, int, float]]:
        """(axis, new size, scale) of the axes that are resized."""
        axes = range(len(shape)) if self.axes is None else self.axes
        axes = [axis % len(shape) for axis in axes]
        if sizes is None:
            return [
                # In float32, as other runtimes: 0.7 of 10 pixels are 7.
                (axis, math.floor(np.float32(scale) * np.float32(shape[axis])), float(scale))
                for axis, scale in zip(axes, scales, strict=True)
            ]
        factors = [int(size) / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
        if self.policy != "stretch":
            factor = (min if self.policy == "not_larger" else max)(factors)
            return [(axis, int(factor * shape[axis] + 0.5), factor) for axis in axes]
        return list(zip(axes, ints(sizes), factors, strict=True))

    def __call__(self, x: Tensor, roi, scales, sizes) -> Tensor:
        targets = self.targets(x.shape, scales, sizes)
        crops = self.coordinates == "tf_crop_and_resize"
        work = [t for t in targets if crops or (t[1], t[2]) != (x.shape[t[0]], 1.0)]
        fast = None if crops else self._by_kernel(x, work)
        if fast is not None:
            return fast
        dtype, y = x.dtype, x
        if not floating(x) and self.mode != "nearest":
            y = as_dtype(x, np.float32)
        for number, (axis, size, scale) in enumerate(targets):
            if (axis, size, scale) not in work:
                continue
            span = (0.0, 1.0)
            if crops:
                span = (float(roi[number]), float(roi[number + len(targets)]))
            y = self._along(y, axis, size, scale, span)
        if y.dtype != dtype:
            info = np.iinfo(dtype)
            return plain(lambda xp, a: xp.clip(xp.rint(a), info.min, info.max), y, dtype=dtype)
        return y

    def _along(self, x: Tensor, axis: int, size: int, scale: float, roi) -> Tensor:
        have, dtype = x.shape[axis], x.dtype

        def at(kind: type = np.float64) -> np.ndarray:
            return places(size, have, kind(scale), self.coordinates, roi)

        def nearest() -> np.ndarray:
            found = _NEAREST[self.rounding](at(np.float32))
            return np.clip(found, 0, have - 1).astype(np.int64)

        def matrix() -> np.ndarray:
            made = weights(at(), have, scale, self.mode, self.a, self.antialias, self.inside)
            return made.T.astype(dtype)

        def outside() -> np.ndarray:
            return (at() < 0) | (at() > have - 1)

        key = (have, size, scale, roi, dtype)
        if self.mode == "nearest":
            out = x[along(axis, self.tables.get(("nearest", *key), x, nearest))]
        else:
            rows = moveaxis(x, axis, -1)
            out = gpunn.matmul(rows, self.tables.get(("matrix", *key), x, matrix))
            out = moveaxis(out, -1, axis)
        if self.coordinates == "tf_crop_and_resize":
            mask = channel_shape(self.tables.get(("mask", *key), x, outside), x.ndim, axis)
            out = arithmetic.where(mask, self.fill, out)
        return out

    def _by_kernel(self, x: Tensor, work) -> Tensor | None:
        """By the kernels of `interpolate` where they compute the same, else None."""
        count = x.ndim - 2
        if count not in (1, 2, 3) or not floating(x) or not work:
            return None
        if [axis for axis, _, _ in work] != list(range(2, x.ndim)) or self.inside or self.antialias:
            return None
        lengths = [(size, scale * x.shape[axis]) for axis, size, scale in work]
        exact = all(math.floor(length) == size for size, length in lengths)
        if not exact and any(abs(length - size) > 1e-3 for size, length in lengths):
            return None  # a size that was rounded up: its step is no ratio of sizes
        options: dict = {"scale_factor": tuple(scale for *_, scale in work)} if exact else {
            "size": tuple(size for _, size, _ in work)
        }  # fmt: skip
        if self.mode == "nearest" and (self.coordinates, self.rounding) == ("asymmetric", "floor"):
            return F.interpolate(x, mode="nearest", **options)
        halves = self.coordinates == "half_pixel" or (
            self.coordinates == "pytorch_half_pixel" and all(size > 1 for _, size, _ in work)
        )
        if self.mode == "linear" and halves:
            mode = ("linear", "bilinear", "trilinear")[count - 1]
            return F.interpolate(x, mode=mode, align_corners=False, **options)
        return None


@operator("Resize", 10, 10, arguments=(1,))
def resize_scales(node: Node):
    resizing = Resizing(node)
    return lambda x, scales: resizing(x, None, scales, None)


@operator("Resize", 11, arguments=(1, 2, 3))
def resize(node: Node):
    resizing = Resizing(node)

    def run(x, roi=None, scales=None, sizes=None):
        scales = None if scales is None or not scales.size else scales
        return resizing(x, roi, scales, sizes)

    return run


@operator("Upsample", 7, 8)
def upsample_attribute(node: Node):
    scales, resizing = node.floats("scales"), _upsampling(node)
    return lambda x: resizing(x, None, scales, None)


@operator("Upsample", 9, arguments=(1,))
def upsample(node: Node):
    resizing = _upsampling(node)
    return lambda x, scales: resizing(x, None, scales, None)


def _upsampling(node: Node) -> Resizing:
    resizing = Resizing(node)
    resizing.coordinates, resizing.rounding = "asymmetric", "floor"
    return resizing


# ---- images at any places ------------------------------------------------------------------------


@operator("AffineGrid", 20, arguments=(1,))
def affine_grid(node: Node):
    corners, tables = node.flag("align_corners"), Tables()

    def points(spatial: tuple[int, ...], dtype: Any) -> np.ndarray:
        axes = []
        for count in reversed(spatial):
            line = np.linspace(-1, 1, count) if corners and count > 1 else (
                (2 * np.arange(count) + 1) / count - 1
            )  # fmt: skip
            axes.append(line)
        mesh = np.meshgrid(*reversed(axes), indexing="ij")
        base = np.stack([*reversed(mesh), np.ones(spatial)], -1).reshape(-1, len(spatial) + 1)
        return base.astype(dtype)

    def run(theta, size):
        spatial, dtype = ints(size)[2:], theta.dtype
        base = tables.get((spatial, dtype), theta, lambda: points(spatial, dtype))
        moved = gpunn.matmul(base, permute(theta, 0, 2, 1))
        return reshape(moved, theta.shape[0], *spatial, len(spatial))

    return run


_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic",
          "cubic": "cubic"}  # fmt: skip


@operator("GridSample", 16)
def grid_sample(node: Node):
    mode = _MODES[node.choice("mode", "linear", tuple(_MODES))]
    padding = node.choice("padding_mode", "zeros", ("zeros", "border", "reflection"))
    corners = node.flag("align_corners")

    def run(x, grid):
        spatial = x.shape[2:]
        points = []
        for axis, size in enumerate(spatial):  # the grid names x first, which is the last axis
            g = grid[..., len(spatial) - 1 - axis]
            points.append((g + 1) * ((size - 1) / 2) if corners else ((g + 1) * size - 1) * 0.5)
        return _sampled(x, points, spatial, mode, padding, corners)

    return run


def _reflected(point, size: int, corners: bool, xp):
    """Coordinates folded back into the image at its borders."""
    low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
    if span == 0:
        return point * 0
    t = xp.abs(point - low) % (2 * span)
    return xp.where(t > span, 2 * span - t, t) + low


def _sampled(x: Tensor, points: list[Tensor], spatial, mode: str, padding: str, corners: bool):
    xp = x._xp
    taps = []  # for each axis: pairs of (integer places, weight)
    for point, size in zip(points, spatial, strict=True):
        if mode != "cubic":
            point = _placed(point, size, padding, corners, xp)
        if mode == "nearest":
            taps.append([(xp.rint(point._array), None)])
            continue
        floor = xp.floor(point._array)
        offset = point - wrap(floor)
        steps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        taps.append([(floor + step, _tap(offset, step, mode)) for step in steps])
    n, channels = x.shape[:2]
    rows = reshape(x, n, channels, -1)
    total = None
    for choice in np.ndindex(*(len(axis) for axis in taps)):
        index: Any = 0
        inside: Any = True
        weight = None
        for axis, size, tap in zip(taps, spatial, choice, strict=True):
            place, factor = axis[tap]
            if mode == "cubic" and padding == "border":
                place = xp.clip(place, 0, size - 1)
            elif mode == "cubic" and padding == "reflection":
                place = xp.clip(xp.rint(_reflected(place, size, corners, xp)), 0, size - 1)
            inside = inside & (place >= 0) & (place <= size - 1)
            index = index * size + xp.clip(place, 0, size - 1).astype(np.int64)
            if factor is not None:
                weight = factor if weight is None else weight * factor
        flat = wrap(xp.broadcast_to(index.reshape(n, 1, -1), (n, channels, index[0].size)))
        part = reshape(gpunn.gather(rows, 2, flat), n, channels, *index.shape[1:])
        part = part * wrap(inside[:, None].astype(x.dtype))
        part = part if weight is None else part * reshape(weight, n, 1, *index.shape[1:])
        total = part if total is None else total + part
    return total


def _placed(point: Tensor, size: int, padding: str, corners: bool, xp) -> Tensor:
    """Coordinates by the rule for what is outside."""
    if padding == "zeros":
        return point
    if padding == "reflection":
        low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
        if span == 0:
            return point * 0.0
        t = gpunn.abs(point - low)
        t = t - wrap((xp.floor(t._array / (2 * span)) * (2 * span)).astype(t.dtype))
        point = arithmetic.where(t > span, 2 * span - t, t) + low
    return gpunn.clamp(point, 0.0, size - 1.0)


def _tap(offset: Tensor, step: int, mode: str) -> Tensor:
    """The weight of the pixel `step` to the right of the one at or before a place."""
    if mode == "linear":
        return offset if step else 1 - offset
    a = -0.75
    distance = gpunn.abs(offset - float(step))
    if step in (0, 1):
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
