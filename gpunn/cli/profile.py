"""`gpunn profile`: how long each kernel and each layer of a training step takes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  gpunn profile mlp                             a step by kernel, on the device that would be used
  gpunn profile gpt --by layer --depth 3        forward, backward and the rest of each layer
  gpunn profile digits --trace trace.json       a trace for https://ui.perfetto.dev
  gpunn profile cnn --memory memory.png         the memory timeline as a picture
  nsys profile gpunn profile lstm --nvtx        layers and kernels as ranges in Nsight Systems
  gpunn profile --list                          the steps that there are
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "profile",
        help="time each kernel and each layer of a training step",
        description="Make a few training steps of a ready-made job, benchmark or model on random "
        "numbers, and say how long each kernel and each layer took, against what the machine "
        "allows.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("step", nargs="?", metavar="STEP", help="a job, benchmark or model (--list shows them)")
    add("--device", help="cpu, cuda, cuda:1 or emulator (default: the one that would be used)")
    add("--batch-size", type=int, metavar="N", help="examples a step (default: the step's own)")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="as of the Trainer")
    add("--steps", type=int, default=5, metavar="N", help="steps to profile (default: 5)")
    add("--warmup", type=int, default=3, metavar="N", help="steps before that (default: 3)")
    add("--by", choices=("kernel", "layer", "call"), default="kernel",
        help="what a row of the table is (default: kernel)")  # fmt: skip
    add("--depth", type=int, metavar="N", help="with --by layer: sum up layers below N names")
    add("--limits", action="store_true", help="measure the machine's limits first (seconds)")
    add("--trace", metavar="FILE.json", help="write a trace for Perfetto or chrome://tracing")
    add("--memory", metavar="FILE.png", help="draw the memory timeline (needs matplotlib)")
    add("--nvtx", action="store_true", help="push NVTX ranges by layer and kernel (needs CuPy)")
    add("--json", action="store_true", help="print everything as JSON")
    add("--list", action="store_true", help="list the steps that there are")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile and print."""
    from gpunn.bench.ceilings import measure_ceilings
    from gpunn.device import as_device, synchronize
    from gpunn.io import check_target
    from gpunn.profiling import profile
    from gpunn.profiling.ready import ready_step
    from gpunn.profiling.tables import wrapped

    if arguments.list:
        print(list_text())
        return 0
    step = name_of(arguments, "profile")
    for option, low in (("steps", 1), ("warmup", 0)):
        if getattr(arguments, option) < low:
            raise ValueError(f"--{option} is {getattr(arguments, option)}; expected {low} or more")
    if arguments.depth is not None and arguments.depth < 1:
        raise ValueError(f"--depth is {arguments.depth}; expected 1 or more")
    check_files(arguments.trace, arguments.memory)
    for path in (arguments.trace, arguments.memory):
        if path:
            check_target(path)
    device = as_device(arguments.device)
    made = ready_step(step, arguments.batch_size, device, arguments.precision)
    for _ in range(arguments.warmup):
        made()
    synchronize(device)
    measured = arguments.limits and device.type != "emulator"
    on_gpu = device.type == "cuda"  # where a look at the memory costs next to nothing
    options = {
        "memory": on_gpu, "model": made.model, "nvtx": arguments.nvtx, "steps": arguments.steps,
        "ceilings": measure_ceilings(device) if measured else None,
    }  # fmt: skip
    with profile(**options) as report:
        for _ in range(arguments.steps):
            made()
    if arguments.trace:
        report.save_trace(arguments.trace)
    if arguments.memory:
        watched = report
        if not on_gpu:  # in a step of its own, so that the times above are not those of tracemalloc
            with profile(memory=True, model=made.model) as watched:
                made()
        watched.plot_memory(arguments.memory)
    if arguments.json:
        print(json.dumps({"step": made.name, **report.to_json()}))
        return 0
    print(f"{made.name}, batch {made.inputs[0].shape[0]}\n")
    print(report.table(arguments.by, arguments.depth))
    if arguments.memory and not on_gpu:
        print(wrapped(f"One more step: {watched.memory.text()}."))
    for name, path in (("trace", arguments.trace), ("memory", arguments.memory)):
        if path:
            print(f"{name}: {path}")
    return 0


def name_of(arguments: argparse.Namespace, command: str) -> str:
    """The name of the step. ValueError without one."""
    if arguments.step is None:
        raise ValueError(f"name a step, such as gpunn {command} mlp; --list shows them")
    return arguments.step


def check_files(trace: str | None, memory: str | None) -> None:
    """Refuse, before any work, what could not be written in the end."""
    from gpunn.bench.roofline import require_matplotlib

    if trace and Path(trace).suffix != ".json":
        raise ValueError(f"--trace {trace}: a trace is JSON; give a name that ends in .json")
    if memory:
        require_matplotlib()


def list_text() -> str:
    """The steps by name."""
    from gpunn.profiling.ready import names
    from gpunn.text import table

    return table(["step", "what"], list(names().items()))
