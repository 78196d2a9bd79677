"""Every public function and method says what it takes and gives; the stub of Tensor is current."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpunn
from gpunn.autograd import stub

MODULES = (
    "gpunn", "gpunn.autograd", "gpunn.nn", "gpunn.nn.functional", "gpunn.nn.init", "gpunn.nn.utils",
    "gpunn.optim", "gpunn.optim.lr_scheduler", "gpunn.data", "gpunn.io", "gpunn.train",
    "gpunn.models", "gpunn.compiled", "gpunn.amp", "gpunn.cuda", "gpunn.cli.main",
)  # fmt: skip


def functions(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that a module offers and the methods of its classes, by name."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) and value.__module__.startswith("gpunn"):
            yield from methods(value)
        elif inspect.isfunction(value):
            yield name, value


def methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What a class and those it inherits from define themselves."""
    made = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")
    for base in kind.__mro__:
        if not base.__module__.startswith("gpunn") or base.__module__.startswith("gpunn.device"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") and not name.startswith("__"):
                continue
            if dataclasses.is_dataclass(base) and name in made:
                continue
            if isinstance(value, property):
                value = value.fget
            value = getattr(value, "__func__", value)
            if inspect.isfunction(value) and value.__module__.startswith("gpunn"):
                yield f"{base.__name__}.{name}", value


def missing(name: str, function: Callable[..., Any]) -> list[str]:
    """The parameters, and "return", that have no annotation."""
    signature = inspect.signature(inspect.unwrap(function))
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    found = [one.name for one in parameters if one.annotation is one.empty]
    if signature.return_annotation is signature.empty and not name.endswith("__init__"):
        found.append("return")
    return found


def test_public_functions_are_annotated() -> None:
    wanting = {
        f"{function.__module__}.{label}": gaps
        for name in MODULES
        for label, function in functions(importlib.import_module(name))
        if (gaps := missing(label, function)) and "<lambda>" not in function.__qualname__
    }
    assert not wanting


def test_the_stub_of_tensor_is_what_is_attached() -> None:
    text = stub.FILE.read_text(encoding="utf-8")
    assert text == stub.stub(), "run: python -m gpunn.autograd.stub"
    assert "def __add__(self, other: Operand) -> Tensor: ..." in text


def test_the_package_says_that_it_is_typed() -> None:
    folder = Path(gpunn.__file__).parent
    assert (folder / "py.typed").is_file() and stub.FILE.parent == folder / "autograd"
