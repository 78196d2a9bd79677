"""`explain`: rows, floors and launches, without running a kernel."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting
from gpunn.profiling import chips, explain
from gpunn.profiling.chips import CHIPS, find_chip
from gpunn.profiling.explanation import kernels_text
from gpunn.profiling.ready import names, one_step, ready_step


def small(width=512):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    x, y = gpunn.randn(256, width), gpunn.randint(0, 10, (256,))
    return model, optim.AdamW(model.parameters(), lr=1e-3), x, y


def test_rows_of_a_small_network():
    model, optimizer, x, y = small()
    before = [p.detach().numpy().copy() for p in model.parameters()]
    found = explain(model, F.cross_entropy, optimizer, x, y)
    after = [p.detach().numpy() for p in model.parameters()]
    assert all((a == b).all() for a, b in zip(after, before, strict=True))
    assert model[0].weight.grad is None and not optimizer.state
    first = found.rows[0]
    assert (first.layer, first.what, first.phase) == ("0", "Linear + relu", "forward")
    assert (first.primitive, first.flops) == ("matmul", 2 * 256 * 512 * 512)
    # x, weight and bias are read; the result and, for backward, nothing more or its input written
    assert first.bytes >= 4 * (256 * 512 + 512 * 512 + 512 + 256 * 512)
    chip = CHIPS["h200"]
    tensor = any("mma" in launch.source for launch in first.launches)
    floor = max(first.bytes / 4.8e12, first.flops / chip.rate("float32", tensor))
    assert first.floor == pytest.approx(floor)
    assert found.flops == sum(r.count * r.flops for r in found.rows)
    assert found.launches == sum(r.count * len(r.launches) for r in found.rows)
    assert found.started_floor >= 2e-6 * found.launches
    assert [r.primitive for r in found.rows[-2:]] == ["advance_step", "adam_update"]
    last = found.rows[-1]
    count = sum(p.numel() for p in model.parameters())
    assert last.limit == "memory" if last.bytes > 4.8e12 * 2e-6 else last.limit == "launch"
    assert last.bytes >= 7 * 4 * count  # weight, gradient, two moments; all but the gradient back
    text = str(found)
    assert "Linear" not in text.splitlines()[0] and "H200 (sm_90a, 132 multiprocessors" in text
    assert "gpunn.compile(step)" in text and max(map(len, text.splitlines())) <= 100
    assert "optimizer.cu" in kernels_text(found)
    assert found.to_json()["rows"][0]["launches"][0]["grid"]


def test_launches_are_those_of_the_launch_code():
    model, optimizer, x, y = small()
    found = explain(model, F.cross_entropy, optimizer, x, y, chip="a100")
    seen: list[tuple[str, str]] = []

    def note(call, args):
        launcher = RecordingLauncher(call.primitive.cuda_source, "sm_80", 108, 163 << 10)
        call.primitive.run_cuda(launcher, args)
        seen.extend(launcher.launches)

    with intercepting(note):
        model(x)
    rows = [row for row in found.rows if row.phase == "forward" and row.primitive == "matmul"]
    assert [(la.source, la.kernel) for row in rows for la in row.launches] == seen
    assert not any("wgmma" in source for source, _ in seen)


def test_in_bfloat16_the_products_are_bfloat16():
    model, optimizer, x, y = small()
    found = explain(model, F.cross_entropy, optimizer, x, y, precision="bf16")
    products = [r for r in found.rows if r.primitive == "matmul" and r.layer == "0"]
    assert {row.dtype for row in products} == {"bfloat16"}
    exact = explain(model, F.cross_entropy, optimizer, x, y)
    assert products[0].flops == exact.rows[0].flops and products[0].floor < exact.rows[0].floor
    assert gpunn.get_matmul_precision() == "highest"
    with pytest.raises(ValueError, match="precision is 'int8'; expected one of 'fp32', 'tf32'"):
        explain(model, F.cross_entropy, optimizer, x, y, precision="int8")


def test_floors_by_hand():
    """What the H200's sheet allows: 67 TFLOP/s of float32, 989.4 of bfloat16, 4.8 TB/s."""
    model = nn.Sequential(nn.Linear(512, 512), nn.Softmax(-1))
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    x = gpunn.randn(4096, 512)
    found = explain(model, nn.MSELoss(), optimizer, x, gpunn.zeros(4096, 512))
    rows = {row.primitive: row for row in found.rows}
    numbers, weights = 4 * 4096 * 512, 512 * 512 + 512
    softmax, back = rows["softmax_forward"], rows["softmax_backward"]
    assert (softmax.bytes, back.bytes) == (2 * numbers, 3 * numbers)
    assert softmax.floor == 2 * numbers / 4.8e12 and softmax.limit == "memory"
    adam = rows["adam_update"]
    assert adam.bytes - 7 * 4 * weights in range(64) and adam.floor == adam.bytes / 4.8e12
    product = rows["matmul"]
    assert product.flops == 2 * 4096 * 512 * 512 and product.limit == "compute"
    assert product.floor == product.flops / (989.4e12 / 6)  # six products of bfloat16 parts

    step = ready_step("lstm")  # in 16 bits it, too, multiplies on the tensor cores
    recurrent = [
        next(
            row.floor
            for row in explain(
                step.model, step.loss, step.optimizer, step.inputs, step.target,
                precision=precision,
            ).rows
            if row.primitive == "recurrent_forward"
        )
        for precision in ("fp32", "bf16")
    ]
    assert recurrent[1] < recurrent[0] / 2


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("name", ["mlp", "lstm-classifier"])
def test_launches_are_those_of_the_captured_step(name):
    made = ready_step(name, 2)
    found = explain(made.model, made.loss, made.optimizer, made.inputs, made.target)
    there = ready_step(name, 2, "emulator")

    @gpunn.compile
    def step(x, y):
        return one_step(there.model, there.loss, there.optimizer, (x,), y, there.precision)

    for _ in range(3):
        step(*there.inputs, there.target)
    (variant,) = step._variants.values()
    assert found.launches == variant.graph.launches > 10


