"""`gpunn explain`: which kernels a training step launches on a GPU, and what limits each."""

from __future__ import annotations

import argparse
from typing import Any

from gpunn.cli.arguments import (
    PRECISIONS,
    add_command,
    add_json,
    add_quiet,
    only_result,
    print_json,
)
from gpunn.cli.profile import name_of, print_list

EXAMPLES = """\
examples:
  gpunn explain mlp                             on an H200, as its data sheet has it; no GPU needed
  gpunn explain resnet18 --batch-size 256 --chip a100
  gpunn explain gpt2 --precision bf16           with products in bfloat16
  gpunn explain cnn --kernels                   the CUDA kernels with grid, block, shared memory
  gpunn explain --list                          the steps that there are
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers,
        "explain",
        help="list the kernels of a training step, their floors and what limits them",
        description="Say which kernels a training step launches on a GPU, how many operations and "
        "bytes each has, how long it takes there at the least, what limits it, and what would "
        "help. Nothing is computed and no GPU is needed.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("step", nargs="?", metavar="STEP", help="a job, benchmark or model (--list shows them)")
    add("--batch-size", type=int, metavar="N", help="examples a step (default: the step's own)")
    add("--device", metavar="CUDA", help="the GPU to explain for, such as cuda:1, if it is here")
    add("--chip", help="the GPU to explain for by its data sheet: h200 (default), h100, a100")
    add("--precision", choices=PRECISIONS, help="as of the Trainer (default: fp32)")
    add("--kernels", action="store_true", help="list the CUDA kernels with their grids as well")
    add_json(parser)
    add_quiet(parser, "only the summary, no table of kernels")
    add("--list", action="store_true", help="list the steps that there are")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain and print."""
    from gpunn.profiling import explain
    from gpunn.profiling.explanation import kernels_text, totals_text
    from gpunn.profiling.ready import ready_step

    if arguments.list:
        return print_list(arguments.json)
    step = name_of(arguments, "explain")
    chip = chosen_chip(arguments.chip, arguments.device)
    with only_result(arguments.json):
        made = ready_step(step, arguments.batch_size)
        words = (made.name, f"batch {made.inputs[0].shape[0]}", arguments.precision)
        found = explain(
            made.model, made.loss, made.optimizer, made.inputs, made.target, chip=chip,
            precision=arguments.precision, name=", ".join(filter(None, words)),
        )  # fmt: skip
    if arguments.json:
        print_json(found.to_json())
        return 0
    print(totals_text(found) if arguments.quiet else found)
    if arguments.kernels:
        print("\n" + kernels_text(found))
    return 0


def chosen_chip(name: str | None, device: str | None) -> Any:
    """The chip by name or by the GPU that is here; an H200 if neither is given."""
    from gpunn.device import Device
    from gpunn.profiling.chips import chip_of, find_chip

    if name and device:
        raise ValueError("--chip and --device both name a GPU; give one of them")
    if not device:
        return find_chip(name or "h200")
    place = Device(device)
    if place.type != "cuda":
        raise ValueError(
            f"--device {device}: what is explained are the kernels of a GPU; name one that is "
            "here, or one by its data sheet with --chip"
        )
    chip = chip_of(place)
    if chip is None:
        raise ValueError(
            f"--device {device}: there is no data sheet of this GPU here; explain one with --chip"
        )
    return chip
