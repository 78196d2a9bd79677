"""How fast the emulator is: matrix products, a softmax, compiling a file, a launch.

    python benchmarks/emulator.py
    python benchmarks/emulator.py --samples 15 --threads 1
    python benchmarks/emulator.py --prototype FOLDER        beside another emulator, in turns

The other emulator is a folder with emu/emu.py and kernels/*.cu of the same work. Each of the two
runs in a process of its own; they take turns, sample by sample. Numbers are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

N = 512  # of the matrix products
ROWS, COLUMNS = 512, 1024  # of the softmax
FLOPS = 2 * N**3
MEASURES = [
    ("mma GEMM 512^3", "mma", FLOPS),
    ("wgmma GEMM 512^3", "wgmma", FLOPS),
    ("softmax 512x1024", "softmax", 0),
    ("launch of 1 block", "launch", 0),
    ("launch of 64 blocks", "launch64", 0),
    ("compile gemm_mma.cu", "compile", 0),
]


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=9, help="of each measure (default: 9)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prototype", metavar="FOLDER", help="another emulator to compare with")
    parser.add_argument("--only", nargs="+", choices=[key for _, key, _ in MEASURES])
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of processor time of all threads, for a machine that does other things too",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples")
    parser.add_argument("--worker", choices=["gpunn", "prototype"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return serve(given)
    chosen = [row for row in MEASURES if not given.only or row[1] in given.only]
    names = ["gpunn"] + (["prototype"] if given.prototype else [])
    workers = {name: Worker(name, given) for name in names}
    samples = {}
    for _, key, _ in chosen:
        for check in (False, True):
            for name in names:
                workers[name].ask(key, check)  # compiles, and warms up
            for _ in range(given.samples):
                for name in names:
                    seconds = workers[name].ask(key, check)
                    samples.setdefault((key, check, name), []).append(seconds)
    print_table(chosen, names, samples, given)
    if given.json:
        rows = [
            {"measure": key, "check": check, "of": name, "seconds": values}
            for (key, check, name), values in samples.items()
        ]
        Path(given.json).write_text(json.dumps({"threads": given.threads, "samples": rows}))
    return 0


def print_table(chosen, names, samples, given) -> None:
    """Medians, and ratios of medians."""
    from gpunn.emulator import toolchain
    from gpunn.text import table

    headers = ["", "", *names, *(["ratio"] if len(names) > 1 else []), "spread"]
    rows = []
    for label, key, flops in chosen:
        for check in (False, True):
            medians = [statistics.median(samples[key, check, name]) for name in names]
            texts = [shown(median, flops) for median in medians]
            ratio = [f"{medians[1] / medians[0]:.2f}"] if len(names) > 1 else []
            ours = samples[key, check, "gpunn"]
            spread = f"{shown(min(ours), flops)} … {shown(max(ours), flops)}"
            rows.append([label, "checked" if check else "fast", *texts, *ratio, spread])
    kind = "processor time" if given.cpu_time else "time"
    print(
        f"{toolchain.compiler()}, {given.threads} threads, {kind}, medians of {given.samples} "
        "samples\n"
    )
    print(table(headers, rows, right=range(2, len(headers))))
    if len(names) > 1:
        print("\nratio: the prototype's time over ours; above 1 ours is faster")


def shown(seconds: float, flops: float) -> str:
    """GFLOP/s or milliseconds."""
    return f"{flops / seconds / 1e9:.2f} GFLOP/s" if flops else f"{seconds * 1e3:.2f} ms"


class Worker:
    """A process that measures; both emulators export the same symbols, so each has its own."""

    def __init__(self, name: str, given: argparse.Namespace):
        command = [sys.executable, __file__, "--worker", name, "--threads", str(given.threads)]
        command += ["--prototype", given.prototype] if given.prototype else []
        command += ["--cpu-time"] if given.cpu_time else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, key: str, check: bool) -> float:
        """Seconds of one sample."""
        self.process.stdin.write(json.dumps([key, check]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker has ended; see above")
        return json.loads(line)


# ---- in the workers ------------------------------------------------------------------------------


def serve(given: argparse.Namespace) -> int:
    """Answer requests until there are no more."""
    side = Ours(given.threads) if given.worker == "gpunn" else Prototype(given)
    if given.cpu_time:
        side.clock = processor_time
    for line in sys.stdin:
        key, check = json.loads(line)
        print(json.dumps(side.sample(key, check)), flush=True)
    return 0


def processor_time() -> float:
    """Seconds that this process and its children, the compilers, have worked."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def bfloat16(array):
    """Upper halves of float32, as uint16."""
    import numpy as np

    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


