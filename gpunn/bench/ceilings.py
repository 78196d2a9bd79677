"""The machine's ceilings, measured in the same run as everything that is held against them.

Copy bandwidth: a copy of an array too large for any cache, bytes read plus bytes written. Rate:
the largest matrix product of the library that is there, on random numbers (a chip at its power
limit is faster on zeros). The *floor* of a call is the larger of its bytes over the bandwidth and
its FLOPs over the rate: no implementation runs much faster than that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from gpunn.bench.timing import Contestant, clock_for, interleave, one_line
from gpunn.device.device import Device
from gpunn.device.probe import import_cupy
from gpunn.primitives.registry import Cost


@dataclass(frozen=True)
class Ceilings:
    """What was measured on one device: bytes a second of a copy, FLOP/s of a product by dtype.

    `how` says for each figure what was run.
    """

    device: str
    copy: float
    rates: dict[str, float]
    how: dict[str, str]

    def rate(self, dtype: str) -> float:
        """FLOP/s for a dtype; for one that was not measured that of the nearest."""
        for name in (dtype, *_NEAREST.get(dtype, ()), "float32"):
            if name in self.rates:
                return self.rates[name]
        return float("inf")

    def floor(self, cost: Cost, dtype: str) -> tuple[float, str]:
        """The least seconds for a cost, and which ceiling sets it: "memory" or "compute"."""
        memory, compute = cost.bytes / self.copy, cost.flops / self.rate(dtype)
        return max(memory, compute), ("memory" if memory >= compute else "compute")

    def to_json(self) -> dict:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> Ceilings:
        """The inverse of `to_json`."""
        return cls(value["device"], value["copy"], dict(value["rates"]), dict(value["how"]))


_NEAREST = {"bfloat16": ("float16",), "float16": ("bfloat16",)}


@dataclass(frozen=True)
class Sizes:
    """How large the arrays are: bytes of the copied one, and the edge of the product by dtype."""

    copy_bytes: int
    edges: dict[str, int]
    samples: int = 20


GPU_SIZES = Sizes(
    2 << 30, {"bfloat16": 8192, "float16": 8192, "float32": 8192, "float64": 4096}, 20
)
CPU_SIZES = Sizes(256 << 20, {"float32": 2048, "float64": 1024}, 10)


def measure_ceilings(device: Device | str, sizes: Sizes | None = None) -> Ceilings:
    """Measure both ceilings of a device; a few seconds."""
    device = Device(device)
    cpu = device.type == "cpu"
    sizes = sizes or (CPU_SIZES if cpu else GPU_SIZES)
    how: dict[str, str] = {}
    nbytes = sizes.copy_bytes if cpu else min(sizes.copy_bytes, _free_bytes(device) // 4)
    seconds = _time(device, _cpu_copy(nbytes) if cpu else _gpu_copy(nbytes, device), sizes.samples)
    name = "numpy.copyto, one thread" if cpu else "device-to-device cudaMemcpyAsync"
    how["copy"] = f"{name}, {nbytes / 2**20:.0f} MiB, bytes read + written"
    rates: dict[str, float] = {}
    for dtype, edge in sizes.edges.items():
        make = _cpu_product if cpu else _gpu_product
        try:
            run, what = make(edge, dtype)
            rates[dtype] = 2 * edge**3 / _time(device, run, sizes.samples)
            how[dtype] = f"{what}, {edge}x{edge}x{edge}, random normal"
        except Exception as error:  # a library without this product, or too little memory
            how[dtype] = f"not measured: {one_line(error)}"
    return Ceilings(str(device), 2 * nbytes / seconds, rates, how)


def _time(device: Device, run: Callable[[], object], samples: int) -> float:
    with clock_for(device) as clock:
        timings, failed = interleave([Contestant("ceiling", lambda i: run())], clock, samples)
    if failed:
        raise RuntimeError(failed["ceiling"])
    return timings["ceiling"].median


def _free_bytes(device: Device) -> int:
    with device.activate():
        return import_cupy().cuda.runtime.memGetInfo()[0]


def _cpu_copy(nbytes: int) -> Callable[[], object]:
    source = np.random.default_rng(0).random(nbytes // 4, dtype=np.float32)
    target = np.zeros_like(source)  # written once, so that its pages are there
    return lambda: np.copyto(target, source)


def _gpu_copy(nbytes: int, device: Device) -> Callable[[], object]:
    cupy = import_cupy()
    block = np.random.default_rng(0).random(min(nbytes // 4, 1 << 22), dtype=np.float32)
    with device.activate():
        source = cupy.tile(cupy.asarray(block), -(-(nbytes // 4) // block.size))[: nbytes // 4]
        target = cupy.empty_like(source)
    return lambda: target.data.copy_from_device_async(
        source.data, nbytes // 4 * 4, cupy.cuda.get_current_stream()
    )


def _cpu_product(edge: int, dtype: str) -> tuple[Callable[[], object], str]:
    a, b = np.random.default_rng(0).standard_normal((2, edge, edge)).astype(dtype)
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out), "numpy.matmul"


def _gpu_product(edge: int, dtype: str) -> tuple[Callable[[], object], str]:
    """cuBLAS through PyTorch, else through CuPy (which has no bfloat16)."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = False
            a, b = torch.randn(2, edge, edge, device="cuda", dtype=getattr(torch, dtype))
            out = torch.empty_like(a)
            return lambda: torch.matmul(a, b, out=out), "cuBLAS through torch.matmul"
    cupy = import_cupy()
    a, b = cupy.random.standard_normal((2, edge, edge), dtype=np.float32).astype(dtype)
    out = cupy.empty_like(a)
    return lambda: cupy.matmul(a, b, out=out), "cuBLAS through cupy.matmul"
