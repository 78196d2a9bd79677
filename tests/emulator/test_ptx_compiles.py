"""ptx.cuh and the conformance kernels compile for a GPU: no warnings, no spills, wgmma in step."""

from __future__ import annotations

import re

import pytest

from gpunn.device import compiler, probe, sources
from gpunn.emulator import conformance

pytestmark = pytest.mark.skipif(
    not (probe.find_cupy().passed and probe.find_nvrtc().passed), reason="NVRTC is not there"
)
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")


def kernels_for(source: str, arch: str) -> list[str]:
    number = int(re.search(r"\d+", arch)[0])
    cases = (case for case in conformance.CASES if case.source == source and case.arch <= number)
    return sorted({case.expression for case in cases})


BUILDS = [
    (source, arch)
    for source in sorted({case.source for case in conformance.CASES})
    for arch in ARCHITECTURES
    if kernels_for(source, arch)
]


def compile_log(text: str, name: str, arch: str, expressions=()) -> str:
    """The compiler's log, which says of each kernel what it needs and what went wrong with it."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, name, (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, compiler._options(arch))
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        return nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize(("source", "arch"), BUILDS)
def test_conformance_kernels(source, arch):
    expressions = kernels_for(source, arch)
    log = compile_log(sources.cuda_source(source), source, arch, expressions)
    assert not re.findall(r".*(?:warning|Potential Performance Loss|serialized).*", log)
    assert len(re.findall("Compiling entry function", log)) >= len(expressions)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert spills and all(spill == ("0", "0") for spill in spills)


@pytest.mark.parametrize("arch", ("sm_75", *ARCHITECTURES, "sm_100a"))
def test_an_unused_header_does_no_harm(arch):
    text = '#include "ptx.cuh"\nextern "C" __global__ void kernel(float* x) { x[0] = 1; }\n'
    assert "warning" not in compile_log(text, "kernel.cu", arch)


@pytest.mark.parametrize("first", ("common.cuh", "ptx.cuh"))
def test_with_and_without_common_cuh(first):
    second = {"common.cuh": "ptx.cuh", "ptx.cuh": "common.cuh"}[first]
    text = f'#include "{first}"\n#include "{second}"\n__global__ void kernel(uint64* x) {{}}\n'
    assert "warning" not in compile_log(text, "kernel.cu", "sm_90a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("wgmma<12, ptx::Kind::bf16>(d, 0, 0)", "8 to 256 columns wide in steps of 8"),
        ("wgmma<8, ptx::Kind::tf32, true>(d, 0, 0)", "only 16-bit operands may be transposed"),
        ("copy_async<12>(d, d)", "copies 4, 8 or 16 bytes"),
        ("registers_raise<20>()", "24 to 256 in steps of 8"),
    ],
)
def test_misuse_is_told_in_words(call, message):
    size = 6 if "12, ptx" in call else 4
    text = f'#include "ptx.cuh"\n__global__ void kernel() {{ float d[{size}]; ptx::{call}; }}\n'
    with pytest.raises(pytest.fail.Exception, match=message):
        compile_log(text, "kernel.cu", "sm_90a")
