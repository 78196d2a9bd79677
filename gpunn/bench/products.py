"""Many matrix products beside cuBLAS: their speed and their errors, over a sweep of shapes.

One shape says little about a matrix product: square and skinny ones, tall ones, odd sizes, batches
and the four layouts each take another kernel. The sweep has them all, in bfloat16, float16,
float32 (as exact as float32 arithmetic, on both sides) and TF32, and products with something fused.
Operands are normal random numbers; both sides get the same. On a GPU the peer is cuBLAS through
PyTorch, or through CuPy where there is no PyTorch (which has no bfloat16), on a CPU NumPy's or
PyTorch's BLAS.

Errors are those of the first and the last corner of the result against the same product in float64:
the last one is the work of a block's later tiles.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.bench import peers
from gpunn.bench.cases import copies_for, element, last_level_cache, precision, room_for_copies
from gpunn.bench.machine import noting_launcher
from gpunn.bench.measure import NotTimed, graph_calls
from gpunn.bench.timing import Contestant, Timing, captured, clock_for, interleave, one_line
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.primitives.activation import activation_backward, activation_forward
from gpunn.primitives.registry import intercepting

CORNER = 64
CPU_FLOPS = 3e8  # a CPU gets through the smaller ones, but 16-bit types are slow there
LAUNCH_BOUND_SECONDS = 100e-6  # below, a graph shows the kernel's own time


@dataclass(frozen=True)
class Product:
    """One product of the sweep.

    dtype : a dtype's name, or "tf32" for float32 operands at that precision
    layout : of a and b, N as they are multiplied, T stored transposed
    fused : "" or "relu", "gelu" (both with bias), "backward" (times GELU's derivative, with the
        gradient of the bias), "weight gradient" (with the gradient of the bias)
    """

    kind: str
    M: int
    N: int
    K: int
    dtype: str
    layout: str = "NN"
    batch: int = 1
    fused: str = ""

    @property
    def key(self) -> str:
        """As text: ``64 x 512x512x64 NT bfloat16 relu``."""
        many = f"{self.batch} x " if self.batch > 1 else ""
        text = f"{many}{self.M}x{self.N}x{self.K} {self.layout} {self.dtype}"
        return f"{text} {self.fused}".rstrip()

    @property
    def flops(self) -> float:
        """Operations of the product alone."""
        return 2.0 * self.batch * self.M * self.N * self.K

    @property
    def element(self) -> np.dtype:
        """The dtype of the arrays."""
        return element(self.dtype)

    @property
    def bytes(self) -> float:
        """Bytes of the operands and the result, each once."""
        sizes = self.M * self.K + self.K * self.N + self.M * self.N
        return float(self.batch * sizes * self.element.itemsize)


def _sweep() -> Iterator[Product]:
    both = ("bfloat16", "float32")
    for kind, dtypes, shapes in (
        ("square", (*both, "float16", "tf32"), (
            (4096, 4096, 4096, "NN"), (2048, 2048, 2048, "NN"), (1024, 1024, 1024, "NN"),
            (512, 512, 512, "NN"), (256, 256, 256, "NN"),
        )),
        ("square", both, (
            (8192, 8192, 8192, "NN"), (128, 128, 128, "NN"), (4096, 4096, 4096, "NT"),
            (4096, 4096, 4096, "TN"), (4096, 4096, 4096, "TT"), (1024, 1024, 1024, "NT"),
            (1024, 1024, 1024, "TN"), (1024, 1024, 1024, "TT"),
        )),
        ("skinny", both, (
            (1, 4096, 4096, "NT"), (4, 4096, 4096, "NT"), (16, 4096, 4096, "NT"),
            (32, 14336, 4096, "NT"), (64, 4096, 14336, "NT"), (48, 4096, 4096, "NN"),
        )),
        ("tall", both, (
            (65536, 64, 64, "NN"), (4096, 64, 4096, "NT"), (16384, 128, 784, "NT"),
            (8192, 10, 256, "NT"),
        )),
        ("odd", both, (
            (1000, 1000, 1000, "NN"), (777, 555, 333, "NT"), (4097, 4095, 4093, "NN"),
            (129, 257, 1025, "TN"),
        )),
        ("layers", both, (
            (128, 256, 784, "NT"), (512, 784, 256, "NN"), (256, 784, 512, "TN"),
            (4096, 11008, 4096, "NT"), (8192, 768, 3072, "NT"), (8192, 3072, 768, "NN"),
            (3072, 768, 8192, "TN"), (2048, 50304, 768, "NT"),
        )),
        ("long K", both, ((128, 128, 65536, "TN"), (512, 512, 16384, "TN"))),
    ):  # fmt: skip
        for dtype in dtypes:
            yield from (Product(kind, M, N, K, dtype, layout) for M, N, K, layout in shapes)
    for dtype in both:
        for batch, M, N, K, layout in (
            (64, 512, 512, 64, "NT"), (96, 1024, 64, 1024, "NN"), (256, 128, 128, 128, "NN"),
            (12, 2048, 2048, 64, "NT"), (1000, 33, 17, 9, "NN"),
        ):  # fmt: skip
            yield Product("batched", M, N, K, dtype, layout, batch)
    for fused in ("relu", "gelu", "backward", "weight gradient"):
        for M, N, K in ((8192, 3072, 768), (4096, 4096, 4096), (512, 256, 784)):
            layout = {"backward": "NN", "weight gradient": "TN"}.get(fused, "NT")
            yield Product("fused", M, N, K, "bfloat16", layout, fused=fused)


SWEEP = tuple(_sweep())


def measure(
    product: Product, device: Device, samples: int = 20, sample_seconds: float | None = None
) -> tuple[dict[str, Any], list[NotTimed]]:
    """Time one product: ours and the peer in turns. Returns a row for result files."""
    peer = peer_of(product, device)
    skipped: list[NotTimed] = []
    with _precision(product), clock_for(device) as clock:
        cache = last_level_cache(device)
        copies = 1
        if device.type == "cuda":
            copies = copies_for(product.bytes, cache, room_for_copies(device))
        sets = [_operands(product, device, seed) for seed in range(min(copies, 8))]
        ours = [_ours(product, operands) for operands in sets]
        contestants = [Contestant("gpunn", _in_turns(ours))]
        if peer:
            theirs = [_theirs(product, operands, peer) for operands in sets]
            contestants += [
                Contestant(name, _in_turns([calls[name] for calls in theirs]), library=peer)
                for name in theirs[0]
            ]
        row = asdict(product) | {"key": product.key, "kernel": kernel_of(product, sets[0], device)}
        row |= {"device": str(device), "errors": _errors(product, sets[0], contestants)}
        row["cache"] = "cold" if product.bytes * len(sets) >= 2 * cache else "warm"
        times, failed = interleave(contestants, clock, samples, sample_seconds)
        row["mode"] = "cpu" if device.type == "cpu" else "stream"
        as_graph: dict[str, Timing] = {}
        if device.type == "cuda" and times["gpunn"].median < LAUNCH_BOUND_SECONDS:
            graphs = []
            for contestant in contestants:
                try:
                    graphs.append(captured(contestant, clock, graph_calls(len(sets))))
                except Exception as error:
                    skipped.append(NotTimed(product.key, f"{contestant.name}, graph",
                                            one_line(error)))  # fmt: skip
            if graphs and graphs[0].name == "gpunn":
                as_graph, _ = interleave(graphs, clock, samples, sample_seconds)
                row["mode"] = "graph"
                row["graph_samples"] = {name: t.samples for name, t in as_graph.items()}
        skipped += [NotTimed(product.key, name, reason) for name, reason in failed.items()]
    row["samples"] = {name: timing.samples for name, timing in times.items()}
    if "gpunn" in times:
        compared = as_graph or times  # replayed, where launches would hide the kernels
        own = compared["gpunn"].median
        row["seconds"], row["tflops"] = own, product.flops / own / 1e12
        best = [t.median for name, t in compared.items() if name != "gpunn"]
        row["ratio"] = min(best) / own if best else None
    return row, skipped


def peer_of(product: Product, device: Device) -> str | None:
    """The library that is compared with: "torch", "cupy" or "numpy"."""
    if "torch" in peers.available(device):
        return "torch"
    if product.fused or product.dtype in ("bfloat16", "tf32"):
        return None
    if device.type == "cpu":
        return "numpy"
    return "cupy" if importlib.util.find_spec("cupy") else None


@contextlib.contextmanager
def _precision(product: Product) -> Iterator[None]:
    """The precision of float32 products, ours and PyTorch's."""
    with precision(product.dtype):
        if not importlib.util.find_spec("torch"):
            yield
            return
        torch: Any = importlib.import_module("torch")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if product.dtype == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _in_turns(calls: Sequence[Callable]) -> Callable[[int], Any]:
    return lambda i: calls[i % len(calls)]()


