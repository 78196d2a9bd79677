"""Candidates: predicted changes to kernels, as patches that only a GPU can judge.

    python benchmarks/candidates.py                    list them
    python benchmarks/candidates.py --check NAME       here: does it fit, compile, agree?
    python benchmarks/candidates.py --time NAME        on a GPU: check it all and time it
    python benchmarks/candidates.py --apply NAME       change the checkout

`make gpu` judges all of them. benchmarks/candidates/README.md says what a candidate is.
Exit code 0: all is well; 1: a candidate does not fit or is wrong; 2: there is no such.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ARCH, MULTIPROCESSORS = "sm_90a", 132
NO_END = 24 * 3600.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = made.add_mutually_exclusive_group()
    actions.add_argument("--check", nargs="+", metavar="NAME",
                         help=f"compile for {ARCH}, run a few samples on the emulator")  # fmt: skip
    actions.add_argument("--time", nargs="+", metavar="NAME", help="check and time it on a GPU")
    actions.add_argument("--apply", metavar="NAME", help="apply it to this checkout")
    made.add_argument("--seconds", type=float, default=120.0, help="for --time (default: 120)")
    made.add_argument("--device", default="cuda", help="for --time (default: cuda)")
    return made


def list_all(good, bad) -> int:
    """Print a table of them, and what is wrong with the others."""
    from gpunn.bench import candidate_patch
    from gpunn.text import table

    rows = []
    for one in good:
        try:
            candidate_patch.patched(one, ROOT)
        except candidate_patch.CandidateError as error:
            bad[one.name] = str(error)
        texts = (textwrap.shorten(text, 70) for text in (one.idea, one.prediction))
        rows.append([one.name, f"{one.weight:g}", len(one.timed), *texts])
    heads = ["name", "weight", "cases", "idea", "prediction"]
    print(table(heads, rows, right=(1, 2)) if rows
          else "there are no candidates")  # fmt: skip
    for reason in bad.values():
        print(reason, file=sys.stderr)
    return 1 if bad else 0


def check(chosen) -> int:
    """Compile what they reach and compare some samples with the reference, on any machine."""
    from gpunn.bench import candidate_patch, candidates, supervise
    from gpunn.text import table

    end, wrong = time.monotonic() + NO_END, 0
    with tempfile.TemporaryDirectory(prefix="gpunn-") as scratch:
        trees = {
            one.name: candidate_patch.make_tree(one, ROOT, Path(scratch) / one.name)
            for one in chosen
        }  # fmt: skip
        sides = [
            per_source(candidates.compile_for(chosen, at, ARCH, MULTIPROCESSORS, end, True))
            for at in (dict.fromkeys(trees, ROOT), trees)
        ]
        rows = []
        for (name, source), after in sides[1].items():
            before = sides[0].get((name, source), {})
            rows.append([name, source, after["checked"], before.get("registers", ""),
                         after["registers"], len(after["spilling"])])  # fmt: skip
        heads = ["name", "source", "kernels", "most registers before", "after", "spilling"]
        print(table(heads, rows, right=range(2, 6)))
        for (name, source), after in sides[1].items():
            for failure in after["failures"]:
                print(f"{name}: {source}, {failure['case']}: {failure['reason']}", file=sys.stderr)
                wrong += 1
        items = [
            {"id": f"{one.name} {primitive}", "tree": str(trees[one.name]), "primitive": primitive,
             "implementation": "emulator"}
            for one in chosen
            for primitive in one.parity
        ]  # fmt: skip
        outcome = supervise.supervise(
            "parity", items, device="cpu", seconds=NO_END, item_seconds=NO_END,
            jobs=os.cpu_count() or 1, tiny=True,
        )  # fmt: skip
    for key, result in outcome.results.items():
        print(f"{key}: {result['checked']} samples, {len(result['failures'])} wrong")
        for failure in result["failures"]:
            print(f"  {failure['case']}: {failure['reason']}", file=sys.stderr)
    for key, reason in (outcome.crashed | outcome.not_run).items():
        print(f"{key}: {reason}", file=sys.stderr)
    wrong += sum(not result["passed"] for result in outcome.results.values())
    return 1 if wrong or outcome.crashed or outcome.not_run else 0


def per_source(outcome) -> dict[tuple[str, str], dict]:
    """What the compiler said of all kernels of a source, by candidate and source."""
    found: dict[tuple[str, str], dict] = {}
    for key, reason in (outcome.crashed | outcome.not_run).items():
        name, _, source = key.partition(" ")
        outcome.results[key] = {"checked": 0, "registers": 0, "spilling": [],
                                "failures": [{"case": source, "reason": reason}]}  # fmt: skip
    for key, result in outcome.results.items():
        name, *source = key.split()
        if "kernels" in result:  # it told which kernels there are
            continue
        whole = found.setdefault((name, source[0] if source else ""), {
            "checked": 0, "registers": 0, "spilling": [], "failures": [],
        })  # fmt: skip
        whole["registers"] = max(whole["registers"], result.get("registers", 0))
        whole["checked"] += result["checked"]
        whole["spilling"] += result.get("spilling", [])  # one that failed has none
        whole["failures"] += result["failures"]
    return found


def measure(chosen, arguments) -> int:
    """Check and time them on the GPU; print the table."""
    from gpunn.bench import candidates, hardware, results
    from gpunn.device.device import Device
    from gpunn.errors import DeviceError

    try:
        device = Device(arguments.device)
    except (DeviceError, ValueError) as error:
        print(f"--time needs a usable NVIDIA GPU: {error}", file=sys.stderr)
        return 2
    found = results.new(device)
    end = time.monotonic() + arguments.seconds
    run = hardware.Run(device, found, ROOT, False, end)
    said = candidates.judge(run, arguments.seconds, chosen, {})
    print(candidates.text(found.candidates))
    print(said)
    return 1 if any(one["parity"]["failures"] for one in found.candidates) else 0


def main() -> int:
    """List, check, time or apply candidates."""
    arguments = parser().parse_args()
    from gpunn.bench import candidate_patch, candidates
    from gpunn.text import known

    good, bad = candidate_patch.read_folder(candidates.folder())
    names = arguments.check or arguments.time or ([arguments.apply] if arguments.apply else [])
    if not names:
        return list_all(good, bad)
    named = {one.name: one for one in good}
    for name in names:
        if name in bad or name not in named:
            text = bad.get(name) or f"{name} is no candidate{known(name, named)}"
            print(text, file=sys.stderr)
            return 1 if name in bad else 2
    chosen = [named[name] for name in names]
    try:
        if arguments.check:
            return check(chosen)
        if arguments.time:
            return measure(chosen, arguments)
        for path in candidate_patch.apply(chosen[0], ROOT):
            print(f"changed {path}")
    except candidate_patch.CandidateError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
