"""Layers that resize images; formulas stand in `functional.interpolate`."""

from __future__ import annotations

from typing import Any

from gpunn.autograd.functions.resizing import interpolate
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module


class Upsample(Module):
    """(N, C, *spatial) in another size

    Parameters as of `functional.interpolate`; with `channels_last` tensors are (N, *spatial, C).
    """

    def __init__(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
        align_corners: bool | None = None, recompute_scale_factor: bool | None = None, *,
        channels_last: bool = False,
    ):  # fmt: skip
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError(
                f"{type(self).__name__}: size is {size} and scale_factor {scale_factor}; give one "
                "of them"
            )
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(
            input, self.size, self.scale_factor, self.mode, self.align_corners,
            self.recompute_scale_factor, channels_last=self.channels_last,
        )  # fmt: skip

    def extra_repr(self) -> str:
        by = f"size={self.size}" if self.size is not None else f"scale_factor={self.scale_factor}"
        return f"{by}, mode={self.mode!r}" + ", channels_last=True" * self.channels_last


class UpsamplingNearest2d(Upsample):
    """(N, C, H, W) in another size by the nearest pixel"""

    def __init__(self, size: Any = None, scale_factor: Any = None, *, channels_last: bool = False):
        super().__init__(size, scale_factor, "nearest", channels_last=channels_last)


class UpsamplingBilinear2d(Upsample):
    """(N, C, H, W) in another size by bilinear interpolation with aligned corners"""

    def __init__(self, size: Any = None, scale_factor: Any = None, *, channels_last: bool = False):
        super().__init__(size, scale_factor, "bilinear", True, channels_last=channels_last)