def test_layers_that_are_alike_are_one_row_and_plain_arithmetic_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

        def forward(self, x):
            for block in self.blocks:
                x = block(x) + x
            return x.reshape(-1)

    model = Twice()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = gpunn.randn(4, 16)
    found = explain(model, nn.MSELoss(), optimizer, x, gpunn.zeros(64))
    first = found.rows[0]
    assert (first.layer, first.count, first.flops) == ("blocks.*", 3, 2 * 4 * 16 * 16)
    assert found.plain == {"Add": 3}
    assert "Add (3)" in str(found)


def test_a_network_that_one_kernel_trains():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    x, y = gpunn.randn(64, 64), gpunn.randint(0, 10, (64,))
    found = explain(model, nn.CrossEntropyLoss(), optimizer, x, y)
    assert [part.part for part in found.fused][:2] == ["rows", "weights"]
    assert "As one kernel for many steps" in str(found) and "no, " not in str(found)
    found = explain(model, nn.L1Loss(), optimizer, x, gpunn.zeros(64, 10))
    assert not found.fused and "One kernel for the whole network: no, the loss" in str(found)


def test_precision_changes_the_floor():
    chip = find_chip("H100")
    rates = {}
    try:
        for precision in ("highest", "high", "medium"):
            gpunn.set_matmul_precision(precision)
            rates[precision] = chip.rate("float32", True)
    finally:
        gpunn.set_matmul_precision("highest")
    assert rates == {"highest": 989.4e12 / 6, "high": 494.7e12, "medium": 989.4e12}
    assert chip.rate("float32", False) == 67e12 and chip.rate("float16", True) == 989.4e12
    assert chip.rate("float64", False) == 34e12 and chip.rate("float64", True) == 67e12
    with pytest.raises(ValueError, match="no data sheet of 'b200' here; known: h200, h100, a100"):
        find_chip("b200")


@pytest.mark.parametrize(
    "name, expected",
    [(b"NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100"), ("Tesla T4", None)],
)
def test_a_gpu_that_is_there_is_known_by_its_name(monkeypatch, name, expected):
    monkeypatch.setattr(chips, "device_properties", lambda index: {"name": name})
    device = type("Cuda", (), {"type": "cuda", "index": 0})()
    found = chips.chip_of(device)
    assert (found and found.name) == expected
    ceilings = chips.ceilings_of(device)
    assert ceilings is None if expected is None else ceilings.rate("bfloat16") > 1e14


def test_ready_steps_train():
    assert {"digits", "mlp", "cnn", "lstm", "gpt", "resnet18"} <= set(names())
    for name in ("digits", "lstm-language-model", "seq2seq"):
        step = ready_step(name, batch=3)
        losses = [step().item() for _ in range(4)]
        assert np.isfinite(losses).all() and losses[-1] < losses[0], name
    with pytest.raises(ValueError, match="no step named 'mpl'; did you mean mlp"):
        ready_step("mpl")
    with pytest.raises(ValueError, match="batch size is 0"):
        ready_step("mlp", 0)