# ---- the two sides -------------------------------------------------------------------------------


@dataclass
class Operands:
    """Arrays on the device: a and b as they are stored, and what the fused kinds need."""

    a: Any
    b: Any
    out: Any
    bias: Any = None
    saved: Any = None
    sums: Any = None


@functools.cache
def _block() -> np.ndarray:
    """Random numbers that operands repeat, each from another place: see cases.QuickRandom."""
    return np.random.default_rng(0).standard_normal((1 << 20) + 7, np.float32)


def _operands(product: Product, device: Device, seed: int) -> Operands:
    xp, drawn = arrays.array_module(device), itertools.count()

    def made(*shape, turned=False):
        rows, columns = shape
        shape = (columns, rows) if turned else shape
        if product.batch > 1:
            shape = (product.batch, *shape)
        start = 7919 * (8 * seed + next(drawn))  # no operand is another one over again
        values = np.resize(np.roll(_block(), start), math.prod(shape))
        return xp.asarray(values.reshape(shape).astype(product.element))

    M, N, K = product.M, product.N, product.K
    left, right = (letter == "T" for letter in product.layout)
    found = Operands(made(M, K, turned=left), made(K, N, turned=right), made(M, N))
    if product.fused in ("relu", "gelu"):
        found.bias = made(1, N).reshape(N)
    if product.fused == "backward":
        found.saved, found.sums = made(M, N), made(1, N).reshape(N)
    if product.fused == "weight gradient":
        found.sums = made(1, M).reshape(M)
    return found


