"""Coverage of device code: counted, merged over processes and instantiations, printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import probe
from gpunn.emulator import coverage, toolchain
from gpunn.emulator.coverage import FileLines, Lines, spans
from gpunn.errors import DeviceError

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

HEADER = """template <class T> __device__ T twice(T x) {
    return x + x;
}
template <class T> __device__ T never(T x) {
    return x - x;
}
"""
KERNEL = """#include "part.cuh"
template <int N> __global__ void branch(float* x) {
    if (N > 1)
        x[threadIdx.x] = twice(x[threadIdx.x]);
    if (x[0] < -1e30f)
        x[threadIdx.x] = never(1.f);
    if (N == 1)
        x[threadIdx.x] = 1.f;
}
"""
SCRIPT = """
import sys
import numpy as np
from gpunn import emulator

names = ("branch<1>", "branch<2>")
module = emulator.RawModule(path="branch.cu", name_expressions=names, check=False)
module.get_function(sys.argv[1])((2,), (32,), (np.ones(32, np.float32),))
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A folder of sources, and one of counts of two processes that ran different kernels."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "part.cuh").write_text(HEADER)
    (folder / "branch.cu").write_text(KERNEL)
    (folder / "unused.cu").write_text('extern "C" __global__ void unused() {}\n')
    counts = folder / "counts"
    environment = {
        **os.environ,
        "GPUNN_EMULATOR_COVERAGE": "1",
        "GCOV_PREFIX": str(counts),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for name in ("branch<1>", "branch<2>", "branch<2>"):
        command = [sys.executable, "-c", SCRIPT, name]
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=200)
    return folder, counts


def test_processes_and_instantiations_are_merged(counted):
    folder, counts = counted
    lines = coverage.collect(counts, folder)
    branch, part = lines.files
    assert (branch.path.name, part.path.name) == ("branch.cu", "part.cuh")
    assert branch.missing == [6] and branch.text(6) == "x[threadIdx.x] = never(1.f);"
    assert branch.counts[8] == 2 * 32  # by branch<1>, in one process
    assert part.counts[2] == 2 * 2 * 32  # by branch<2>, in two
    assert 5 in part.missing
    assert [path.name for path in lines.not_compiled] == ["unused.cu"]
    assert lines.executed == lines.total - 1 - len(part.missing)
    # Once more gives the same: counting does not change what was counted.
    assert coverage.collect(counts, folder) == lines


def test_files_are_chosen(counted):
    folder, counts = counted
    lines = coverage.collect(counts, folder, leave_out=("part*", "unused*"))
    assert [file.path.name for file in lines.files] == ["branch.cu"] and not lines.not_compiled
    lines = coverage.collect(counts, folder, patterns=("*.cuh",))
    assert [file.path.name for file in lines.files] == ["part.cuh"]


def test_command(counted, capsys):
    folder, counts = map(str, counted)
    arguments = [counts, "--source", folder, "--leave-out", "unused.cu"]
    assert coverage.main([*arguments, "--lines"]) == 0
    out = capsys.readouterr().out
    assert "branch.cu:6: x[threadIdx.x] = never(1.f);" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["branch.cu"][-1] == "6" and rows["all"][3].endswith("%")
    assert coverage.main([*arguments, "--minimum", "99"]) == 1
    assert "less than 99%" in capsys.readouterr().err
    assert coverage.main([*arguments, "--minimum", "50"]) == 0
    capsys.readouterr()
    assert coverage.main([counts, "--source", folder, "--minimum", "50"]) == 1
    assert "no kernel of unused.cu was compiled" in capsys.readouterr().err
    assert coverage.main([*arguments, "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["files"]["branch.cu"]["not executed"] == [6] and read["not compiled"] == []


def test_nothing_counted(tmp_path, capsys):
    assert coverage.main([str(tmp_path)]) == 2
    assert "nothing was counted" in capsys.readouterr().err


def test_the_cache_was_emptied(tmp_path):
    (tmp_path / "gone.gcda").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="cache was emptied"):
        coverage.collect(tmp_path)


def test_without_gcc(monkeypatch):
    monkeypatch.setattr(toolchain, "compiler", lambda: toolchain.Compiler("clang++", "clang", 16))
    with pytest.raises(DeviceError, match="needs g\\+\\+; the compiler here is clang 16"):
        coverage.gcov_program()
    monkeypatch.setattr(toolchain, "compiler", lambda: toolchain.Compiler("g++", "g++", 99))
    with pytest.raises(DeviceError, match="no gcov 99"):
        coverage.gcov_program()


def test_spans():
    assert spans([]) == "" and spans([3]) == "3" and spans([3, 4, 7, 9, 10, 11]) == "3-4,7,9-11"


def test_summary():
    lines = Lines([FileLines(Path("a.cu"), {1: 5, 2: 0, 3: 0, 9: 1})], [Path("b.cu")])
    assert lines.summary() == (
        "device code: 50.0% of 4 lines executed; not executed: a.cu:2-3 b.cu (not compiled)"
    )
    assert lines.shortfall(0) == "" and "b.cu was compiled" in lines.shortfall(40)
    assert Lines(lines.files, []).shortfall(50) == ""
    assert Lines([], []).percent == 0


TEXT_SCRIPT = """
from pathlib import Path
import numpy as np
from gpunn import emulator

kernel = emulator.RawKernel(Path("scale.cu").read_text(), "scale", check=False)
kernel((1,), (32,), (np.ones(32, np.float32),))
"""


def test_a_source_given_as_text_counts_for_its_file(tmp_path):
    """As CuPy's users do it: the file is read and handed over as text."""
    (tmp_path / "scale.cu").write_text(
        'extern "C" __global__ void scale(float* x) {\n    x[threadIdx.x] *= 2.f;\n}\n'
    )
    environment = {
        **os.environ, "GPUNN_EMULATOR_COVERAGE": "1", "GCOV_PREFIX": str(tmp_path / "counts"),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", TEXT_SCRIPT], cwd=tmp_path, env=environment, check=True)
    lines = coverage.collect(tmp_path / "counts", tmp_path)
    assert [file.path.name for file in lines.files] == ["scale.cu"] and lines.percent == 100


def test_blocks_do_not_share_the_counters():
    """gcc uses its counters as loop variables: with two threads of blocks sums came out wrong."""
    from gpunn import kernels

    rng = np.random.default_rng(0)
    grad, x = rng.normal(size=(2, 2000, 16)).astype(np.float32)
    with kernels.using("emulator"):
        for _ in range(30):
            with emulator.settings(coverage=True, threads=4):
                _, sums = kernels.activation_bias_backward(grad, x, activation="relu")
            np.testing.assert_allclose(sums, (grad * (x > 0)).sum(0), rtol=1e-4, atol=1e-4)
