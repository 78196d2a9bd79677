"""`NcclLink` with a stand-in for CuPy and NCCL; threads are the ranks."""

import importlib.util
import re
import socket
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gpunn.device import Device
from gpunn.distributed import Launch, finding, nccl, nccl_driver
from gpunn.distributed.environment import JoinError

SPEC = importlib.util.spec_from_file_location(
    "nccl_stand_in", Path(__file__).with_name("nccl_stand_in.py")
)
sim = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sim)
on_gpu, on_ranks = sim.on_gpu, sim.on_ranks
CPU = Device("cpu")  # stands for each rank's GPU in messages


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("NCCL_COMM_ID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_mpi(size, function):
    """``function(link, driver)`` on each rank, joined over MPI; raises what the first raises."""
    world = sim.World(size)

    def run(rank):
        driver = sim.StandIn()
        host = sim.HostLink(world, rank, size)
        link = nccl.NcclLink(Launch("mpi", rank, size, rank, size), CPU, host, driver)
        return function(link, driver)

    outcomes = on_ranks(size, run)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@pytest.fixture
def one():
    """A link of one rank and its driver, with nothing in its log."""
    driver = sim.StandIn()
    link = nccl.NcclLink(Launch(), CPU, None, driver)
    driver.log.clear()
    return link, driver


# ---- order ---------------------------------------------------------------------------------------


def test_the_first_operation_is_made_at_the_start():
    driver = sim.StandIn()
    nccl.NcclLink(Launch(), CPU, None, driver)
    assert ("allReduce", 1, 2) in driver.log


def test_a_sum_runs_between_two_events(one):
    link, driver = one
    driver.events = False
    pending = link.begin(on_gpu([1.0, 2.0]))
    assert driver.log == [
        ("record", "compute", 3),  # what is in the array
        ("wait", "nccl", 3),
        ("allReduce", 2, 2),
        ("record", "nccl", 4),
    ]
    assert not pending.poke()
    driver.events = True
    assert pending.poke()
    driver.log.clear()
    pending.wait()
    pending.wait()
    assert driver.log == [("wait", "compute", 4)] and pending.poke()


def test_arrays_live_until_wait(one):
    link, _ = one
    first, second = link.begin(on_gpu([1.0])), link.begin(on_gpu([2.0]))
    assert link._under_way == {first, second}
    first.wait()
    assert link._under_way == {second}


def test_within_a_capture(one):
    link, driver = one
    driver.captures = True
    pending = link.begin(on_gpu([1.0]))
    assert not pending.poke()  # and no event was asked
    pending.wait()
    link.broadcast(on_gpu([1.0]))
    link.all_gather(on_gpu([1.0]), [(0, 1)])
    assert driver.log[-1][:2] == ("wait", "compute")
    assert len(driver.kept) == 1  # the graph holds it: it cannot be destroyed
    for call in (lambda: link.exchange(b""), link.begin_barrier, lambda: link.begin(np.ones(2))):
        with pytest.raises(RuntimeError, match="inside a step that is being captured"):
            call()
    driver.captures = False
    link.close()
    assert driver.ended == []


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*sim.TYPES.values()], ids=lambda t: np.dtype(t).name)
def test_sums(dtype):
    def run(link, driver):
        found = []
        for size in (0, 1, 7):
            everywhere, there = (on_gpu(np.arange(size) + link.rank, dtype) for _ in range(2))
            pending = [link.begin(everywhere), link.begin(there, root=2)]
            for one in pending:
                one.wait()
            found.append((everywhere, there))
        return found

    for rank, found in enumerate(by_mpi(3, run)):
        for everywhere, there in found:
            expected = (3 * np.arange(len(everywhere)) + 3).astype(dtype)
            np.testing.assert_array_equal(everywhere, expected)
            if rank == 2:
                np.testing.assert_array_equal(there, expected)


