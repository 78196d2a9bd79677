"""Your own kernel as a primitive: specification, kernels, reference and samples in one file.

Declared like this, it is a row of the kernel table like ours: it runs on the CPU, on a GPU and in
the emulator, `check` holds all of that to its reference, and ``gpunn kernels``, ``bench`` and
``doctor`` know it where ``GPUNN_EXTENSIONS`` names the file::

    from gpunn import extend

    @extend.primitive(cuda='''
    #include "common.cuh"
    template <typename T> __global__ void double_it(const T* x, T* y, int64 n) {
        const int64 i = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x;
        if (i < n) y[i] = narrow<T>(2 * widen(x[i]));
    }
    ''')
    def double_it(call, x, *, out=None):
        "Twice x."
        x = call.array("x", x, dtypes=extend.FLOATING)
        out = call.output("out", out, shape=x.shape, dtype=x.dtype)
        call.run(x, out)
        return out

    @double_it.reference
    def _(x, out):
        out[...] = 2 * x

    @double_it.cuda
    def _(launch, x, out):
        blocks = -(-x.size // 256)
        launch(f"double_it<{launch.ctype(x.dtype)}>", (blocks,), (256,), (x, out, np.int64(x.size)))

    @double_it.samples
    def _(rng):
        yield extend.Sample("7x13", (rng.normal(size=(7, 13)),), dtypes=extend.FLOATING)

docs/own_kernels.md tells it from the beginning; examples/own_kernel.py has a derivative, a layer
and a Numba kernel, too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpunn.device import compiler, probe, sources
from gpunn.errors import GpunnError
from gpunn.primitives import parity
from gpunn.primitives.registry import TABLE, Cost, Primitive, reachable_kernels
from gpunn.primitives.samples import (
    BFLOAT16,
    ELEMENTWISE_SHAPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    Accumulator,
    Fixed,
    Sample,
)

__all__ = [
    "BFLOAT16",
    "ELEMENTWISE_SHAPES",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FLOATING",
    "Accumulator",
    "Cost",
    "ExtensionError",
    "Fixed",
    "ParityError",
    "Primitive",
    "Sample",
    "check",
    "kernels_of",
    "load",
    "page",
    "primitive",
]

VARIABLE = "GPUNN_EXTENSIONS"


class ExtensionError(GpunnError, ValueError):
    """A file that ``GPUNN_EXTENSIONS`` names could not be loaded."""


class ParityError(GpunnError, AssertionError):
    """An implementation does not do what the reference does."""


def primitive(
    *,
    cuda: str | os.PathLike[str],
    numba: str | os.PathLike[str] | None = None,
    family: str | None = None,
) -> Callable[[Callable[..., Any]], Primitive]:
    """Declare the decorated specification ``name(call, …)`` as a primitive.

    Parameters
    ----------
    cuda : CUDA C++, as text or as the path of a ``.cu`` file. It may include ``common.cuh`` and
        our other headers, and files beside it or beside the Python file. Messages of the compilers
        and of the emulator name the file and line where the text stands (if it stands there as it
        is, not put together from parts). A path is looked for beside the Python file first.
    numba : a Python module with Numba kernels, as text or as the path of a ``.py`` file, imported
        when they are first needed. They stand in a module of their own because Numba's simulator
        wants ``cuda`` to be a global name there
    family : several primitives of one family share a heading; the function's name if left out

    Raises
    ------
    ValueError if a primitive of another file has the name; what the same file, an interpreter or a
    notebook declared before is replaced. FileNotFoundError if there is no such file
    """

    def declare(specification: Callable[..., Any]) -> Primitive:
        name, home = specification.__name__, _home(specification)
        other = TABLE.get(name)
        if other is not None and _home_of(other) != home and not _is_typed(_home_of(other)):
            raise ValueError(
                f"extend.primitive: there is a primitive {name} already, of {_home_of(other)}; "
                "choose another name"
            )
        kernels = _file(name, cuda, home, ".cu")
        module = None if numba is None else _file(name, numba, home, ".py")
        source = sources.bring(name, kernels, module, home.parent)
        made = Primitive(specification, family or name, source, source)
        made.cost(_all_arrays)
        made.inputs(functools.partial(_no_inputs, name))
        TABLE[name] = made
        return made

    return declare


def _home_of(made: Primitive) -> Path:
    return _home(made._specification)


def _home(specification: Callable[..., Any]) -> Path:
    """The file of a specification; something like ``<stdin>`` if it was typed."""
    home = Path(inspect.getfile(specification))
    return home.resolve() if home.is_file() else home


def _is_typed(home: Path) -> bool:
    """Whether it is no module, but a line or a cell, which is typed again when it is changed."""
    return not home.is_file() or home.parent.name.startswith("ipykernel_")


def _file(name: str, given: str | os.PathLike[str], home: Path, suffix: str) -> Path:
    """The file of a source that was given as a path or as text."""
    if isinstance(given, str) and ("\n" in given or "__global__" in given):
        return _written(name, given, home, suffix)
    for file in (home.parent / given, Path(given)):
        if file.is_file():
            return file.resolve()
    raise FileNotFoundError(f"extend.primitive: {name}: there is no file {given}")


def _written(name: str, text: str, home: Path, suffix: str) -> Path:
    """Text as a file; CUDA with the place where it stands, for the compilers' messages."""
    if suffix == ".cu":
        place, line = f"{home}, {name}", 1  # made up of parts, or typed into an interpreter
        with contextlib.suppress(OSError, UnicodeDecodeError):
            before, found, _ = home.read_text(encoding="utf-8").partition(text)
            if found:
                place, line = str(home), before.count("\n") + 1
        place = place.replace("\\", "/").replace('"', "")
        text = f'#line {line} "{place}"\n{_with_headers(text, home.parent)}'
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = compiler.cache_folder() / "extensions" / f"{name}-{digest}{suffix}"
    if not path.is_file():
        from gpunn.io.atomic import write_text

        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return path


