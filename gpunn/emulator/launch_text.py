"""Reads a launch written as in CUDA C++: ``saxpy<<<4, 256>>>(float[1000], [1000], 2.5f, 1000)``.

Arguments
---------
float[1000], float[8, 64]     an array; its type may be left out where the source says it
random float[1000]            filled: zeros, ones, nan, arange, random, random(low, high)
@weights.npy                  an array from a file
1000, 2.5f, true, half(2.5)   a number, of the type that the kernel declares or the one given
null                          a null pointer
x = float[1000] … x           a name for an array, and the same array once more
TensorMap(x, box=(64, 64))    a tensor map of an array, with the options of `emulator.TensorMap`

Without a filling, floating-point arrays hold random numbers (normal) and others zeros; random
integers are 0 or 1 unless limits are given.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.emulator import source as reading
from gpunn.emulator.tensor_map import TensorMap

FILLINGS = ("zeros", "ones", "random", "arange", "nan")
_C_TYPES = {
    "char": "int8", "signed char": "int8", "unsigned char": "uint8", "uchar": "uint8",
    "short": "int16", "unsigned short": "uint16", "ushort": "uint16",
    "int": "int32", "unsigned": "uint32", "unsigned int": "uint32", "uint": "uint32",
    "long": "int64", "long long": "int64", "unsigned long": "uint64",
    "unsigned long long": "uint64", "size_t": "uint64",
    "float": "float32", "double": "float64", "half": "float16", "__half": "float16",
    "__nv_bfloat16": "bfloat16", "bf16": "bfloat16",
    "__nv_fp8_e4m3": "float8_e4m3fn", "__nv_fp8_e5m2": "float8_e5m2",
}  # fmt: skip
_NUMPY_TYPES = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
    "complex64 complex128 bfloat16 float8_e4m3fn float8_e5m2"
).split()

_LAUNCH = re.compile(r"\s*([^<].*?)\s*<<<(.*?)>>>\s*\((.*)\)\s*;?\s*", re.DOTALL)
_ARRAY = re.compile(
    r"(?:(zeros|ones|random|arange|nan)\b\s*(?:\(([^)]*)\))?\s*)?"
    r"([A-Za-z_][\w:]*(?:\s+\w+)*)?\s*((?:\[[^\]]*\]\s*)+)"
)
_NUMBER = re.compile(
    r"([-+]?)\s*(0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf|nan)([fFuUlL]*)"
)


@dataclass(frozen=True)
class Launch:
    """One launch as it was read; `arguments` are made anew for each run by `make`."""

    text: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Argument:
    """One argument: its text, and the name that it gives or uses."""

    text: str
    name: str | None = None

    def make(self, wanted: Wanted, named: dict[str, Any], random: np.random.Generator) -> Any:
        """The value to launch with."""
        value = self._value(wanted, named, random)
        if self.name is not None:
            named[self.name] = value
        return value

    def _value(self, wanted: Wanted, named: dict[str, Any], random: np.random.Generator) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Wanted:
    """What the kernel declares: the parameter in words of the source, and its dtype if known."""

    words: str
    pointer: bool
    dtype: np.dtype | None


class Null(Argument):
    """A null pointer."""

    def _value(self, wanted, named, random):
        return None


class Known(Argument):
    """An array that an earlier argument has named."""

    def _value(self, wanted, named, random):
        if self.text not in named:
            known = f"; named so far: {', '.join(named)}" if named else ""
            raise ValueError(
                f"argument {self.text!r} is no number and no array that was named before{known}. "
                "An array is written float[1000]; see gpunn check --help"
            )
        return named[self.text]


@dataclass(frozen=True)
class FromFile(Argument):
    """An array from a .npy file."""

    path: str = ""

    def _value(self, wanted, named, random):
        try:
            return np.load(self.path, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


@dataclass(frozen=True)
class Number(Argument):
    """A value; `dtype` is what the text says of its type, or None."""

    number: str = ""
    dtype: np.dtype | None = None

    def _value(self, wanted, named, random):
        dtype = self.dtype or wanted.dtype
        if wanted.pointer:
            raise ValueError(
                f"argument {self.text!r} is a number, but {wanted.words!r} is a pointer: write an "
                "array, such as float[1000], or null"
            )
        if dtype is None:
            raise ValueError(
                f"argument {self.text!r}: the type of {wanted.words!r} is not known here; write "
                f"it, as in half({self.number}) or int32({self.number})"
            )
        value = _number(self.number)
        if dtype.kind in "iub" and value != int(value):
            raise ValueError(f"argument {self.text!r} is no integer, as {wanted.words!r} must be")
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            raise ValueError(f"argument {self.text!r} is too large for {wanted.words!r} ({dtype})")
        return np.array(int(value) if dtype.kind in "iub" else value).astype(dtype)[()]


@dataclass(frozen=True)
class Array(Argument):
    """An array: shape, dtype (None: as declared), how it is filled."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    filling: str | None = None
    limits: tuple[float, float] | None = None

    def _value(self, wanted, named, random):
        dtype = self.dtype or wanted.dtype
        if dtype is None:
            raise ValueError(
                f"argument {self.text!r}: what {wanted.words!r} points to is not known here; write "
                f"the type, as in float{self.text[self.text.index('[') :]}"
            )
        floating = dtype.kind in "fVc" or dtype.name.startswith(("bfloat", "float"))
        filling = self.filling or ("random" if floating else "zeros")
        if filling == "random":
            return self._random(dtype, floating, random)
        if filling == "arange":
            return np.arange(np.prod(self.shape, dtype=int)).astype(dtype).reshape(self.shape)
        if filling == "nan" and not floating:
            raise ValueError(f"argument {self.text!r}: {dtype} has no NaN")
        value = {"zeros": 0, "ones": 1, "nan": np.nan}[filling]
        return np.full(self.shape, value, dtype)

    def _random(self, dtype, floating, random):
        if not floating:
            low, high = map(int, self.limits or (0, 2))
            return random.integers(low, high, self.shape).astype(dtype)
        if self.limits is None:
            return random.standard_normal(self.shape).astype(dtype)
        return random.uniform(*self.limits, self.shape).astype(dtype)


