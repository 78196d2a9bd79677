"""Arrays as PNG images inside of a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

_BLUE, _RED, _WHITE = np.array([[33, 102, 172], [178, 24, 43], [247, 247, 247]], float)


def data_uri(pixels: np.ndarray) -> str:
    """A PNG of uint8 pixels, (height, width) or (height, width, 3), as a ``data:`` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values from `low` (black) to `high` (white) as uint8; of an image in colour each channel."""
    scaled = (np.nan_to_num(image.astype(float), nan=low) - low) / ((high - low) or 1.0)
    return np.round(255 * np.clip(scaled[..., :3] if scaled.ndim == 3 else scaled, 0, 1)).astype(
        np.uint8
    )


def diverging(image: np.ndarray, largest: float) -> np.ndarray:
    """Values from ``-largest`` (blue) over 0 (white) to `largest` (red) as uint8 RGB.

    An image of three channels is shown in its own colours with grey for 0.
    """
    share = np.clip(np.nan_to_num(image.astype(float)) / (largest or 1.0), -1, 1)
    if image.ndim == 3:
        return np.round(127.5 + 127.5 * share).astype(np.uint8)
    end = np.where(share[..., None] < 0, _BLUE, _RED)
    return np.round(_WHITE + np.abs(share)[..., None] * (end - _WHITE)).astype(np.uint8)


def figure_uri(figure: Any) -> str:
    """A matplotlib Figure as a PNG of 120 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
