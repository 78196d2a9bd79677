"""Check Numba kernels of some families in Numba's CUDA simulator; prints {primitive: samples}.

Run with NUMBA_ENABLE_CUDASIM=1. Exits 1 and names every failure if one disagrees. The simulator is
slow, up to a second for a launch: of many samples MOST a primitive are taken, evenly from the list,
in float32 where they have it, and the first two in float64 as well. On a GPU all of them run.
"""

import json
import sys

from gpunn import kernels
from gpunn.primitives import parity
from gpunn.primitives.samples import FLOAT32, FLOAT64

MOST = 8


def chosen(cases) -> list:
    """Those that run here."""
    both = {True: [], False: []}  # float64 of a sample that has float32, too; all others
    for sample, dtype in cases:
        both[dtype == FLOAT64 and FLOAT32 in sample.dtypes].append((sample, dtype))
    step = max(1, -(-len(both[False]) // MOST))
    return both[False][::step] + both[True][:2]


def main(families: list[str]) -> int:
    """Check samples of every primitive of some families."""
    checked, failed = {}, []
    for made in kernels.table().values():
        if made.family not in families:
            continue
        for sample, dtype in chosen(parity.cases(made, "numba")):
            result = parity.check(made, sample, dtype, "numba")
            checked[made.name] = checked.get(made.name, 0) + 1
            if not result.passed:
                failed.append(str(result))
    print(*failed, sep="\n")
    print(json.dumps(checked))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
