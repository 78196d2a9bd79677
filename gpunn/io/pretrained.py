"""Weights that another library trained, in a model of gpunn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gpunn.io.layouts import from_layout, guess_layout
from gpunn.io.safetensors import load


def load_into(
    model: Any,
    source: str | os.PathLike[str] | Mapping[str, Any],
    layout: str | None = "auto",
    strict: bool = True,
) -> Any:
    """Load weights from a file, or from a state of any library, into a model where it is.

    Parameters
    ----------
    model : an `nn.Module`
    source : what `load` takes (a file, an index of shards, a folder), or names and arrays, such as
        the ``state_dict()`` of a PyTorch module
    layout : the names in it: None for gpunn's, one of `from_layout`'s, or "auto": gpunn's if the
        model has them, otherwise the layout that has all of them
    strict : every name must have its place

    Returns the missing and the unexpected names, as ``load_state_dict`` does.

    Raises RuntimeError, before anything is written, with all names and shapes that do not fit and
    what may have been meant; errors of `load`; ValueError for an unknown layout.
    """
    state = source if isinstance(source, Mapping) else load(source)
    if layout == "auto":
        layout = None if _fits(state, model.state_dict()) else guess_layout(state)
    return model.load_state_dict(state if layout is None else from_layout(state, layout), strict)


def _fits(state: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the state is under the model's own names and shapes."""
    return all(
        name in own and tuple(value.shape) == tuple(own[name].shape)
        for name, value in state.items()
    )
