"""The story of the matrix product: fourteen kernels, each with one idea more.

    python benchmarks/matmul_story/run.py                 predicted limits; on a GPU, times too
    python benchmarks/matmul_story/run.py --explain 06    how the prediction of a step comes about
    python benchmarks/matmul_story/run.py --check         all steps in the emulator, without a GPU
    python benchmarks/matmul_story/run.py --size 8192 8192 4096 --steps 10 14 --json story.json
    python benchmarks/matmul_story/run.py --markdown      the table of docs/kernels/matmul.md
    python benchmarks/matmul_story/run.py --picture docs/kernels/matmul_limits.svg

docs/kernels/matmul.md tells the story. --check runs each kernel with every access checked and
compares it with the product in float64. On a GPU the kernels are timed in turns with cuBLAS
(through CuPy), and their results are compared, too. Exit code 1: a result was wrong; 2: a size that
the kernels cannot multiply.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from steps import CHIPS, STEPS, Chip, Step  # noqa: E402  (the folder is on the path from here on)

from gpunn.text import table  # noqa: E402

NOT_RUN = "not yet run on hardware"


def main(given: Sequence[str] | None = None) -> int:
    """Predict, and check or time."""
    arguments = parser().parse_args(given)
    steps = [step for step in STEPS if step.number in arguments.steps]
    chip = CHIPS[arguments.chip]
    if arguments.explain:
        for step in STEPS:
            if step.number in arguments.explain:
                print(explained(step, chip), end="\n\n")
        return 0
    if arguments.check:
        return check(steps)
    try:
        for step in steps:
            step.check_size(*arguments.size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    device, reason = usable_gpu()
    measured = time_on(device, steps, arguments.size, arguments.samples) if device else {}
    cells = cells_of(steps, chip, arguments.size, measured)
    if arguments.markdown:
        from gpunn.bench.report import markdown

        print(markdown(HEADERS, cells, 4), end="")
    else:
        print_table(cells, chip, arguments.size)
    if device is None and not arguments.markdown:
        print(f"\nSpeed was not measured: {reason}")
    if arguments.picture:
        from picture import draw

        draw(arguments.picture, steps, chip, arguments.size, measured)
    if arguments.json:
        write_json(arguments.json, steps, chip, arguments.size, device, measured, reason)
    return int(any(not row["correct"] for row in measured.values() if "correct" in row))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    numbers = [step.number for step in STEPS]
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--size", nargs=3, type=int, default=(4096, 4096, 4096),
                      metavar=("M", "N", "K"), help="default: 4096 4096 4096")  # fmt: skip
    made.add_argument("--steps", nargs="+", choices=numbers, default=numbers, metavar="NN")
    made.add_argument("--chip", choices=sorted(CHIPS), default="H200",
                      help="whose published figures predict (default: H200)")  # fmt: skip
    made.add_argument("--explain", nargs="+", choices=numbers, metavar="NN", help="the arithmetic")
    made.add_argument("--check", action="store_true", help="run all in the emulator, small")
    made.add_argument("--markdown", action="store_true", help="the table for the documentation")
    made.add_argument("--picture", metavar="FILE", help="draw it (.svg or .png; needs matplotlib)")
    made.add_argument("--samples", type=int, default=20, help="of each time (default: 20)")
    made.add_argument("--json", metavar="FILE", help="write predictions and all samples")
    return made


# ---- predictions ---------------------------------------------------------------------------------


HEADERS = ["", "idea", "dtype", "limit", "TFLOP/s at most", "of peak", "measured TFLOP/s"]


def cells_of(steps: Sequence[Step], chip: Chip, size, measured: dict[str, dict]) -> list[list[str]]:
    """A row a step: what limits it, the predicted rate, and the measured one; then cuBLAS's."""
    rows = []
    for step in steps:
        found = step.predict(chip, *size)
        rows.append([
            step.number, step.idea, step.dtype, found.limit, f"{found.flops / 1e12:.1f}",
            f"{found.flops / chip.peak(step.dtype):.1%}", measured_text(measured.get(step.file)),
        ])  # fmt: skip
    for name, row in measured.items():
        if name.startswith("cuBLAS"):
            rows.append(["", name, "", "", "", "", measured_text(row)])
    return rows


def print_table(cells: Sequence[Sequence[str]], chip: Chip, size) -> None:
    """The table for a terminal."""
    sizes = ", ".join(map(str, size))
    print(f"C[M, N] = A B for M, N, K = {sizes}; predictions for the {chip.name}\n")
    print(table(HEADERS, cells, right=(4, 5, 6)))


def measured_text(row: dict | None) -> str:
    """One cell of the measured column."""
    if row is None:
        return NOT_RUN
    return row["error"] if "error" in row else f"{row['tflops']:.1f}"


