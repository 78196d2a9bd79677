"""Shapes: what changes the form of a tensor, and what makes tensors from sizes."""

from __future__ import annotations

import math

import numpy as np

import gpunn
from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.functions.shape import expand, permute, repeat, reshape, squeeze, tril, triu
from gpunn.autograd.functions.shape import split as split_tensor
from gpunn.autograd.tensor import wrap
from gpunn.device import to_device
from gpunn.onnx.operators.common import axis_of, floating, ints, pair_lists, plain, scalar
from gpunn.onnx.operators.registry import Node, operator

# ---- the same elements in another shape ----------------------------------------------------------


def _target(node: Node, x, sizes: tuple[int, ...], zero_stays: bool) -> tuple[int, ...]:
    if zero_stays:
        return sizes
    return tuple(x.shape[at] if size == 0 else size for at, size in enumerate(sizes))


@operator("Reshape", 1, 4)
def reshape_attribute(node: Node):
    node.skip("consumed_inputs")
    sizes = node.ints("shape", ())
    return lambda x: reshape(x, *_target(node, x, sizes, False))


@operator("Reshape", 5, arguments=(1,))
def reshape_input(node: Node):
    zero_stays = node.flag("allowzero")
    return lambda x, sizes: reshape(x, *_target(node, x, ints(sizes), zero_stays))


