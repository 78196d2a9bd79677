"""Every kernel that could make a product, checked one by one against float64.

The rule of `matmul_plan` reaches only some of the kernels for any one chip and shape. Here are
problems that all of them can make, and what the results must be; the tests run them in the
emulator, and the run on hardware on the GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from gpunn.device import arrays
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import matmul_mma, matmul_simt, matmul_wgmma
from gpunn.primitives.activation import activation_backward, activation_forward
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.matmul_problem import Finish, Problem, batch_dimensions, problem_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)


def random(shape, dtype, seed: int = 0):
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# What is done to the sums; the kernels have different ways out for them.
ENDINGS: dict[str, dict[str, Any]] = {
    "direct": {"bias": True, "activation": "relu"},
    "forward": {"bias": True, "activation": "gelu", "preactivation": True, "scale": 0.5},
    "backward": {"saved": True, "activation": "silu", "column_sums": True},
    "weight gradient": {"row_sums": True},
    "added to": {"residual": "out"},
}
LAYOUTS = ("NN", "NT", "TN", "TT")
TALL, FLAT, LARGE, ODD = (200, 264, 200), (40, 200, 136), (264, 264, 8), (33, 65, 7)


def make_problem(
    M, N, K, dtype, layout="NN", batch=(), batch_b=None, device="cpu", **finish
) -> Problem:
    """A problem with random operands; layout "TN" has a contiguous along its rows.

    finish : fields of `Finish`; True stands for a random (or, where written, an empty) array,
        residual="out" for the output itself
    """
    a = random((*batch, M, K), dtype, 1)
    b = random((*(batch if batch_b is None else batch_b), K, N), dtype, 2)
    place = functools.partial(arrays.to_device, device=device)
    a, b = (
        place(np.swapaxes(x, -1, -2).copy()).swapaxes(-1, -2) if turned == "T" else place(x)
        for x, turned in zip((a, b), layout, strict=True)
    )
    out = place(np.full((*batch, M, N), np.nan, dtype))
    shapes = {"bias": (N,), "column_sums": (N,), "row_sums": (M,)}
    for seed, (name, value) in enumerate(finish.items(), 3):
        if value is True:
            written = name in ("column_sums", "row_sums", "preactivation")
            shape = shapes.get(name, out.shape)
            values = np.full(shape, np.nan, dtype) if written else random(shape, dtype, seed)
            finish[name] = place(values)
        elif isinstance(value, str) and value == "out":
            out[...] = place(random(out.shape, dtype, seed))
            finish[name] = out
    dims = batch_dimensions(a, b, batch)
    return problem_of(a, b, Finish(out, **finish), dims)


def expected(p: Problem) -> dict[str, np.ndarray]:
    """What each array of the problem must be after the launch, in float64; call it before."""
    finish = p.finish
    total = finish.scale * np.matmul(exact(p.a), exact(p.b))
    result = {}
    known = {"activation": finish.activation}
    if finish.alpha:
        known["alpha"] = finish.alpha
    if finish.backward:
        out = activation_backward(total, exact(finish.saved), **known)
    else:
        if finish.bias is not None:
            total = total + exact(finish.bias)
        if finish.preactivation is not None:
            result["preactivation"] = total
        out = activation_forward(total, **known)
    if finish.residual is not None:
        out = out + exact(finish.residual)
    if finish.column_sums is not None:
        result["column_sums"] = out.reshape(-1, p.N).sum(0)
    if finish.row_sums is not None:
        result["row_sums"] = exact(p.a).sum(1)
    return result | {"out": out}


def exact(array) -> np.ndarray:
    """In float64 on the CPU."""
    return arrays.to_numpy(array).astype(np.float64)


def error(actual, wanted) -> float:
    """The relative error of a whole array; NaN if there is one."""
    norm = float(np.linalg.norm(wanted)) or 1.0
    return float(np.linalg.norm(exact(actual) - wanted)) / norm


def run_and_check(option, launch, p: Problem, tolerance: float) -> float:
    """Run an option and compare all that it writes; gives the error of `out`."""
    wanted = expected(p)
    option.run(launch, p)
    for name, values in wanted.items():
        found = error(getattr(p.finish, name), values)
        assert found <= tolerance * (4 if name.endswith("sums") else 1), (
            f"{option.name} on {p.M}x{p.N}x{p.K} {p.a.dtype}: {name} is off by {found:.1e}"
        )
    return error(p.out, wanted["out"])


def rounding(dtype) -> float:
    """The relative error that rounding once makes, with some room."""
    return {2: 1.2 * 2.0**-9 if dtype == BFLOAT16 else 1.2 * 2.0**-12, 4: 1e-6}[dtype.itemsize]


def bound(K: int) -> float:
    """The error that matmul's docstring admits for float32."""
    return 1e-6 * max(1.0, math.sqrt(K) / 32)


# ---- the whole menu ------------------------------------------------------------------------------

