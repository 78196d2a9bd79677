"""What mpirun starts for the tests: all cases for this number of ranks, one after the other.

A case is a function ``case_…(group)`` in ``cases/*.py``, called on every rank; `RANKS` of its
module says on how many (2 unless it says otherwise; ``case.ranks = (2, 4)`` for one alone). After
each the ranks tell each other what came of it, and rank 0 writes a line of JSON.

    mpirun -n 2 python tests/distributed/run_cases.py RESULTS.jsonl [NAME …]
"""

import importlib.util
import json
import sys
import time
import traceback
from pathlib import Path

import gpunn
from gpunn import distributed

CASES = Path(__file__).parent / "cases"


def load(path):
    """A file of cases as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def found():
    """(name, numbers of ranks, function) of every case, in order."""
    for path in sorted(CASES.glob("*.py")):
        module = load(path)
        for name, function in vars(module).items():
            if name.startswith("case_"):
                ranks = getattr(function, "ranks", getattr(module, "RANKS", (2,)))
                yield f"{path.stem}::{name.removeprefix('case_')}", ranks, function


def outcome(function, group):
    """None if all went well, else the traceback."""
    gpunn.manual_seed(0)
    try:
        function(group)
    except Exception:
        return traceback.format_exc()
    return None


def main(results, *names):
    group = distributed.init()
    with open(results if group.main else "/dev/null", "a", encoding="utf-8") as file:
        for name, ranks, function in found():
            if group.size not in ranks or (names and not any(part in name for part in names)):
                continue
            begun = time.perf_counter()
            errors = group.exchange(outcome(function, group))
            line = {"case": name, "ranks": group.size, "errors": errors}
            line["seconds"] = round(time.perf_counter() - begun, 3)
            print(json.dumps(line), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