def test_arrays_of_the_host_go_through_the_gpu():
    def run(link, driver):
        arrays = [np.full((2, 3), link.rank + 1.0), np.array(5 + link.rank),
                  np.asfortranarray(np.arange(6.0).reshape(2, 3) * link.rank),
                  np.full(3, 1, ml_dtypes.bfloat16)]  # fmt: skip
        for pending in [link.begin(array) for array in arrays]:
            pending.wait()
        there, moved = np.full(2, 1 + link.rank), np.full(2, link.rank)
        link.begin(there, root=0).wait()
        link.broadcast(moved, root=1)
        parts = np.full(5, link.rank)
        link.all_gather(parts, [(0, 4), (4, 5)])
        return arrays, there, moved, parts

    for rank, (arrays, there, moved, parts) in enumerate(by_mpi(2, run)):
        a, b, c, d = arrays
        assert (a == 3).all() and b == 11 and (d == 2).all()
        np.testing.assert_array_equal(c, np.arange(6.0).reshape(2, 3))
        assert there.tolist() == ([3, 3] if rank == 0 else [2, 2])
        assert moved.tolist() == [1, 1] and parts.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("bounds", "calls"),
    [
        ([(0, 2), (2, 4), (4, 6)], ["allGather"]),
        ([(0, 3), (3, 6), (6, 7)], ["group", *["broadcast"] * 3, "end of group"]),
        ([(0, 4), (4, 4), (4, 5)], ["group", *["broadcast"] * 2, "end of group"]),
        ([(0, 0), (0, 0), (0, 0)], []),
    ],
)
def test_parts(bounds, calls):
    size = bounds[-1][1]

    def run(link, driver):
        driver.log.clear()
        flat = on_gpu(np.full(size, link.rank), np.float32)
        link.all_gather(flat, bounds)
        made = [entry if isinstance(entry, str) else entry[0] for entry in driver.log]
        return flat, [name for name in made if name not in ("record", "wait")]

    expected = [rank for rank, (start, stop) in enumerate(bounds) for _ in range(start, stop)]
    for flat, made in by_mpi(3, run):
        assert flat.tolist() == expected and made == calls


def test_broadcast():
    def run(link, driver):
        array = on_gpu([[link.rank, 5]], np.float64)
        link.broadcast(array, root=1)
        link.broadcast(on_gpu([]))
        return array

    assert [array.tolist() for array in by_mpi(2, run)] == [[[1, 5]]] * 2


def test_values_of_the_host():
    def run(link, driver):
        link.begin_barrier().wait()
        return link.exchange(b"ab" * link.rank), link.exchange(b"")

    assert by_mpi(3, run) == [([b"", b"ab", b"abab"], [b"", b"", b""])] * 3


# ---- wrong use, and the end ----------------------------------------------------------------------


def test_wrong_arrays(one):
    link, _ = one
    with pytest.raises(TypeError, match=r"bool cannot be added up, in an array of shape \(2,\)"):
        link.begin(on_gpu([True, False]))
    with pytest.raises(ValueError, match=r"no gaps, and an array of shape \(2,\) float64 has"):
        link.begin(on_gpu([1.0, 2.0, 3.0])[::2])
    with pytest.raises(ValueError, match=r"the part of each of 1 ranks .* got \[\(0, 3\)\]"):
        link.all_gather(on_gpu([1.0]), [(0, 3)])
    elsewhere = on_gpu([1.0])
    elsewhere.index = 1
    with pytest.raises(ValueError, match="is not on cpu, the GPU of rank 0; move it there"):
        link.begin(elsewhere)


def test_nccl_refuses(one):
    link, driver = one
    driver.fails = "NCCL_ERROR_SYSTEM_ERROR"
    with pytest.raises(RuntimeError, match=r"rank 0 of 1: the sum of an array of shape \(1,\) .*"
                       r"failed \(NCCL_ERROR_SYSTEM_ERROR\).*NCCL_DEBUG=WARN"):  # fmt: skip
        link.begin(on_gpu([1.0]))


def test_a_rank_is_gone(one):
    link, driver = one
    link.check()
    driver.events, driver.fails = False, ""
    pending = link.begin_barrier()
    driver.fails = "NCCL_ERROR_REMOTE_ERROR"
    with pytest.raises(RuntimeError, match=r"lost another rank .*\(NCCL_ERROR_REMOTE_ERROR\)"):
        pending.wait()
    assert driver.ended == ["aborted"]
    link.check()  # there is nothing any more
    with pytest.raises(RuntimeError, match="this link to the other GPUs was closed"):
        link.begin(on_gpu([1.0]))


def test_close(one, monkeypatch):
    link, driver = one
    link.close()
    link.close()
    assert driver.ended == ["destroyed"]
    monkeypatch.setattr(nccl, "CLOSE_SECONDS", 0.01)
    link = nccl.NcclLink(Launch(), CPU, None, driver)
    driver.events = False  # someone does not come
    link.close()
    assert driver.ended == ["destroyed", "aborted"]
    driver.events = True
    link = nccl.NcclLink(Launch(), CPU, None, driver)

    def faulty(event):
        raise RuntimeError("cudaErrorIllegalAddress")

    driver.done = faulty
    link.close()
    assert driver.ended[2:] == ["aborted"]


# ---- meeting -------------------------------------------------------------------------------------


def test_the_id_over_mpi():
    assert by_mpi(2, lambda link, driver: driver.ids) == [1, 0]


def join(size, drivers):
    """Links without MPI, as torchrun starts them."""
    return on_ranks(size, lambda rank: nccl.NcclLink(
        Launch("torchrun", rank, size), CPU, None, drivers[rank]
    ))  # fmt: skip


def test_the_id_without_mpi(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port() - 1))
    drivers = [sim.StandIn() for _ in range(3)]
    links = join(3, drivers)
    assert [link.rank for link in links] == [0, 1, 2]
    assert [driver.ids for driver in drivers] == [1, 0, 0]