_FLOAT32_MODES = {"split": 2e-7, "tf32": 5e-4, "bfloat16": 4e-3}
# (mode, dtype) of the products on tensor cores.
KINDS = (("native", BFLOAT16), ("native", FLOAT16), *((m, FLOAT32) for m in _FLOAT32_MODES))
_DTYPES = {dtype.name: dtype for _, dtype in KINDS}


def tolerance_of(mode: str, dtype) -> float:
    """The error that a product in this mode may have."""
    return rounding(dtype) if mode == "native" else _FLOAT32_MODES[mode]


def options_of(problem: Problem, chip, mode: str) -> list[Option]:
    """The tensor-core options for a problem, of all kernels that the chip has."""
    found = [] if mode == "bfloat16" else matmul_mma.options(problem, chip, mode)
    return found + (matmul_wgmma.options(problem, chip, mode) if chip.arch == "sm_90a" else [])


def base_name(option: Option) -> str:
    """An option's name without the parts of K, which the shape decides."""
    return re.sub(r" k\d+$", "", option.name)


def menu(chip) -> list[tuple[str, str, str]]:
    """(mode, dtype's name, kernel with its tile) of all tensor-core kernels of a chip."""
    found: dict[tuple[str, str, str], None] = {}
    for mode, dtype in KINDS:
        for shape in (TALL, FLAT):
            for option in options_of(make_problem(*shape, dtype), chip, mode):
                found[mode, dtype.name, base_name(option)] = None
    return list(found)


def menu_kernels(chip: RecordingLauncher) -> dict[str, set[str]]:
    """Every kernel of the menu, those of the ordinary units too: source -> name expressions."""
    found: dict[str, set[str]] = {}
    for mode, dtype in KINDS:
        for finish in ENDINGS.values():
            for shape, layout in itertools.product((TALL, FLAT, LARGE, ODD), LAYOUTS):
                problem = make_problem(*shape, dtype, layout, **finish)
                options = options_of(problem, chip, mode)
                for option in options + matmul_simt.options(problem, chip):
                    option.run(chip, problem)
    for source, expression in chip.launches:
        found.setdefault(source, set()).add(expression)
    return found


def check_kernel(
    launch, mode: str, dtype: str, name: str, device: str, few: bool = False
) -> Iterator[tuple[str, str]]:
    """Run one kernel of the menu on every layout and ending: (case, what is wrong or "")."""
    element = _DTYPES[dtype]
    for shape in (TALL, FLAT):
        for number, (ending, finish) in enumerate(ENDINGS.items()):
            # The way in and the way out of a kernel know nothing of each other.
            for layout in LAYOUTS if ending == "direct" else (LAYOUTS[number % 4],):
                problem = make_problem(*shape, element, layout, device=device, **finish)
                for option in options_of(problem, launch, mode):
                    if base_name(option) != name:
                        continue
                    case = f"{'x'.join(map(str, shape))} {layout} {ending}"
                    try:
                        run_and_check(option, launch, problem, tolerance_of(mode, element))
                        yield case, ""
                    except Exception as error:
                        yield case, f"{type(error).__name__}: {error}"
                if few:
                    return


def check_many_tiles(
    launch, mode: str, dtype: str, name: str, device: str, repeats: int = 20
) -> Iterator[tuple[str, str]]:
    """Run one kernel where each block has several tiles and the ring of stages goes round.

    For a GPU: the whole result is compared with float64 there, and all repeats must have its bits.
    """
    element = _DTYPES[dtype]
    shapes = ((4100, 4104, 1096), (64, 40008, 1096))
    for (M, N, K), ending in itertools.product(shapes, ("direct", "forward")):
        problem = make_problem(M, N, K, element, "NT", device=device, **ENDINGS[ending])
        for option in options_of(problem, launch, mode):
            if base_name(option) != name:
                continue
            try:
                reason = _many_tiles(option, launch, problem, tolerance_of(mode, element), repeats)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            yield f"{M}x{N}x{K} NT {ending}", reason


def _many_tiles(option, launch, p: Problem, tolerance: float, repeats: int) -> str:
    """What is wrong with a large product, or ""; everything stays on the device."""
    xp = arrays.array_module(arrays.device_of(p.out))

    def wide(array):
        if array.dtype == BFLOAT16:  # CuPy converts none: its bits are a float32's upper half
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float64)

    option.run(launch, p)
    first = p.out.copy()
    total = p.finish.scale * (wide(p.a) @ wide(p.b.T).T) + wide(p.finish.bias)
    alike = wide(first if p.finish.preactivation is None else p.finish.preactivation)
    if p.finish.preactivation is None:
        total = xp.maximum(total, 0)  # the ending "direct" has relu
    found = float(xp.linalg.norm(alike - total) / xp.linalg.norm(total))
    if not found <= tolerance:
        return f"relative error {found:.1e}"
    raw = first.view(np.uint16 if first.itemsize == 2 else np.uint32)
    for number in range(repeats):
        option.run(launch, p)
        if not bool((p.out.view(raw.dtype) == raw).all()):
            return f"repeat {number + 1} has other bits"
    return ""
