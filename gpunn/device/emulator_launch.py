"""`EmulatorLauncher`: runs the kernels of our CUDA C++ sources on the host.

It looks like a GPU to the launch code, an H200 unless `emulated_chip` says otherwise, so that the
same lines choose and launch the same kernels. The emulator itself is `gpunn.emulator`; its settings
(checks, order of the threads, seed) are read at each launch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gpunn.device import emulated_step, sources
from gpunn.device.device import Device
from gpunn.device.emulated import emulator_empty, plain
from gpunn.device.launch import Launcher, check_scalars
from gpunn.errors import CompileError

BATCH = 10  # kernels of one translation unit, which share the reading of the headers


class Chip(NamedTuple):
    """What the launch code may ask of a GPU; the defaults are an H200's."""

    arch: str = "sm_90a"
    multiprocessors: int = 132
    shared_limit: int = 227 * 1024


H200 = Chip()


class _Chosen(threading.local):
    chip = H200


_chosen = _Chosen()


@contextlib.contextmanager
def emulated_chip(**properties) -> Iterator[None]:
    """Launch as on another GPU inside a ``with`` block: fields of `Chip`.

    >>> with emulated_chip(arch="sm_80", multiprocessors=6):
    ...     y = gpunn.kernels.reduce_sum(x_on_the_emulator)

    Only the choices of the launch code change (grids, tiles, which kernel); what runs is the same.
    """
    before, _chosen.chip = _chosen.chip, Chip(**properties)
    try:
        yield
    finally:
        _chosen.chip = before


class EmulatorLauncher(Launcher):
    """Runs kernels of one source file in the emulator, on arrays in the memory of the host."""

    def __init__(self, source: str, chip: Chip = H200):
        Device("emulator")  # raises if it cannot be used here
        self.source = source
        self.arch, self.multiprocessors, self.shared_limit = chip
        self._kernels = emulated_source(source)

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        check_scalars(expression, args)
        kernel = self._kernels.kernel(expression)
        if shared > kernel.max_dynamic_shared_size_bytes:
            kernel.max_dynamic_shared_size_bytes = shared

        def run(kernel, arguments) -> None:
            kernel(grid, block, arguments, shared_mem=shared)

        emulated_step.launch(kernel, tuple(map(plain, args)), run)

    def empty(self, shape, dtype):
        array = emulator_empty(shape, dtype)  # bytes 0xFF, which are NaN
        # In a compiled step, what launch code itself does with the array has to be noted, too.
        return array if emulated_step.state.special else plain(array)

    def sibling(self, source: str) -> EmulatorLauncher:
        return _launcher(source, Chip(self.arch, self.multiprocessors, self.shared_limit))


@functools.cache
def _launcher(source: str, chip: Chip) -> EmulatorLauncher:
    return EmulatorLauncher(source, chip)


def emulator_launcher(source: str) -> EmulatorLauncher:
    """The launcher of one source on the chip that is emulated now."""
    return _launcher(source, _chosen.chip)


class EmulatedSource:
    """The kernels of one source file, compiled for the host when they are first used."""

    def __init__(self, source: str):
        self.path = sources.cuda_path(source)
        self._kernels: dict[str, Any] = {}
        self._batches: dict[str, tuple[str, ...]] = {}  # which kernels are compiled with which
        self._modules: dict[tuple[str, ...], Any] = {}

    def kernel(self, expression: str):
        """The kernel of a name expression, compiled with those it was planned with."""
        found = self._kernels.get(expression)
        if found is None:
            found = self._kernels[expression] = self._load(expression)
        return found

    def _load(self, expression: str):
        batch = self._batches.setdefault(expression, (expression,))
        try:
            return self.module(batch).get_function(expression)
        except CompileError:
            if len(batch) == 1:
                raise
        self._batches[expression] = (expression,)  # perhaps another one of the batch is to blame
        return self._load(expression)

    def module(self, batch: tuple[str, ...]):
        """The module of kernels that are compiled together; it compiles when it is used."""
        if batch not in self._modules:
            from gpunn import emulator  # not on the path of `import gpunn`

            self._modules[batch] = emulator.RawModule(
                path=self.path, name_expressions=batch, default_check=False,
                enable_cooperative_groups=self.path.name in sources.COOPERATIVE,
            )  # fmt: skip
        return self._modules[batch]

    def plan(self, expressions: Iterable[str]) -> list[tuple[str, ...]]:
        """The batches in which these kernels are compiled: those they are in, and new ones.

        New batches depend on the set of expressions alone, so that other processes find them in the
        cache on disk.
        """
        wanted = sorted(set(expressions))
        new = [name for name in wanted if name not in self._batches]
        for at in range(0, len(new), BATCH):
            batch = tuple(new[at : at + BATCH])
            self._batches.update(dict.fromkeys(batch, batch))
        return list(dict.fromkeys(self._batches[name] for name in wanted))


@functools.cache
def emulated_source(source: str) -> EmulatedSource:
    """The kernels of one source; made once."""
    return EmulatedSource(source)


def prepare(kernels: Mapping[str, Iterable[str]], workers: int | None = None) -> None:
    """Compile many kernels for the emulator at once, a few in each translation unit.

    They are compiled as the emulator's settings here need them: checked or not. What is there
    already is left as it is.

    Parameters
    ----------
    kernels : source file -> name expressions, as `primitives.registry.reachable_kernels` gives them
    workers : compilers that run at a time; None for one on each processor

    Raises
    ------
    CompileError : one does not compile; the others are compiled first
    """
    from concurrent.futures import ThreadPoolExecutor  # these are not on the path of `import gpunn`

    from gpunn import emulator
    from gpunn.emulator import config

    Device("emulator")
    chosen = dataclasses.asdict(config.current())  # of this thread

    def compile(module) -> None:
        with emulator.settings(**chosen):
            module.compile()

    modules = [
        emulated_source(source).module(batch)
        for source, expressions in kernels.items()
        for batch in emulated_source(source).plan(expressions)
    ]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        jobs = [pool.submit(compile, module) for module in modules]
    for job in jobs:
        job.result()