def _with_headers(text: str, folder: Path) -> str:
    """CUDA text that includes headers of `folder` by their whole paths: it is compiled elsewhere"""

    def whole(found: re.Match[str]) -> str:
        header = folder / found[2]
        return f'{found[1]}"{header.as_posix()}"' if header.is_file() else found[0]

    return re.sub(r'^(\s*#\s*include\s+)"([^"]+)"', whole, text, flags=re.MULTILINE)


def _all_arrays(*args: Any) -> Cost:
    """The cost until one is registered: every array once, the last one written."""
    arrays = [value.nbytes for value in args if hasattr(value, "nbytes")] or [0]
    return Cost(flops=0, read=sum(arrays[:-1]), written=arrays[-1])


def _no_inputs(name: str, *arguments: Any) -> Any:
    raise GpunnError(
        f"{name} has no benchmark inputs: declare @{name}.inputs, a function of (rng, shape) that "
        "gives (args, kwargs)"
    )


# ---- checking ------------------------------------------------------------------------------------


def check(made: Primitive, *, seeds: Iterable[int] = (0,), verbose: bool = False) -> str:
    """Hold every implementation that can run here to the reference, on every sample.

    The reference itself in each sample's dtype; the CUDA kernel in the emulator, once with its
    threads in random order and once with every access checked, if there is a C++ compiler; the
    CUDA and Numba kernels on a GPU, if there is one.

    Parameters
    ----------
    made : a primitive
    seeds : of the samples' random numbers
    verbose : print each comparison

    Returns
    -------
    One line an implementation, with the number of comparisons and what was left out, and why.

    Raises
    ------
    ParityError, naming the samples and what differs; GpunnError if the primitive is not complete;
    CompileError, and what the emulator finds, such as an access out of bounds, at once
    """
    _require_whole(made)
    seeds = tuple(seeds)  # each way goes through them
    if not seeds:
        raise ValueError(f"extend.check: {made.name}: seeds are none; give at least one")
    lines, failures = [], []
    for label, implementation, device, context, why_not in _ways(made):
        if why_not:
            lines.append(f"{label}: not run: {why_not}")
            continue
        count = 0
        for sample, dtype in _cases(made, implementation, seeds):
            with context():
                result = parity.check(made, sample, dtype, implementation, device)
            count += 1
            if verbose:
                print(f"{label}: {result}")
            if not result.passed:
                failures.append(f"{label}, {sample.name}, {result.dtype}: {result.reason}")
        lines.append(f"{label}: {count} samples agree with the reference")
    if failures:
        more = f"\n… and {len(failures) - 20} more" if len(failures) > 20 else ""
        raise ParityError(f"{made.name}:\n" + "\n".join(failures[:20]) + more)
    return "\n".join(lines)