@dataclass(frozen=True)
class Map(Argument):
    """A tensor map of an array."""

    of: Argument | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def _value(self, wanted, named, random):
        array = self.of.make(Wanted(wanted.words, True, None), named, random)
        return TensorMap(array, **dict(self.options))


# ---- reading -------------------------------------------------------------------------------------


def read(text: str) -> Launch:
    """The launch that a text describes; ValueError if it cannot be read."""
    found = _LAUNCH.fullmatch(text)
    if found is None:
        raise ValueError(
            f"launch {text!r} is not of the form 'kernel<<<grid, block, shared>>>(arguments)', for "
            "instance 'saxpy<<<4, 256>>>(float[1000], float[1000], 2.5f, 1000)'"
        )
    kernel, configuration, inside = found.groups()
    hidden = configuration.replace("<<", "\1").replace(">>", "\2")  # shifts are no brackets
    parts = [p.replace("\1", "<<").replace("\2", ">>") for p in reading.split(hidden)]
    if not 2 <= len(parts) <= 4 or (len(parts) == 4 and parts[3] != "0"):
        raise ValueError(
            f"<<<{configuration}>>>: expected <<<grid, block>>> or <<<grid, block, bytes>>>"
        )
    grid, block, shared = (*parts[:3], "0")[:3]
    amount = _dimensions(shared)
    if len(amount) != 1:
        raise ValueError(f"<<<{configuration}>>>: {shared} is not a number of bytes")
    arguments = tuple(_argument(part) for part in reading.split(inside))
    return Launch(text.strip(), kernel, _dimensions(grid), _dimensions(block), amount[0], arguments)


def dtype_of(name: str) -> np.dtype | None:
    """The dtype of a type's name in C++ or NumPy, or None."""
    words = " ".join(word for word in name.split() if word not in ("const", "volatile"))
    words = _C_TYPES.get(words, words.removesuffix("_t"))
    if words not in _NUMPY_TYPES:
        return None
    if words.startswith(("bfloat", "float8")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, words))
    return np.dtype(words)


def _argument(text: str) -> Argument:
    named = re.fullmatch(r"([A-Za-z_]\w*)\s*=\s*(.+)", text, re.DOTALL)
    if named:
        return _unnamed(named[2].strip(), named[1])
    return _unnamed(text, None)


