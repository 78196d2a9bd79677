"""U-Net: an image from an image, by going down to a coarse one and back up again.

Ronneberger, Fischer, Brox: U-Net, convolutional networks for biomedical image segmentation, 2015;
here with padding, so that the output is as large as the input, and batch norm.
"""

from __future__ import annotations

from gpunn import nn
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.tensor import Tensor


def _twice(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, activation="relu"),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, activation="relu"),
    )  # fmt: skip


class UNet(nn.Module):
    """Each step down halves the sides and doubles the channels; each step up undoes it.

    Input (B, in_channels, H, W) with H and W multiples of 2^depth, output (B, out_channels, H, W).
    `width` is the number of channels at full size.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, width: int = 32, depth: int = 3
    ):
        super().__init__()
        sizes = [width << level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList([_twice(in_channels, width)])
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        self.pool = nn.MaxPool2d(2)
        for fine, coarse in zip(sizes, sizes[1:], strict=False):
            self.down.append(_twice(fine, coarse))
            self.up.append(nn.ConvTranspose2d(coarse, fine, 2, stride=2))
            self.join.append(_twice(2 * fine, fine))
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        side = 1 << self.depth
        if images.ndim != 4 or images.shape[2] % side or images.shape[3] % side:
            raise ValueError(
                f"UNet: images have shape {images.shape}; expected (B, C, H, W) with H and W "
                f"multiples of {side}"
            )
        levels = [self.down[0](images)]
        for part in list(self.down)[1:]:
            levels.append(part(self.pool(levels[-1])))
        x = levels.pop()
        for up, join in reversed(list(zip(self.up, self.join, strict=True))):
            x = join(cat([levels.pop(), up(x)], 1))
        return self.head(x)
