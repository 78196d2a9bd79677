"""Compiled steps without a GPU: what they save on the CPU, and what a replay costs the host.

    python benchmarks/compiled.py                     both parts
    python benchmarks/compiled.py --only replay       what a replay costs the host
    python benchmarks/compiled.py --only cpu --jobs mlp-784-256-128-10

On the CPU the step's Python runs each time, in planned memory: eager and compiled steps take turns.
On a GPU a replay is Python and one launch: its parts are timed on the host with a driver that does
nothing, after the step was captured on the emulator. That is a host's time, not a GPU's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

JOBS = ("mlp-784-256-128-10", "mlp-64-128-128-10", "cnn-32-64", "lstm-32-128", "gpt-small")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", choices=("cpu", "replay"), help="only this part")
    made.add_argument("--jobs", nargs="+", default=JOBS, metavar="JOB",
                      help=f"of benchmarks/training.py (default: {', '.join(JOBS)})")  # fmt: skip
    made.add_argument("--samples", type=int, default=30, help="samples of each (default: 30)")
    return made


def cpu_table(names, samples: int) -> str:
    """Eager and compiled steps on the CPU."""
    from gpunn.bench import step_host
    from gpunn.bench.tables import seconds_text
    from gpunn.bench.training import jobs_on
    from gpunn.device.device import Device
    from gpunn.text import bytes_text, table

    cells = []
    for job in jobs_on(Device("cpu")):
        if job.name not in names:
            continue
        found = step_host.on_cpu(job, samples)
        eager, compiled = found["eager"], found["compiled"]
        kept = [f"{count:,}, {bytes_text(size)}" if count else "nothing"
                for count, size in (compiled.get(name, (0, 0))
                                    for name in ("served", "unplanned", "fresh"))]  # fmt: skip
        cells.append([
            job.name, job.batch, seconds_text(eager["timing"].median),
            f"{100 * eager['timing'].spread:.0f}%", seconds_text(compiled["timing"].median),
            f"{100 * compiled['timing'].spread:.0f}%",
            f"{eager['timing'].median / compiled['timing'].median:.2f}x",
            *(f"{one['faults']:,.0f}" if one["faults"] is not None else ""
              for one in (eager, compiled)),
            bytes_text(compiled.get("arena", 0)), *kept,
            bytes_text(max(0, compiled["grown"])),
        ])  # fmt: skip
    headers = [
        "job", "batch", "eager", "spread", "compiled", "spread", "eager over compiled",
        "page faults a step", "compiled", "arena", "served", "beside the plan",
        "new from the system", "arrays grown in 10 steps",
    ]  # fmt: skip
    return table(headers, cells, right=tuple(range(1, 10)))


def replay_table(samples: int) -> str:
    """The host's part of a replay, in microseconds."""
    from gpunn.bench import step_host
    from gpunn.text import table

    columns = {name: step_host.of_replay(name, samples) for name in step_host.NETWORKS}
    first = next(iter(columns.values()))[1]
    cells = []
    for part in first:
        cells.append([part, *(f"{times[part].median * 1e6:.2f}" for _, times in columns.values())])
        if part == "outputs":
            cells.append(["the rest", *(_rest(times) for _, times in columns.values())])
    headers = ["microseconds of the host a replay"]
    headers += [f"{name}: {count} parameters" for name, (count, _) in columns.items()]
    return table(headers, cells, right=tuple(range(1, len(headers))))


def _rest(times) -> str:
    """What a whole call takes beside its parts."""
    apart = ("whole", "with a schedule", "the schedule alone")
    parts = sum(timing.median for part, timing in times.items() if part not in apart)
    return f"{(times['whole'].median - parts) * 1e6:.2f}"


def main() -> int:
    """Print the tables."""
    arguments = parser().parse_args()
    if arguments.only != "replay":
        print(cpu_table(arguments.jobs, arguments.samples) + "\n", flush=True)
    if arguments.only != "cpu":
        print(replay_table(arguments.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
