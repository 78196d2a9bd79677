"""NCCL on a GPU: one rank, what is captured, and two processes that meet without MPI."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.autograd.dtypes import as_dtype
from gpunn.device import Device, graph, to_device, to_numpy
from gpunn.distributed import GradientSync, alone
from gpunn.distributed.environment import JoinError
from gpunn.distributed.nccl_driver import import_nccl

pytestmark = pytest.mark.gpu
DTYPES = ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
          "bfloat16")  # fmt: skip


@pytest.fixture(scope="module")
def nccl():
    try:
        return import_nccl()
    except JoinError as error:
        pytest.skip(str(error))


@pytest.fixture
def group(nccl):
    made = alone("cuda")
    yield made
    made.close()


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- one rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums(dtype, group, cupy):
    for size in (0, 1, 1023, 1 << 20):
        expected = (np.arange(size) % 100).astype(as_dtype(dtype))
        values = to_device(expected, "cuda")
        for root in (None, 0):
            group.begin_reduce(values, root).wait()
            group.broadcast(values)
            group.all_gather(values, [(0, size)])
        assert to_numpy(values).tobytes() == expected.tobytes()
    moved = np.arange(5).astype(expected.dtype)
    link = group._devices
    link.begin(moved).wait()
    link.broadcast(moved)
    assert moved.astype(int).tolist() == [0, 1, 2, 3, 4]


def test_values_of_the_host(group):
    link = group._devices
    assert link.exchange(b"some words") == [b"some words"] and link.exchange(b"") == [b""]
    link.begin_barrier().wait()
    group.barrier()
    group.check()


def test_sums_run_after_what_they_add_and_before_what_uses_them(group, cupy):
    for number in range(30):
        x = cupy.full(1 << 22, number, np.float32)
        for _ in range(3):
            x += 1
        pending = group.begin_reduce(x)
        between = cupy.full(1 << 20, 9.0)  # memory of the pool, while the sum is under way
        pending.wait()
        x *= 2
        assert float(x.min()) == float(x.max()) == 2 * (number + 3)
        del x, between


def test_a_captured_reduction_is_replayed(group, cupy):
    x, y = cupy.zeros(3 << 20, np.float32), cupy.zeros(3 << 20, np.float32)
    made, pokes = graph.CudaGraph(Device("cuda")), []

    def run():
        pending = []
        for start in range(0, x.size, 1 << 20):
            bucket = y[start : start + (1 << 20)]
            cupy.multiply(x[start : start + (1 << 20)], 2, out=bucket)
            pending.append(group.begin_reduce(bucket))
            pokes.append(pending[-1].poke())
        for one in pending:
            one.wait()
        cupy.add(y, 1, out=y)

    run()  # nothing is compiled while it captures
    made.capture(run)
    assert pokes[3:] == [False] * 3
    for value in range(1, 5):
        x[...] = value
        made.replay()
        group.all_reduce(y)  # one that is not captured, between
        assert float(y.min()) == float(y.max()) == 2 * value + 1


def test_what_waits_for_the_host_is_refused_in_a_capture(group, cupy):
    link, made = group._devices, graph.CudaGraph(Device("cuda"))
    for call in (lambda: link.exchange(b""), link.begin_barrier):
        with pytest.raises(RuntimeError, match="inside a step that is being captured"):
            made.capture(call)
    group.all_reduce(cupy.ones(3))


def trained(group, compiled):
    """Losses and weights of a small network after some steps."""
    gpunn.manual_seed(5)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).to("cuda")
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    sync = GradientSync(optimizer, group, bucket_bytes=1024) if group else None
    rng = np.random.default_rng(2)
    data = [(rng.standard_normal((32, 16), np.float32), rng.integers(0, 8, 32)) for _ in range(9)]

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if sync is None:
            loss.backward()
        else:
            with sync.backward():
                loss.backward()
        optimizer.step()
        return loss

    run = gpunn.compile(step) if compiled else step
    losses = [run(*(gpunn.tensor(a, device="cuda") for a in pair)).item() for pair in data]
    return losses, [p.detach().numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_with_one_rank_gives_the_same_bits(compiled, group):
    assert trained(group, compiled) == trained(None, compiled)


# ---- processes -----------------------------------------------------------------------------------

CAPTURE = """
import cupy
from gpunn.device import Device, graph
from gpunn.distributed import alone
group = alone("cuda")
x = cupy.ones(1000)
made = graph.CudaGraph(Device("cuda"))
made.capture(lambda: group.all_reduce(x))
made.replay()
print(float(x.sum()))
{end}
"""


@pytest.mark.parametrize("end", ["", "group.close()"])
def test_a_process_ends_though_a_graph_holds_the_communicator(end, nccl):
    environment = {**os.environ, "NCCL_COMM_ID": f"127.0.0.1:{free_port()}"}
    done = subprocess.run([sys.executable, "-c", CAPTURE.format(end=end)], env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1000.0"


PAIR = """
import cupy, numpy as np
from gpunn import distributed
group = distributed.init()
x = cupy.arange(1000, dtype=np.float32) + group.rank
group.all_reduce(x)
parts = cupy.full(10, group.rank)
group.all_gather(parts, [(0, 7), (7, 10)])
print(group.exchange(["é", group.rank]), float(x.sum()), int(parts.sum()))
"""


def test_two_processes_that_meet_without_mpi(nccl, cupy):
    """On one GPU NCCL joins them from 2.30 on; before it says that they have the same."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port() - 1),
                   "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONIOENCODING": "utf-8",
                   "NCCL_MULTI_RANK_GPU_ENABLE": "1"}  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, "-c", PAIR], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, encoding="utf-8",
                         env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    together = nccl.get_version() >= 23000 or cupy.cuda.runtime.getDeviceCount() > 1
    for (out, error), rank in zip(said, ranks, strict=True):
        if together:
            assert rank.returncode == 0, error
            assert out.strip() == "[['é', 0], ['é', 1]] 1000000.0 3"
        else:
            assert "could not join the others by NCCL" in error and rank.returncode == 1