def _ours(product: Product, x: Operands) -> Callable[[], Any]:
    kernels = gpunn.kernels.table()
    left, right = (letter == "T" for letter in product.layout)
    turned = {"transpose_a": left, "transpose_b": right}
    if product.fused == "backward":
        return lambda: kernels["matmul_activation_backward"](
            x.a, x.b, x.saved, activation="gelu", out=x.out, bias_gradient=x.sums,
            keep_bias_gradient=True, **turned,
        )  # fmt: skip
    if product.fused == "weight gradient":
        return lambda: kernels["linear_weight_gradient"](
            x.a, x.b, out=x.out, bias_gradient=x.sums
        )
    how = {"bias": x.bias, "activation": product.fused} if product.fused else {}
    return lambda: kernels["matmul"](x.a, x.b, out=x.out, **turned, **how)


def _theirs(product: Product, x: Operands, peer: str) -> dict[str, Callable[[], Any]]:
    """The peer's ways to do it, by name; the fastest counts."""
    left, right = (letter == "T" for letter in product.layout)
    if peer in ("numpy", "cupy"):
        xp = arrays.array_module(arrays.device_of(x.a))
        a = x.a.swapaxes(-1, -2) if left else x.a
        b = x.b.swapaxes(-1, -2) if right else x.b
        return {peer: lambda: xp.matmul(a, b, out=x.out)}
    import torch
    import torch.nn.functional as F

    a, b, out = (peers.as_tensor(value) for value in (x.a, x.b, x.out))
    a, b = a.mT if left else a, b.mT if right else b
    bias, saved = peers.as_tensor(x.bias), peers.as_tensor(x.saved)
    if product.fused == "relu":
        return {
            "torch": lambda: torch.relu_(torch.addmm(bias, a, b, out=out)),
            "torch fused": lambda: torch._addmm_activation(bias, a, b, use_gelu=False, out=out),
        }
    if product.fused == "gelu":
        return {
            "torch": lambda: F.gelu(torch.addmm(bias, a, b)),
            # with tanh's GELU, which is cheaper: PyTorch has no other
            "torch fused": lambda: torch._addmm_activation(bias, a, b, use_gelu=True, out=out),
        }
    if product.fused == "backward":
        def both():
            grad = torch.ops.aten.gelu_backward(torch.mm(a, b), saved)
            return grad, grad.sum(0)

        return {"torch": both}
    if product.fused == "weight gradient":
        return {"torch": lambda: (torch.mm(a, b, out=out), a.sum(1))}
    return {"torch": lambda: torch.matmul(a, b, out=out)}


def _errors(product: Product, x: Operands, contestants: Sequence[Contestant]) -> dict[str, float]:
    """The larger relative error of two corners of each contestant's result, against float64."""
    left, right = (letter == "T" for letter in product.layout)
    a = x.a.swapaxes(-1, -2) if left else x.a
    b = x.b.swapaxes(-1, -2) if right else x.b
    first, last = slice(CORNER), slice(-CORNER, None)
    corners = []
    for matrix, part in ((0, first), (-1, last)):
        one = (matrix,) if product.batch > 1 else ()
        total = _exact(a[(*one, part, slice(None))]) @ _exact(b[(*one, slice(None), part)])
        corners.append(((*one, part, part), _fused(product, x, total, part)))
    found = {}
    for contestant in contestants:
        x.out[...] = 0
        with contextlib.suppress(Exception):  # what is wrong, the timing will tell
            result = contestant.run(0)
            result = result[0] if isinstance(result, tuple) else result
            result = x.out if result is None else peers._array(result)
            apart = [
                np.linalg.norm(_exact(result[at]) - wanted) / (np.linalg.norm(wanted) or 1.0)
                for at, wanted in corners
            ]
            found[contestant.name] = float(np.max(apart))  # NaN, if one of them is
    return found


def _exact(value) -> np.ndarray:
    """In float64 on the CPU."""
    return arrays.to_numpy(value).astype(np.float64)


def _fused(product: Product, x: Operands, total: np.ndarray, part: slice) -> np.ndarray:
    """What becomes of a corner of the product."""
    if x.bias is not None:
        bias = _exact(x.bias[part])
        return activation_forward(total + bias, activation=product.fused)
    if x.saved is not None:
        return activation_backward(total, _exact(x.saved[part, part]), activation="gelu")
    return total


def kernel_of(product: Product, x: Operands, device: Device) -> str:
    """The kernel that the rule chooses, as the launch code names it; on a CPU as on an H200."""
    noted = noting_launcher("matmul.cu", device)
    with intercepting(lambda call, args: call.primitive.run_cuda(noted, args)):
        _ours(product, x)()
    names = [e for _, e in noted.launches if e.startswith("matmul") and "combine" not in e]
    return names[0] if names else ""
