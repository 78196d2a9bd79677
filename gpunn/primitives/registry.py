"""The kernel table: a primitive is declared once and implemented several times.

A primitive's function is its *specification*: it checks the arguments through its `Call`, makes
the outputs, and hands both to `Call.run`, which picks the implementation for the device:

========  =====================================================================
numpy     the reference; runs on the CPU
cuda      our CUDA C++ kernel, compiled by NVRTC and launched through CuPy
numba     our Numba kernel, where asked for with ``GPUNN_KERNELS=numba`` or `using`
emulator  our CUDA C++ kernel by the same launch code, run on the host by `gpunn.emulator`: on the
          device "emulator", and on CPU arrays where asked for
========  =====================================================================

Tests, benchmarks, the doctor and the documentation walk over `TABLE`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gpunn.device.cuda_launch import CudaLauncher, cuda_launcher
from gpunn.device.device import Device
from gpunn.device.emulator_launch import emulator_launcher
from gpunn.device.launch import RecordingLauncher, numba_launcher, numba_simulated
from gpunn.errors import UnsupportedError
from gpunn.primitives.call import CPU, Call
from gpunn.primitives.samples import FLOATING, Sample

TABLE: dict[str, Primitive] = {}

IMPLEMENTATIONS = ("numpy", "cuda", "numba")  # those that a primitive is written in
CHOICES = (*IMPLEMENTATIONS, "emulator")  # the last runs what is written for CUDA
_DEFAULT = {"cpu": "numpy", "cuda": "cuda", "emulator": "emulator"}  # by the type of device


@dataclass(frozen=True)
class Cost:
    """What one call must do at the least: `flops`, and bytes `read` and `written`, each once."""

    flops: float
    read: float
    written: float

    @property
    def bytes(self) -> float:
        """Bytes read and written."""
        return self.read + self.written


class _Choice(threading.local):
    """The choices of this thread: a forced implementation, who intercepts runs, who listens.

    `special` says whether there is any: the one question that a usual run asks.
    """

    special = False
    forced: str | None = None
    intercept: Callable | None = None
    listener: Callable | None = None

    def set(self, **choices) -> dict:
        """Make choices; returns what they were before."""
        before = {name: getattr(self, name) for name in choices}
        self.__dict__.update(choices)
        chosen = (self.forced, self.intercept, self.listener)
        self.special = any(choice is not None for choice in chosen)
        return before


_choice = _Choice()


class Primitive:
    """One row of the kernel table. Calling it checks the arguments and runs it.

    Attributes
    ----------
    name, family : as in the kernel's name and file
    cuda_source, numba_source : files below ``kernels/cuda`` and ``kernels/numba``
    cuda_sources : the first and all others that the launch code may turn to
    numba_dtypes : dtypes the Numba kernel takes
    bench_shapes : shapes that `gpunn bench` uses unless told others
    bench_in_float32 : whether benchmarks have it in float32 alone, as it takes no 16-bit dtypes
    peers : of an extension: the same by other libraries, see `peer`
    """

    bench_shapes: tuple[tuple[int, ...], ...] = ()
    bench_in_float32 = False

    def __init__(
        self, specification: Callable, family: str, cuda: str, numba: str, siblings=()
    ):
        self.name, self.family = specification.__name__, family
        self.cuda_source, self.numba_source = cuda, numba
        self.cuda_sources = (cuda, *siblings)
        self.numba_dtypes: tuple = (np.dtype(np.float32), np.dtype(np.float64))
        self._specification = specification
        self._reference = self._cuda = self._numba = None
        self.peers: dict[str, Callable] = {}
        self._launchers: dict[int, CudaLauncher] = {}  # by the number of the GPU
        self._cost = self._samples = self._inputs = None
        functools.update_wrapper(self, specification)
        signature = inspect.signature(specification)
        self.__signature__ = signature.replace(
            parameters=list(signature.parameters.values())[1:]  # without `call`
        )

    def __call__(self, *args, **kwargs):
        return self._specification(Call(self), *args, **kwargs)

    def __repr__(self) -> str:
        return f"<primitive {self.name}{self.__signature__}>"

    # ---- registration, used as decorators --------------------------------------------------------

    def reference(self, function: Callable) -> Callable:
        """Register the NumPy implementation."""
        self._reference = function
        return function

    def cuda(self, function: Callable) -> Callable:
        """Register the launch code of the CUDA C++ kernel."""
        self._cuda = function
        return function

    def numba(self, function: Callable | None = None, *, dtypes=None):
        """Register the launch code of the Numba kernel."""
        if dtypes is not None:
            self.numba_dtypes = tuple(np.dtype(d) for d in dtypes)
        if function is None:
            return self.numba
        self._numba = function
        return function

    def cost(self, function: Callable) -> Callable:
        """Register the cost model; it gets the arguments of `Call.run`."""
        self._cost = function
        return function

    def samples(self, function: Callable) -> Callable:
        """Register the generator of parity samples; it gets a `numpy.random.Generator`."""
        self._samples = function
        return function

    def inputs(self, function: Callable) -> Callable:
        """Register benchmark inputs: function(rng, shape) -> (args, kwargs) in float32."""
        self._inputs = function
        return function

    def peer(self, library: str) -> Callable[[Callable], Callable]:
        """Register the same by another library, for the benchmarks of an extension.

        "numpy": a function of the module, NumPy or CuPy, and then of what the primitive takes;
        "torch": a function of what the primitive takes, as tensors.
        """

        def add(function: Callable) -> Callable:
            self.peers[library] = function
            return function

        return add

    # ---- what the table knows --------------------------------------------------------------------

    @property
    def implementations(self) -> tuple[str, ...]:
        """Names of the implementations that exist."""
        found = zip(IMPLEMENTATIONS, (self._reference, self._cuda, self._numba), strict=True)
        return tuple(name for name, function in found if function is not None)

    def sample_list(self, seed: int = 0) -> list[Sample]:
        """The parity samples, the same for the same seed."""
        return list(self._samples(np.random.default_rng(seed)))

    def benchmark_inputs(self, shape: tuple[int, ...], seed: int = 0) -> tuple[tuple, dict]:
        """Random inputs of a shape for benchmarks, on the CPU in float32."""
        return self._inputs(np.random.default_rng(seed), tuple(shape))

    def cost_of(self, *args, **kwargs) -> Cost:
        """The cost of a call with these arguments; nothing is run."""
        found: list[Cost] = []
        with intercepting(lambda call, run_args: found.append(self._cost(*run_args))):
            self(*args, **kwargs)
        return found[0]

    # ---- running ---------------------------------------------------------------------------------

    def run(self, call: Call, args: tuple) -> None:
        """Run on checked arguments, with the implementation for the call's device."""
        if _DEBUG or _FORCED_BY_ENVIRONMENT or _choice.special:
            _run_specially(call, args)
        elif call.device is CPU:
            self._reference(*args)
        else:
            self.implement(_DEFAULT[call.device.type], call.device, args)

    def implement(self, implementation: str, device: Device, args: tuple) -> None:
        """Run one implementation on checked arguments, which are on `device`."""
        if implementation == "cuda":
            launcher = self._launchers.get(device.index)
            if launcher is None:
                launcher = self._launchers[device.index] = cuda_launcher(self.cuda_source, device)
            if launcher.is_current():
                self._cuda(launcher, *args)
            else:
                with device.activate():
                    self._cuda(launcher, *args)
        elif implementation == "emulator":
            self._cuda(emulator_launcher(self.cuda_source), *args)
        elif implementation == "numpy":
            self._reference(*args)
        else:
            _require_numba(self, args)
            with device.activate() if device.type == "cuda" else contextlib.nullcontext():
                self._numba(numba_launcher(self.numba_source, device), *args)

    def run_cuda(self, launch, args: tuple) -> None:
        """Run the launch code with a launcher (also one that only records)."""
        self._cuda(launch, *args)


