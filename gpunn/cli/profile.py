"""`gpunn profile`: how long each kernel and each layer of a training step takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpunn.cli.arguments import (
    DEVICE,
    PRECISIONS,
    add_command,
    add_json,
    add_quiet,
    at_least,
    check_picture,
    only_result,
    print_json,
    progress,
)

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
    parser = add_command(
        subparsers,
        "profile",
        help="time each kernel and each layer of a training step",
        description="Make a few training steps of a ready-made job, benchmark or model on random "
        "numbers, and say how long each kernel and each layer took, against what the machine "
        "allows.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("step", nargs="?", metavar="STEP", help="a job, benchmark or model (--list shows them)")
    add("--device", help=DEVICE)
    add("--batch-size", type=int, metavar="N", help="examples a step (default: the step's own)")
    add("--precision", choices=PRECISIONS, help="as of the Trainer")
    add("--steps", type=int, default=5, metavar="N", help="steps to profile (default: 5)")
    add("--warmup", type=int, default=3, metavar="N", help="steps before that (default: 3)")
    add("--by", choices=("kernel", "layer", "call"), default="kernel",
        help="what a row of the table is (default: kernel)")  # fmt: skip
    add("--depth", type=int, metavar="N", help="with --by layer: sum up layers below N names")
    add("--limits", action="store_true", help="measure the machine's limits first (seconds)")
    add("--trace", metavar="FILE.json", help="write a trace for Perfetto or chrome://tracing")
    add("--memory", metavar="FILE.png", help="draw the memory timeline (needs matplotlib)")
    add("--nvtx", action="store_true", help="push NVTX ranges by layer and kernel (needs CuPy)")
    add_json(parser)
    add_quiet(parser, "no progress, and of the table only its totals")
    add("--list", action="store_true", help="list the steps that there are")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile and print."""
    from gpunn.profiling.tables import closing, wrapped

    if arguments.list:
        return print_list(arguments.json)
    step = name_of(arguments, "profile")
    at_least("steps", arguments.steps, 1)
    at_least("warmup", arguments.warmup, 0)
    at_least("depth", arguments.depth, 1)
    check_files(arguments.trace, arguments.memory)
    with only_result(arguments.json):
        made, report, watched = measure(arguments, step)
    if arguments.trace:
        report.save_trace(arguments.trace)
    if arguments.memory:
        watched.plot_memory(arguments.memory)
    if arguments.json:
        print_json({"step": made.name, **report.to_json()})
        return 0
    print(f"{made.name}, batch {made.inputs[0].shape[0]}\n")
    print(closing(report) if arguments.quiet else report.table(arguments.by, arguments.depth))
    if watched is not report:
        print(wrapped(f"One more step: {watched.memory.text()}."))
    for name, path in (("trace", arguments.trace), ("memory", arguments.memory)):
        if path:
            print(f"{name}: {path}")
    return 0


def measure(arguments: argparse.Namespace, step: str) -> tuple[Any, Any, Any]:
    """The step, the report on it, and the report that has its memory (mostly the same one)."""
    from gpunn.bench.ceilings import measure_ceilings
    from gpunn.device import as_device, synchronize
    from gpunn.profiling import profile
    from gpunn.profiling.ready import ready_step

    device = as_device(arguments.device)
    made = ready_step(step, arguments.batch_size, device, arguments.precision)
    steps = iter(progress(
        range(arguments.warmup + arguments.steps), "step", arguments.quiet
    ))  # fmt: skip
    for _ in range(arguments.warmup):
        next(steps)
        made()
    synchronize(device)
    measured = arguments.limits and device.type != "emulator"
    on_gpu = device.type == "cuda"  # where a look at the memory costs next to nothing
    options = {
        "memory": on_gpu, "model": made.model, "nvtx": arguments.nvtx, "steps": arguments.steps,
        "ceilings": measure_ceilings(device) if measured else None,
    }  # fmt: skip
    with profile(**options) as report:
        for _ in steps:
            made()
    watched = report
    if arguments.memory and not on_gpu:  # in a step of its own: tracemalloc changes the times
        with profile(memory=True, model=made.model) as watched:
            made()
    return made, report, watched


def name_of(arguments: argparse.Namespace, command: str) -> str:
    """The name of the step. ValueError without one."""
    if arguments.step is None:
        raise ValueError(f"name a step, such as gpunn {command} mlp; --list shows them")
    return arguments.step


def check_files(trace: str | None, memory: str | None) -> None:
    """Refuse, before any work, what could not be written in the end."""
    from gpunn.io import check_target

    if trace:
        if Path(trace).suffix != ".json":
            raise ValueError(f"--trace {trace}: a trace is JSON; give a name that ends in .json")
        check_target(trace)
    if memory:
        check_picture("memory", memory)


def print_list(as_json: bool) -> int:
    """Print the steps by name."""
    from gpunn.profiling.ready import names
    from gpunn.text import table

    if as_json:
        print_json([{"step": name, "what": what} for name, what in names().items()])
    else:
        print(table(["step", "what"], list(names().items())))
    return 0
