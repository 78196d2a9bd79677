"""Arrays on the emulator: NumPy arrays that remember where they live.

`EmulatorArray` stands to the device "emulator" as CuPy's array stands to a GPU. It lies in the
memory of the host, and what is not a primitive is computed by NumPy; but its results stay on the
device, a single number included, and meeting an array of the CPU is an error, as on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class EmulatorArray(np.ndarray):
    """A NumPy array on the device "emulator". Made by `gpunn.device.to_device` and `empty`."""

    __slots__ = ()

    def get(self) -> np.ndarray:
        """A copy as a NumPy array on the CPU; the name is CuPy's."""
        return np.array(self, order="K", subok=False)

    def set(self, array: np.ndarray) -> None:
        """Take the values of a NumPy array on the CPU; the name is CuPy's."""
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
        result = getattr(ufunc, method)(*map(plain, inputs), **options)
        if out is not None:
            return out[0] if len(out) == 1 else out
        return placed(result)

    def __array_function__(self, function, types, args, kwargs):
        result = function(*plain(args), **plain(kwargs))
        out = kwargs.get("out")
        return placed(result) if out is None else out

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(found, np.ndarray):
            return found
        # NumPy makes a number of a single element; with an ellipsis it gives a view.
        return super().__getitem__((*key, ...) if isinstance(key, tuple) else (key, ...))


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
        return np.asarray(value).view(EmulatorArray)
    if type(value) is tuple or type(value) is list:
        return type(value)(map(placed, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # numpy.linalg's named results
        return type(value)(*map(placed, value))
    return value


def _method(name: str):
    """A method of arrays that would lose the class, or make a number of a single element."""
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        result = function(plain(self), *plain(args), **plain(kwargs))
        out = kwargs.get("out")
        return placed(result) if out is None else out

    method.__name__, method.__qualname__ = name, f"EmulatorArray.{name}"
    method.__doc__ = function.__doc__
    return method


for _name in (
    "all any argmax argmin choose clip compress dot max mean min nonzero prod repeat round "
    "searchsorted std sum take trace var"
).split():
    setattr(EmulatorArray, _name, _method(_name))


class EmulatorModule:
    """NumPy's functions with results on the emulator, as the module cupy gives results on a GPU."""

    ndarray = EmulatorArray

    def __getattr__(self, name: str):
        value = getattr(np, name)
        if isinstance(value, (type, np.ufunc)) or not callable(value):
            return value  # dtypes, constants, submodules; ufuncs ask their arguments

        def function(*args, **kwargs):
            return placed(value(*plain(args), **plain(kwargs)))

        function.__name__, function.__doc__ = name, value.__doc__
        setattr(self, name, function)
        return function

    @staticmethod
    def array(value: Any, dtype=None, copy: bool = True, order: str = "K") -> EmulatorArray:
        """A copy of any array, number or nested list on the emulator."""
        if not copy:
            return emulator_numpy.asarray(value, dtype, order)
        return np.array(plain(value), dtype, copy=True, order=order).view(EmulatorArray)

    @staticmethod
    def asarray(value: Any, dtype=None, order: str = "K") -> EmulatorArray:
        """`value` on the emulator: itself if it is there in that dtype and order, else a copy."""
        if type(value) is not EmulatorArray:
            return emulator_numpy.array(value, dtype, order=order)
        found = np.asarray(plain(value), dtype, order)
        return value if np.shares_memory(found, value) else found.view(EmulatorArray)

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
    array = EmulatorArray(shape, dtype)
    plain(array).reshape(-1).view(np.uint8)[...] = 0xFF
    return array