def primitive(
    family: str, cuda: str, numba: str, siblings: tuple[str, ...] = ()
) -> Callable[[Callable], Primitive]:
    """Declare the decorated specification as a row of the table."""

    def declare(specification: Callable) -> Primitive:
        made = Primitive(specification, family, cuda, numba, siblings)
        TABLE[made.name] = made
        return made

    return declare


# ---- which implementation runs -------------------------------------------------------------------


@contextlib.contextmanager
def using(implementation: str | None) -> Iterator[None]:
    """Run primitives with one implementation inside a ``with`` block: "numba", "cuda", "numpy",
    "emulator".

    >>> with gpunn.kernels.using("numba"):
    ...     y = gpunn.kernels.softmax_forward(x_on_the_gpu)
    >>> with gpunn.kernels.using("emulator"):
    ...     y = gpunn.kernels.softmax_forward(x_on_the_cpu)
    """
    if implementation not in (None, *CHOICES):
        raise ValueError(
            f"kernels: {implementation!r} is not an implementation; use one of "
            f"{', '.join(CHOICES)}"
        )
    before = _choice.set(forced=implementation)
    try:
        yield
    finally:
        _choice.set(**before)


@contextlib.contextmanager
def intercepting(function: Callable[[Call, tuple], None]) -> Iterator[None]:
    """Give every run inside the block to `function(call, args)` and run nothing else."""
    before = _choice.set(intercept=function)
    try:
        yield
    finally:
        _choice.set(**before)


@contextlib.contextmanager
def listening(function: Callable[[Call, tuple, Callable], None] | None) -> Iterator[None]:
    """Give every run inside the block to ``function(call, args, run)``, which calls
    ``run(call, args)`` and may look at the clock before and after; None listens no more.
    """
    before = _choice.set(listener=function)
    try:
        yield
    finally:
        _choice.set(**before)


