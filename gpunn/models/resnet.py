"""Residual networks: layers that learn what to add to their input.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2015. The names of the
parameters are torchvision's, so that its weights of ResNet-18 load.
"""

from __future__ import annotations

from gpunn import nn
from gpunn.autograd.tensor import Tensor


class BasicBlock(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions with batch norm; a 1x1 on x where sizes differ."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, activation="relu")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, activation="relu")
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(x), residual=shortcut)  # norm, sum and ReLU in one kernel


class ResNet18(nn.Module):
    """Eighteen layers in four stages of two blocks, for images of about 224 pixels.

    Input (B, in_channels, H, W), output (B, num_classes) logits. With `small_images` the first
    convolution is 3x3 and nothing is pooled at the start, as is usual for 32 pixels.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, small_images: bool = False):
        super().__init__()
        if small_images:
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64, activation="relu")
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class _Residual(nn.Module):
    """x + f(x)"""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.f = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def _convolution(in_channels: int, channels: int, pool: bool = False) -> nn.Sequential:
    parts = [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, activation="relu"),
    ]
    return nn.Sequential(*parts, nn.MaxPool2d(2)) if pool else nn.Sequential(*parts)


class ResNet9(nn.Sequential):
    """Nine layers for images of 32 pixels, quick to train (after David Page, DAWNBench, 2018).

    Input (B, in_channels, H, W) of 8 pixels or more, output (B, num_classes) logits; `width` is the
    number of channels of the first layer.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64):
        last = 8 * width
        super().__init__(
            _convolution(in_channels, width),
            _convolution(width, 2 * width, pool=True),
            _Residual(_convolution(2 * width, 2 * width), _convolution(2 * width, 2 * width)),
            _convolution(2 * width, 4 * width, pool=True),
            _convolution(4 * width, last, pool=True),
            _Residual(_convolution(last, last), _convolution(last, last)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(last, num_classes),
        )
