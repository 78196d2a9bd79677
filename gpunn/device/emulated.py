"""Arrays on the emulator: NumPy arrays that remember where they live.

`EmulatorArray` stands to the device "emulator" as CuPy's array stands to a GPU. It lies in the
memory of the host, in a part with a life of its own (`emulated_memory`), and what is not a
primitive is computed by NumPy; but its results stay on the device, a single number included, and
meeting an array of the CPU is an error, as on a GPU.

Where arrays are made or copied, and where NumPy computes, a compiled step may listen
(`emulated_step`).
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from gpunn.device import emulated_step as step
from gpunn.device import tracing
from gpunn.device.emulated_memory import holder_of, taken


class EmulatorArray(np.ndarray):
    """A NumPy array on the device "emulator". Made by `gpunn.device.to_device` and `empty`."""

    __slots__ = ()

    def get(self) -> np.ndarray:
        """A copy as a NumPy array on the CPU; the name is CuPy's."""
        step.host_read("get()")
        return np.array(self, order="K", subok=False)

    def __copy__(self) -> EmulatorArray:
        return self.copy(order="K")

    def __deepcopy__(self, memo: dict[int, Any] | None) -> EmulatorArray:
        return self.copy(order="K")

    def __reduce__(self) -> tuple[Any, ...]:
        """As CuPy's arrays travel: by way of the host, to the device where they are read."""
        return emulator_numpy.array, (self.get(),)

    def set(self, array: np.ndarray) -> None:
        """Take the values of a NumPy array on the CPU; the name is CuPy's."""
        if step.state.graph is not None:
            tracing.host_write("set()")
        self[...] = array

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        for value in inputs:
            if type(value) is np.ndarray and value.ndim and method != "at":
                raise TypeError(
                    f"{ufunc.__name__}: one array is on the emulator, another of shape "
                    f"{value.shape} on the CPU; move both to one device with gpunn.device."
                    "to_device, or .to() of a Tensor"
                )
        if out is not None:
            options["out"] = tuple(map(plain, out))
        if "where" in options:
            options["where"] = plain(options["where"])
        if step.state.special:
            if step.state.graph is not None and ufunc is np.matmul:
                _refuse_product(inputs)
            step.refuse_uploads(f"{ufunc.__name__}.{method}", inputs)
            compute = getattr(ufunc, method)
            result = step.run(compute, plain(inputs), options, writes=out is not None)
        else:
            result = getattr(ufunc, method)(*map(plain, inputs), **options)
        if out is not None:
            return out[0] if len(out) == 1 else out
        return placed(result)

    def __array_function__(self, function, types, args, kwargs):
        return _computed(function, function.__name__, args, kwargs)

    def __getitem__(self, key):
        if step.state.special and not _is_basic(key):
            if step.state.graph is not None and _is_mask(key):
                tracing.shape_from_values("an index that is a mask")
            _refuse_host_index(key)
            return placed(step.run(operator.getitem, (plain(self), plain(key))))
        found = super().__getitem__(key)
        if isinstance(found, np.ndarray):
            return self._own(found)
        # NumPy makes a number of a single element; with an ellipsis it gives a view.
        return super().__getitem__((*key, ...) if isinstance(key, tuple) else (key, ...))

    def _own(self, found: EmulatorArray) -> EmulatorArray:
        """What NumPy made of this array: a view of it as it is, else in the emulator's memory."""
        base = found.base
        if base is self or found is self or (base is self.base and base is not None):
            return found
        return step.copied(plain(found)).view(EmulatorArray)

    def __setitem__(self, key, value):
        if step.state.graph is None:
            super().__setitem__(key, value)
            return
        if _is_mask(key):
            tracing.waits("an assignment through a mask", "assign where(mask, value, x) instead")
        _refuse_host_index(key)
        step.refuse_uploads("an assignment", value)
        step.run(operator.setitem, (plain(self), plain(key), plain(value)), writes=True)

    def item(self, *args):
        """A Python number, as NumPy's method; refused while a compiled step is captured."""
        step.host_read("item()")
        return plain(self).item(*args)

    def tolist(self):
        """Nested lists, as NumPy's method; refused while a compiled step is captured."""
        step.host_read("tolist()")
        return plain(self).tolist()

    def __bool__(self):
        step.host_read("the truth of an array")
        return bool(plain(self))

    def __float__(self):
        step.host_read("float()")
        return float(plain(self))

    def __int__(self):
        step.host_read("int()")
        return int(plain(self))

    def __index__(self):
        step.host_read("an index")
        return plain(self).__index__()


