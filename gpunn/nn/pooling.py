"""Pooling layers; `channels_last` says that the channels are the last dimension of the tensors."""

from __future__ import annotations

from typing import Any

from gpunn.autograd.aliases import Size
from gpunn.autograd.functions import pooling as functions
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module

__all__ = [
    *(f"Adaptive{kind}Pool{n}d" for kind in ("Avg", "Max") for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("AvgPool", "MaxPool", "MaxUnpool") for n in (1, 2, 3)),
    *(f"Global{kind}Pool{n}d" for kind in ("Avg", "Max") for n in (1, 2, 3)),
]


class _Pool(Module):
    """Base: keeps the arguments under their names, and shows them."""

    dimensions = 0
    _name = ""

    def __init__(self, channels_last: bool, **arguments: Any):
        super().__init__()
        self.channels_last = channels_last
        self._arguments = tuple(arguments)
        for name, value in arguments.items():
            setattr(self, name, value)

    @property
    def _function(self) -> Any:
        return getattr(functions, f"{self._name}{self.dimensions}d")

    def extra_repr(self) -> str:
        shown = [f"{name}={getattr(self, name)}" for name in self._arguments]
        return ", ".join(shown + ["channels_last=True"] * self.channels_last)


class _MaxPool(_Pool):
    """The largest of each window; with `return_indices` also where it was

    Parameters as of `functional.max_pool2d`.
    """

    _name = "max_pool"

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1,
        return_indices: bool = False, ceil_mode: bool = False, *, channels_last: bool = False,
    ):  # fmt: skip
        super().__init__(
            channels_last, kernel_size=kernel_size,
            stride=kernel_size if stride is None else stride, padding=padding, dilation=dilation,
            ceil_mode=ceil_mode,
        )  # fmt: skip
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return self._function(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices, channels_last=self.channels_last,
        )  # fmt: skip


class MaxPool1d(_MaxPool):
    """The largest of each window of (N, C, L)"""

    dimensions = 1


class MaxPool2d(_MaxPool):
    """The largest of each window of (N, C, H, W)"""

    dimensions = 2


class MaxPool3d(_MaxPool):
    """The largest of each window of (N, C, D, H, W)"""

    dimensions = 3


class _AvgPool(_Pool):
    """The mean of each window

    Parameters as of `functional.avg_pool2d`.
    """

    _name = "avg_pool"

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None, *, channels_last: bool = False,
    ):  # fmt: skip
        super().__init__(
            channels_last, kernel_size=kernel_size,
            stride=kernel_size if stride is None else stride, padding=padding,
        )  # fmt: skip
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return self._function(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override, channels_last=self.channels_last,
        )  # fmt: skip


class AvgPool1d(_AvgPool):
    """The mean of each window of (N, C, L)"""

    dimensions = 1


class AvgPool2d(_AvgPool):
    """The mean of each window of (N, C, H, W)"""

    dimensions = 2


class AvgPool3d(_AvgPool):
    """The mean of each window of (N, C, D, H, W)"""

    dimensions = 3


class _AdaptiveAvgPool(_Pool):
    """The mean of windows that cut the input into `output_size` parts"""

    _name = "adaptive_avg_pool"

    def __init__(self, output_size: Any, *, channels_last: bool = False):
        super().__init__(channels_last, output_size=output_size)

    def forward(self, input: Tensor) -> Tensor:
        return self._function(input, self.output_size, channels_last=self.channels_last)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The mean of `output_size` windows of (N, C, L)"""

    dimensions = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The mean of `output_size` windows of (N, C, H, W)"""

    dimensions = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """The mean of `output_size` windows of (N, C, D, H, W)"""

    dimensions = 3


class _AdaptiveMaxPool(_Pool):
    """The largest of windows that cut the input into `output_size` parts"""

    _name = "adaptive_max_pool"

    def __init__(
        self, output_size: Any, return_indices: bool = False, *, channels_last: bool = False
    ):
        super().__init__(channels_last, output_size=output_size)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return self._function(
            input, self.output_size, self.return_indices, channels_last=self.channels_last
        )


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The largest of `output_size` windows of (N, C, L)"""

    dimensions = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest of `output_size` windows of (N, C, H, W)"""

    dimensions = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The largest of `output_size` windows of (N, C, D, H, W)"""

    dimensions = 3


class _GlobalAvgPool(_AdaptiveAvgPool):
    """The mean over all pixels, which stay as dimensions of size 1"""

    def __init__(self, *, channels_last: bool = False):
        super().__init__(1, channels_last=channels_last)

    def extra_repr(self) -> str:
        return "channels_last=True" if self.channels_last else ""


class GlobalAvgPool1d(_GlobalAvgPool):
    """The mean over L of (N, C, L): (N, C, 1)"""

    dimensions = 1


class GlobalAvgPool2d(_GlobalAvgPool):
    """The mean over H and W of (N, C, H, W): (N, C, 1, 1)"""

    dimensions = 2


class GlobalAvgPool3d(_GlobalAvgPool):
    """The mean over D, H and W of (N, C, D, H, W): (N, C, 1, 1, 1)"""

    dimensions = 3


class _GlobalMaxPool(_AdaptiveMaxPool):
    """The largest of all pixels, which stay as dimensions of size 1"""

    def __init__(self, *, channels_last: bool = False):
        super().__init__(1, channels_last=channels_last)

    def extra_repr(self) -> str:
        return "channels_last=True" if self.channels_last else ""


class GlobalMaxPool1d(_GlobalMaxPool):
    """The largest over L of (N, C, L): (N, C, 1)"""

    dimensions = 1


class GlobalMaxPool2d(_GlobalMaxPool):
    """The largest over H and W of (N, C, H, W): (N, C, 1, 1)"""

    dimensions = 2


class GlobalMaxPool3d(_GlobalMaxPool):
    """The largest over D, H and W of (N, C, D, H, W): (N, C, 1, 1, 1)"""

    dimensions = 3


class _MaxUnpool(_Pool):
    """What max pooling with `return_indices` took, put back where it was; zeros elsewhere"""

    _name = "max_unpool"

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        channels_last: bool = False,
    ):
        super().__init__(
            channels_last, kernel_size=kernel_size,
            stride=kernel_size if stride is None else stride, padding=padding,
        )  # fmt: skip

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return self._function(
            input, indices, self.kernel_size, self.stride, self.padding, output_size,
            channels_last=self.channels_last,
        )  # fmt: skip


class MaxUnpool1d(_MaxUnpool):
    """The reverse of `MaxPool1d`"""

    dimensions = 1


class MaxUnpool2d(_MaxUnpool):
    """The reverse of `MaxPool2d`"""

    dimensions = 2


class MaxUnpool3d(_MaxUnpool):
    """The reverse of `MaxPool3d`"""

    dimensions = 3
