"""Every primitive x implementation x sample against the NumPy reference in float64."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.device.sources import kernels_folder
from gpunn.primitives import parity
from gpunn.primitives.matmul_parity import menu_kernels
from gpunn.primitives.registry import reachable_kernels

TABLE = kernels.table()
PATTERN = re.compile(r"__global__\s+void\s+(?:__\w+__\s*\(.*?\)\s*)*(?!__)(\w+)\s*\(", re.DOTALL)


def check_all(name: str, implementation: str, device: str, count_parity) -> None:
    """Check every sample of a primitive and report all that fail at once."""
    cases = parity.cases(TABLE[name], implementation)
    results = [
        parity.check(TABLE[name], sample, dtype, implementation, device) for sample, dtype in cases
    ]
    assert results, f"{name} has no samples for {implementation}"
    failed = [str(result) for result in results if not result.passed]
    assert not failed, "\n".join(failed)
    count_parity(name, implementation, len(results))


@pytest.mark.parametrize("name", TABLE)
def test_numpy(name, count_parity):
    check_all(name, "numpy", "cpu", count_parity)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TABLE)
def test_cuda(name, count_parity):
    check_all(name, "cuda", "cuda", count_parity)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TABLE)
def test_numba(name, count_parity):
    numba = probe.find_numba()
    if not numba.passed:
        pytest.skip(numba.remedy)
    check_all(name, "numba", "cuda", count_parity)


# Numba takes longer to be imported than most families to be checked: some share a process.
LONG = ("matmul", "loss", "cross_entropy", "activation", "clip", "reduce", "layer_norm")
SHORT = sorted({made.family for made in TABLE.values()} - set(LONG))


@pytest.mark.parametrize("families", [*((one,) for one in LONG), *(SHORT[k::4] for k in range(4))])
def test_numba_in_its_simulator(families, count_parity):
    """The simulator is switched on by the environment before Numba is imported: in a process."""
    environment = dict(os.environ, NUMBA_ENABLE_CUDASIM="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_numba_simulator.py")), *families],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checked = json.loads(done.stdout.splitlines()[-1])
    for name, count in checked.items():
        assert count > 0, name
        count_parity(name, "numba simulator", count)


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_complete(name):
    made = TABLE[name]
    assert made.implementations == ("numpy", "cuda", "numba")
    assert made.__doc__ and made.__doc__.strip().splitlines()[0].endswith((".", "``"))
    samples = made.sample_list()
    assert len({sample.name for sample in samples}) == len(samples), "names of samples repeat"
    assert made.bench_shapes
    args, kwargs = made.benchmark_inputs(tuple(min(n, 1024) for n in made.bench_shapes[0]))
    cost = made.cost_of(*args, **kwargs)
    assert cost.bytes > 0 and cost.flops >= 0


def test_every_kernel_is_reached_by_a_sample():
    """Each __global__ function of kernels/cuda stands in at least one reached expression."""
    reached = reachable_kernels()
    # The rule for products reaches some of their kernels; others tests go through the whole menu.
    for source, expressions in menu_kernels(RecordingLauncher("matmul.cu")).items():
        reached[source] = [*reached.get(source, ()), *expressions]
    for source in sorted((kernels_folder() / "cuda").glob("*.cu")):
        text = source.read_text()
        declared = set(PATTERN.findall(text))
        used = {expression.split("<")[0] for expression in reached.get(source.name, [])}
        assert declared, f"{source.name} declares no kernel"
        assert declared == used, f"{source.name}: never reached {sorted(declared - used)}"
