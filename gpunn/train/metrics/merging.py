"""What the metrics of several processes counted, made one: the usual way, by what `reset` sets."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import device_of, is_array, to_device, to_numpy
from gpunn.distributed.group import Group
from gpunn.distributed.values import exchange_values, packed

_UNSENT = "not to be sent: "


def added_up(metric: Any, group: Group) -> dict[str, Any]:
    """The attributes of `metric` that changed since `reset` on some rank, over all ranks.

    Numbers and arrays are added up, element by element also within lists and tuples that `reset`
    fills; lists that it leaves empty are joined, entry by entry of all ranks in turn, which is the
    order of one process where each batch adds an entry. Dictionaries are added up key by key, sets
    united, truths joined by "or" (by "and" where `reset` sets True). Texts, functions and settings
    are as they are, and so are metrics that this one is made of (`inner`). An array is on the
    device where this rank has one, else NumPy's.

    All ranks take part. TypeError on all of them for attributes of which that is no way.
    """
    start = _attributes(_fresh(metric))
    counted = {
        name: _sent(value)
        for name, value in _attributes(metric).items()
        if not _same(value, start.get(name))
    }
    ranks = exchange_values(group, counted)
    names = list(dict.fromkeys(itertools.chain.from_iterable(ranks)))
    found = {}
    for name in names:
        parts = [rank[name] for rank in ranks if name in rank]
        try:
            found[name] = _combined(start.get(name), parts)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{metric.name}: its attribute {name} cannot be added up over processes ({error}); "
                f"define merge(group) in {type(metric).__name__}"
            ) from None
        found[name] = at_home(found[name], vars(metric).get(name))
    return found


def at_home(value: Any, own: Any) -> Any:
    """An array as a Tensor, or on a device, where `own` is one, or is there; all else as it is."""
    array = own.array if isinstance(own, Tensor) else own
    value = np.asarray(value) if isinstance(value, np.generic) else value
    if not (is_array(value) and is_array(array)):
        return value
    value = to_device(value, device_of(array))
    return wrap(value) if isinstance(own, Tensor) else value


def taken_home(made: Any, metric: Any) -> Any:
    """`made`, a copy of `metric` that was merged, with its arrays where those of `metric` are."""
    for name, value in vars(made).items():
        vars(made)[name] = at_home(value, vars(metric).get(name))
    for one, own in zip(inner(vars(made)), inner(vars(metric)), strict=True):
        taken_home(one, own)
    return made


def inner(value: Any) -> list[Any]:
    """The metrics among the attributes of a metric, also those in its lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [one for item in value for one in inner(item)]
    is_metric = hasattr(value, "merge") and hasattr(value, "reset")
    return [value] if is_metric and not isinstance(value, type) else []


def _attributes(metric: Any) -> dict[str, Any]:
    """By name, without those that hold metrics; of Tensors their arrays."""
    attributes = vars(metric).items()
    return {n: v.array if isinstance(v, Tensor) else v for n, v in attributes if not inner(v)}


def copied(metric: Any) -> Any:
    """A copy whose lists, dictionaries, sets, arrays and metrics may be changed in place."""
    made = copy.copy(metric)
    for name, value in vars(made).items():
        vars(made)[name] = _copy(value)
    return made


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return wrap(value.array.copy())
    if is_array(value) or isinstance(value, set):
        return copy.copy(value)
    if isinstance(value, dict):
        made = copy.copy(value)  # of its own kind, as a Counter
        for key, one in value.items():
            made[key] = _copy(one)
        return made
    if isinstance(value, list) or type(value) is tuple:
        return type(value)([_copy(one) for one in value])
    return copied(value) if inner(value) else value


def _fresh(metric: Any) -> Any:
    """One with the same settings, after `reset`."""
    made = copied(metric)
    made.reset()
    return made


def _sent(value: Any) -> Any:
    """What is sent of an attribute; of what cannot be, a text that says so on all ranks."""
    try:
        packed(value)
    except TypeError as error:
        return f"{_UNSENT}{error}"
    return value