def explained(step: Step, chip: Chip) -> str:
    """The arithmetic behind the prediction of one step."""
    rows, columns, depth = step.tile
    clocks = step.clocks(chip)
    limit = max(clocks, key=clocks.__getitem__)
    fraction = clocks["arithmetic"] / clocks[limit]
    lines = [
        f"{step.file}: {step.idea}",
        f"  a block, a slice: {rows} x {columns} x {depth} multiply-adds",
        f"  arithmetic  {clocks['arithmetic']:8.1f} clocks at {chip.rate(step.dtype)} a clock",
        f"  load path   {clocks['load path']:8.1f} clocks:",
        *(f"              {count:8} {words}" for words, count in step.wavefronts),
    ]
    if step.instructions:
        lines.append(
            f"  issue       {clocks['issue']:8.1f} clocks: {step.threads // 32} warps x "
            f"{step.instructions:.4g} instructions / {chip.issue}"
        )
    lines += [
        f"  L2          {clocks['L2']:8.1f} clocks: {step.l2:,} bytes / {chip.l2_bytes:.1f}",
        f"  the limit is {limit}: {fraction:.1%} of the peak of {chip.peak(step.dtype) / 1e12:.1f} "
        f"TFLOP/s, {fraction * chip.peak(step.dtype) / 1e12:.1f} TFLOP/s",
    ]
    return "\n".join(lines)


# ---- inputs and results --------------------------------------------------------------------------


