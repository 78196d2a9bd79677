"""`gpunn bench`: how fast are the kernels, against their floor and against other libraries?"""

from __future__ import annotations

import argparse
from typing import Any

from gpunn.cli.arguments import (
    add_command,
    add_quiet,
    at_least,
    check_picture,
    only_result,
    print_json,
    progress,
    wide_table,
)

STDOUT = "-"

EXAMPLE = """examples:
  gpunn bench softmax_forward                         the primitive's own shapes, all peers here
  gpunn bench matmul --shape 1024x1024x1024 --dtype float32 bfloat16
  gpunn bench all --json now.json --plot roofline.png
  gpunn bench all --compare before.json --threshold 10%   exit code 1 if something became slower
  gpunn bench softmax --quiet --json | jq '.rows[].samples'
  gpunn bench launch                                  what a launch costs the host, by library
  gpunn bench products                                a sweep of matrix products beside cuBLAS
  gpunn bench --list                                  primitives and their default shapes
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers,
        "bench",
        help="time kernels against their floor and against NumPy, CuPy, PyTorch and Triton",
        description="Time primitives: medians over interleaved samples, GB/s, TFLOP/s, percent of "
        "the floor that this machine's measured bandwidth and rate set, and ratios to peers.",
        examples=EXAMPLE,
        no="--compare found something slower, or nothing of ours could be timed",
    )
    add = parser.add_argument
    add("primitives", nargs="*", metavar="PRIMITIVE",
        help="names, families or all; or launch, or products")  # fmt: skip
    add("--shape", nargs="+", metavar="AxB", help="such as 4096x1024 (default: the primitive's)")
    add("--dtype", nargs="+", default=["float32"], metavar="DTYPE",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="float16, bfloat16, float32, float64 (default: float32)")  # fmt: skip
    add("--implementation", nargs="+", choices=("numpy", "cuda", "numba"), metavar="NAME",
        help="numpy, cuda, numba (default: the device's own)")  # fmt: skip
    add("--peers", nargs="+", metavar="PEER",
        help="numpy, cupy, torch, torch.compile, triton; none (default: those here)")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:1 (default: the one that gpunn would use)")
    add("--samples", type=int, default=20, help="samples of each contestant (default: 20)")
    add("--json", nargs="?", const=STDOUT, metavar="FILE",
        help="write the results; without FILE to standard output, with nothing else")  # fmt: skip
    add("--plot", metavar="FILE.png", help="draw a roofline (needs matplotlib)")
    add("--compare", metavar="OLD.json", help="show what changed since an earlier --json")
    add("--threshold", default="5%", help="how much slower counts with --compare (default: 5%%)")
    add("--list", action="store_true", help="list primitives, implementations and shapes")
    add_quiet(parser, "no progress and no tables")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write what was asked for; 1 if --compare found something slower."""
    as_json = arguments.json == STDOUT
    if arguments.list:
        if json_file(arguments):
            hint = _taken_for_file(arguments.json)
            raise ValueError("--list writes no file; give --json without a name" + hint)
        rows = list_rows(selected(arguments.primitives or ["all"]))
        print_json(rows) if as_json else print(list_table(rows))
        return 0
    if not arguments.primitives:
        raise ValueError(
            "name a primitive, a family or all (gpunn bench --list shows them)" + _taken_for_file(
                arguments.json)
        )  # fmt: skip
    at_least("samples", arguments.samples, 1)
    kind = next((name for name in ("launch", "products") if name in arguments.primitives), None)
    with only_result(as_json):
        if kind is not None:
            found, code = _alone(arguments, kind), 0
        else:
            found, code = run_primitives(arguments)
    if as_json:
        print_json(found.to_json())
    return code


def _taken_for_file(name: str | None) -> str:
    """A hint where what follows --json was meant to be measured."""
    import gpunn.kernels

    table = gpunn.kernels.table()
    if name in {*table, *(made.family for made in table.values()), "all", "launch", "products"}:
        return f"; {name!r} was taken for the file of --json: put --json last"
    return ""


def selected(names: list[str]) -> list[Any]:
    """The primitives of these names and families."""
    from gpunn.bench import cases

    try:
        return cases.select(names)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} (see gpunn bench --list)") from None


def say(arguments: argparse.Namespace, text: str) -> None:
    """Print, unless --quiet."""
    if not arguments.quiet:
        print(text, flush=True)


def run_primitives(arguments: argparse.Namespace) -> tuple[Any, int]:
    """gpunn bench PRIMITIVE …: the results and the exit code."""
    from gpunn.bench import cases, compare, peers, results, tables
    from gpunn.bench.ceilings import measure_ceilings
    from gpunn.device.device import as_device
    from gpunn.io import check_target

    primitives = selected(arguments.primitives)
    device = as_device(arguments.device)
    if device.type == "emulator":
        raise ValueError(
            "--device emulator: the emulator says whether a kernel is right, not how fast it is on "
            "a GPU; bench on cpu or cuda, and time the emulator itself with benchmarks/emulator.py"
        )
    shapes = [cases.parse_shape(text) for text in arguments.shape or ()]
    names = peers.choose(arguments.peers, device)
    threshold = compare.parse_threshold(arguments.threshold)
    old = results.read(arguments.compare) if arguments.compare else None
    if path := json_file(arguments):  # now rather than after minutes of work
        check_target(path)
    if arguments.plot:
        check_picture("plot", arguments.plot)
    todo = [
        case
        for made in primitives
        for case in cases.cases_of(made, shapes, arguments.dtype, device)
    ]
    if not todo:
        raise ValueError(
            f"{', '.join(made.name for made in primitives)}: there are no bench_shapes; set them, "
            "or give --shape"
        )
    found = results.new(device)
    found.ceilings.append(measure_ceilings(device))
    say(arguments, tables.ceilings_text(found.ceilings[0]) + "\n")
    for case in progress(todo, "case", arguments.quiet):
        _measure(case, device, found, arguments, names)
    if not any(row.ours for row in found.rows):
        print("nothing of ours could be timed")
    else:
        say(arguments, tables.rows_table(found.rows))
        say(arguments, "\nvs: the peer's time over ours, above 1 ours is faster; "
            "cold: no input is in cache")  # fmt: skip
    if found.not_timed:
        say(arguments, "\n" + tables.not_timed_text(found.not_timed))
    return found, _finish(arguments, found, old, threshold)


