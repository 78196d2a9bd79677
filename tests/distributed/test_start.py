"""Which GPU a rank takes, groups of one, and how `init` joins ranks without MPI."""

import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest

from gpunn.device import Device
from gpunn.distributed import JoinError, Launch, alone, nccl, start
from gpunn.distributed.gpus import own_gpu

SPEC = importlib.util.spec_from_file_location(
    "nccl_stand_in", Path(__file__).with_name("nccl_stand_in.py")
)
sim = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sim)
on_ranks = sim.on_ranks
CPU = Device("cpu")  # stands for each rank's GPU in messages


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("NCCL_COMM_ID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


# ---- which GPU -----------------------------------------------------------------------------------


class Gpus:
    def __init__(self, count, buses="ABCDEFGH"):
        self._count, self._buses = count, buses

    def count(self):
        return self._count

    def bus(self, index):
        return self._buses[index]

    def device(self, index):
        return f"cuda:{index}"


@pytest.mark.parametrize(
    ("local_rank", "local_size", "count", "environment", "expected"),
    [
        (0, 1, 8, {}, "cuda:0"),
        (3, 4, 4, {}, "cuda:3"),
        (1, 2, 4, {}, "cuda:1"),
        (3, 4, 1, {"CUDA_VISIBLE_DEVICES": "3"}, "cuda:0"),  # srun --gpus-per-task=1
        (0, 1, 1, {}, "cuda:0"),
        (3, 4, 2, {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}, "cuda:1"),
    ],
)
def test_own_gpu(local_rank, local_size, count, environment, expected):
    launch = Launch("torchrun", local_rank, 8, local_rank, local_size)
    assert own_gpu(launch, None, Gpus(count), environment) == expected


@pytest.mark.parametrize(
    ("local_rank", "local_size", "count", "environment"),
    [(0, 4, 2, {}), (1, 2, 1, {}), (2, 1, 2, {}), (0, 4, 2, {"CUDA_VISIBLE_DEVICES": "0,1"})],
)
def test_too_few_gpus(local_rank, local_size, count, environment):
    launch = Launch("torchrun", 0, 8, local_rank, local_size)
    with pytest.raises(JoinError) as error:
        own_gpu(launch, None, Gpus(count), environment)
    processes = max(local_size, local_rank + 1)
    text = f"{processes} processes were started on {socket.gethostname()}, where each sees {count}"
    assert str(error.value).startswith(text)
    assert f"--nproc-per-node {count}" in str(error.value)


def test_gpus_over_mpi():
    def on(gpus, environment):
        world = sim.World(2)
        return on_ranks(2, lambda rank: own_gpu(
            Launch("mpi", rank, 2, rank, 2), sim.HostLink(world, rank, 2), gpus[rank], environment
        ))  # fmt: skip

    visible = {"CUDA_VISIBLE_DEVICES": "0"}
    assert on([Gpus(1, "A"), Gpus(1, "B")], visible) == ["cuda:0", "cuda:0"]
    shared = visible | {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    assert on([Gpus(1, "A"), Gpus(1, "A")], shared) == ["cuda:0", "cuda:0"]
    assert on([Gpus(1, [""]), Gpus(1, [""])], visible) == ["cuda:0", "cuda:0"]  # parts of one
    for error in on([Gpus(1, "A"), Gpus(1, "A")], visible):
        assert f"ranks 0 and 1 both have the GPU A of {socket.gethostname()}" in str(error)
    for error in on([Gpus(2), Gpus(1)], {}):  # one host of two has too few: both end
        assert isinstance(error, JoinError) and "where each sees 1 GPU:" in str(error)


def test_gpus_in_sight(monkeypatch):
    from gpunn.device import probe

    def found(driver, gpus):
        monkeypatch.setattr(probe, "find_driver", lambda: probe.Finding("driver", driver, ""))
        monkeypatch.setattr(probe, "find_gpus", lambda: probe.Finding("GPU", gpus, ""))
        return probe.gpus_in_sight()

    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(probe, "_driver_in_sight", lambda: True)
    assert found(True, True) and not found(False, True) and not found(True, False)
    monkeypatch.setattr(probe, "_driver_in_sight", lambda: False)
    assert not found(True, True)


def test_ranks_without_a_gpu(monkeypatch):
    host = sim.HostLink(None, 0, 3)
    host.exchange = lambda data: [data, b"G", b""]
    monkeypatch.delenv("GPUNN_DEVICE", raising=False)
    monkeypatch.setattr(start.probe, "gpus_in_sight", lambda: True)
    with pytest.raises(JoinError, match="of 3 ranks these have no GPU .* the others have: 2"):
        start._device_link(Launch("mpi", 0, 3), host)
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    host.exchange = lambda data: [data, b"", b""]
    assert start._device_link(Launch("mpi", 0, 3), host) is None


# ---- alone ---------------------------------------------------------------------------------------


def test_alone():
    group, array = alone("cpu"), np.arange(3.0)
    assert (group.rank, group.size, group.main) == (0, 1, True)
    group.all_reduce(array)
    group.broadcast(array)
    group.all_gather(array, [(0, 3)])
    assert group.begin_reduce(array, root=0).poke() and array.tolist() == [0, 1, 2]
    assert group.exchange({"a": [1.5, None]}) == [{"a": [1.5, None]}] and group.share(3) == 3
    assert group.exchange_bytes(b"x") == [b"x"]
    group.barrier()
    group.check()
    group.close()


def test_init_without_mpi(monkeypatch):
    """As torchrun starts it, on a host with GPUs; what is found there is of the stand-in."""
    from gpunn.distributed import gpus
    from gpunn.distributed.watch import Watch

    monkeypatch.setattr(start, "_watched", lambda group: Watch())
    monkeypatch.delenv("GPUNN_DEVICE", raising=False)
    launch = Launch("torchrun", 0, 1, 0, 1)
    monkeypatch.setattr(start, "launched", lambda: Launch("torchrun", 0, 2, 0, 2))
    monkeypatch.setattr(start.probe, "gpus_in_sight", lambda: True)
    monkeypatch.setattr(start, "set_default_device", lambda device: None)
    monkeypatch.setattr(start.atexit, "register", lambda function: None)
    shared = []
    monkeypatch.setattr(start, "_share_cores", shared.append)
    monkeypatch.setattr(gpus, "own_gpu", lambda launch, host: CPU)
    link = nccl.NcclLink(launch, CPU, None, sim.StandIn())
    monkeypatch.setattr(nccl, "NcclLink", lambda launch, device, host: link)
    try:
        group = start.init()
        assert group is start.init() is start.current() and repr(group) == "<rank 0 of 2, NCCL>"
        assert group.exchange([1]) == [[1]] and shared == [2]
        group.barrier()
    finally:
        start._leave()
    assert start.current() is None and link._driver.ended == ["destroyed"]
    monkeypatch.setattr(start.probe, "gpus_in_sight", lambda: False)
    with pytest.raises(JoinError, match="process 0 of 2 .* without a GPU only MPI connects"):
        start.init()