class Side:
    """One emulator: `kernels` by measure, and the arguments that all share."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, threads: int):
        import numpy as np

        self.threads, self.kernels, self.compiled = threads, {}, 0
        random = np.random.default_rng(0)
        self.a, self.b = (bfloat16(random.standard_normal((N, N))) for _ in range(2))
        self.c, self.sizes = np.zeros((N, N), np.uint16), (np.int32(N),) * 3
        self.x = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        self.p, self.loss = np.zeros_like(self.x), np.zeros(ROWS, np.float32)
        self.label, self.columns = np.zeros(ROWS, np.int32), np.int32(COLUMNS)
        self.small = np.zeros(64 * 128, np.float32)

    def sample(self, key: str, check: bool) -> float:
        """Seconds of one launch, or of one compilation."""
        if key == "compile":
            self.compiled += 1
            start = self.clock()
            self.compile(check, (f"-DRUN={os.getpid()}{self.compiled}",))
            return self.clock() - start
        first = (key, check) not in self.kernels
        if first:
            self.kernels[key, check] = self.make(key, check)
        launch = self.kernels[key, check]
        start = self.clock()
        launch()
        seconds = self.clock() - start
        if first:
            self.verify(key)
        return seconds

    def verify(self, key: str) -> None:
        """The result must be right."""
        import numpy as np

        a, b, c = ((u.astype(np.uint32) << 16).view(np.float32) for u in (self.a, self.b, self.c))
        if key in ("mma", "wgmma"):
            wanted = a @ (b if key == "mma" else b.T)
            assert np.abs(c - wanted).max() < 0.01 * np.abs(wanted).max(), key
            self.c[:] = 0
        if key == "softmax":
            assert np.allclose(self.p.sum(axis=1), 1, atol=1e-5)


class Ours(Side):
    """gpunn.emulator with the kernels in benchmarks/emulator_kernels."""

    def module(self, name: str, check: bool, options=()):
        from gpunn import emulator

        path = HERE / "emulator_kernels" / f"{name}.cu"
        return emulator.RawModule(path=path, options=options, check=check, threads=self.threads)

    def compile(self, check: bool, options) -> None:
        self.module("gemm_mma", check, options).get_function("gemm_mma")

    def make(self, key: str, check: bool):
        import ml_dtypes

        from gpunn import emulator

        if key == "softmax":
            kernel = self.module("softmax", check).get_function("softmax")
            arguments = (self.p, self.loss, self.x, self.label, self.columns)
            return lambda: kernel((ROWS,), (256,), arguments)
        if key.startswith("launch"):
            kernel = self.module("launch", check).get_function("touch")
            blocks = 64 if key == "launch64" else 1
            return lambda: kernel((blocks,), (128,), (self.small, self.sizes[0]))
        kernel = self.module(f"gemm_{key}", check).get_function(f"gemm_{key}")
        a, b, c = (array.view(ml_dtypes.bfloat16) for array in (self.a, self.b, self.c))
        if key == "mma":
            shared = 3 * (128 * 40 + 32 * 136) * 2
            kernel.max_dynamic_shared_size_bytes = shared
            return lambda: kernel((4, 4), (256,), (c, a, b, *self.sizes), shared_mem=shared)
        maps = [emulator.TensorMap(array, (128, 64), swizzle=128) for array in (a, b)]
        shared = 3 * 128 * 64 * 2 * 2
        kernel.max_dynamic_shared_size_bytes = shared
        return lambda: kernel((4, 4), (384,), (*maps, c, *self.sizes), shared_mem=shared)


class Prototype(Side):
    """The other emulator, with its own kernels."""

    def __init__(self, given: argparse.Namespace):
        super().__init__(given.threads)
        folder = Path(given.prototype).resolve()
        sys.path.insert(0, str(folder / "emu"))
        import emu

        from gpunn.emulator import toolchain

        headers = [*toolchain.header_folders(), str(toolchain.HOST / "include")]
        emu._inc = lambda: headers
        self.emu, self.folder = emu, folder / "kernels"

    def kernel(self, path: Path, name: str, check: bool, options=()):
        return self.emu.RawModule(str(path), [name], options, check=check).get_function(name)

    def compile(self, check: bool, options) -> None:
        self.kernel(self.folder / "c_gemm_mma.cu", "gemm_mma<3>", check, options)

    def make(self, key: str, check: bool):
        more = {"threads": self.threads}
        if key == "softmax":
            kernel = self.kernel(self.folder / "b_softmax.cu", "softmax_xent", check)
            arguments = (self.p, self.loss, self.x, self.label, self.columns)
            return lambda: kernel((ROWS,), (256,), arguments, **more)
        if key.startswith("launch"):
            kernel = self.kernel(HERE / "emulator_kernels" / "launch.cu", "touch", check)
            blocks = 64 if key == "launch64" else 1
            return lambda: kernel((blocks,), (128,), (self.small, self.sizes[0]), **more)
        if key == "mma":
            kernel = self.kernel(self.folder / "c_gemm_mma.cu", "gemm_mma<3>", check)
            more["shared_mem"] = 3 * (128 * 40 + 32 * 136) * 2
            return lambda: kernel((4, 4), (256,), (self.c, self.a, self.b, *self.sizes), **more)
        kernel = self.kernel(self.folder / "d_gemm_wgmma.cu", "gemm_wgmma<3>", check)
        maps = [self.emu.TensorMap(array, (128, 64)) for array in (self.a, self.b)]
        more["shared_mem"] = 3 * 128 * 64 * 2 * 2
        return lambda: kernel((4, 4), (384,), (*maps, self.c, *self.sizes), **more)


if __name__ == "__main__":
    sys.exit(main())
