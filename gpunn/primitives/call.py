"""`Call`: the arguments of one call of a primitive, checked, with errors that speak.

Every message names the primitive and the argument, says what came (dtype, shape, device) and what
was expected, and what to do. Checks run before anything is launched or written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.device import arrays
from gpunn.device.device import Device

CPU = arrays.CPU


class Call:
    """One call of a primitive: `primitive`, and the `device` of its first array."""

    __slots__ = ("primitive", "device", "_first")

    def __init__(self, primitive):
        self.primitive = primitive
        self.device: Device | None = None
        self._first: str | None = None

    # ---- arrays ----------------------------------------------------------------------------------

    def array(
        self,
        name: str,
        value: Any,
        *,
        dtypes=None,
        ndim: int | None = None,
        min_ndim: int = 0,
        shape: tuple | None = None,
        strided: bool = False,
    ):
        """An input array, checked and on the call's device; C-contiguous unless `strided`."""
        if type(value) is not np.ndarray and not arrays.is_native(value):
            value = self._foreign(name, value)
        device = CPU if type(value) is np.ndarray else arrays.device_of(value)
        if device is not self.device:
            self._place(name, device)
        if dtypes is not None and value.dtype not in dtypes:
            self._refuse_dtype(name, value, dtypes)
        if ndim is not None and value.ndim != ndim:
            self.refuse(name, value, f"{ndim} dimension{'s' * (ndim != 1)}")
        if value.ndim < min_ndim:
            self.refuse(name, value, f"at least {min_ndim} dimension{'s' * (min_ndim != 1)}")
        if shape is not None and value.shape != shape:
            self.refuse(name, value, f"shape {shape}")
        if not strided and not value.flags.c_contiguous:
            value = arrays.array_module(self.device).ascontiguousarray(value)
        return value

    def output(self, name: str, out: Any, *, shape: tuple, dtype):
        """The array to write: a new one, or `out` if it fits exactly."""
        if out is None:
            return self.empty(shape, dtype)
        return self.inplace(name, out, dtypes=(np.dtype(dtype),), shape=tuple(shape))

    def inplace(self, name: str, value: Any, *, dtypes=None, shape: tuple | None = None):
        """An array that the call will change: writable and C-contiguous, else an error."""
        if type(value) is not np.ndarray and not arrays.is_native(value):
            if not arrays.is_array(value):
                self.refuse(name, value, "an array to write into")
            value = self._foreign(name, value)
        device = CPU if type(value) is np.ndarray else arrays.device_of(value)
        if device is not self.device:
            self._place(name, device)
        if dtypes is not None and value.dtype not in dtypes:
            self._refuse_dtype(name, value, dtypes)
        if shape is not None and value.shape != shape:
            self.refuse(name, value, f"shape {shape}")
        flags = value.flags
        if not flags.c_contiguous:
            self.refuse(
                name,
                value,
                "a C-contiguous array, because it is written in place",
                "Give a contiguous array and copy the result into the view.",
            )
        if isinstance(value, np.ndarray) and not flags.writeable:
            self.refuse(name, value, "a writable array; this one is read-only", "Give a copy.")
        return value

    def empty(self, shape, dtype):
        """Uninitialised memory on the call's device."""
        if self.device is CPU or self.device is None:
            return np.empty(shape, dtype)
        return arrays.empty(shape, dtype, self.device)

    @property
    def xp(self):
        """numpy, cupy or the emulator's module, whichever holds the call's arrays."""
        return arrays.array_module(self.device or CPU)

    def run(self, *args) -> None:
        """Run the primitive on checked arguments; positional, as its implementations take them."""
        self.primitive.run(self, args)

    # ---- other arguments -------------------------------------------------------------------------

    def choice(self, name: str, value: Any, options) -> Any:
        """`value`, which must be one of `options`."""
        if value not in options:
            listed = ", ".join(map(repr, options))
            raise ValueError(
                f"{self.primitive.name}: {name} is {value!r}; expected one of {listed}."
            )
        return value

    def number(self, name: str, value: Any, low: float | None = None, high: float | None = None):
        """`value` as a float in [low, high]; NaN is refused."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self.primitive.name}: {name} is {value!r}; expected a number."
            ) from None
        if (
            number != number
            or (low is not None and number < low)
            or (high is not None and number > high)
        ):
            low_text = "-inf" if low is None else low
            high_text = "inf" if high is None else high
            raise ValueError(
                f"{self.primitive.name}: {name} is {value!r}; expected a number from {low_text} to "
                f"{high_text}."
            )
        return number

    # ---- relations and errors --------------------------------------------------------------------

    def require(self, condition: bool, argument: str, problem: str, remedy: str) -> None:
        """Raise a ValueError "primitive: argument problem; remedy." unless `condition` holds."""
        if not condition:
            raise ValueError(f"{self.primitive.name}: {argument} {problem}; {remedy}.")

    def same_shape(self, **named) -> None:
        """All named arrays (None is passed over) must have the first one's shape."""
        first = None
        for name, value in named.items():
            if first is None:
                first_name, first = name, value
            elif value is not None and value.shape != first.shape:
                self.refuse(name, value, f"the shape of {first_name}, {first.shape}")

    def same_dtype(self, **named) -> None:
        """All named arrays (None is passed over) must have the first one's dtype."""
        first = None
        for name, value in named.items():
            if first is None:
                first_name, first = name, value
            elif value is not None and value.dtype != first.dtype:
                self.refuse(
                    name,
                    value,
                    f"the dtype of {first_name}, {first.dtype}",
                    f"Convert it with {name}.astype({first.dtype.name!r}).",
                    error=TypeError,
                )

    def refuse(self, name, value, expected: str, remedy: str = "", error=ValueError) -> None:
        """Raise `error`: what `name` is, what was expected, what to do."""
        text = f"{self.primitive.name}: {name} {self._describe(value)}; expected {expected}."
        raise error(f"{text} {remedy}".rstrip())

    def _describe(self, value) -> str:
        scalar = isinstance(value, np.generic)  # has a dtype and a shape, but is no array
        if scalar or not hasattr(value, "dtype") or not hasattr(value, "shape"):
            return f"is {value!r:.60}" if value is not None else "is None"
        return (
            f"has shape {tuple(value.shape)} and dtype {value.dtype} on {arrays.device_of(value)}"
        )

    def _refuse_dtype(self, name: str, value, dtypes) -> None:
        names = [np.dtype(d).name for d in dtypes]
        listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        best = "float32" if "float32" in names else names[-1]
        self.refuse(
            name, value, f"dtype {listed}", f"Convert it with {name}.astype({best!r}).", TypeError
        )

    def _foreign(self, name: str, value: Any):
        if value is None:
            raise TypeError(f"{self.primitive.name}: {name} is None; expected an array.")
        try:
            value = arrays.as_array(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self.primitive.name}: {name} is {type(value).__name__}, which is no array that "
                f"can be used ({error}); give a NumPy, CuPy or PyTorch array."
            ) from error
        if value.dtype.kind == "O":
            raise TypeError(
                f"{self.primitive.name}: {name} holds Python objects (rows of unequal length?); "
                "expected numbers in a rectangular array."
            )
        return value

    def _place(self, name: str, device: Device) -> None:
        """The first array's device is the call's; any other is an error."""
        if self.device is None:
            self.device, self._first = device, name
        elif device is not self.device:
            raise ValueError(
                f"{self.primitive.name}: {name} is on {device} but {self._first} is on "
                f"{self.device}; move both to one device, for example with .to({str(device)!r})."
            )
