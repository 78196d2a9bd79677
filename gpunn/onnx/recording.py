"""One run of a model under record: which value was computed from which, and how.

While a model runs, its inputs and parameters are `Traced` arrays: NumPy arrays that know the
`Value` they hold. Two layers of code compute with them. A `Function` of autograd is one `Call`,
whatever happens inside; where functions without a gradient (comparisons, argmax, masks) compute
with arrays directly, NumPy asks the array itself, and each of NumPy's operations is a `Call`.

What would put a number of the example into the model unseen (a value that Python reads, a kernel
called with raw arrays, a write to shared memory) is refused here. What still slips through is found
when several runs are compared, see `aligning`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from gpunn.autograd.tensor import Tensor
from gpunn.errors import GpunnError
from gpunn.onnx.traced import Traced, plain, running


class ExportError(GpunnError, ValueError):
    """A model cannot be written as ONNX; the text says which layer and function, and why."""


class Value:
    """What a traced array holds: an input, a parameter, a constant, or the result of a call.

    Attributes
    ----------
    origin : "input", "parameter", "constant" or "call"
    name : of an input or parameter
    call, index : which result of which call
    array : the numbers, where they depend on no input; else None
    arrays : those of several runs, where they differ
    """

    __slots__ = ("array", "arrays", "call", "dtype", "index", "name", "origin", "shape")

    def __init__(self, origin, shape, dtype, *, name="", call=None, index=0, array=None):
        self.origin, self.shape, self.dtype = origin, tuple(shape), np.dtype(dtype)
        self.name, self.call, self.index, self.array = name, call, index, array
        self.arrays: tuple[np.ndarray, ...] | None = None


class Call:
    """One operation: `kind` is the class of a Function, or "numpy.NAME"; `path` is the layer."""

    __slots__ = ("arguments", "kind", "outputs", "path", "number")

    def __init__(self, kind: str, arguments: tuple, path: str, number: int):
        self.kind, self.arguments, self.path, self.number = kind, arguments, path, number
        self.outputs: list[Value] = []

    def __str__(self) -> str:
        return f"{self.kind} in {self.path or 'the model'}"


_LOSSES = frozenset({"loss", "ctc", "linear_cross_entropy"})  # files of functions


class Filled:
    """Stands among arguments for the list into which a Function puts further results."""


FILLED = Filled()


def _root(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Recorder:
    """Takes down one run.

    `names` are the layers' names by the identity of the modules.
    """

    def __init__(self, names: dict[int, str]):
        self.calls: list[Call] = []
        self.names = names
        self.layers: list[str] = []
        self.inputs: list[Value] = []
        self.inside = False  # within an operation that is noted as a whole
        self._roots: dict[int, np.ndarray] = {}  # kept, so that no identity is used twice
        self._writes: dict[int, tuple[int, Any]] = {}  # by root: their number, the last one
        self._constants: dict[int, list[Value]] = {}
        self._tensors: list[weakref.ref] = []

    @property
    def path(self) -> str:
        """The layer that runs now."""
        return self.layers[-1] if self.layers else ""

    def refuse(self, function: str, why: str, remedy: str = "") -> NoReturn:
        """Raise the error that names the layer."""
        raise ExportError(
            f"export: {self.path or 'the model'} uses {function}, which cannot be exported: {why}"
            + (f". {remedy}" if remedy else "")
        )

    def read(self, array: Traced, what: str) -> None:
        """To be called where Python reads values: an error unless they are constants."""
        if self.value_of(array).array is None:
            self.refuse(
                what,
                "it reads a value that depends on the inputs, so the path through the model would "
                "be that of the example for all inputs",
                "Use where() instead of a condition, and sizes that do not depend on values.",
            )

    # ---- arrays and their values -----------------------------------------------------------------

    def traced(self, array: np.ndarray, value: Value) -> Traced:
        """`array` as one that knows its value."""
        array = np.asarray(array)
        root = _root(array)
        self._roots[id(root)] = root
        made = array.view(Traced)
        made.value, made.stamp = value, self._writes.get(id(root), (0, None))[0]
        if value.array is not None and value.origin != "parameter":
            self._constants.setdefault(id(root), []).append(value)
        return made

    def constant(self, array) -> Traced:
        """A traced array of numbers that depend on nothing."""
        array = np.asarray(plain(array))
        return self.traced(array, Value("constant", array.shape, array.dtype, array=array))

    def value_of(self, array: Any) -> Value:
        """The value of an array; an error for one whose way is not known."""
        if type(array) is not Traced:
            array = np.asarray(array)
            return Value("constant", array.shape, array.dtype, array=array)
        if array.value is None:
            self.refuse(
                "a method of NumPy's arrays", "its result is not followed", "Use Tensors' methods."
            )
        if array.stamp != self._writes.get(id(_root(array)), (0, None))[0]:
            self.refuse(
                "a view of memory that was written in place since it was made",
                "the order of reads and writes cannot be written down",
                "Index the written tensor again, or use operations that make new tensors.",
            )
        return array.value

    def is_constant(self, arguments: Any) -> bool:
        """Whether nothing among arguments depends on the inputs."""
        return all(v.array is not None for v in values_in(self.described(arguments)))

    def described(self, value: Any) -> Any:
        """Arguments as they are taken down: arrays as their values, all else as it is."""
        if isinstance(value, Tensor):
            return self.value_of(value._array)
        if isinstance(value, (np.ndarray, np.generic)):
            return self.value_of(value)
        kind = type(value)
        if kind is dict:
            return {name: self.described(part) for name, part in value.items()}
        if kind is list:
            return [self.described(part) for part in value] if value else FILLED
        if kind is slice:
            return (slice, *map(self.described, (value.start, value.stop, value.step)))
        if isinstance(value, tuple):
            parts = map(self.described, value)
            return kind(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    # ---- taking down -----------------------------------------------------------------------------

    def note(self, kind: str, arguments: tuple, compute: Callable) -> Any:
        """Run `compute` and take it down; gives its result with traced arrays.

        An argument that is an empty list is filled by some functions: what is in it afterwards are
        further results.
        """
        call = Call(kind, self.described(arguments), self.path, len(self.calls))
        lists = [part for part in arguments if type(part) is list and not part]
        self.inside = True
        try:
            result = compute()
        finally:
            self.inside = False
        self.calls.append(call)
        constant = all(value.array is not None for value in values_in(call.arguments))
        made = self._results(call, result, constant)
        for found in lists:
            found[:] = [self._results(call, part, constant) for part in found]
        return made

    def _results(self, call: Call, result: Any, constant: bool) -> Any:
        if isinstance(result, Tensor):
            result._array = self._results(call, result._array, constant)
            self._tensors.append(weakref.ref(result))
            return result
        if isinstance(result, (np.ndarray, np.generic)):
            array = np.asarray(result)
            value = Value(
                "call", array.shape, array.dtype, call=call, index=len(call.outputs),
                array=array if constant else None,
            )  # fmt: skip
            call.outputs.append(value)
            return self.traced(array, value)
        if isinstance(result, (tuple, list)):
            return type(result)(self._results(call, part, constant) for part in result)
        return result

    def apply(self, original: Callable, function: type, inputs: tuple) -> Tensor:
        """`Function.apply` under record."""
        if not function.__module__.startswith("gpunn."):
            self.refuse(
                f"the function {function.__name__} of {function.__module__}",
                "only gpunn's own functions are known", "Write it with gpunn's functions.",
            )  # fmt: skip
        if function.__module__.rpartition(".")[2] in _LOSSES:
            self.refuse(
                f"the loss {function.__name__}", "losses belong to training",
                "Return what the loss is computed from.",
            )  # fmt: skip
        return self.note(
            function.__name__, inputs, lambda: original(function, *(map(plain, inputs)))
        )

    def write(self, array: Traced, key: Any, value: Any) -> None:
        """``array[key] = value``: afterwards the array holds another value."""
        if type(array) is not Traced:
            self.refuse(
                "a write into an array that gpunn did not make", "it is not followed",
                "Make it with gpunn.zeros inside of the model.",
            )  # fmt: skip
        root = _root(array)
        number, last = self._writes.get(id(root), (0, None))
        if array.stamp == number - 1 and value_array(value) is last:
            array.stamp = number  # `y[0] += z` has written a view of y and hands it back
        before = self.value_of(array)
        for kept in self._constants.pop(id(root), ()):
            kept.array = kept.array.copy()
        array.view(np.ndarray)[plain(key)] = plain(value)
        arguments = (before, self.described(value_array(value)), self.described(key))
        call = Call("setitem", arguments, self.path, len(self.calls))
        self.calls.append(call)
        constant = all(part.array is not None for part in values_in(arguments))
        made = Value("call", array.shape, array.dtype, call=call,
                     array=np.array(array, subok=False) if constant else None)  # fmt: skip
        call.outputs.append(made)
        self._writes[id(root)] = (number + 1, array)
        array.value, array.stamp = made, number + 1

    # ---- tensors that are made on the way --------------------------------------------------------

    def adopt(self, tensor: Tensor, array: Any) -> Any:
        """The array of a new Tensor: traced from now on, until `release`."""
        if self.inside or not isinstance(array, np.ndarray):
            return array
        if type(array) is not Traced:
            array = self.constant(array)
        self._tensors.append(weakref.ref(tensor))
        return array

    def release(self) -> None:
        """Give the Tensors that live on (in a cache of a layer, say) ordinary arrays again."""
        for reference in self._tensors:
            tensor = reference()
            if tensor is not None:
                tensor._array = plain(tensor._array)


def value_array(value: Any) -> Any:
    """The array of a Tensor; anything else as it is."""
    return value._array if isinstance(value, Tensor) else value


def values_in(arguments: Any) -> Iterator[Value]:
    """All values among described arguments."""
    if isinstance(arguments, Value):
        yield arguments
    elif isinstance(arguments, dict):
        for part in arguments.values():
            yield from values_in(part)
    elif isinstance(arguments, (tuple, list)):
        for part in arguments:
            yield from values_in(part)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Take down what this thread computes inside the block."""
    if running.recorder is not None:
        raise ExportError("export: a model that is being exported exports another one")
    running.recorder = recorder
    try:
        yield recorder
    finally:
        running.recorder = None
        recorder.release()
