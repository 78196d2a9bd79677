"""Weights that another library trained, in a model of gpunn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpunn.io.layouts import from_layout, guess_layout
from gpunn.io.safetensors import load


def load_into(
    model: Any,
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    layout: str | None = "auto",
    strict: bool = True,
) -> Any:
    """Load weights from a file, or from a state of any library, into a model where it is.

    Parameters
    ----------
    model : an `nn.Module`
    source : what `load` takes (a file, an index of shards, a folder), names and arrays, or what has
        a ``state_dict()`` of them, such as a PyTorch module
    layout : the names in it: None for gpunn's, one of `from_layout`'s, or "auto": gpunn's if the
        model has them, otherwise the layout that has all of them
    strict : every name must have its place

    Returns the missing and the unexpected names, as ``load_state_dict`` does.

    Raises RuntimeError, before anything is written, with all names and shapes that do not fit and
    what may have been meant; errors of `load`; ValueError for an unknown layout.
    """
    if hasattr(source, "state_dict"):
        source = source.state_dict()
    state = source if isinstance(source, Mapping) else load(source)
    if layout == "auto":
        own = model.state_dict()
        fitting = _fitting(state, own)
        layout = None if fitting == len(state) else guess_layout(state)
        if layout is not None and all(name in own for name in state):
            # Both have these names: more shapes must fit under the other's.
            layout = layout if _fitting(from_layout(state, layout), own) > fitting else None
    return model.load_state_dict(state if layout is None else from_layout(state, layout), strict)


def _fitting(state: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """How much of the state has names and shapes of the model's own."""
    return sum(
        name in own and np.shape(value) == tuple(own[name].shape) for name, value in state.items()
    )