def implementation_for(device: Device) -> str:
    """The implementation that runs on `device` now."""
    forced = _choice.forced or os.environ.get("GPUNN_KERNELS") or None
    if forced is None:
        return _DEFAULT[device.type]
    if forced not in CHOICES:
        raise ValueError(
            f"GPUNN_KERNELS={forced} is not an implementation; use one of {', '.join(CHOICES)}"
        )
    if device.type == "cpu" and forced == "numba" and not numba_simulated():
        raise UnsupportedError(
            "Numba's CUDA kernels do not run on CPU arrays: move the arrays to a GPU, or set "
            "NUMBA_ENABLE_CUDASIM=1 before Python starts to run them in Numba's simulator"
        )
    if device.type == "cpu" and forced == "cuda":
        raise UnsupportedError(
            "CUDA kernels do not run on CPU arrays: move the arrays to a GPU with "
            "gpunn.tensor(x, device='cuda') or cupy.asarray(x)"
        )
    if device.type == "cuda" and forced == "numpy":
        raise UnsupportedError(
            "NumPy does not run on GPU arrays: move the arrays to the CPU with .get() or .cpu()"
        )
    if device.type == "cuda" and forced == "emulator":
        raise UnsupportedError(
            "the emulator does not run on GPU arrays: move the arrays to the CPU with .get() or "
            ".cpu(), or to the device 'emulator'"
        )
    if device.type == "emulator" and forced != "emulator":
        raise UnsupportedError(
            f"{forced} does not run on arrays of the emulator, which runs the CUDA C++ kernels: "
            "move the arrays to the CPU with .get() or .cpu(), or to a GPU"
        )
    return forced


def _run_specially(call: Call, args: tuple) -> None:
    """A run where something was chosen: by a context above or by the environment."""
    if _choice.intercept is not None:
        _choice.intercept(call, args)
    elif _choice.listener is not None:
        _choice.listener(call, args, _run_chosen)
    else:
        _run_chosen(call, args)


def _run_chosen(call: Call, args: tuple) -> None:
    """Run with the implementation that was chosen; with GPUNN_DEBUG=1 say how long it took."""
    if _DEBUG:
        _run_and_report(call, args)
    else:
        call.primitive.implement(implementation_for(call.device), call.device, args)


_DEBUG = int(os.environ.get("GPUNN_DEBUG", "0") or 0)
_FORCED_BY_ENVIRONMENT = bool(os.environ.get("GPUNN_KERNELS"))


def _require_numba(made: Primitive, args: tuple) -> None:
    for value in args:
        dtype = getattr(value, "dtype", None)
        # (NumPy takes None for float64.)
        if dtype is not None and dtype in FLOATING and dtype not in made.numba_dtypes:
            raise UnsupportedError(
                f"{made.name} has no Numba kernel for dtype {dtype} (shape {value.shape}): convert "
                f"to {' or '.join(d.name for d in made.numba_dtypes)}, or use the CUDA C++ kernel"
            )


def _run_and_report(call: Call, args: tuple) -> None:
    """GPUNN_DEBUG=1: run, wait, and print the primitive with its shapes, time and rates."""
    from gpunn.device import synchronize

    synchronize(call.device)
    start = time.perf_counter()
    call.primitive.implement(implementation_for(call.device), call.device, args)
    synchronize(call.device)
    seconds = max(time.perf_counter() - start, 1e-9)
    cost = call.primitive._cost(*args)
    shapes = " ".join(
        f"{value.dtype}{list(value.shape)}" for value in args if hasattr(value, "shape")
    )
    print(
        f"{call.primitive.name:28} {implementation_for(call.device):8} {seconds * 1e6:10.1f} us "
        f"{cost.bytes / seconds / 1e9:9.2f} GB/s {cost.flops / seconds / 1e9:9.2f} GFLOP/s  "
        f"{shapes}"
    )


def reachable_kernels(
    arch: str = "sm_90a", multiprocessors: int = 132, primitives: Iterable[Primitive] | None = None
) -> dict[str, list[str]]:
    """Every CUDA kernel that the samples reach: source file -> sorted name expressions.

    The launch code is run on the samples with a launcher that only takes notes, so a kernel is in
    this list if and only if a parity test can reach it. No GPU is needed.
    """
    chosen = TABLE.values() if primitives is None else primitives
    cases = (
        (made, sample, dtype)
        for made in chosen
        for sample in made.sample_list()
        for dtype in sample.dtypes
    )
    return kernels_of(cases, arch, multiprocessors)


def kernels_of(
    cases: Iterable[tuple[Primitive, Sample, np.dtype]],
    arch: str = "sm_90a",
    multiprocessors: int = 132,
) -> dict[str, list[str]]:
    """The CUDA kernels that some samples reach: source file -> sorted name expressions."""
    reached: dict[str, set[str]] = {}

    def record(call: Call, args: tuple) -> None:
        launcher = RecordingLauncher(call.primitive.cuda_source, arch, multiprocessors)
        call.primitive.run_cuda(launcher, args)
        for source, expression in launcher.launches:
            reached.setdefault(source, set()).add(expression)

    with intercepting(record):
        for made, sample, dtype in cases:
            args, kwargs = sample.cast(dtype)
            made(*args, **kwargs)
    return {source: sorted(names) for source, names in sorted(reached.items())}
