"""LeNet-5, the convolutional network that read handwritten cheques.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from gpunn import nn
from gpunn.autograd.tensor import Tensor


class LeNet(nn.Module):
    """Two convolutions with pooling, then three linear layers.

    Input (B, in_channels, image_size, image_size), output (B, num_classes) logits. Images of 28
    pixels (MNIST) are padded to the 32 of the paper; others of 16 pixels or more are taken as they
    are.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28):
        super().__init__()
        if image_size < 16:
            raise ValueError(f"LeNet: image_size is {image_size}; expected 16 or more")
        self.shape = (in_channels, image_size, image_size)
        padding = 2 if image_size == 28 else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=padding), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side * side, 120), nn.Tanh(),
            nn.Linear(120, 84), nn.Tanh(),
            nn.Linear(84, num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"LeNet: images have shape {images.shape}; expected (B, {expected})")
        return self.classifier(self.features(images))
