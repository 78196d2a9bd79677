"""Check one family's Numba kernels in Numba's CUDA simulator; prints {primitive: samples} as JSON.

Run with NUMBA_ENABLE_CUDASIM=1. Exits 1 and names every failure if one disagrees.
"""

import json
import sys

from gpunn import kernels
from gpunn.primitives import parity


def main(family: str) -> int:
    """Check every sample of every primitive of `family`."""
    checked, failed = {}, []
    for made in kernels.table().values():
        if made.family != family:
            continue
        for sample, dtype in parity.cases(made, "numba"):
            result = parity.check(made, sample, dtype, "numba")
            checked[made.name] = checked.get(made.name, 0) + 1
            if not result.passed:
                failed.append(str(result))
    print(*failed, sep="\n")
    print(json.dumps(checked))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
