"""Who launches the kernels of launch_cost.cu on a GPU: gpunn, CuPy, Numba, cuda.core, PyTorch.

Each gets its own best case: arguments of the kinds that it takes fastest, a kernel that is compiled
and configured, the same stream for all. gpunn, CuPy and cuda.core launch the same machine code.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.bench.measure import NotTimed
from gpunn.bench.timing import Contestant, captured, clock_for, one_line
from gpunn.device.cuda_launch import CupyDriver, cuda_launcher
from gpunn.device.device import Device
from gpunn.device.launch import Launcher
from gpunn.device.probe import import_cupy, import_numba_cuda

SOURCE = "bench/launch_cost.cu"
ARGUMENTS = (1, 8, 20)
NODES = 100  # kernels of the graph

TORCH = "torch, in place on 1 element"
GRAPH = "gpunn, a node of a replayed graph"
CHOOSE_THEMSELVES = (TORCH,)  # how many arguments their kernels have

Item = tuple[str, Callable[[], object], int]  # name, what to call, launches of one call


def kernel_arguments(count: int, array: Callable[[], Any]) -> tuple:
    """The arguments of ``launch_<count>`` of launch_cost.cu; `array()` makes the pointers."""
    numbers = (np.int64(5), np.float32(0.5), np.int32(7), np.bool_(True))
    if count == 1:
        return (array(),)
    if count == 8:
        return (*(array() for _ in range(4)), *numbers)
    return (*(array() for _ in range(10)), *numbers, *numbers, np.int64(9), np.float64(0.25))


def ours(launcher: Launcher, count: int, args: tuple) -> Callable[[], object]:
    """A launch of the kernel of `count` arguments by one of our launchers."""
    name, grid, block = f"launch_{count}", (1,), (32,)
    return lambda: launcher(name, grid, block, args)


@contextlib.contextmanager
def contestants(device: Device, count: int, skipped: list[NotTimed]) -> Iterator[list[Item]]:
    """Everyone who is installed, ready to launch a kernel of `count` arguments on one stream."""
    makers: dict[str, Callable] = {
        "gpunn": _gpunn, "cupy RawKernel": _cupy, "cuda.core": _cuda_core, "numba": _numba,
        GRAPH: _graph,
    }  # fmt: skip
    if count == ARGUMENTS[0]:
        makers[TORCH] = _torch
        with contextlib.suppress(ImportError):
            importlib.import_module("torch")  # before the clock, which puts it on the stream
    with clock_for(device) as clock:
        items = []
        for name, maker in makers.items():
            try:
                call, launches = maker(device, count, clock)
                call()
                items.append((name, call, launches))
            except ImportError:
                skipped.append(NotTimed(f"{count} arguments", name, "it is not installed"))
            except Exception as error:
                skipped.append(NotTimed(f"{count} arguments", name, one_line(error)))
        yield items


def _array():
    return import_cupy().zeros(1, np.float32)


def _gpunn(device, count, clock):
    launcher = cuda_launcher(SOURCE, device)
    return ours(launcher, count, kernel_arguments(count, _array)), 1


def _machine_code(device: Device, count: int) -> tuple[bytes, str]:
    from gpunn.device import compiler

    launcher = cuda_launcher(SOURCE, device)
    made = compiler.build(SOURCE, (f"launch_{count}",), launcher.arch)
    return made.cubin, made.symbols[f"launch_{count}"]


def _cupy(device, count, clock):
    kernel = CupyDriver().load(*_machine_code(device, count))
    args, grid, block = kernel_arguments(count, _array), (1,), (32,)
    return lambda: kernel(grid, block, args), 1


def _cuda_core(device, count, clock):
    try:
        core = importlib.import_module("cuda.core")
        core.ObjectCode, core.launch  # noqa: B018  in older releases they are elsewhere
    except AttributeError:
        core = importlib.import_module("cuda.core.experimental")
    core.Device(device.index).set_current()
    cubin, symbol = _machine_code(device, count)
    kernel = core.ObjectCode.from_cubin(cubin).get_kernel(symbol)
    stream = core.Stream.from_handle(clock.stream.ptr)
    config, start = core.LaunchConfig(grid=1, block=32), core.launch
    kept = []

    def address() -> int:  # it takes pointers as numbers
        kept.append(_array())
        return kept[-1].data.ptr

    args = kernel_arguments(count, address)
    return lambda kept=kept: start(stream, config, kernel, *args), 1


def _numba(device, count, clock):
    cuda = import_numba_cuda()
    names = ", ".join(f"a{i}" for i in range(count))
    scope: dict = {}
    exec(f"def nothing({names}): pass", scope)
    args = kernel_arguments(count, lambda: cuda.to_device(np.zeros(1, np.float32)))
    kernel = cuda.jit(scope["nothing"])[1, 32, cuda.external_stream(clock.stream.ptr)]
    return lambda: kernel(*args), 1


def _torch(device, count, clock):
    import torch

    x = torch.zeros(1, device=f"cuda:{device.index}")
    return lambda: x.add_(1.0), 1


def _graph(device, count, clock):
    call, _ = _gpunn(device, count, clock)
    graph = captured(Contestant(GRAPH, lambda i: call()), clock, NODES)
    return lambda: graph.run(0), NODES