def plain(value: Any) -> Any:
    """The same memory as an ordinary NumPy array, also of the parts of tuples, lists and dicts."""
    kind = type(value)
    if kind is EmulatorArray:
        return value.view(np.ndarray)
    if kind is tuple or kind is list:
        return kind(map(plain, value))
    if kind is dict:
        return {name: plain(part) for name, part in value.items()}
    return value


def placed(value: Any) -> Any:
    """What NumPy computed, on the emulator: arrays, and the numbers that it makes of single ones.

    Python's own numbers and all else stay as they are.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return _settled(np.asarray(value)).view(EmulatorArray)
    if type(value) is tuple or type(value) is list:
        return type(value)(map(placed, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # numpy.linalg's named results
        return type(value)(*map(placed, value))
    return value


def _settled(value: np.ndarray) -> np.ndarray:
    """An array that NumPy made, in the emulator's memory: a view of what is there, or a copy."""
    found = value
    while isinstance(found, np.ndarray):
        if type(found) is EmulatorArray:
            return value
        found = found.base
    if value.size == 0 or holder_of(found) is not None:
        return value
    return step.copied(value)


# ---- what CuPy 14 cannot do while a graph is captured, read in its source ------------------------

# The shape of the result, or what is done, depends on values, for which CuPy waits.
_BY_VALUES = frozenset(
    "argwhere bincount compress extract flatnonzero histogram intersect1d nonzero setdiff1d "
    "setxor1d trim_zeros union1d unique".split()
)
# A truth that Python asks for.
_TRUTHS = frozenset("allclose array_equal array_equiv".split())
# CuPy asks a library of NVIDIA's, which it does not while it captures.
_BY_LIBRARY = frozenset(
    "cholesky det dot eigh eigvalsh einsum inner inv lstsq matrix_power matrix_rank multi_dot pinv "
    "qr slogdet solve svd tensordot vdot".split()
)
# CuPy brings numbers that Python lists to the GPU.
_LISTED = frozenset("digitize interp isin put searchsorted take".split())
# CuPy brings a table of addresses to the GPU if there are more than eight arrays.
_JOINS = frozenset("block column_stack concatenate dstack hstack stack vstack".split())


def _refuse_as_cupy(name: str, args: tuple = (), kwargs: dict | None = None) -> None:
    """Refuse a function of NumPy by name, while a graph is captured."""
    kwargs = kwargs or {}
    if name in _BY_VALUES or (name == "where" and len(args) + len(kwargs) == 1):
        tracing.shape_from_values(name)
    if name in _TRUTHS:
        tracing.host_read(f"{name}()")
    if name in _BY_LIBRARY:
        tracing.waits(f"{name}() of raw arrays", "use gpunn's own functions of Tensors")
    if name in _JOINS and args and len(args[0]) > 8:
        tracing.host_write(f"{name} of {len(args[0])} arrays")
    values = (*args[1:], *kwargs.values())
    if name in _LISTED and any(type(value) in (list, tuple) for value in values):
        tracing.host_write(f"a list given to {name}")
    if name == "repeat" and any(isinstance(value, np.ndarray) for value in args[1:]):
        tracing.shape_from_values(name)


def _refuse_product(inputs: tuple) -> None:
    if any(value.dtype.kind not in "iub" for value in inputs if isinstance(value, np.ndarray)):
        tracing.waits("@ of raw arrays", "use gpunn's own functions of Tensors")


def _refuse_host_index(key: Any) -> None:
    if step.state.graph is not None:
        parts = key if isinstance(key, tuple) else (key,)
        if any(type(part) in (np.ndarray, list) for part in parts):
            tracing.host_write("an index of the host")


def _is_basic(key: Any) -> bool:
    """Whether an index gives a view."""
    parts = key if isinstance(key, tuple) else (key,)
    return not any(isinstance(part, (np.ndarray, list)) for part in parts)


