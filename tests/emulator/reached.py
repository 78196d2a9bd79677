"""Which kernels the samples of the primitives reach, compiled together by all tests that run them.

What is compiled lies on disk under the names of all kernels that were compiled with it: tests that
choose alike share it, whichever comes first.
"""

from __future__ import annotations

import functools

from gpunn.device.emulator_launch import H200, Chip, prepare
from gpunn.errors import CompileError
from gpunn.primitives.registry import reachable_kernels

CHECKED = "checked-random"
SMALL = Chip(arch="sm_80", multiprocessors=6, shared_limit=99 * 1024)


@functools.cache
def reachable(chip: Chip) -> dict[str, list[str]]:
    """The kernels that samples reach on a chip."""
    return reachable_kernels(chip.arch, chip.multiprocessors)


TWINS = [("__half", "__nv_bfloat16"), ("double", "float")]


def without_twins(expressions, mode: str) -> set[str]:
    """The kernels less those that are there in the twin of their type, too, and need not run."""
    twins = TWINS if mode == CHECKED else TWINS[:1]
    return {
        text for text in expressions
        if not any(one in text and text.replace(one, other) in expressions for one, other in twins)
    }  # fmt: skip


@functools.cache
def compile_source(source: str, check: bool) -> str:
    """Compile all kernels of a source at once, tried once; the error, if there is one."""
    try:
        expressions = set(reachable(H200).get(source, ()))
        if check:
            expressions = without_twins(expressions, CHECKED)
        else:
            expressions |= without_twins(reachable(SMALL).get(source, ()), "fast-in-order")
        if expressions:
            prepare({source: sorted(expressions)})
    except CompileError as error:
        return str(error)
    return ""
