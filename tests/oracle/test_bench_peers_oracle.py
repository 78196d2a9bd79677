"""PyTorch as a peer of the benchmarks: every one of its functions agrees with our reference."""

import pytest

from gpunn import kernels
from gpunn.bench import peers
from gpunn.bench.cases import Case, workload
from gpunn.device import Device

pytest.importorskip("torch")

CPU = Device("cpu")
WITHOUT_PEER = {"advance_counter", "advance_step", "random_bits"}


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(set(kernels.table()) - WITHOUT_PEER))
def test_pytorch_agrees_with_the_reference(name):
    made = kernels.table()[name]
    case = Case(name, tuple(min(n, 24) for n in made.bench_shapes[0]), "float32")
    peers.check("torch", case, CPU, workload(case, CPU).sets[0])
