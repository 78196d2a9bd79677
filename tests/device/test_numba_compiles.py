"""Every Numba kernel that the samples reach compiles to PTX, and computes in its dtype; no GPU."""

from __future__ import annotations

import functools
import re
import types

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import Device, probe, sources
from gpunn.device.launch import NumbaLauncher, numba_simulated
from gpunn.primitives import parity
from gpunn.primitives.registry import intercepting

pytestmark = pytest.mark.skipif(
    numba_simulated() or not probe.find_numba().passed, reason="Numba compiles no kernels here"
)
ARCHITECTURES = {"float32": (9, 0), "other": (8, 0)}
# Where float64 is meant: losses and norms are summed in it, random numbers made by it; and
# hyperparameters are float64, which an update converts once; places in resized images.
WIDE_SOURCES = ("loss.py", "mlp.py", "clip.py", "random.py", "resize.py")
WIDE_KERNELS = ("cross_entropy_finish", "advance_step", "_update")
WIDENED = re.compile(r"\b(?:add|sub|mul|fma|div|sqrt|rcp)(?:\.rn)?\.f64\b")


class Recorder(NumbaLauncher):
    """Takes notes instead of launching: the arguments of each kernel, by name and dtype."""

    def __init__(self, source: str, found: dict):
        super().__init__(source, Device("cpu"))
        self.found = found

    def __call__(self, name, grid, block, args, shared=0):
        dtype = next((a.dtype.name for a in args if np.ndim(a)), "")
        self.found.setdefault((self.source, name, dtype), args)


@functools.cache
def reached() -> dict:
    """(source, kernel, dtype) → arguments, of all that the samples launch."""
    found: dict = {}

    def record(call, args):
        call.primitive._numba(Recorder(call.primitive.numba_source, found), *args)

    with intercepting(record), np.errstate(all="ignore"):
        for made in kernels.table().values():
            for sample, dtype in parity.cases(made, "numba"):
                args, kwargs = sample.cast(dtype)
                made(*args, **kwargs)
    return found


@pytest.fixture
def without_a_gpu(monkeypatch):
    """Numba asks the current GPU what to compile device functions for: there is none here."""
    from numba.cuda import api
    from numba.cuda.cudadrv import devices

    def pretend(compute_capability):
        device = types.SimpleNamespace(compute_capability=compute_capability)
        context = types.SimpleNamespace(device=device)
        monkeypatch.setattr(devices, "get_context", lambda number=None: context)
        monkeypatch.setattr(api, "current_context", lambda number=None: context)

    return pretend


@pytest.mark.parametrize("source", sorted({m.numba_source for m in kernels.table().values()}))
def test_compiles(source, without_a_gpu):
    from numba import cuda

    module = sources.numba_module(source)
    mine = {key[1:]: args for key, args in reached().items() if key[0] == source}
    assert mine
    for (name, dtype), args in mine.items():
        capability = ARCHITECTURES.get(dtype, ARCHITECTURES["other"])
        without_a_gpu(capability)
        kernel = getattr(module, name)
        signature = tuple(cuda.dispatcher.typeof(a) for a in args)
        text, _ = cuda.compile_ptx(kernel.py_func, signature, cc=capability)
        assert f".target sm_{capability[0]}{capability[1]}" in text
        assert ".local" not in text, f"{name}: a local array did not become registers"
        wide = source in WIDE_SOURCES or any(word in name for word in WIDE_KERNELS)
        if dtype == "float32" and not wide:
            widened = WIDENED.findall(text)
            assert not widened, f"{name} computes in float64: {widened[:3]}"
        if source == "reduce.py" and np.dtype(dtype).kind in "iu":
            assert ".f64" not in text, f"{name}: sums of integers lose what float64 cannot hold"
        if name == "row_norm_backward_float32":
            assert not rounded_elsewhere(text), f"{name}: a row of one element does not cancel"


def rounded_elsewhere(text: str) -> set[str]:
    """The products that something is subtracted from: ptxas makes one instruction of the two, which
    does not round the product, so that the same product added up elsewhere is another number."""
    return set(re.findall(r"mul\.f32\s+(%f\d+),", text)) & set(
        re.findall(r"sub\.f32\s+%f\d+, (%f\d+),", text)
    )


def test_the_matrix_product_reads_shared_memory_by_sixteen_bytes(without_a_gpu):
    from numba import cuda, float32
    from numba import types as numba_types

    without_a_gpu((9, 0))
    module = sources.numba_module("matmul.py")
    three, one = (numba_types.Array(float32, n, "C") for n in (3, 1))
    text, _ = cuda.compile_ptx(module.matmul_float32.py_func, (three, three, one, three), cc=(9, 0))
    assert text.count("ld.shared.v4.f32") >= 3
    assert "ld.shared.f32" not in text
