"""The example inputs of an export: their names, and the variations that the model runs with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import is_array, to_numpy
from gpunn.onnx.recording import ExportError


class Axes(NamedTuple):
    """Which axes of which inputs are dynamic.

    of : {input: {axis: name}}; sizes : of each name in the example; batches : names of first axes
    """

    of: dict[str, dict[int, str]]
    sizes: dict[str, int]
    batches: set[str]


class Example:
    """The arguments of a model, and the arrays among them in order, with their names."""

    def __init__(self, inputs: Any, names: Sequence[str] | None):
        if isinstance(inputs, Mapping):
            self._positional: tuple = ()
            self._named = dict(inputs)
        else:
            self._positional = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
            self._named = {}
        leaves = list(_leaves(self._positional, ""))
        plain = [name for name, _ in leaves]
        leaves += [leaf for key, value in self._named.items() for leaf in _leaves(value, str(key))]
        self._arrays = [to_numpy(raw_array(value)) for _, value in leaves]
        if not leaves:
            raise ValueError(
                "export: inputs hold no Tensor; give an example of what the model is called with"
            )
        found = [name for name, _ in leaves]
        if plain:
            found[: len(plain)] = ["input"] if len(plain) == 1 else [f"input_{n}" for n in plain]
        self.names = self._checked(found, names)
        self.moves_rows = True  # whether integers in one dimension change their places, too

    def _checked(self, found: list[str], names: Sequence[str] | None) -> list[str]:
        if names is None:
            return found
        given = [names] if isinstance(names, str) else list(names)
        if len(given) != len(found) or len(set(given)) != len(given) or not all(given):
            raise ValueError(
                f"export: input_names are {given}, and the example has {len(found)} tensors; "
                "expected a different name for each"
            )
        return given

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input in the example."""
        return self._arrays[self.names.index(name)].shape

    def arrays(self, axes: Axes, sizes: dict[str, int], run: int) -> list[np.ndarray]:
        """The arrays with the dynamic axes in these sizes; other values in each run."""
        return [
            _varied(
                array, {axis: sizes[key] for axis, key in axes.of.get(name, {}).items()}, run,
                self.moves_rows,
            )
            for name, array in zip(self.names, self._arrays, strict=True)
        ]  # fmt: skip

    def arguments(self, tensors: list[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """(positional, named) arguments with these Tensors in the arrays' places."""
        left = iter(tensors)
        positional = _replaced(self._positional, left)
        return positional, {key: _replaced(value, left) for key, value in self._named.items()}


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) or is_array(value)


def _leaves(value: Any, name: str):
    """(name, array) of all arrays in nested arguments."""
    if _is_leaf(value):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}_{number}" if name else str(number))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}_{key}" if name else str(key))


def _replaced(value: Any, tensors) -> Any:
    if _is_leaf(value):
        return next(tensors)
    if isinstance(value, (tuple, list)):
        parts = [_replaced(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        return {key: _replaced(part, tensors) for key, part in value.items()}
    return value


def _varied(array: np.ndarray, sizes: dict[int, int], run: int, moves_rows: bool) -> np.ndarray:
    """The array with axes grown to `sizes`, with other numbers of the same kind in each run.

    Floats keep their signs, integers are those of the example in other places: tokens stay in the
    vocabulary. Integers in one dimension may have to keep their order, as offsets do.
    """
    single = array.ndim == 1 and not is_float(array.dtype)
    for axis, size in sizes.items():
        places = np.arange(size)
        last = array.shape[axis] - 1
        array = array.take(np.minimum(places, last) if single else places % (last + 1), axis)
    if run and is_float(array.dtype):
        factors = np.random.default_rng(run).uniform(0.5, 1.0, array.shape)
        wide = array.astype(np.float64)
        array = (wide * factors if wide.any() else factors).astype(array.dtype)
    elif run and (not single or moves_rows):
        for axis in range(array.ndim):
            array = np.roll(array, run, axis)
    return np.array(array, order="C")


def dynamic_axes_of(example: Example, given: Mapping[str, Any] | None, dynamic_batch: bool) -> Axes:
    """The axes that `export` was told of, checked."""
    found: dict[str, dict[int, str]] = {}
    for name, axes in (given or {}).items():
        if name not in example.names:
            raise ValueError(
                f"export: dynamic_axes name the input {name!r}; the inputs are "
                f"{', '.join(example.names)}"
            )
        if not isinstance(axes, Mapping):
            axes = {axis: f"{name}_{axis}" for axis in axes}
        ndim = len(example.shape(name))
        for axis, key in axes.items():
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"export: dynamic_axes name axis {axis} of {name!r}, which has the shape "
                    f"{example.shape(name)}"
                )
            found.setdefault(name, {})[axis % ndim] = str(key)
    if dynamic_batch:
        shapes = [(name, example.shape(name)) for name in example.names]
        sizes = [shape[0] for _, shape in shapes if shape]
        for name, shape in shapes:
            if shape and shape[0] == sizes[0]:
                found.setdefault(name, {}).setdefault(0, "batch")
    return _sized(example, found)


def _sized(example: Example, found: dict[str, dict[int, str]]) -> Axes:
    sizes: dict[str, int] = {}
    batches: set[str] = set()
    for name, axes in found.items():
        for axis, key in axes.items():
            size = example.shape(name)[axis]
            if size < 1:
                raise ExportError(f"export: axis {axis} of {name!r} is empty in the example")
            if sizes.setdefault(key, size) != size:
                raise ValueError(
                    f"export: the dynamic axis {key!r} has the sizes {sizes[key]} and {size} in "
                    "the example; axes of one name must have one size"
                )
            if axis == 0 or key == "batch":
                batches.add(key)
    return Axes(found, sizes, batches)