def json_file(arguments: argparse.Namespace) -> str | None:
    """Where --json writes, if that is a file."""
    return None if arguments.json == STDOUT else arguments.json


def _alone(arguments: argparse.Namespace, what: str) -> Any:
    """gpunn bench launch, and products: measured alone, with cases and peers of their own."""
    from gpunn.bench import results, tables
    from gpunn.device.device import as_device
    from gpunn.io import check_target

    if len(arguments.primitives) > 1:
        raise ValueError(f"{what} is measured alone: leave out the other names")
    for option in ("shape", "implementation", "peers", "plot", "compare"):
        if getattr(arguments, option):
            raise ValueError(f"{what} takes no --{option}: it has cases and peers of its own")
    device = as_device(arguments.device)
    if device.type == "emulator":
        raise ValueError(
            f"--device emulator: it does not say how fast anything is on a GPU; measure {what} on "
            "cuda, or what can be measured without a GPU on cpu"
        )
    if json_file(arguments):
        check_target(arguments.json)
    found = results.new(device)
    {"launch": _launches, "products": _products}[what](arguments, device, found)
    if found.not_timed:
        say(arguments, "\n" + tables.not_timed_text(found.not_timed))
    if json_file(arguments):
        found.write(arguments.json)
        print(f"\nresults: {arguments.json}")
    return found


def _launches(arguments: argparse.Namespace, device: Any, found: Any) -> None:
    """The host's cost of launches and of whole calls."""
    from gpunn.bench import launch

    if device.type == "cpu":
        say(arguments, launch.WITHOUT_GPU + "\n")
    found.launches, found.not_timed = launch.measure(device, arguments.samples)
    say(arguments, launch.text(found.launches))


def _products(arguments: argparse.Namespace, device: Any, found: Any) -> None:
    """The sweep of matrix products, a line each and a summary."""
    from gpunn.bench import product_tables, products

    chosen = [p for p in products.SWEEP if device.type == "cuda" or p.flops <= products.CPU_FLOPS]
    if len(chosen) < len(products.SWEEP):
        text = f"On a CPU only the {len(chosen)} smaller of {len(products.SWEEP)} products.\n"
        say(arguments, text)
    for product in progress(chosen, "product", arguments.quiet):
        row, skipped = products.measure(product, device, arguments.samples)
        found.products.append(row)
        found.not_timed += skipped
    say(arguments, product_tables.rows_text(found.products))
    say(arguments, "\n" + product_tables.summary_text(found.products))


def _measure(case: Any, device: Any, found: Any, arguments: argparse.Namespace, names: Any) -> None:
    from gpunn.bench.measure import measure

    rows, skipped = measure(
        case,
        device,
        found.ceilings[0],
        implementations=arguments.implementation,
        peer_names=names,
        samples=arguments.samples,
    )
    found.rows += rows
    found.not_timed += skipped


def _finish(arguments: argparse.Namespace, found: Any, old: Any, threshold: float) -> int:
    """Write the files, compare with an old one, and the exit code."""
    from gpunn.bench import compare, roofline, tables

    if json_file(arguments):
        found.write(arguments.json)
        print(f"\nresults: {arguments.json}")
    if arguments.plot and found.rows:
        name = found.gpu or found.environment["machine"]["cpu"]
        roofline.plot(found.rows, found.ceilings[0], arguments.plot, name)
        print(f"roofline: {arguments.plot}")
    if old is None:
        return 0 if any(row.ours for row in found.rows) else 1
    changes = compare.compare(old.rows, found.rows, threshold)
    if not changes:
        raise ValueError(f"{arguments.compare} has no row of ours in common with this run")
    print("\n" + tables.changes_table(changes))
    if note := compare.same_machine(old, found):
        print(note)
    slower = [change for change in changes if change.verdict == "slower"]
    print(f"{len(slower)} of {len(changes)} became slower by more than {threshold:.0%}")
    return 1 if slower else 0


def list_rows(primitives: list[Any]) -> list[dict[str, Any]]:
    """Each primitive with its implementations and default shapes."""
    from gpunn.bench.cases import shape_text

    return [
        {"primitive": made.name, "family": made.family,
         "implementations": list(made.implementations),
         "shapes": list(map(shape_text, made.bench_shapes))}
        for made in primitives
    ]  # fmt: skip


def list_table(listed: list[dict[str, Any]]) -> str:
    """The same as text."""
    rows = [
        (row["primitive"], row["family"], " ".join(row["implementations"]), " ".join(row["shapes"]))
        for row in listed
    ]
    headers = ["primitive", "family", "implementations", "default shapes"]
    return wide_table(headers, rows, (), cut=3)
