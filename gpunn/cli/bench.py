"""`gpunn bench`: how fast are the kernels, against their floor and against other libraries?"""

from __future__ import annotations

import argparse

EXAMPLE = """examples:
  gpunn bench softmax_forward                         the primitive's own shapes, all peers here
  gpunn bench matmul --shape 1024x1024x1024 --dtype float32 bfloat16
  gpunn bench all --json now.json --plot roofline.png
  gpunn bench all --compare before.json --threshold 10%   exit code 1 if something became slower
  gpunn bench launch                                  what a launch costs the host, by library
  gpunn bench products                                a sweep of matrix products beside cuBLAS
  gpunn bench --list                                  primitives and their default shapes
"""


def add_parser(subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="time kernels against their floor and against NumPy, CuPy, PyTorch and Triton",
        description="Time primitives: medians over interleaved samples, GB/s, TFLOP/s, percent of "
        "the floor that this machine's measured bandwidth and rate set, and ratios to peers.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add("--json", metavar="FILE", help="write the results")
    add("--plot", metavar="FILE.png", help="draw a roofline (needs matplotlib)")
    add("--compare", metavar="OLD.json", help="show what changed since an earlier --json")
    add("--threshold", default="5%", help="how much slower counts with --compare (default: 5%%)")
    add("--list", action="store_true", help="list primitives, implementations and shapes")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write what was asked for; 1 if --compare found something slower."""
    from gpunn.bench import cases, compare, peers, results, tables
    from gpunn.bench.ceilings import measure_ceilings
    from gpunn.bench.roofline import require_matplotlib
    from gpunn.device.device import as_device
    from gpunn.io import check_target

    if arguments.list:
        print(list_table())
        return 0
    if not arguments.primitives:
        raise ValueError("name a primitive, a family or all (gpunn bench --list shows them)")
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}; at least 1 is needed")
    if "launch" in arguments.primitives:
        return run_launch(arguments)
    if "products" in arguments.primitives:
        return run_products(arguments)
    try:
        chosen = cases.select(arguments.primitives)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
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
    for path in (arguments.json, arguments.plot):  # now rather than after minutes of measuring
        if path:
            check_target(path)
    if arguments.plot:
        require_matplotlib()
    found = results.new(device)
    found.ceilings.append(measure_ceilings(device))
    print(tables.ceilings_text(found.ceilings[0]), end="\n\n", flush=True)
    for made in chosen:
        for case in cases.cases_of(made, shapes, arguments.dtype, device):
            _measure(case, device, found, arguments, names)
    if not found.rows:
        print("nothing could be timed")
    else:
        print(tables.rows_table(found.rows))
        print("\nvs: the peer's time over ours, above 1 ours is faster; cold: no input is in cache")
    if found.not_timed:
        print("\n" + tables.not_timed_text(found.not_timed))
    return _finish(arguments, found, old, threshold)


def _alone(arguments: argparse.Namespace, what: str):
    """The device, for what is measured alone and has cases and peers of its own."""
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
    if arguments.json:
        check_target(arguments.json)
    return device


def run_launch(arguments: argparse.Namespace) -> int:
    """gpunn bench launch: the host's cost of launches and of whole calls."""
    from gpunn.bench import launch, results, tables

    device = _alone(arguments, "launch")
    if device.type == "cpu":
        print(launch.WITHOUT_GPU, end="\n\n")
    found = results.new(device)
    found.launches, found.not_timed = launch.measure(device, arguments.samples)
    print(launch.text(found.launches))
    if found.not_timed:
        print("\n" + tables.not_timed_text(found.not_timed))
    if arguments.json:
        found.write(arguments.json)
        print(f"\nresults: {arguments.json}")
    return 0


def run_products(arguments: argparse.Namespace) -> int:
    """gpunn bench products: the sweep of matrix products, a line each and a summary."""
    from tqdm import tqdm

    from gpunn.bench import products, results, tables

    device = _alone(arguments, "products")
    found = results.new(device)
    chosen = [p for p in products.SWEEP if device.type == "cuda" or p.flops <= products.CPU_FLOPS]
    if len(chosen) < len(products.SWEEP):
        print(f"On a CPU only the {len(chosen)} smaller of {len(products.SWEEP)} products.\n")
    for product in tqdm(chosen, unit="product", leave=False):
        row, skipped = products.measure(product, device, arguments.samples)
        found.products.append(row)
        found.not_timed += skipped
    print(products.rows_text(found.products))
    print("\n" + products.summary_text(found.products))
    if found.not_timed:
        print("\n" + tables.not_timed_text(found.not_timed))
    if arguments.json:
        found.write(arguments.json)
        print(f"\nresults: {arguments.json}")
    return 0


def _measure(case, device, found, arguments, names) -> None:
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


def _finish(arguments, found, old, threshold: float) -> int:
    """Write the files, compare with an old one, and the exit code."""
    from gpunn.bench import compare, roofline, tables

    if arguments.json:
        found.write(arguments.json)
        print(f"\nresults: {arguments.json}")
    if arguments.plot and found.rows:
        name = found.gpu or found.environment["machine"]["cpu"]
        roofline.plot(found.rows, found.ceilings[0], arguments.plot, name)
        print(f"roofline: {arguments.plot}")
    if old is None:
        return 0 if found.rows else 1
    changes = compare.compare(old.rows, found.rows, threshold)
    if not changes:
        raise ValueError(f"{arguments.compare} has no row of ours in common with this run")
    print("\n" + tables.changes_table(changes))
    if note := compare.same_machine(old, found):
        print(note)
    slower = [change for change in changes if change.verdict == "slower"]
    print(f"{len(slower)} of {len(changes)} became slower by more than {threshold:.0%}")
    return 1 if slower else 0


def list_table() -> str:
    """Every primitive with its implementations and default shapes."""
    import gpunn.kernels
    from gpunn.bench.cases import shape_text
    from gpunn.text import table

    rows = [
        (made.name, made.family, " ".join(made.implementations),
         " ".join(map(shape_text, made.bench_shapes)))
        for made in gpunn.kernels.table().values()
    ]  # fmt: skip
    return table(["primitive", "family", "implementations", "default shapes"], rows)