@operator("Flatten")
def flatten(node: Node):
    axis = node.int("axis", 1)

    def run(x):
        at = axis + x.ndim if axis < 0 else axis
        return reshape(x, math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return run


@operator("Transpose")
def transpose(node: Node):
    order = node.ints("perm")
    return lambda x: permute(x, *(order if order else range(x.ndim)[::-1]))


def _axes(node: Node, first_with_input: int):
    """How a node says its axes: ``axes(input)``, from an attribute or from an input."""
    fixed = node.ints("axes") if node.version < first_with_input else None
    return lambda given: fixed if given is None else ints(given)


@operator("Squeeze", arguments=(1,))
def squeeze_axes(node: Node):
    axes = _axes(node, 13)

    def run(x, given=None):
        dims = axes(given)
        if dims is None:
            return squeeze(x)
        wrong = [dim for dim in dims if x.shape[dim] != 1]
        if wrong:
            raise ValueError(f"Squeeze: axes {wrong} of a tensor of shape {x.shape} are not 1")
        return squeeze(x, dims)

    return run


@operator("Unsqueeze", arguments=(1,))
def unsqueeze_axes(node: Node):
    axes = _axes(node, 13)

    def run(x, given=None):
        dims = axes(given)
        ndim = x.ndim + len(dims)
        new = {axis_of(dim, ndim) for dim in dims}
        sizes = iter(x.shape)
        return reshape(x, *(1 if at in new else next(sizes) for at in range(ndim)))

    return run


@operator("Expand", 8, arguments=(1,))
def expand_to(node: Node):
    return lambda x, sizes: expand(x, *np.broadcast_shapes(x.shape, ints(sizes)))


@operator("Tile", 1, 5, arguments=(1, 2))
def tile_along(node: Node):
    def run(x, count, axis):
        times = [1] * x.ndim
        times[scalar(axis)] = scalar(count)
        return repeat(x, *times)

    return run


@operator("Tile", 6, arguments=(1,))
def tile(node: Node):
    return lambda x, times: repeat(x, *ints(times))


@operator("Shape")
def shape_of(node: Node):
    start, end = node.int("start", 0), node.int("end")
    return lambda x: _sizes(x.shape[start:end])


def _sizes(value) -> np.ndarray:
    return np.asarray(value, np.int64)


@operator("Size")
def size_of(node: Node):
    return lambda x: _sizes(math.prod(x.shape))


# ---- joining and cutting -------------------------------------------------------------------------


@operator("Concat")
def concat(node: Node):
    axis = node.int("axis", 1)

    def run(*tensors):
        if isinstance(tensors[0], np.ndarray):  # texts
            return np.concatenate(tensors, axis)
        return gpunn.cat(tensors, axis)

    return run


@operator("Split", 1, 1, arguments=(1,))
@operator("Split", 2, arguments=(1,))
def split(node: Node):
    axis, fixed = node.int("axis", 0), node.ints("split")
    count = node.int("num_outputs", len(node.outputs))

    def run(x, given=None):
        sizes = fixed if given is None else ints(given)
        at = axis_of(axis, x.ndim)
        if sizes is None:
            total = x.shape[at]
            each = -(-total // count)
            sizes = [max(0, min(each, total - each * part)) for part in range(count)]
        return split_tensor(x, list(sizes), at)

    return run


@operator("Slice", 1, 9)
def slice_attributes(node: Node):
    starts, ends, axes = node.ints("starts"), node.ints("ends"), node.ints("axes")
    return lambda x: _sliced(x, starts, ends, axes, None)


@operator("Slice", 10, arguments=(1, 2, 3, 4))
def slice_inputs(node: Node):
    return lambda x, starts, ends, axes=None, steps=None: _sliced(
        x, *map(ints, (starts, ends, axes, steps))
    )


def _sliced(x, starts, ends, axes, steps):
    key = [slice(None)] * x.ndim
    steps = steps or (1,) * len(starts)
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        key[axis] = slice(start, end, step)
    if all(part.step is None or part.step > 0 for part in key):
        return x[tuple(key)]
    # Arrays on devices are read forwards: a backward part is cut out first and then turned.
    forward, turned = [], []
    for dim, part in enumerate(key):
        places = range(*part.indices(x.shape[dim]))
        if part.step is not None and part.step < 0 and len(places):
            forward.append(slice(places[-1], places[0] + 1, -part.step))
            turned.append(dim)
        else:
            forward.append(slice(places.start, places.stop, places.step) if places else slice(0, 0))
    cut = x[tuple(forward)]
    return cut.flip(*turned) if turned else cut


@operator("Trilu", 14, arguments=(1,))
def triangle(node: Node):
    upper = node.flag("upper", True)
    return lambda x, k=None: (triu if upper else tril)(x, scalar(k, 0))


# ---- padding -------------------------------------------------------------------------------------

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Pad", 1, 10)
def pad_attributes(node: Node):
    pads = node.ints("paddings" if node.version < 2 else "pads")
    mode = node.choice("mode", "constant", tuple(_PAD_MODES))
    value = node.float("value", 0.0)
    return lambda x: _padded(x, pair_lists(pads, x.ndim), mode, value)


@operator("Pad", 11, arguments=(1, 2, 3))
def pad_inputs(node: Node):
    mode = node.choice("mode", "constant", tuple(_PAD_MODES))

    def run(x, pads, value=None, axes=None):
        pads = ints(pads)
        pairs = [(0, 0)] * x.ndim
        given = range(x.ndim) if axes is None else ints(axes)
        for axis, pair in zip(given, pair_lists(pads, len(pads) // 2), strict=True):
            pairs[axis] = pair
        return _padded(x, pairs, mode, scalar(value, 0))

    return run


def _padded(x, pairs, mode: str, value):
    cuts = tuple(
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(pairs, x.shape, strict=True)
    )
    if any(min(pair) < 0 for pair in pairs):
        x = x[cuts]
    pairs = [(max(0, before), max(0, after)) for before, after in pairs]
    if floating(x):
        return pad_dimensions(x, pairs, _PAD_MODES[mode], float(value))
    options = {"constant_values": value} if mode == "constant" else {}
    return plain(lambda xp, a: xp.pad(a, pairs, mode, **options), x)


@operator("CenterCropPad", 18, arguments=(1,))
def center_crop_pad(node: Node):
    axes = node.ints("axes")

    def run(x, sizes):
        cut, pairs = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
        for axis, size in zip(range(x.ndim) if axes is None else axes, ints(sizes), strict=True):
            have = x.shape[axis]
            if have >= size:
                start = (have - size) // 2
                cut[axis] = slice(start, start + size)
            else:
                before = (size - have) // 2
                pairs[axis] = (before, size - have - before)
        return _padded(x[tuple(cut)], pairs, "constant", 0)

    return run


# ---- blocks and channels -------------------------------------------------------------------------


@operator("DepthToSpace")
def depth_to_space(node: Node):
    size, mode = node.int("blocksize"), node.choice("mode", "DCR", ("DCR", "CRD"))

    def run(x):
        n, c, h, w = x.shape
        inner = c // size**2
        if mode == "DCR":
            x = permute(reshape(x, n, size, size, inner, h, w), 0, 3, 4, 1, 5, 2)
        else:
            x = permute(reshape(x, n, inner, size, size, h, w), 0, 1, 4, 2, 5, 3)
        return reshape(x, n, inner, h * size, w * size)

    return run


@operator("SpaceToDepth")
def space_to_depth(node: Node):
    size, mode = node.int("blocksize"), node.choice("mode", "DCR", ("DCR", "CRD"))

    def run(x):
        n, c, h, w = x.shape
        x = reshape(x, n, c, h // size, size, w // size, size)
        x = permute(x, 0, 3, 5, 1, 2, 4) if mode == "DCR" else permute(x, 0, 1, 3, 5, 2, 4)
        return reshape(x, n, c * size**2, h // size, w // size)

    return run


# ---- tensors from sizes --------------------------------------------------------------------------


@operator("Constant")
def constant(node: Node):
    value = node.array("value")
    if value is None:
        value = _constant_of_list(node)
    return lambda: value


def _constant_of_list(node: Node) -> np.ndarray:
    if node.has("value_float"):
        return np.asarray(node.float("value_float"), np.float32)
    if node.has("value_int"):
        return np.asarray(node.int("value_int"), np.int64)
    if node.has("value_floats"):
        return np.asarray(node.floats("value_floats"), np.float32)
    if node.has("value_ints"):
        return np.asarray(node.ints("value_ints"), np.int64)
    if node.has("value_string"):
        return np.asarray(node.text("value_string"), object)
    if node.has("value_strings"):
        return np.asarray(node.texts("value_strings"), object)
    raise node.refuse("only dense values are supported, not sparse ones")


@operator("ConstantOfShape", 9, arguments=(0,), context=True)
def constant_of_shape(node: Node):
    value = node.array("value")
    value = np.zeros(1, np.float32) if value is None else value

    def run(context, sizes):
        if context is None or value.dtype.kind in "iub":  # mostly shapes in the making
            return np.full(ints(sizes), value.reshape(-1)[0], value.dtype)
        return context.full(ints(sizes), value.reshape(-1)[0])

    return run


@operator("Range", 11, arguments=(0, 1, 2))
def number_range(node: Node):
    node.skip("stash_type")  # counted in float64, which is as good as any

    def run(start, limit, delta):
        first, last, step = map(scalar, (start, limit, delta))
        count = max(0, math.ceil((last - first) / step))
        return (first + np.arange(count) * step).astype(start.dtype)

    return run


@operator("EyeLike", 9)
def eye_like(node: Node):
    dtype, diagonal = node.dtype("dtype"), node.int("k", 0)

    def run(x):
        made = np.eye(*x.shape, diagonal, dtype or x.dtype)
        return wrap(to_device(made, x.device))

    return run