def _is_mask(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return any(
        isinstance(part, (np.ndarray, list)) and np.asarray(part).dtype == np.bool_
        for part in map(plain, parts)
    )


def _computed(function, name: str, args: tuple, kwargs: dict) -> Any:
    """NumPy's function (or method) of arrays on the emulator, with results there."""
    out = kwargs.get("out")
    if step.state.special:
        if step.state.graph is not None:
            _refuse_as_cupy(name, args, kwargs)
        step.refuse_uploads(name, [args, kwargs])
        result = step.run(function, plain(args), plain(kwargs), writes=out is not None)
    else:
        result = function(*plain(args), **plain(kwargs))
    return placed(result) if out is None else out


def _method(name: str):
    """A method that would lose the class, or make a number of a single element."""
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        return _computed(function, name, (self, *args), kwargs)

    return _named(method, function)


def _noted_method(name: str):
    """A method that NumPy does well, but of which a compiled step must know if it copies."""
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        if not step.state.special:
            result = function(self, *args, **kwargs)
            return self._own(result) if type(result) is EmulatorArray else result
        if name in ("reshape", "ravel"):
            view = function(self, *args, **kwargs)
            if np.may_share_memory(plain(view), plain(self)):
                return view
        writes = name in _IN_PLACE
        if step.state.graph is not None:
            _refuse_as_cupy(name, (self, *args), kwargs)
        step.refuse_uploads(name, [args, kwargs])
        result = step.run(function, plain((self, *args)), plain(kwargs), writes)
        return placed(result)

    return _named(method, function)


def _reading_method(name: str):
    """A method that makes something of the host's of the values."""
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        step.host_read(f"{name.strip('_')}()")
        return function(self, *args, **kwargs)

    return _named(method, function)


def _named(method, function):
    method.__name__, method.__qualname__ = function.__name__, f"EmulatorArray.{function.__name__}"
    method.__doc__ = function.__doc__
    return method


_IN_PLACE = frozenset("fill partition put sort".split())
for _name in (
    "all any argmax argmin choose clip compress dot max mean min nonzero prod repeat round "
    "searchsorted std sum take trace var"
).split():
    setattr(EmulatorArray, _name, _method(_name))
for _name in (
    "argpartition argsort astype copy cumprod cumsum fill flatten partition put ravel reshape sort"
).split():
    setattr(EmulatorArray, _name, _noted_method(_name))
for _name in ("__complex__ __format__ __repr__ __str__ dump tobytes tofile").split():
    setattr(EmulatorArray, _name, _reading_method(_name))


class EmulatorModule:
    """NumPy's functions with results on the emulator, as the module cupy gives results on a GPU."""

    ndarray = EmulatorArray

    def __getattr__(self, name: str):
        value = getattr(np, name)
        if isinstance(value, (type, np.ufunc)) or not callable(value):
            return value  # dtypes, constants, submodules; ufuncs ask their arguments

        def function(*args, **kwargs):
            return _computed(value, name, args, kwargs)

        function.__name__, function.__doc__ = name, value.__doc__
        setattr(self, name, function)
        return function

    @staticmethod
    def array(value: Any, dtype=None, copy: bool = True, order: str = "K") -> EmulatorArray:
        """A copy of any array, number or nested list on the emulator."""
        if not copy:
            return emulator_numpy.asarray(value, dtype, order)
        return emulator_numpy._copied(value, dtype, order)

    @staticmethod
    def asarray(value: Any, dtype=None, order: str = "K") -> EmulatorArray:
        """`value` on the emulator: itself if it is there in that dtype and order, else a copy."""
        if type(value) is not EmulatorArray:
            return emulator_numpy.array(value, dtype, order=order)
        found = np.asarray(plain(value), dtype, order)
        if np.shares_memory(found, plain(value)):
            return value
        return emulator_numpy.array(value, dtype, order=order)

    @staticmethod
    def _copied(value: Any, dtype: Any, order: str) -> EmulatorArray:
        """A copy in the memory of a compiled step; of the host's arrays only outside a capture.

        A single number CuPy fills in by a kernel, so that it may be captured.
        """
        if step.state.graph is not None and type(value) is not EmulatorArray and np.ndim(value):
            tracing.host_write("asarray()")
        how = {"copy": True, "order": order}
        return placed(step.run(np.array, (plain(value), dtype), how))

    @staticmethod
    def ascontiguousarray(value: Any, dtype=None) -> EmulatorArray:
        """`value` on the emulator in C order: itself if it is so already, else a copy."""
        return emulator_numpy.asarray(value, dtype, "C")

    @staticmethod
    def empty(shape, dtype=np.float64) -> EmulatorArray:
        """See `emulator_empty`."""
        return emulator_empty(shape, dtype)


emulator_numpy = EmulatorModule()


def emulator_empty(shape, dtype) -> EmulatorArray:
    """An uninitialised C-contiguous array on the emulator, filled with bytes 0xFF.

    They are NaN in every floating type, so that what is read before it was written shows.
    """
    if not step.state.special:
        return taken(shape, dtype).view(EmulatorArray)
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
    array = step.new(shape, dtype)
    step.run(np.ndarray.fill, (array.reshape(-1).view(np.uint8), 0xFF), writes=True)
    return array.view(EmulatorArray)