def test_the_id_by_nccls_own_variable(monkeypatch):
    monkeypatch.setenv("NCCL_COMM_ID", "10.0.0.1:5000")
    drivers = [sim.StandIn() for _ in range(2)]
    assert [link.size for link in join(2, drivers)] == [2, 2]
    assert [driver.ids for driver in drivers] == [1, 1]


def test_what_goes_wrong_on_one_rank_is_told_on_all():
    world = sim.World(2)

    def run(rank):
        driver = sim.StandIn()
        driver.fails = "" if rank else "NCCL_ERROR_SYSTEM_ERROR"
        host = sim.HostLink(world, rank, 2)
        return nccl.NcclLink(Launch("mpi", rank, 2), CPU, host, driver)

    for error in on_ranks(2, run):
        assert re.match(r"NCCL on rank 0 of 2 gives no id .*NCCL_SOCKET_IFNAME", str(error))


def test_errors_of_meeting(monkeypatch):
    driver = sim.StandIn()
    driver.fails = "NCCL_ERROR_INVALID_USAGE"
    driver.unique_id = lambda: bytes(128)
    with pytest.raises(JoinError, match=r"could not join .*\(NCCL_ERROR_INVALID_USAGE\).*"
                       "show each process a GPU of its own"):  # fmt: skip
        nccl.NcclLink(Launch(), CPU, None, driver)
    with pytest.raises(JoinError, match="MASTER_ADDR is not set: set it"):
        nccl.NcclLink(Launch("torchrun", 1, 2), CPU, None, sim.StandIn())
    monkeypatch.setenv("NCCL_COMM_ID", "nonsense")
    driver = sim.StandIn()
    driver.fails = "NCCL_ERROR_INVALID_ARGUMENT"
    with pytest.raises(JoinError, match="is NCCL_COMM_ID=nonsense of the form address:port"):
        nccl.NcclLink(Launch("torchrun", 1, 2), CPU, None, driver)


# ---- NCCL itself ---------------------------------------------------------------------------------


@pytest.fixture
def cupy_with(monkeypatch):
    """A function (nccl) that puts it into the place of CuPy's module."""

    def put(module):
        driver = types.SimpleNamespace(get_build_version=lambda: 13000)
        cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(nccl=module, driver=driver))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.nccl", None)

    return put


def test_without_nccl(cupy_with):
    cupy_with(types.SimpleNamespace(available=False))
    with pytest.raises(JoinError, match=r"CuPy cannot load \(.*\); install it: pip install "
                       r"'gpunn\[distributed-cuda13\]'"):  # fmt: skip
        nccl_driver.import_nccl()
    found = finding.find_nccl()
    assert not found.passed and found.remedy.startswith("Several GPUs are connected by NCCL")


def test_the_doctor_tells_versions(cupy_with, monkeypatch):
    cupy_with(types.SimpleNamespace(available=True, get_version=lambda: 22703))
    assert finding.find_nccl().detail == "2.27.3"
    assert "mpi4py 4" in finding.find_mpi().detail
    monkeypatch.setattr(finding, "_ASK", "raise RuntimeError('no libmpi')")
    broken = finding.find_mpi()
    assert not broken.passed and "works (RuntimeError: no libmpi)" in broken.remedy
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    missing = finding.find_mpi()
    assert not missing.passed and "pip install 'gpunn[distributed]'" in missing.remedy


class Queried(RuntimeError):
    def __init__(self, status):
        super().__init__(f"status {status}")


def test_the_driver_calls_cupy(cupy_with):
    calls = []
    cupy_with(types.SimpleNamespace(
        available=True, NcclError=sim.Fault, get_unique_id=lambda: bytes(128),
        groupStart=lambda: calls.append("start"), groupEnd=lambda: calls.append("end"),
        NcclCommunicator=lambda *arguments: calls.append(arguments) or object(),
    ))  # fmt: skip
    sys.modules["cupy"].cuda.runtime = types.SimpleNamespace(
        memcpyHostToDevice=1, eventQuery=lambda event: event, CUDARuntimeError=Queried
    )
    driver = nccl_driver.CupyNccl(CPU)
    assert driver.error is sim.Fault and driver.unique_id() == bytes(128)
    communicator = driver.communicator(2, bytes(128), 1)
    assert calls == [(2, bytes(128), 1)]
    before = sys.getrefcount(communicator)
    driver.keep(communicator)
    assert sys.getrefcount(communicator) == before + 1
    with pytest.raises(ValueError):
        driver.group(lambda: [].remove(1))
    assert calls[1:] == ["start", "end"]  # or all later calls would only be noted
    event = types.SimpleNamespace
    assert driver.done(event(ptr=0)) is True and driver.done(event(ptr=600)) is False
    assert driver.on_host(np.ones(2)) and not driver.on_host(event())
    with pytest.raises(Queried, match="status 700"):
        driver.done(event(ptr=700))