def _same(value: Any, start: Any) -> bool:
    """Whether an attribute is as `reset` leaves it."""
    if value is start:
        return True
    if is_array(value) or is_array(start):
        if not (is_array(value) and is_array(start)):
            return False
        one, other = to_numpy(value), to_numpy(start)
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if type(value) is not type(start):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) == len(start) and all(map(_same, value, start))
    if isinstance(value, dict):
        return value.keys() == start.keys() and all(_same(value[k], start[k]) for k in value)
    return bool(value == start or (value != value and start != start))  # NaN


def _combined(start: Any, parts: list[Any]) -> Any:
    """One value of those of the ranks that changed it; `start` is what `reset` sets."""
    if any(isinstance(part, str) for part in parts):
        return _alike(parts)
    if all(part is None for part in parts):
        return None
    parts = [part for part in parts if part is not None]
    for kind, combine in (
        (bool, _truths), (list, _lists), (tuple, _tuples), (dict, _dicts), (set, _sets),
        ((int, float, np.ndarray), _numbers),
    ):  # fmt: skip
        if all(isinstance(part, kind) for part in parts):
            return combine(start, parts)
    kinds = sorted({type(part).__name__ for part in parts})
    raise TypeError(f"there is no sum of {' and '.join(kinds)}")


def _alike(parts: list[Any]) -> Any:
    told = [part for part in parts if isinstance(part, str) and part.startswith(_UNSENT)]
    if told:
        raise TypeError(told[0].removeprefix(_UNSENT))
    if len(set(map(str, parts))) > 1:
        raise TypeError(f"the texts differ: {', '.join(map(repr, parts[:3]))}")
    return parts[0]


def _truths(start: Any, parts: list[bool]) -> bool:
    return all(parts) if start is True else any(parts)


def _lists(start: Any, parts: list[Any]) -> list[Any]:
    if start:
        return [_combined(*of_one) for of_one in _by_element(start, parts)]
    left = object()
    turns = itertools.zip_longest(*parts, fillvalue=left)
    return [value for turn in turns for value in turn if value is not left]


def _tuples(start: Any, parts: list[Any]) -> tuple[Any, ...]:
    if isinstance(start, tuple) and not start:
        return tuple(_lists([], parts))
    return tuple(_combined(*of_one) for of_one in _by_element(start, parts))


def _by_element(start: Any, parts: list[Any]) -> list[tuple[Any, list[Any]]]:
    lengths = {len(part) for part in parts}
    start = (None,) * len(parts[0]) if start is None else start
    if lengths != {len(start)}:
        raise ValueError(f"lengths are {sorted(lengths | {len(start)})}")
    return [(one, [part[number] for part in parts]) for number, one in enumerate(start)]


def _dicts(start: Any, parts: list[Any]) -> dict[Any, Any]:
    known = start if isinstance(start, dict) else {}
    made = copy.copy(known)  # of its own kind, as a Counter
    for key in dict.fromkeys(itertools.chain.from_iterable(parts)):
        made[key] = _combined(known.get(key), [part[key] for part in parts if key in part])
    return made


def _sets(start: Any, parts: list[Any]) -> set[Any]:
    return set().union(*parts)


def _numbers(start: Any, parts: list[Any]) -> Any:
    base = to_numpy(start) if is_array(start) else start
    base = 0 if base is None or isinstance(base, bool) else base
    if not isinstance(base, (int, float, np.ndarray)) or not np.isfinite(base).all():
        raise TypeError(f"reset sets it to {start!r:.40}, with which no sum begins")
    shapes = {np.shape(part) for part in parts if np.ndim(part)}
    if len(shapes) > 1:
        raise ValueError(f"shapes are {sorted(shapes)}")
    with np.errstate(all="ignore"):  # NaN and infinity travel
        total = parts[0]
        for part in parts[1:]:
            total = total | part if getattr(part, "dtype", None) == np.bool_ else total + part
        return total - (len(parts) - 1) * base if np.any(base) else total
