"""A fitted estimator in a safetensors file: arrays, and a text of plain values about them."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from gpunn import io

_ABOUT = "gpunn_estimator"
_WEIGHT, _OPTIMIZER = "module.", "optimizer."


def save_estimator(estimator: Any, path: str | os.PathLike[str]) -> None:
    """See `NeuralEstimator.save`."""
    state = estimator._fitted_state()
    arrays = {_WEIGHT + name: array for name, array in state.pop("_weights").items()}
    optimizer = state.pop("_optimizer_state")
    if optimizer is not None:
        optimizer = {**optimizer, "state": _take_arrays(optimizer["state"], arrays)}
    state.pop("_parts", None)  # they are among the parameters
    parameters, left_out = {}, []
    for name, value in estimator.get_params(deep=False).items():
        state.pop(name, None)
        try:
            parameters[name] = _plain(value)
        except TypeError:
            left_out.append(name)
    try:
        attributes = {name: _plain(value) for name, value in state.items()}
    except TypeError as error:
        raise ValueError(
            f"{type(estimator).__name__} cannot be written to a file: {error} (among its "
            "attributes, or the arguments as they were at `fit`)"
        ) from None
    about = {
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "left_out": left_out,
        "attributes": attributes,
        "optimizer": _plain(optimizer),
    }
    io.save(arrays, path, metadata={_ABOUT: json.dumps(about)})


def _take_arrays(state: dict[Any, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state with names in `arrays` in the place of its arrays."""
    found: dict[str, Any] = {}
    for number, entries in state.items():
        kept = found.setdefault(str(number), {})
        for name, value in entries.items():
            key = f"{_OPTIMIZER}{number}.{name}"
            if isinstance(value, np.ndarray) and value.ndim:
                arrays[key], kept[name] = value, {"stored": key}
            else:
                kept[name] = _plain(value)
    return found


def load_estimator(kind: type, path: str | os.PathLike[str], parameters: dict[str, Any]) -> Any:
    """See `NeuralEstimator.load`."""
    metadata = io.load_metadata(path)
    try:
        about = json.loads(metadata[_ABOUT])
        name, kept, left_out = about["estimator"], about["parameters"], about["left_out"]
        attributes, optimizer = _read(about["attributes"]), about["optimizer"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no estimator that gpunn.sklearn saved") from None
    if name != kind.__name__:
        raise ValueError(f"{path} holds a {name}; load it with {name}.load")
    missing = [name for name in left_out if name not in parameters]
    if missing:
        raise ValueError(
            f"{path} could not keep {', '.join(missing)}; give {kind.__name__}.load("
            f"…, {missing[0]}=…) what the saved estimator had"
        )
    arrays = io.load_arrays(path)
    try:
        estimator = kind(**_read(kept))
        optimizer = _read(optimizer)
        for entries in (optimizer or {"state": {}})["state"].values():
            for entry, value in entries.items():
                if isinstance(value, dict):
                    entries[entry] = arrays[value["stored"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit its description: {error}") from None
    estimator.set_params(**parameters)
    weights = {
        key.removeprefix(_WEIGHT): array for key, array in arrays.items() if key.startswith(_WEIGHT)
    }
    try:
        estimator._restore({**attributes, "_weights": weights, "_optimizer_state": optimizer})
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit its description: {error}") from None
    return estimator


def _plain(value: Any) -> Any:
    """As JSON has it, arrays and tuples marked; TypeError for all else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return {"array": [_plain(item) for item in value.tolist()], "dtype": value.dtype.str}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        return {"pairs": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).str
    raise TypeError(f"{type(value).__name__} is no plain value")


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array([_read(item) for item in value["array"]], np.dtype(value["dtype"]))
    if "tuple" in value:
        return tuple(_read(item) for item in value["tuple"])
    if "pairs" in value:
        return {_read(key): _read(item) for key, item in value["pairs"]}
    return {key: _read(item) for key, item in value.items()}
