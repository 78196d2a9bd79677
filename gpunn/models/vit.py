"""ViT: an image as a sequence of patches, read by attention.

Dosovitskiy et al.: An image is worth 16x16 words, 2021.
"""

from __future__ import annotations

from gpunn import nn
from gpunn.autograd.creation import zeros
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.tensor import Tensor


class ViT(nn.Module):
    """Patches through a Transformer encoder; the class is read off a token of its own.

    Input (B, in_channels, image_size, image_size), output (B, num_classes) logits. image_size must
    be a multiple of patch_size, and dim of heads. As it stands a small one, for 32 pixels.
    `gpunn.io.load_into` loads the weights that torchvision, timm and Hugging Face publish; those of
    the first two were trained with a `norm_eps` of 1e-6, the last with 1e-12.
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 32, patch_size: int = 4,
        in_channels: int = 3, dim: int = 192, depth: int = 6, heads: int = 3,
        mlp_dim: int | None = None, dropout: float = 0.0, norm_eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"ViT: image_size {image_size} is not a multiple of patch_size {patch_size}"
            )
        self.shape = (in_channels, image_size, image_size)
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        count = (image_size // patch_size) ** 2
        self.class_token = nn.Parameter(zeros(1, 1, dim))
        self.positions = nn.Parameter(zeros(1, count + 1, dim))
        nn.init.normal_(self.positions, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, mlp_dim or 4 * dim, dropout, "gelu", norm_eps, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim, norm_eps))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"ViT: images have shape {images.shape}; expected (B, {expected})")
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, patches, dim)
        token = self.class_token.expand(x.shape[0], 1, x.shape[2])
        x = self.dropout(cat([token, x], 1) + self.positions)
        return self.head(self.encoder(x)[:, 0])