def _require_whole(made: Primitive) -> None:
    missing = [
        f"@{made.name}.{name}"
        for name, there in (
            ("reference", made._reference), ("cuda", made._cuda), ("samples", made._samples),
        )
        if there is None
    ]  # fmt: skip
    if missing:
        raise GpunnError(f"{made.name} is not complete: declare {' and '.join(missing)}")
    if made._numba is not None and not sources.numba_path(made.numba_source).is_file():
        raise GpunnError(
            f"{made.name} launches Numba kernels and has none: give them as "
            "extend.primitive(numba=…)"
        )
    if not made.sample_list():
        raise GpunnError(f"{made.name}: its samples are none; yield some extend.Sample(…)")


def _cases(made: Primitive, implementation: str, seeds: Iterable[int]) -> Iterator[tuple[Any, Any]]:
    for seed in seeds:
        for sample in made.sample_list(seed):
            for dtype in sample.dtypes:
                if implementation != "numba" or dtype in made.numba_dtypes:
                    yield sample, dtype


def _ways(made: Primitive) -> Iterable[tuple[str, str, str, Callable[[], Any], str]]:
    """(label, implementation, device, context, why it cannot run) of each way to run it."""
    from gpunn import emulator

    usual = contextlib.nullcontext
    yield "numpy", "numpy", "cpu", usual, ""
    found = probe.find_emulator()
    why_not = "" if found.passed else f"{found.detail}. {found.remedy}"
    for label, settings in (
        ("emulator, threads in random order", {"schedule": "random"}),
        ("emulator, every access checked", {"check": True}),
    ):
        context = functools.partial(emulator.settings, **settings)
        yield label, "emulator", "cpu", context, why_not
    why_not = "" if probe.cuda_usable() else "there is no usable GPU"
    yield "cuda", "cuda", "cuda", usual, why_not
    if "numba" in made.implementations:
        numba = probe.find_numba()
        yield "numba", "numba", "cuda", usual, why_not or ("" if numba.passed else numba.detail)


def page(primitives: Iterable[Primitive]) -> str:
    """A table of some primitives in Markdown: what they compute, FLOP and bytes, as in our docs.

    Each must have benchmark inputs and ``bench_shapes``.
    """
    from gpunn.primitives.page import family_table

    return family_table(primitives)


def kernels_of(made: Primitive) -> list[str]:
    """The CUDA kernels that the samples reach, as template expressions."""
    return [name for names in reachable_kernels(primitives=[made]).values() for name in names]


# ---- loading -------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> list[Primitive]:
    """Import a Python file for the primitives that it declares; again if it has been changed.

    FileNotFoundError; ValueError if it declares none; GpunnError if one is not complete; what the
    file itself raises.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"there is no extension {file}")
    digest = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()
    name = f"gpunn_extension_{digest[:12]}"
    if name not in sys.modules:
        before = dict(TABLE)
        for made in [made for made in TABLE.values() if _home_of(made) == file]:
            del TABLE[made.name]
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            TABLE.clear()
            TABLE.update(before)
            raise
    found = [made for made in TABLE.values() if _home_of(made) == file]
    if not found:
        raise ValueError(f"{file} declares no primitive; see docs/own_kernels.md")
    for made in found:
        _require_whole(made)
    return found


_loaded: set[str] = set()


def load_from_environment() -> None:
    """Load the files that ``GPUNN_EXTENSIONS`` names, each once.

    GpunnError, which names the file and the line, for one that cannot be loaded.
    """
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name and name not in _loaded:
            _loaded.add(name)
            try:
                load(name)
            except Exception as error:
                _loaded.discard(name)
                raise ExtensionError(f"{VARIABLE}: {_told(name, error)}") from error


def _told(name: str, error: Exception) -> str:
    """What went wrong in a file, and where."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(Path(name).resolve())
    ]
    if lines:
        return f"{name}, line {lines[-1]}: {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{name}: {error}"
    return str(error) if Path(name).name in str(error) else f"{name}: {error}"
