"""What all pictures share: figures without pyplot, colours, axes, and how they are written.

No pyplot: nothing global is touched, no window is opened, and it works without a screen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.autograd.tensor import Tensor
from gpunn.device import to_numpy
from gpunn.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION, BEST = "#4477aa", "#cc6677", "#666666"  # told apart by the colour-blind too
# Paul Tol's bright scheme and four of his muted one, for classes; each class also has a mark.
PALETTE = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#332288",
    "#882255",
    "#ee7733",
    "#222222",
)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DIVERGING = "RdBu_r"  # below and above zero, without green


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches. ImportError, with the remedy, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is not installed; run: pip install matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to `path`, in the format of its suffix, whole or not at all.

    ValueError for a format that matplotlib does not write.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    formats = figure.canvas.get_supported_filetypes()
    if suffix not in formats:
        raise ValueError(f"{path}: use a suffix such as .png, .svg or .pdf for a picture")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix)


def finished(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, written to `path` if there is one."""
    if path is not None:
        save_figure(figure, path)
    return figure


def plain(axes: Axes, grid: str = "both") -> None:
    """The look of every panel: no frame at the top and the right, a light grid behind the data."""
    axes.grid(True, axis=grid, color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def legend(axes: Axes, **options: Any) -> None:
    """A legend without a frame, on a ground that lets the data shine through."""
    axes.legend(
        **{"fontsize": 9, "frameon": True, "framealpha": 0.9, "edgecolor": "none"} | options
    )


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many panels in rows of `columns`, without those of the last row that stay empty."""
    rows = -(-count // columns)
    made = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in made[count:]:
        axes.set_visible(False)
    return made[:count]


def values_of(data: Any, what: str = "the values") -> np.ndarray:
    """A Tensor, a device array or a sequence of numbers as a NumPy array of real numbers.

    Floating types of 16 bits become float32. TypeError, naming `what`, for anything else.
    """
    if isinstance(data, Tensor):
        data = data.detach().array
    array = to_numpy(data) if hasattr(data, "shape") else np.asarray(data)
    if array.dtype.kind in "biuf" and array.dtype.itemsize > 2 or array.dtype.kind in "biu":
        return array
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float16"):
        return array.astype(np.float32)
    raise TypeError(f"{what} must be numbers, got an array of {array.dtype}")


def class_values(labels: Any, count: int, what: str = "labels") -> np.ndarray:
    """Labels as whole numbers of shape (count,). ValueError for another shape or fractions."""
    array = values_of(labels, what).reshape(-1) if np.ndim(labels) else values_of(labels, what)
    if array.shape != (count,):
        raise ValueError(f"{what} have shape {np.shape(labels)}; there are {count} samples")
    if not np.array_equal(array, array.astype(np.int64)):
        raise ValueError(f"{what} must be whole numbers, the indices of classes")
    return array.astype(np.int64)


def literal(text: object) -> str:
    """A text from data for matplotlib: a dollar sign in it begins no formula."""
    return str(text).replace("$", r"\$")


def class_names(names: Any, classes: int) -> list[str]:
    """A name for each class, by default its number. ValueError for another count."""
    if names is None:
        return [str(number) for number in range(classes)]
    names = [str(name) for name in names]
    if len(names) != classes:
        raise ValueError(f"{len(names)} names for {classes} classes")
    return names
