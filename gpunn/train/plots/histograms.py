"""Histograms of weights, gradients and activations, a panel a layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module
from gpunn.train.plots.figures import PALETTE, finished, new_figure, panels, plain, values_of

_COLORS = {"weights": PALETTE[0], "gradients": PALETTE[5], "activations": PALETTE[2]}


def layer_outputs(model: Module, *inputs: Any) -> dict[str, np.ndarray]:
    """What each innermost layer of a model gives for a batch, by the layer's name.

    The model runs once without gradients, in the mode that it is in. Of a layer that is called more
    than once the last output counts, of one with several outputs the first.
    """
    outputs: dict[str, np.ndarray] = {}

    def noting(name: str) -> Any:
        def note(layer: Module, arguments: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if isinstance(output, Tensor) and output.dtype.kind not in "biu":
                outputs[name] = values_of(output)

        return note

    hooks = [
        layer.register_forward_hook(noting(name or type(layer).__name__))
        for name, layer in model.named_modules()
        if not layer._modules
    ]
    try:
        with no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def arrays_by_layer(source: Any, kind: str = "weights") -> dict[str, np.ndarray]:
    """The arrays of a model by name: its "weights" or their "gradients"; or those of a mapping.

    ValueError where there are none, as for gradients before the first backward.
    """
    if isinstance(source, Module):
        if kind not in ("weights", "gradients"):
            raise ValueError(f"kind must be 'weights' or 'gradients' for a model, got {kind!r}")
        parameters: dict[str, Any] = dict(source.named_parameters())
        if kind == "gradients":
            parameters = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            if not parameters:
                raise ValueError("no parameter has a gradient; call it after a backward pass")
        source = parameters
    if not isinstance(source, Mapping) or not source:
        raise ValueError("give a model, or a mapping from names to arrays with at least one")
    return {str(name): values_of(array, str(name)) for name, array in source.items()}


def plot_histograms(
    source: Any,
    kind: str = "weights",
    *,
    bins: int = 50,
    columns: int = 3,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """How weights, gradients or activations are spread, a panel a layer.

    Parameters
    ----------
    source : a model, or name → array, such as `layer_outputs(model, batch)`
    kind : "weights", "gradients" or "activations"; of a model the first two
    bins : of each histogram

    Each panel tells mean, standard deviation and the share of exact zeros; values that are not
    finite are counted in red. Returns the Figure. ValueError where there is nothing to draw.
    """
    if kind not in _COLORS:
        raise ValueError(f"kind must be one of {', '.join(_COLORS)}, got {kind!r}")
    arrays = arrays_by_layer(source, kind)
    columns = min(columns, len(arrays))
    rows = -(-len(arrays) // columns)
    figure = new_figure(max(4.5, 3.5 * columns), 2.4 * rows + 0.5)
    for axes, (name, array) in zip(
        panels(figure, len(arrays), columns), arrays.items(), strict=True
    ):
        values = array.reshape(-1).astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            axes.hist(finite, bins, color=_COLORS[kind], alpha=0.85)
        axes.set_title(f"{name}  {'×'.join(map(str, array.shape)) or 'scalar'}", fontsize=9.5)
        axes.set_xlabel(
            _figures_of(values, finite),
            fontsize=8.5,
            color=("#aa2222" if finite.size < values.size else "#444444"),
        )
        axes.set_ylabel("how many", fontsize=8.5)
        plain(axes, "y")
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
    figure.suptitle(title or f"{kind.capitalize()} by layer", fontsize=12, fontweight="bold")
    return finished(figure, path)


def _figures_of(values: np.ndarray, finite: np.ndarray) -> str:
    if not finite.size:
        return f"all {values.size:,} not finite" if values.size else "empty"
    text = f"mean {finite.mean():.2g}, sd {finite.std():.2g}"
    zeros = np.count_nonzero(finite == 0) / finite.size
    text += f", {zeros:.0%} zero" if zeros >= 0.005 else ""
    bad = values.size - finite.size
    return text + (f", {bad:,} not finite" if bad else "")
