"""Which kernel makes a product: the rule, by architecture, dtype and shape.

======== ========= ============================ ================================================
dtype    precision architecture                 candidates
======== ========= ============================ ================================================
float64  any       any                          simt
float32  highest   sm_90a                       simt; wgmma and mma on three bfloat16 parts each
float32  highest   sm_80 and later              simt; mma on three bfloat16 parts each
float32  high      sm_90a                       wgmma and mma in TF32; simt
float32  high      sm_80 and later              mma in TF32; simt
float32  medium    sm_90a                       wgmma and mma in bfloat16; simt
float32  medium    sm_80 and later              as high
16 bits  any       sm_90a                       wgmma, mma
16 bits  any       sm_80 and later              mma
any      any       older than sm_80             simt
======== ========= ============================ ================================================

Each candidate kernel offers its tiles and parts of K with an estimated time (`options` of
`matmul_simt`, `matmul_mma`, `matmul_wgmma`); the least one is taken. With the autotuner
(`matmul_tune`) they are timed on the GPU instead, once for each kind of problem.
"""

from __future__ import annotations

from gpunn.primitives import matmul_mma, matmul_precision, matmul_simt, matmul_tune, matmul_wgmma
from gpunn.primitives.matmul_option import Option, number_of
from gpunn.primitives.matmul_problem import Problem


def options(problem: Problem, chip) -> list[Option]:
    """Every way to make a product on a chip; the rule of this file.

    chip : a launcher, or anything with its ``arch``, ``multiprocessors``, ``shared_limit``
    """
    dtype, number = problem.out.dtype, number_of(chip.arch)
    if dtype.itemsize == 8 or number < 80 or problem.K == 0:
        return matmul_simt.options(problem, chip)
    hopper = chip.arch == "sm_90a"  # wgmma is in this generation alone
    if dtype.itemsize == 2:
        found = matmul_mma.options(problem, chip, "native")
        return found + matmul_wgmma.options(problem, chip, "native") if hopper else found
    found = matmul_simt.options(problem, chip)
    precision = matmul_precision.get_matmul_precision()
    if precision == "highest":
        found += matmul_mma.options(problem, chip, "split")
        found += matmul_wgmma.options(problem, chip, "split") if hopper else []
    else:
        found += matmul_mma.options(problem, chip, "tf32")
        if hopper:
            mode = "tf32" if precision == "high" else "bfloat16"
            found += matmul_wgmma.options(problem, chip, mode)
    return found


_chosen: dict[tuple, Option] = {}


def choose(launch, problem: Problem) -> Option:
    """The option that is to run, remembered by the kind of problem."""
    forced = matmul_tune.forced()
    if forced is not None:
        return forced(options(problem, launch))
    key = (*problem.kind(launch), matmul_wgmma.is_direct(problem, launch),
           matmul_precision.get_matmul_precision(), launch.arch, launch.multiprocessors,
           launch.shared_limit, matmul_tune.is_on())  # fmt: skip
    found = _chosen.get(key)
    if found is None:
        if len(_chosen) > 65536:
            _chosen.clear()
        candidates = options(problem, launch)
        found = _chosen[key] = matmul_tune.best(launch, problem, candidates, key[:-1])
    return found
