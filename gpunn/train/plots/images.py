"""Arrays as images, and the filters of a first layer."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from gpunn.nn.module import Module
from gpunn.train.plots.figures import DIVERGING, finished, new_figure, panels, values_of


def as_images(images: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Images as (samples, height, width) or (samples, height, width, 3 or 4).

    `images` may have its channels before or after height and width, or be flat with `shape`, that
    of one image. ValueError for anything else.
    """
    array = values_of(images, "images")
    if array.ndim >= 2 and shape is not None:
        if math.prod(array.shape[1:]) != math.prod(shape):
            raise ValueError(f"images of shape {array.shape[1:]} cannot have the shape {shape}")
        array = array.reshape(len(array), *shape)
    if array.ndim == 4:
        if array.shape[-1] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
            array = np.moveaxis(array, 1, -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (3, 4)):
        return array
    hint = "" if shape is not None else "; for flat samples pass shape=(height, width)"
    raise ValueError(
        f"images have shape {array.shape}; expected (samples, height, width), with 1, 3 or 4 "
        f"channels or without{hint}"
    )


def show_image(axes: Any, image: np.ndarray, span: tuple[float, float]) -> None:
    """An image without ticks: grey from `span[0]` to `span[1]`, or its own colours."""
    low, high = span
    if image.ndim == 3:
        image = np.clip((image - low) / ((high - low) or 1.0), 0, 1)
        axes.imshow(image, interpolation="nearest")
    else:
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")


def first_layer_weight(source: Any) -> tuple[str, np.ndarray]:
    """The name and the weight of the first layer that has filters, or of the array given.

    A weight of two axes is (outputs, inputs), of three to five (outputs, inputs, *kernel).
    ValueError if a model has none.
    """
    if not isinstance(source, Module):
        return "weight", values_of(source, "filters")
    for name, parameter in source.named_parameters():
        if name.split(".")[-1] == "weight" and 2 <= parameter.ndim <= 5:
            return name, values_of(parameter)
    raise ValueError(f"{type(source).__name__} has no layer with a weight of two axes or more")


def filter_images(
    weight: np.ndarray, shape: tuple[int, ...] | None = None, limit: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The filters of a weight as images, those with the largest norm first, and their numbers.

    Dense rows take `shape`, that of one input image; kernels of convolutions with three input
    channels are in colour, others show each output as its input channels side by side.
    ValueError if a dense weight has no shape that fits.
    """
    if weight.ndim == 2:
        if shape is None:
            raise ValueError(
                f"a dense weight of shape {weight.shape} needs shape=, that of one input image"
            )
        shape = tuple(shape)
        if math.prod(shape) != weight.shape[1]:
            raise ValueError(f"shape {shape} does not have the layer's {weight.shape[1]} inputs")
        weight = weight.reshape(len(weight), *shape)
        weight = weight[:, None] if len(shape) == 2 else weight
        if weight.ndim == 4 and weight.shape[1] not in (1, 3) and weight.shape[-1] in (1, 3):
            weight = np.moveaxis(weight, -1, 1)
    elif weight.ndim == 3:
        weight = weight[:, None]  # (outputs, 1, inputs, kernel): a picture of each
    elif weight.ndim == 5:
        weight = weight.reshape(*weight.shape[:3], -1)  # the last two axes of a kernel as one
        weight = weight.reshape(len(weight), 1, -1, weight.shape[-1])
    norms = np.sqrt((weight.astype(float) ** 2).sum(axis=tuple(range(1, weight.ndim))))
    order = np.argsort(-norms, kind="stable")[:limit]
    chosen = weight[order]
    if chosen.ndim == 4 and chosen.shape[1] == 3:
        return np.moveaxis(chosen, 1, -1), order
    if chosen.ndim != 4:
        raise ValueError(f"filters of shape {weight.shape[1:]} are no images")
    return np.concatenate(list(np.moveaxis(chosen, 1, 0)), axis=-1), order


def _columns(count: int, ratio: float) -> int:
    """Columns of a grid that is somewhat wider than high and has few empty places at its end."""
    ideal = max(1, min(count, round(math.sqrt(count * 1.6 * ratio))))
    near = range(max(1, ideal - 2), min(count, ideal + 3) + 1)
    return min(near, key=lambda columns: (-count % columns, abs(columns - ideal)))


def plot_filters(
    source: Any,
    shape: tuple[int, ...] | None = None,
    *,
    limit: int = 64,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """The filters of a model's first layer as images, those with the largest norm first.

    Parameters
    ----------
    source : a model, a layer, or a weight (outputs, inputs) or (outputs, inputs, *kernel)
    shape : of one input image, for a dense first layer: (height, width), or with channels
    limit : how many at most

    Blue is below zero and red above, on one scale for all; filters of three channels are in colour
    with grey for zero. Returns the Figure. ValueError if there is no such layer, or a dense one
    without a fitting `shape`.
    """
    name, weight = first_layer_weight(source)
    pictures, order = filter_images(weight, shape, limit)
    high, wide = pictures.shape[1:3]
    columns = _columns(len(pictures), high / wide)
    rows = -(-len(pictures) // columns)
    cell = min(1.0, 9.0 / columns)
    figure = new_figure(
        max(4.5, columns * cell + 1.2), max(2.6, rows * cell * min(3.0, high / wide) + 1.0)
    )
    largest = float(np.abs(pictures).max()) or 1.0
    shown = None
    for axes, picture in zip(panels(figure, len(pictures), columns), pictures, strict=True):
        if picture.ndim == 3:
            axes.imshow(np.clip(0.5 + picture / (2 * largest), 0, 1), interpolation="nearest")
        else:
            shown = axes.imshow(
                picture, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest"
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#bbbbbb")
    some = (
        f"{len(order)} of {len(weight)}, largest first"
        if len(order) < len(weight)
        else (f"{len(weight)}")
    )
    figure.suptitle(title or f"Filters of {name} ({some})", fontsize=12, fontweight="bold")
    if shown is not None:
        bar = figure.colorbar(shown, ax=figure.axes, shrink=0.8, aspect=30, pad=0.02)
        bar.set_label("weight", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return finished(figure, path)
