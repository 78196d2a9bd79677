"""On a GPU a compiled step, captured as a CUDA graph, does bit for bit what the step does."""

import pytest

import gpunn
from gpunn.bench import step_parity
from gpunn.device import Device

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("precision", step_parity.PRECISIONS)
@pytest.mark.parametrize("name", step_parity.NETWORKS)
def test_replays_train_as_the_step_itself_does(name, precision, cupy):
    found = step_parity.check(name, precision, Device("cuda"))
    assert found["failures"] == []
    assert found["arena"]["size"] >= found["arena"]["peak"] > 0 and found["unplanned"] == [0, 0]
    assert found["captures"] == 2  # before the state was loaded, and after


def test_a_capture_that_waits_for_the_gpu_is_refused_and_leaves_no_trace(cupy):
    calls = []

    def step(x):
        calls.append(1)
        if len(calls) == 3:
            cupy.cuda.runtime.deviceSynchronize()
        return x * 2

    compiled = gpunn.compile(step, side_effects="allow")
    x = gpunn.ones(4, device="cuda")
    compiled(x), compiled(x)
    with pytest.raises(gpunn.errors.StepError, match="cannot be captured"):
        compiled(x)
    assert (x + 1).tolist() == [2, 2, 2, 2]
    assert compiled(x).tolist() == [2, 2, 2, 2] and compiled(x).tolist() == [2, 2, 2, 2]


def test_work_on_the_users_stream_is_in_order_with_replays(cupy):
    step = gpunn.compile(lambda x: (x + 1).sum())
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = gpunn.zeros(1 << 20, device="cuda")
        for i in range(8):
            x.array[...] = i
            assert step(x).item() == (i + 1) * (1 << 20)
