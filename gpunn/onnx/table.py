"""Which converter writes which operation: `converts` enters one, `converter_of` finds it.

A converter gets the graph and a call, adds nodes, and returns the name of the edge that holds the
result, or a tuple with one name (or None) for each result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Converter = Callable[[Any, Any], Any]
_CONVERTERS: dict[str, Converter] = {}


def converts(*kinds: str) -> Callable[[Converter], Converter]:
    """Enter a converter for these kinds of calls."""

    def enter(converter: Converter) -> Converter:
        for kind in kinds:
            if kind in _CONVERTERS:
                raise ValueError(f"two converters for {kind}")
            _CONVERTERS[kind] = converter
        return converter

    return enter


def converter_of(kind: str) -> Converter | None:
    """The converter of a kind of call; None if there is none."""
    _load()
    return _CONVERTERS.get(kind)


def kinds() -> list[str]:
    """All kinds of calls that can be written."""
    _load()
    return sorted(_CONVERTERS)


def _load() -> None:
    from gpunn.onnx import (  # noqa: F401  each enters its converters
        export_activation,
        export_arithmetic,
        export_arrays,
        export_attention,
        export_convolution,
        export_embedding,
        export_indexing,
        export_linalg,
        export_norm,
        export_padding,
        export_pooling,
        export_recurrent,
        export_reduction,
        export_resizing,
        export_shape,
    )