def _unnamed(text: str, name: str | None) -> Argument:
    if text in ("null", "nullptr", "NULL", "None"):
        return Null(text, name)
    if text.startswith("@"):
        return FromFile(text, name, text[1:].strip())
    mapped = re.fullmatch(r"(?:emulator\.)?TensorMap\s*\((.*)\)", text, re.DOTALL)
    if mapped:
        return _map(text, name, reading.split(mapped[1]))
    array = _ARRAY.fullmatch(text)
    if array:
        return _array(text, name, *array.groups())
    if text in ("true", "false"):
        return Number(text, name, str(int(text == "true")))
    if _NUMBER.fullmatch(text):
        return Number(text, name, text)
    typed = re.fullmatch(r"(?:np\.)?([A-Za-z_][\w ]*?)\s*\((.*)\)", text, re.DOTALL)
    if typed:
        dtype = _known_type(typed[1], text)
        if not _NUMBER.fullmatch(typed[2].strip()):
            raise ValueError(f"argument {text!r}: {typed[2]!r} is no number")
        return Number(text, name, typed[2].strip(), dtype)
    if re.fullmatch(r"[A-Za-z_]\w*", text):
        return Known(text, name)
    with_operators = _maybe_integer(text)
    if with_operators is not None:
        return Number(text, name, str(with_operators))
    raise ValueError(
        f"argument {text!r} cannot be read; write an array as float[1000], a number as 2.5f, a "
        "file as @x.npy, a null pointer as null"
    )


def _known_type(name: str, text: str) -> np.dtype:
    dtype = dtype_of(name)
    if dtype is None:
        raise ValueError(
            f"argument {text!r}: the type {name!r} is not known; known are float, double, half, "
            f"bfloat16, int, unsigned, …, and NumPy's {', '.join(_NUMPY_TYPES)}"
        )
    return dtype


def _array(text, name, filling, limits, kind, brackets) -> Array:
    axes = re.sub(r"\]\s*\[", ",", brackets.strip())[1:-1]
    shape = tuple(_integer(axis, text) for axis in axes.split(","))
    vector = re.fullmatch(r"([a-z]+)([234])", kind or "")
    if vector and dtype_of(kind) is None and dtype_of(vector[1]) is not None:  # float4 and its like
        kind, shape = vector[1], (*shape, int(vector[2]))
    dtype = _known_type(kind, text) if kind else None
    numbers = None
    if limits is not None:
        parts = [part.strip() for part in limits.split(",")]
        ends = [_number(part) for part in parts if _NUMBER.fullmatch(part)]
        if filling != "random" or len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError(f"argument {text!r}: expected random(low, high) before the type")
        numbers = (ends[0], ends[1])
    return Array(text, name, shape, dtype, filling, numbers)


def _map(text, name, parts: list[str]) -> Map:
    options = []
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        try:
            options.append((key.strip(), ast.literal_eval(value.strip())))
        except (SyntaxError, ValueError):
            equals = ""
        if not equals:
            raise ValueError(
                f"argument {text!r}: {part!r} is not of the form option=value, such as box=(64, 64)"
            )
    if not parts:
        raise ValueError(f"argument {text!r}: a TensorMap needs an array")
    return Map(text, name, _argument(parts[0]), tuple(options))


# ---- numbers -------------------------------------------------------------------------------------


def _number(text: str) -> float | int:
    sign, digits, suffix = _NUMBER.fullmatch(text).groups()
    if digits[:2] in ("0x", "0X"):
        value = int(digits, 16)
    elif digits.isdigit() and "f" not in suffix.lower():
        value = int(digits)
    else:
        value = float(digits)
    return -value if sign == "-" else value


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
    ast.Div: operator.floordiv, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
}  # fmt: skip


def _evaluated(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 1 << 40:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluated(node.left), _evaluated(node.right)
        if isinstance(node.op, (ast.LShift, ast.RShift)) and not 0 <= right < 64:
            raise ValueError
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError


def _maybe_integer(text: str) -> int | None:
    """The value of ``(1000 + 255) / 256`` and its like, divided as in C; None if it is not one."""
    try:
        return _evaluated(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _integer(text: str, where: str) -> int:
    value = _maybe_integer(text)
    if value is None or value < 0:
        raise ValueError(f"{where!r}: {text.strip()!r} is not a whole number")
    return value


def _dimensions(text: str) -> tuple[int, ...]:
    """One number, ``(4, 2)`` or ``dim3(4, 2)``."""
    inside = re.fullmatch(r"(?:dim3\s*)?\((.*)\)", text.strip(), re.DOTALL)
    if inside and (text.strip().startswith("dim3") or len(reading.split(inside[1])) > 1):
        parts = reading.split(inside[1])
    else:
        parts = [text]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{text!r}: expected one to three numbers")
    return tuple(_integer(part, text) for part in parts)
