"""`RawModule` and `RawKernel`: CuPy's classes of these names, for the host.

A kernel that runs here takes NumPy arrays where CuPy's takes arrays on the GPU. It sees copies that
end at guard pages; after the launch what it wrote is copied back.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.device.launch import DEFAULT_SHARED
from gpunn.emulator import build as building
from gpunn.emulator import config, launching, toolchain
from gpunn.emulator import source as reading
from gpunn.errors import CompileError


class RawModule:
    """CUDA C++ compiled for the host; kernels come from `get_function`.

    Parameters
    ----------
    code : the source as text; or
    path : its file. ``#include "…"`` looks beside the file, then among gpunn's kernels.
    options : as for NVRTC; macros (-D, -U) and include folders (-I) count, the rest is passed over
    name_expressions : template instantiations to compile, such as ``softmax<float, 4>``
    enable_cooperative_groups : launch so that all blocks exist at once and may use grid barriers
    check, schedule, seed, threads, preempt, timeout, stack, coverage : see `Settings`; what is not
        given comes from the `settings` around the launch; `check` is True if those leave it open

    Raises
    ------
    CompileError : when a kernel is first asked for and the source does not compile
    DeviceError : there is no C++ compiler, or CUDA's headers are missing
    """

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | os.PathLike | None = None,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool = False,
        default_check: bool = True,
        **settings: Any,
    ):
        if (code is None) == (path is None):
            raise TypeError("RawModule: give either code or path")
        if isinstance(options, str):
            raise TypeError(f"RawModule: options is a string; write options=({options!r},)")
        self.path = _written(code) if path is None else Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"RawModule: there is no file {self.path}")
        self.options = tuple(map(str, options))
        self.name_expressions = tuple(name_expressions or ())
        self.cooperative = enable_cooperative_groups
        self.default_check = default_check
        self.settings = settings
        config.Settings().updated(settings)  # complains of what is wrong
        self._builds: dict[str, list[building.Build]] = {}
        self._kernels: dict[str, Kernel] = {}
        self._variables: dict[str, np.ndarray] = {}  # what was set, for builds yet to come

    def get_function(self, name: str) -> Kernel:
        """The kernel of a name, or of one of the name expressions."""
        if name not in self._kernels:
            self.compiled(name, self._mode(self._settings({})))  # errors come here, as in CuPy
            self._kernels[name] = Kernel(self, name)
        return self._kernels[name]

    def get_global(self, name: str) -> Global:
        """A ``__constant__`` or ``__device__`` variable."""
        mode = self._mode(self._settings({}))
        if not self._builds.get(mode):
            names = self._names(None)
            if not names:
                raise CompileError(f"{self.path} declares no kernel that the emulator can find")
            self.compiled(names[0], mode)
        return Global(self, name)

    def compile(self, log_stream: Any = None) -> None:
        """Compile now what the settings need; otherwise done at the first use."""
        names = self._names(None)
        if names:
            self.compiled(names[0], self._mode(self._settings({})))

    # ---- used by Kernel ------------------------------------------------------------------------

    def _settings(self, changes: dict[str, Any]) -> config.Settings:
        made = config.current().updated(self.settings).updated(changes)
        return made if made.check is not None else made.updated({"check": self.default_check})

    @staticmethod
    def _mode(settings: config.Settings) -> str:
        if settings.check:
            return building.CHECKED
        return building.COVERAGE if settings.coverage else building.FAST

    def _names(self, wanted: str | None) -> list[str]:
        """What to compile together: the name expressions, or all plain kernels of the source."""
        if wanted in self.name_expressions or (wanted is None and self.name_expressions):
            return list(self.name_expressions)
        text = self.path.read_text(encoding="utf-8", errors="replace")
        plain = [d.name for d in reading.kernels(text).values() if d.template is None]
        return plain if wanted is None or wanted in plain else [wanted]

    def compiled(self, name: str, mode: str) -> building.Compiled:
        """The kernel compiled for a mode ("fast", "checked", "coverage")."""
        for made in self._builds.get(mode, ()):
            if name in made.kernels:
                return made.kernels[name]
        names = self._names(name)
        try:
            made = building.build(self.path, names, self.options, mode)
        except CompileError:
            if names == [name] or name in self.name_expressions:
                raise
            made = building.build(self.path, [name], self.options, mode)  # another was to blame
        self._builds.setdefault(mode, []).append(made)
        for variable, value in self._variables.items():
            memory = Global.find(made, variable)
            if memory is not None:
                memory[...] = value
        return made.kernels[name]


class Kernel:
    """A kernel: call it with (grid, block, args).

    Attributes
    ----------
    name : its name expression
    max_dynamic_shared_size_bytes : must be set, as for CuPy, to launch with more than 48 KiB
    switches, accesses : of the last launch: changes between threads, and accesses checked
    """

    def __init__(self, module: RawModule, name: str):
        self.module, self.name = module, name
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED
        self.switches = self.accesses = 0
        self._granules: dict = {}

    def __repr__(self) -> str:
        return f"<emulated kernel {self.name} of {self.module.path.name}>"

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any] = (),
        *,
        shared_mem: int = 0,
        cluster: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        """Run on the host, and wait until it is done.

        Parameters
        ----------
        grid, block : up to three numbers
        args : NumPy arrays for pointers, NumPy scalars of the parameter's own type for values
            (Python ints where an integer is declared), TensorMap, None for a null pointer
        shared_mem : bytes of dynamic shared memory
        cluster : blocks of a cluster, if the kernel has no __cluster_dims__
        check, schedule, seed, threads, preempt, timeout, stack, coverage : see `Settings`

        Raises
        ------
        EmulatorError : a subclass for each kind of fault; arrays hold what was written until then
        TypeError, ValueError : arguments that do not fit the kernel, a launch that no GPU takes
        """
        chosen = self.module._settings(settings)
        made = self.module.compiled(self.name, self.module._mode(chosen))
        launching.launch(self, made, chosen, grid, block, args, shared_mem, cluster)


class RawKernel:
    """CUDA C++ source text with one kernel in it; call it with (grid, block, args).

    Parameters and errors are those of `RawModule` and `Kernel`.

    >>> double = emulator.RawKernel('''
    ... extern "C" __global__ void twice(float* x, int n) {
    ...     int i = blockIdx.x * blockDim.x + threadIdx.x;
    ...     if (i < n) x[i] *= 2.0f;
    ... }''', "twice")
    >>> x = np.arange(3, dtype=np.float32)
    >>> double((1,), (32,), (x, np.int32(3)))
    >>> x
    array([0., 2., 4.], dtype=float32)
    """

    def __init__(self, code: str, name: str, options: Sequence[str] = (), **rest: Any):
        expressions = (name,) if "<" in name else None
        self.module = RawModule(code, options=options, name_expressions=expressions, **rest)
        self.name, self.code, self.options = name, code, tuple(options)
        self._shared: int | None = None

    @property
    def kernel(self) -> Kernel:
        """The kernel, compiled at the first use."""
        return self.module.get_function(self.name)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Bytes of dynamic shared memory that a launch may ask for."""
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, bytes: int) -> None:
        self.kernel.max_dynamic_shared_size_bytes = bytes

    def compile(self, log_stream: Any = None) -> None:
        """Compile now; otherwise done at the first launch."""
        self.module.get_function(self.name)

    def __call__(self, grid, block, args=(), *, shared_mem: int = 0, **settings: Any) -> None:
        """As of `Kernel`."""
        self.kernel(grid, block, args, shared_mem=shared_mem, **settings)


