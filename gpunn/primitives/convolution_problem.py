"""The sizes of a convolution: what every implementation of it is given beside the arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """One convolution with 1 to 3 spatial dimensions.

    Attributes
    ----------
    batch, channels, outputs : N, C and O
    size, kernel, out : extents of the input, the kernel and the output, one for each dimension
    stride, dilation : one for each dimension
    low, high : zeros in front of the input and behind it, one for each dimension
    groups : of channels; group g of the outputs sees group g of the channels alone
    """

    batch: int
    channels: int
    outputs: int
    size: Ints
    kernel: Ints
    out: Ints
    stride: Ints
    low: Ints
    high: Ints
    dilation: Ints
    groups: int

    @property
    def group_channels(self) -> int:
        """Channels that one output sees."""
        return self.channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Outputs of one group."""
        return self.outputs // self.groups

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return math.prod(self.kernel)

    @property
    def input_shape(self) -> Ints:
        """(N, *spatial, C)"""
        return (self.batch, *self.size, self.channels)

    @property
    def output_shape(self) -> Ints:
        """(N, *out, O)"""
        return (self.batch, *self.out, self.outputs)

    @property
    def weight_shape(self) -> Ints:
        """(O, *kernel, C / groups)"""
        return (self.outputs, *self.kernel, self.group_channels)

    @property
    def flops(self) -> int:
        """Multiplications and additions of any of the three passes."""
        return 2 * self.batch * math.prod(self.out) * self.outputs * self.taps * self.group_channels

    @property
    def depthwise(self) -> bool:
        """Whether every output sees one channel."""
        return self.groups == self.channels and self.groups > 1

    def in_three(self) -> Geometry:
        """The same with three spatial dimensions: ones in front."""
        more = 3 - len(self.size)
        if more == 0:
            return self
        one, zero = (1,) * more, (0,) * more
        return Geometry(
            self.batch, self.channels, self.outputs, one + self.size, one + self.kernel,
            one + self.out, one + self.stride, zero + self.low, zero + self.high,
            one + self.dilation, self.groups,
        )  # fmt: skip


# ---- checks --------------------------------------------------------------------------------------


def each(call, name: str, value, dimensions: int, least: int) -> Ints:
    """An int, or a tuple of one int for each spatial dimension, as a tuple."""
    try:
        if isinstance(value, Sequence):
            found = tuple(operator.index(one) for one in value)
        else:
            found = (operator.index(value),) * dimensions
    except TypeError:
        raise TypeError(
            f"{call.primitive.name}: {name} is {value!r}; expected an int or a tuple of "
            f"{dimensions} ints."
        ) from None
    call.require(
        len(found) == dimensions and min(found, default=least) >= least, name, f"is {value!r}",
        f"expected an int of at least {least}, or a tuple of {dimensions} of them, one for each "
        "spatial dimension",
    )  # fmt: skip
    return found


def padding_of(call, value, dimensions: int) -> tuple[Ints, Ints]:
    """(zeros in front, zeros behind) from an int, a tuple of ints, or a tuple of pairs."""
    pairs = isinstance(value, Sequence) and any(isinstance(one, Sequence) for one in value)
    if not pairs:
        low = each(call, "padding", value, dimensions, 0)
        return low, low
    call.require(
        len(value) == dimensions
        and all(isinstance(one, Sequence) and len(one) == 2 for one in value),
        "padding", f"is {value!r}",
        f"expected an int, {dimensions} ints, or {dimensions} pairs (in front, behind)",
    )  # fmt: skip
    low, high = (
        each(call, "padding", tuple(one[side] for one in value), dimensions, 0) for side in (0, 1)
    )
    return low, high


def geometry_of(
    call, input_shape: Ints, weight_shape: Ints, stride, padding, dilation, groups
) -> Geometry:
    """The geometry of an input (N, *spatial, C) and a weight (O, *kernel, C / groups), checked."""
    dimensions = len(input_shape) - 2
    batch, *size, channels = input_shape
    outputs, *kernel, group_channels = weight_shape
    strides = each(call, "stride", stride, dimensions, 1)
    dilations = each(call, "dilation", dilation, dimensions, 1)
    low, high = padding_of(call, padding, dimensions)
    (groups,) = each(call, "groups", groups, 1, 1)
    call.require(
        outputs > 0 and group_channels > 0 and min(kernel) > 0, "weight", f"has shape "
        f"{tuple(weight_shape)}, which is empty", "give at least one output, channel and tap",
    )  # fmt: skip
    call.require(
        channels % groups == 0 and outputs % groups == 0, "groups",
        f"is {groups}, which does not divide both the {channels} channels of the input and the "
        f"{outputs} outputs", "choose a divisor of both",
    )  # fmt: skip
    call.require(
        group_channels * groups == channels, "weight",
        f"has shape {tuple(weight_shape)}: {group_channels} channels for each of {groups} groups, "
        f"but the input has {channels} channels",
        f"its last dimension must be {channels} / {groups} = {channels // groups}",
    )  # fmt: skip
    out = []
    for i in range(dimensions):
        reach, padded = dilations[i] * (kernel[i] - 1) + 1, size[i] + low[i] + high[i]
        call.require(
            padded >= reach, "weight", f"reaches over {reach} places of spatial dimension {i} "
            f"(kernel {kernel[i]}, dilation {dilations[i]}), but the input has only {padded} there "
            f"({size[i]} and {low[i]} + {high[i]} of padding)",
            "use a smaller kernel or dilation, or more padding",
        )  # fmt: skip
        out.append((padded - reach) // strides[i] + 1)
    # A stride that leads behind the input and the dilation of a single tap say nothing; the kernels
    # have no room for their size, and no phases for such strides.
    strides = tuple(map(min, strides, map(sum, zip(size, low, high, strict=True))))
    dilations = tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel, strict=True))
    return Geometry(
        batch, channels, outputs, tuple(size), tuple(kernel), tuple(out), strides, low, high,
        dilations, groups,
    )  # fmt: skip