def operands(dtype: str, M: int, N: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal numbers: A (M, K), and B as (K, N) in float32 or as (N, K) in bfloat16."""
    random = np.random.default_rng(seed)
    number = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    shapes = ((M, K), (K, N) if dtype == "float32" else (N, K))
    a, b = (random.standard_normal(shape, np.float32).astype(number) for shape in shapes)
    return a, b


def error_of(dtype: str, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The relative error against float64 in the Frobenius norm."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    wanted = wide_a @ (wide_b if dtype == "float32" else wide_b.T)
    return float(np.linalg.norm(c.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def allowed_error(dtype: str, K: int) -> float:
    """What rounding may do, in the same norm.

    float32: K roundings of the sum, which add up like a random walk, and one of each product. In
    bfloat16 the rounding of the result rules: evenly spread up to 2^-8 of it, 2^-8 / sqrt(3) in
    the mean square.
    """
    return 2.0**-8 / 3**0.5 if dtype == "bfloat16" else 2.0**-24 * (1 + K**0.5)


def launch_arguments(step: Step, a, b, c, M: int, N: int, K: int) -> tuple:
    """What the kernel takes."""
    sizes = (np.int32(M), np.int32(N), np.int32(K))
    if step.boxes is None:
        return (c, a, b, *sizes)
    from gpunn.emulator import TensorMap

    depth = step.tile[2]
    rows_a, rows_b = step.boxes
    return (c, TensorMap(a, (rows_a, depth)), TensorMap(b, (rows_b, depth)), *sizes)


# ---- in the emulator -----------------------------------------------------------------------------


def small_size(step: Step) -> tuple[int, int, int]:
    """Two tiles each way, and five slices (32 k at least): each loop and each ring goes around."""
    rows, columns, depth = step.multiples
    return 2 * rows, 2 * columns, max(5 * depth, 32)


def emulate(step: Step, size: tuple[int, int, int], multiprocessors: int = 0, **settings) -> float:
    """Run a step in the emulator, every access checked; the relative error of its result.

    `multiprocessors` is the size of a persistent grid: by default one cluster, which then walks
    over all tiles.
    """
    from gpunn import emulator

    step.check_size(*size)
    M, N, K = size
    a, b = operands(step.dtype, M, N, K)
    c = np.zeros((M, N), a.dtype)
    kernel = emulator.RawModule(path=step.path, check=True, **settings).get_function("matmul")
    kernel.max_dynamic_shared_size_bytes = max(step.shared, 48 << 10)
    grid = step.grid(M, N, multiprocessors or step.cluster)
    kernel(grid, step.block, launch_arguments(step, a, b, c, M, N, K), shared_mem=step.shared)
    return error_of(step.dtype, c, a, b)


def check(steps: Sequence[Step]) -> int:
    """Every step in the emulator against float64."""
    rows, wrong = [], False
    for step in steps:
        size = small_size(step)
        error, allowed = emulate(step, size), allowed_error(step.dtype, size[2])
        wrong |= not error <= allowed
        rows.append([
            step.file, " x ".join(map(str, size)), f"{error:.1e}", f"{allowed:.1e}",
            "right" if error <= allowed else "WRONG",
        ])  # fmt: skip
    print(table(["kernel", "M x N x K", "error", "allowed", ""], rows, right=(2, 3)))
    return int(wrong)


# ---- on a GPU ------------------------------------------------------------------------------------


def usable_gpu():
    """The device and "", or None and why there is none."""
    from gpunn.device.device import Device
    from gpunn.errors import DeviceError

    try:
        return Device("cuda"), ""
    except DeviceError as error:
        return None, str(error)


def can_run(step: Step, arch: str) -> bool:
    """Whether a GPU of this architecture has the instructions."""
    if step.arch == "sm_90a":
        return arch == "sm_90a"
    return int(arch.strip("sm_af")) >= int(step.arch.strip("sm_"))


def time_on(device, steps: Sequence[Step], size, samples: int) -> dict[str, dict]:
    """All steps in turns with cuBLAS; rows by file, and cuBLAS by "cuBLAS float32" and so on."""
    import cupy

    from gpunn.bench.timing import Contestant, clock_for, interleave, one_line
    from gpunn.device.cuda_launch import cuda_launcher
    from gpunn.errors import GpunnError

    M, N, K = size
    rows: dict[str, dict] = {}
    contestants: list[Contestant] = []
    with clock_for(device) as clock:
        arrays = {}
        for dtype in sorted({step.dtype for step in steps}):
            a, b = (cupy.asarray(array) for array in operands(dtype, M, N, K))
            arrays[dtype] = a, b, cupy.zeros((M, N), a.dtype)
            try:
                contestants.append(cublas(dtype, a, b))
            except ImportError as error:
                rows[f"cuBLAS {dtype}"] = {"error": one_line(error)}
        for step in steps:
            launcher = cuda_launcher(str(step.path), device)
            if not can_run(step, launcher.arch):
                rows[step.file] = {"error": f"needs {step.arch}, this GPU is {launcher.arch}"}
                continue
            a, b, c = arrays[step.dtype]
            call = (
                "matmul", step.grid(M, N, launcher.multiprocessors), step.block,
                launch_arguments(step, a, b, c, M, N, K), step.shared,
            )  # fmt: skip
            c.view(np.uint8).fill(0)  # what another step left there must not count
            try:
                launcher(*call)
                clock.synchronize()
            except GpunnError as error:
                rows[step.file] = {"error": one_line(error)}
                continue
            rows[step.file] = compared(step, c, a, b)
            contestants.append(Contestant(step.file, lambda i, f=launcher, c=call: f(*c)))
        timings, failed = interleave(contestants, clock, samples)
    for name, timing in timings.items():
        rows.setdefault(name, {}).update(
            median_seconds=timing.median, samples=list(timing.samples),
            tflops=2 * M * N * K / timing.median / 1e12,
        )  # fmt: skip
    for name, error in failed.items():
        rows.setdefault(name, {})["error"] = error
    return rows


def compared(step: Step, c, a, b) -> dict:
    """The error of a result on the GPU, against float64 there."""
    import cupy

    wide_a, wide_b = (x.astype(cupy.float32).astype(cupy.float64) for x in (a, b))
    wanted = wide_a @ (wide_b if step.dtype == "float32" else wide_b.T)
    got = c.astype(cupy.float32).astype(cupy.float64)
    error = float(cupy.linalg.norm(got - wanted) / cupy.linalg.norm(wanted))
    return {"error_vs_float64": error, "correct": error <= allowed_error(step.dtype, a.shape[1])}


def cublas(dtype: str, a, b):
    """cuBLAS's product of the same operands."""
    import cupy

    from gpunn.bench.timing import Contestant

    name, (M, K), N = f"cuBLAS {dtype}", a.shape, b.shape[1 if dtype == "float32" else 0]
    out = cupy.empty((M, N), a.dtype)
    if dtype == "float32":
        return Contestant(name, lambda i: cupy.matmul(a, b, out=out), library="cupy")
    from cupy_backends.cuda.libs import cublas as library

    # CuPy's matmul takes no bfloat16, but CuPy has the call. cuBLAS counts columns first: what is
    # C = A B^T to us is C^T = B A^T to it, with B to be transposed.
    transpose, as_it_is = library.CUBLAS_OP_T, library.CUBLAS_OP_N
    bfloat16, compute_float32, any_algorithm = 14, 68, -1  # CUDA_R_16BF, CUBLAS_COMPUTE_32F
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    handle = cupy.cuda.device.get_cublas_handle()

    def run(i):
        library.gemmEx(
            handle, transpose, as_it_is, N, M, K, one.ctypes.data, b.data.ptr, bfloat16, K,
            a.data.ptr, bfloat16, K, zero.ctypes.data, out.data.ptr, bfloat16, N,
            compute_float32, any_algorithm,
        )  # fmt: skip

    return Contestant(name, run, library="cupy")


def write_json(path: str, steps, chip: Chip, size, device, measured: dict, reason: str) -> None:
    """Predictions, times, and what they were measured on."""
    from gpunn.bench import machine
    from gpunn.device.device import Device

    found = {
        "size": list(size),
        "chip of the predictions": chip.name,
        "machine": machine.machine(device or Device("cpu")),
        "measured": bool(device),
        "why not": reason or None,
        "steps": [],
        "peers": {name: row for name, row in measured.items() if name.startswith("cuBLAS")},
    }
    for step in steps:
        made = step.predict(chip, *size)
        found["steps"].append({
            "file": step.file, "idea": step.idea, "dtype": step.dtype, "limit": made.limit,
            "clocks a slice": made.clocks, "predicted_tflops": made.flops / 1e12,
            "measured": measured.get(step.file),
        })  # fmt: skip
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
