"""A compiled step does bit for bit what the step itself does, whatever the network."""

import pytest

import gpunn
from gpunn.bench import step_parity
from gpunn.device import Device

# The emulator's 16-bit kernels are slow, so each precision goes with one or two networks there.
CASES = [
    *(("cpu", name, "fp32") for name in step_parity.NETWORKS),
    *(("emulator", name, "fp32") for name in step_parity.NETWORKS),
    ("emulator", "perceptron", "fp16"), ("emulator", "reader", "bf16"),
    ("emulator", "transformer", "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("device", "name", "precision"), CASES)
def test_replays_train_as_the_step_itself_does(device, name, precision):
    found = step_parity.check(name, precision, Device(device))
    assert found["failures"] == [] and found["checked"] > 20
    if device == "emulator":
        assert found["unplanned"] == [0, 0] and found["launches"] > 8
        assert found["captures"] == 2  # before the state was loaded, and after


def test_the_first_call_is_of_another_kind():
    """It meets parameters without gradients."""
    first, later = step_parity.train("perceptron", "emulator", True).step._variants.values()
    assert (first.state, first.calls) == ("warm", 1)
    assert (later.state, later.calls) == ("captured", step_parity.STEPS - 1)
    assert gpunn.random.get_rng_state()["offset"] > 0
