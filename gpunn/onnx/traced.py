"""Arrays that know where they came from: NumPy arrays that an export follows.

NumPy asks an argument of a subclass itself what to do with it. So whatever code computes with a
`Traced` array, each operation comes here first and is noted by the `Recorder` of the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.autograd.tensor import Tensor, wrap

if TYPE_CHECKING:
    from gpunn.onnx.recording import Recorder, Value


class _Running(threading.local):
    recorder: Recorder | None = None


running = _Running()


class Traced(np.ndarray):
    """A NumPy array that knows its `Value`."""

    value: Value | None
    stamp: int

    def __array_finalize__(self, source):
        self.value, self.stamp = None, 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        return _of_ufunc(ufunc, method, inputs, out, options)

    def __array_function__(self, function, types, args, kwargs):
        return _of_function(function, args, kwargs)

    def __getitem__(self, key):
        return _noted("numpy.getitem", (self, key), lambda x, key: x[_kept(key)])

    def __setitem__(self, key, value):
        recorder = running.recorder
        if recorder is None or recorder.inside:
            self.view(np.ndarray)[plain(key)] = plain(value)
        else:
            recorder.write(self, key, value)

    def astype(self, dtype, order="K", casting="unsafe", subok=True, copy=True):
        if self.dtype == dtype and not copy:
            return self
        return _noted("numpy.astype", (self, np.dtype(dtype)), lambda x, dtype: x.astype(dtype))

    def copy(self, order="C"):
        return _noted("numpy.copy", (self,), lambda x: x.copy(order))

    def __iter__(self):
        return (self[index] for index in range(self.shape[0]))

    @property
    def T(self):
        return np.transpose(self)

    # ---- values that Python reads ----------------------------------------------------------------

    def _read(self, what: str) -> np.ndarray:
        recorder = running.recorder
        if recorder is not None and not recorder.inside:
            recorder.read(self, what)
        return self.view(np.ndarray)

    def item(self, *args):
        return self._read("a condition, item() or float()").item(*args)

    def tolist(self):
        return self._read("tolist()").tolist()

    def __bool__(self):
        return bool(self._read("a condition (if, while, and, or, not)"))

    def __float__(self):
        return float(self._read("float()"))

    def __int__(self):
        return int(self._read("int()"))

    def __index__(self):
        return self._read("an index or a size").__index__()

    def __repr__(self):
        return repr(self._read("its text"))

    __str__ = __repr__


def _method(name: str) -> Callable:
    """A method of arrays that NumPy offers as a function, too: it comes back as that."""

    def method(self, *args, **kwargs):
        if args and name in ("reshape", "transpose") and not isinstance(args[0], (tuple, list)):
            args = (tuple(args[0]),) if isinstance(args[0], range) else (args,)
        return getattr(np, name)(self, *args, **kwargs)

    return method


for _name in (
    "argmax argmin argsort cumsum nonzero ravel repeat reshape squeeze swapaxes take transpose"
).split():
    setattr(Traced, _name, _method(_name))


def plain(value: Any) -> Any:
    """The same with ordinary arrays, also inside of Tensors, tuples, lists and dicts."""
    kind = type(value)
    if kind is Traced:
        return value.view(np.ndarray)
    if isinstance(value, Tensor):
        if type(value._array) is not Traced:
            return value
        made = wrap(value._array.view(np.ndarray))
        made._cell, made._seen = value._cell, value._seen
        return made
    if kind is dict:
        return {name: plain(part) for name, part in value.items()}
    if kind is list:
        return value if not value else [plain(part) for part in value]
    if kind is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, tuple):
        parts = map(plain, value)
        return kind(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _kept(key):
    """A key under which NumPy gives an array even of one element."""
    parts = key if isinstance(key, tuple) else (key,)
    return parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def _noted(kind: str, arguments: tuple, compute: Callable) -> Any:
    recorder = running.recorder
    if recorder is None or recorder.inside:
        return compute(*plain(arguments))
    return recorder.note(kind, arguments, lambda: compute(*plain(arguments)))


def _of_ufunc(ufunc, method, inputs, out, options):
    recorder = running.recorder
    if recorder is None or recorder.inside:
        if out is not None:
            options["out"] = plain(out)
        return getattr(ufunc, method)(*plain(inputs), **plain(options))
    if method not in ("__call__", "reduce") or options.pop("where", True) is not True:
        if out is None and recorder.is_constant((*inputs, options)):
            return getattr(ufunc, method)(*plain(inputs), **plain(options))
        recorder.refuse(f"numpy.{ufunc.__name__}.{method}", "it is not followed here")
    kind = f"numpy.{ufunc.__name__}" + (".reduce" if method == "reduce" else "")
    result = recorder.note(
        kind, (*inputs, options), lambda: getattr(ufunc, method)(*plain(inputs), **plain(options))
    )
    if out is None:
        return result
    out[0][...] = result
    return out[0]


# NumPy's functions that are followed: noted as they are, or run as NumPy wrote them.
_FUNCTIONS = frozenset(
    "argmax argmin argsort broadcast_to concatenate copyto cumsum expand_dims flip moveaxis "
    "ravel repeat reshape searchsorted squeeze stack swapaxes take take_along_axis transpose tril "
    "triu where".split()
)
_INSIDE_OUT = frozenset({"isclose", "clip", "any", "all", "sum", "prod", "amax", "amin", "max",
                         "min", "round"})  # fmt: skip
_OF_FORM = frozenset({"shape", "ndim", "size", "may_share_memory", "result_type", "can_cast"})
_BY_VALUES = frozenset({"nonzero", "unique", "bincount", "flatnonzero", "argwhere", "compress"})


def _of_function(function, args, kwargs):
    recorder, name = running.recorder, function.__name__
    if recorder is None or recorder.inside or name in _OF_FORM:
        return function(*plain(args), **plain(kwargs))
    known = name in _FUNCTIONS or name in _INSIDE_OUT
    if not known and recorder.is_constant((args, kwargs)):
        return function(*plain(args), **plain(kwargs))
    if name in _BY_VALUES:
        recorder.refuse(f"numpy.{name}", "the shape of its result depends on values")
    if name in ("zeros_like", "ones_like", "empty_like", "full_like"):
        return function(*plain(args), **plain(kwargs))
    if name in _INSIDE_OUT:
        return function._implementation(*args, **kwargs)
    if not known:
        recorder.refuse(f"numpy.{name}", "it is not among the functions that are followed")
    if name == "copyto":
        target, value = args[:2]
        target[...] = np.where(kwargs["where"], value, target) if "where" in kwargs else value
        return None
    return recorder.note(
        f"numpy.{name}", (*args, kwargs), lambda: function(*plain(args), **plain(kwargs))
    )


class ArrayModule:
    """NumPy as the functions of gpunn see it; `asarray` leaves a traced array one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def asarray(value, dtype=None):
        if type(value) is not Traced:
            return np.asarray(value, dtype)
        return value if dtype is None else value.astype(dtype, copy=False)

    ascontiguousarray = asarray
