"""Augmentation of images by PyTorch: the whole batch at once, gathered by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gpunn.bench.torch_peers.common import peer, put


@peer
def augment_images(images, *, seed, padding, flip, cutout, scale, fill, out=None):
    n, h, w, _ = images.shape
    place, random = images.device, torch.Generator(images.device).manual_seed(seed)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding), value=fill)

    def below(places, *shape):
        return torch.randint(places, (n, *shape), device=place, generator=random)

    y, x = below(2 * padding + 1, 1, 1), below(2 * padding + 1, 1, 1)
    row, column = (torch.arange(size, device=place) for size in (h, w))
    mirrored = torch.rand(n, 1, 1, device=place, generator=random) < flip
    x = x + torch.where(mirrored, w - 1 - column, column)
    value = padded[torch.arange(n, device=place)[:, None, None], y + row[:, None], x]
    value = value.float() * scale
    cuts = []
    for size, line in ((h, row), (w, column)):
        first = below(size, 1) - cutout // 2
        cuts.append((line >= first) & (line < first + cutout))
    value = value.masked_fill((cuts[0][:, :, None] & cuts[1][:, None])[..., None], fill * scale)
    return put(value, out)
