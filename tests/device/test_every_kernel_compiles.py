"""Every CUDA kernel compiles for each architecture, without warnings and without spills."""

from __future__ import annotations

import re

import pytest

from gpunn import kernels  # noqa: F401  (fills the table)
from gpunn.device import compiler, sources
from gpunn.primitives.registry import reachable_kernels

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
# Their menus are compiled, and with them what samples reach, by tests/primitives/test_matmul*.py.
ELSEWHERE = {"matmul.cu", "matmul_mma.cu", "matmul_wgmma.cu"}
REACHED = {arch: reachable_kernels(arch) for arch in ARCHITECTURES}  # found once: it takes a second
PAIRS = [
    (source, arch) for arch in ARCHITECTURES for source in sorted(set(REACHED[arch]) - ELSEWHERE)
]


@pytest.mark.parametrize("source, arch", PAIRS)
def test_compiles(source, arch):
    expressions = REACHED[arch][source]
    made = compiler.build(source, expressions, arch)
    assert not made.warnings
    assert {report.expression for report in made.reports} == set(expressions)
    excused = re.findall(r"^// Spills: (\S.*?):", sources.cuda_source(source), re.MULTILINE)
    spilling = [
        f"{report.expression}: {report.spill_stores} bytes stored, {report.spill_loads} loaded"
        for report in made.reports
        if report.spill_stores + report.spill_loads
        and not any(report.expression.startswith(name) for name in excused)
    ]
    assert not spilling, "\n".join(spilling)