class Global:
    """A variable of a module: `set` and `get` move its bytes."""

    def __init__(self, module: RawModule, name: str):
        self.module, self.name = module, name
        if not any(self.find(b, name) is not None for one in module._builds.values() for b in one):
            raise KeyError(f"{module.path.name} has no __constant__ or __device__ variable {name}")

    @staticmethod
    def find(made: building.Build, name: str) -> np.ndarray | None:
        """The variable's bytes in one build, or None."""
        if name not in made.symbols:
            return None
        size = made.symbols[name][1]
        memory = (ctypes.c_ubyte * size).in_dll(made.library, name)
        return np.frombuffer(memory, np.uint8)

    def _everywhere(self) -> list[np.ndarray]:
        builds = [b for one in self.module._builds.values() for b in one]
        return [found for b in builds if (found := self.find(b, self.name)) is not None]

    def set(self, value: np.ndarray) -> None:
        """Copy the bytes of an array into the variable."""
        data = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
        for memory in self._everywhere():
            if data.size > memory.size:
                raise ValueError(
                    f"{self.name} has {memory.size} bytes, too few for the {data.size} of the value"
                )
            memory[: data.size] = data
        self.module._variables[self.name] = self._everywhere()[0].copy()

    def get(self, dtype: Any = np.uint8) -> np.ndarray:
        """A copy of the variable as an array of a dtype."""
        return self._everywhere()[-1].copy().view(dtype)


def _written(code: str | None) -> Path:
    """The file in the cache folder that holds a source given as text."""
    if not isinstance(code, str):
        raise TypeError(f"RawModule: code is {type(code).__name__}; expected the source as text")
    name = f"source-{hashlib.sha256(code.encode()).hexdigest()[:16]}.cu"
    path = toolchain.folder() / name
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(code, encoding="utf-8")
        os.replace(temporary, path)
    return path
