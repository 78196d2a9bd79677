"""Convolutions and transposed convolutions as layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from gpunn.autograd.aliases import DeviceLike, DTypeLike, Size
from gpunn.autograd.creation import empty
from gpunn.autograd.functions import convolution as functions
from gpunn.autograd.functions.convolution_checks import padding_of
from gpunn.autograd.functions.layout import channels_first_view
from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.tensor import Tensor
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Convolving(Module):
    """What all of them share: the arguments, checked, and the parameters.

    The weight's memory is channels-last, as the kernels take it, whatever its shape.
    """

    dimensions = 0
    transposed = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size,
        padding: Size | str, dilation: Size, output_padding: Size, groups: int, bias: bool,
        padding_mode: str, device: DeviceLike, dtype: DTypeLike, channels_last: bool,
    ):  # fmt: skip
        super().__init__()
        named = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        for name, value in named.items():
            named[name] = self._sizes(name, value, 1, 1)[0]
        self.in_channels, self.out_channels, self.groups = named.values()
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self._name}: groups is {groups}; it must divide in_channels, {in_channels}, "
                f"and out_channels, {out_channels}"
            )
        if padding_mode not in (_PADDING_MODES[:1] if self.transposed else _PADDING_MODES):
            known = "'zeros'" if self.transposed else ", ".join(map(repr, _PADDING_MODES))
            raise ValueError(f"{self._name}: padding_mode is {padding_mode!r}; expected {known}")
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        if isinstance(padding, str) and not self.transposed:
            padding_of(
                self._name, padding, self.stride, self.kernel_size, self.dilation
            )  # an error now, not at the first input
            self.padding: Any = padding
        else:
            self.padding = self._sizes("padding", padding, 0)
        self.output_padding = self._sizes("output_padding", output_padding, 0)
        self.padding_mode, self.channels_last = padding_mode, bool(channels_last)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        first, last = self.out_channels, self.in_channels
        if self.transposed:
            first, last = last, first
        memory = empty(first, *self.kernel_size, last // self.groups, **place)
        self.weight = Parameter(channels_first_view(memory._array))
        self.register_parameter(
            "bias", Parameter(empty(self.out_channels, **place)) if bias else None
        )
        self.reset_parameters()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _sizes(self, argument: str, value: Any, least: int, count: int | None = None) -> Any:
        """An int for every dimension, or one for each."""
        count = count or self.dimensions
        try:
            several = isinstance(value, Sequence)
            found = tuple(map(operator.index, value if several else (value,)))
        except TypeError:
            found = ()
        if len(found) == 1:
            found *= count
        if len(found) != count or min(found) < least:
            raise ValueError(
                f"{self._name}: {argument} is {value!r}; expected an integer of {least} or more"
                + (f", or {count} of them" if count > 1 else "")
            )
        return found

    def reset_parameters(self) -> None:
        """Draw new values from gpunn's generator: uniform, as in PyTorch."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}",
                 f"stride={self.stride}"]  # fmt: skip
        for name, usual in (("padding", 0), ("output_padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value != (usual,) * self.dimensions:
                parts.append(f"{name}={value}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        if self.channels_last:
            parts.append("channels_last=True")
        return ", ".join(parts)


class _Conv(_Convolving):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: DeviceLike = None,
        dtype: DTypeLike = None,
        *,
        channels_last: bool = False,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups, bias,
            padding_mode, device, dtype, channels_last,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self.forward_activated(input, "identity", None)

    def forward_activated(self, input: Tensor, activation: str, alpha: float | None) -> Tensor:
        """The layer with an activation behind it, in one kernel."""
        own, padding = self._parameters, self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            input, padding = self._padded(input), 0
        return self._function(
            input, own["weight"], own["bias"], self.stride, padding, self.dilation, self.groups,
            activation=activation, alpha=alpha, channels_last=self.channels_last,
        )  # fmt: skip

    def _padded(self, input: Tensor) -> Tensor:
        """The input padded with what `padding_mode` takes instead of zeros."""
        pairs = padding_of(self._name, self.padding, self.stride, self.kernel_size, self.dilation)
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in pairs]
        lead = [(0, 0)] * (input.ndim - self.dimensions - self.channels_last)
        behind = [(0, 0)] * self.channels_last
        if not any(map(any, pairs)):
            return input
        return pad_dimensions(input, [*lead, *pairs, *behind], self.padding_mode)


class _ConvTranspose(_Convolving):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: DeviceLike = None,
        dtype: DTypeLike = None,
        *,
        channels_last: bool = False,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding,
            groups, bias, padding_mode, device, dtype, channels_last,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """`output_size` (the spatial sizes, or the shape) takes the place of output_padding."""
        return self.forward_activated(input, "identity", None, output_size)

    def forward_activated(
        self, input: Tensor, activation: str, alpha: float | None, output_size: Any = None
    ) -> Tensor:
        """The layer with an activation behind it."""
        own, more = self._parameters, self.output_padding
        if output_size is not None:
            more = self._output_padding(input, output_size)
        return self._function(
            input, own["weight"], own["bias"], self.stride, self.padding, more, self.groups,
            self.dilation, activation=activation, alpha=alpha, channels_last=self.channels_last,
        )  # fmt: skip

    def _output_padding(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """What is to be added to the smallest result for it to have `output_size`."""
        spatial = input.shape[: -1 if self.channels_last else None]
        spatial = spatial[len(spatial) - self.dimensions :]
        wanted = tuple(output_size)
        if len(wanted) > self.dimensions:
            wanted = wanted[: -1 if self.channels_last else None]
            wanted = wanted[len(wanted) - self.dimensions :]
        least = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                spatial, self.stride, self.padding, self.dilation, self.kernel_size, strict=True
            )
        )
        most = tuple(n + s - 1 for n, s in zip(least, self.stride, strict=True))
        if len(wanted) != self.dimensions or not all(
            a <= n <= b for a, n, b in zip(least, wanted, most, strict=True)
        ):
            raise ValueError(
                f"{self._name}: output_size is {output_size!r}; for an input of shape "
                f"{input.shape} expected sizes from {least} to {most}"
            )
        return tuple(n - a for n, a in zip(wanted, least, strict=True))


class Conv1d(_Conv):
    """A convolution over sequences: (N, in_channels, L) -> (N, out_channels, out).

    Parameters: `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding` (numbers, "same"
    or "valid"), `dilation`, `groups`, whether there is a `bias`, `padding_mode` ("zeros",
    "reflect", "replicate", "circular"), `device`, `dtype`, as in PyTorch; and `channels_last` for
    tensors (N, L, channels). See `gpunn.nn.functional.conv1d` for the formula.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, K), uniform in ±1/sqrt(in_channels K / groups)
    bias : (out_channels,), uniform in the same interval, or None
    """

    dimensions = 1
    _function = staticmethod(functions.conv1d)


class Conv2d(_Conv):
    """A convolution over images: (N, in_channels, H, W) -> (N, out_channels, H', W').

    Parameters and attributes as of `Conv1d`, sizes as an int or one for each dimension.
    """

    dimensions = 2
    _function = staticmethod(functions.conv2d)


class Conv3d(_Conv):
    """A convolution over volumes: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W').

    Parameters and attributes as of `Conv1d`, sizes as an int or one for each dimension.
    """

    dimensions = 3
    _function = staticmethod(functions.conv3d)


class ConvTranspose1d(_ConvTranspose):
    """The transpose of a convolution over sequences: (N, in_channels, L) -> (N, out_channels, out).

    Parameters: `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`,
    `output_padding`, `groups`, whether there is a `bias`, `dilation`, `padding_mode` ("zeros"),
    `device`, `dtype`, as in PyTorch; and `channels_last` for tensors (N, L, channels).
    See `gpunn.nn.functional.conv_transpose1d` for the formula.

    Attributes
    ----------
    weight : (in_channels, out_channels / groups, K), uniform in ±1/sqrt(out_channels K / groups)
    bias : (out_channels,), uniform in the same interval, or None
    """

    dimensions = 1
    _function = staticmethod(functions.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """The transpose of a convolution over images: (N, in_channels, H, W) -> (N, out_channels, H',
    W'). Parameters and attributes as of `ConvTranspose1d`.
    """

    dimensions = 2
    _function = staticmethod(functions.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """The transpose of a convolution over volumes: (N, in_channels, D, H, W) -> (N, out_channels,
    D', H', W'). Parameters and attributes as of `ConvTranspose1d`.
    """

    dimensions = 3
    _function = staticmethod(functions.conv_transpose3d)
