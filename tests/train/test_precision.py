"""Training in bf16, fp16 and tf32: as good as in float32; what overflows is skipped."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.amp import GradScaler
from gpunn.device import probe
from gpunn.primitives.matmul_precision import get_matmul_precision
from gpunn.train.precision import NAMES, Precision


def normal(*shape, seed=0):
    return gpunn.tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def mlp():
    return nn.Sequential(
        nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 4)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, activation="relu"),
        nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 12)

    def forward(self, tokens):
        return self.head(self.norm(self.layer(self.embedding(tokens)))).reshape(-1, 12)


TOKENS = gpunn.tensor(np.random.default_rng(3).integers(0, 12, (4, 6)))
LABELS = gpunn.tensor(np.arange(16) % 4)
TASKS = {
    "mlp": (mlp, normal(16, 8), LABELS),
    "cnn": (cnn, normal(16, 2, 6, 6), LABELS),
    "transformer": (Transformer, TOKENS, (TOKENS.reshape(-1) * 5 + 1) % 12),
}


def train(model, x, y, name, steps=40, kind=optim.AdamW, lr=5e-3, device="cpu", scale=None):
    """(losses, the Precision) of some steps on one batch."""
    model.to(device)
    x, y, losses = x.to(device), y.to(device), []
    optimizer = kind(model.parameters(), lr=lr)
    precision = Precision(name, device, optimizer)
    if scale is not None:
        start = Precision(name, device, optimizer).state_dict()
        start["scaler"]["scale"] = scale
        precision.load_state_dict(start)
    for _ in range(steps):
        optimizer.zero_grad()
        with precision.products():
            with precision.forward():
                loss = F.cross_entropy(model(x), y)
            precision.scaled(loss).backward()
            precision.unscale()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            precision.update()
        losses.append(loss.item())
    return losses, precision


@pytest.mark.parametrize("task", TASKS)
def test_trajectories_end_where_float32_does(task):
    make, x, y = TASKS[task]
    ends = {}
    for name in NAMES:
        gpunn.manual_seed(0)
        losses, precision = train(make(), x, y, name)
        ends[name] = losses[-1]
        assert losses[0] > 1.2 and losses[-1] < 0.7 * losses[0] and precision.skipped <= 2
    assert ends["tf32"] == ends["fp32"]  # on the CPU
    for name, bound in (("bf16", 0.05), ("fp16", 0.03)):
        assert ends[name] != ends["fp32"]
        assert abs(ends[name] - ends["fp32"]) < bound * ends["fp32"] + 0.005, (name, ends)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad", "Lion"])
def test_a_step_that_overflows_changes_nothing(kind):
    gpunn.manual_seed(0)
    model = mlp()
    before = [p.numpy().copy() for p in map(lambda p: p.detach(), model.parameters())]
    make = getattr(optim, kind)
    how = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    made = []

    def optimizer(parameters, lr):
        made.append(make(parameters, lr=lr, **how))
        return made[0]

    _, precision = train(model, *TASKS["mlp"][1:], "fp16", 3, optimizer, scale=2.0**40)
    assert precision.skipped == 3 and precision.loss_scale == 2.0**37
    for parameter, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), old)
    assert made[0].state == {}  # no step was counted
    losses, precision = train(model, *TASKS["mlp"][1:], "fp16", 30, make, scale=2.0**25)
    assert 1 <= precision.skipped < 15 and losses[1] == losses[0] > losses[-1]


def test_one_bad_gradient_among_many_steps():
    model, x, y = mlp(), *TASKS["mlp"][1:]
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    precision = Precision("fp16", "cpu", optimizer)
    for step in range(4):
        optimizer.zero_grad()
        with precision.forward():
            loss = F.cross_entropy(model(x), y)
        precision.scaled(loss).backward()
        if step == 2:
            model[4].bias.grad.data[1] = np.nan
        old = [p.detach().numpy().copy() for p in model.parameters()]
        precision.unscale()
        optimizer.step()
        precision.update()
        same = all(
            (p.detach().numpy() == o).all() for p, o in zip(model.parameters(), old, strict=True)
        )
        assert same == (step == 2)
    assert {entry["step"] for entry in optimizer.state.values()} == {3}
    assert (precision.skipped, precision.loss_scale) == (1, 2.0**15)
    saved = precision.state_dict()
    other = Precision("fp16", "cpu", optim.Adam(mlp().parameters()))
    other.load_state_dict(saved)
    assert other.state_dict() == saved and (other.skipped, other.loss_scale) == (1, 2.0**15)
    Precision("bf16", "cpu", optimizer).load_state_dict(saved)  # nothing to take over
    assert Precision("bf16", "cpu", optimizer).state_dict() == {"name": "bf16", "scaler": {}}


def test_a_step_that_breaks_off_does_not_stop_the_next():
    model, x, y = mlp(), *TASKS["mlp"][1:]
    optimizer = optim.Adam(model.parameters())
    precision = Precision("fp16", "cpu", optimizer)
    for interrupted in (True, False):
        optimizer.zero_grad()
        with precision.forward():
            loss = F.cross_entropy(model(x), y)
        precision.scaled(loss).backward()
        precision.unscale()  # and here comes Ctrl-C
        if not interrupted:
            optimizer.step()
            precision.update()
    assert len(optimizer.state) == len(list(model.parameters())) and precision.skipped == 0


def test_the_precision_of_products_holds_inside_alone():
    optimizer = optim.SGD(mlp().parameters(), lr=0.1)
    for name, wanted in (("tf32", "high"), ("fp32", "highest"), ("bf16", "medium")):
        gpunn.set_matmul_precision("medium")
        try:
            precision = Precision(name, "cpu", optimizer)
            with precision.products():
                assert get_matmul_precision() == wanted
            with precision.forward():
                assert get_matmul_precision() == wanted
                assert gpunn.is_autocast_enabled() == (name == "bf16")
            assert get_matmul_precision() == "medium"
        finally:
            gpunn.set_matmul_precision("highest")


def test_errors():
    optimizer = optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="precision is 'bfloat16'; expected one of 'fp32'"):
        Precision("bfloat16", "cpu", optimizer)
    low = optim.SGD(mlp().bfloat16().parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match="'fp16' keeps the parameters in float32 .* dtype bfloat16"
    ):
        Precision("fp16", "cpu", low)
    Precision("fp32", "cpu", low)  # a model trained in its own dtype
    with pytest.raises(TypeError, match="'fp16' needs an optimizer of gpunn.optim.* got Own"):
        Precision("fp16", "cpu", type("Own", (), {"param_groups": []})())


# ---- GradScaler ----------------------------------------------------------------------------------


def step(scaler, *optimizers, unscale=False):
    for optimizer in optimizers:
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    scaler.update()


def test_two_optimizers_skip_each_for_itself_and_share_the_scale():
    first, second = (gpunn.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    optimizers = [optim.SGD([p], lr=1.0) for p in (first, second)]
    scaler = GradScaler(init_scale=4.0)
    for bad, values in ((np.inf, ([0, 1], [1, 2])), (0.0, ([-1, 0], [0, 1]))):
        scaler.scale(first.sum() + second.sum()).backward()
        second.grad.data[0] += bad
        step(scaler, *optimizers, unscale=True)
        for parameter, value in zip((first, second), values, strict=True):
            assert parameter.tolist() == value
            parameter.grad = None
        assert scaler.get_scale() == 2.0
    assert scaler.skipped == 1 and optimizers[0].skip_flag is None


def test_what_is_scaled():
    scaler = GradScaler("cpu", init_scale=8.0)
    a, b = scaler.scale([gpunn.ones(2), gpunn.tensor(3.0)])
    assert a.tolist() == [8, 8] and b.item() == 24
    assert next(iter(scaler.scale(iter([gpunn.ones(())])))).item() == 8
    off = GradScaler(enabled=False)
    loss = gpunn.ones(())
    assert off.scale(loss) is loss and off.get_scale() == 1.0 and off.state_dict() == {}
    parameter = gpunn.tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([parameter], lr=1.0)
    parameter.sum().backward()
    step(off, optimizer, unscale=True)
    assert parameter.item() == 0


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda s, o: (s.unscale_(o), s.unscale_(o)), RuntimeError, "unscaled already"),
        (lambda s, o: (s.step(o), s.step(o)), RuntimeError, "step: was called already"),
        (lambda s, o: (s.step(o), s.unscale_(o)), RuntimeError, "stepped already"),
        (lambda s, o: s.step(o, lambda: 1), RuntimeError, "takes no closure"),
        (lambda s, o: s.update(), RuntimeError, "no gradients were unscaled"),
        (lambda s, o: (o.zero_grad(), s.step(o)), RuntimeError, "no parameter .* has a gradient"),
        (lambda s, o: s.load_state_dict({}), RuntimeError, "the state is empty"),
        (lambda s, o: s.scale(3.0), TypeError, "outputs is float"),
        (lambda s, o: GradScaler(growth_factor=1.0), ValueError, "growth_factor is 1.0"),
        (lambda s, o: GradScaler(backoff_factor=1.0), ValueError, "backoff_factor is 1.0"),
        (lambda s, o: GradScaler(growth_interval=0), ValueError, "growth_interval is 0"),
    ],
)
def test_errors_of_the_scaler(action, error, text):
    parameter, scaler = gpunn.tensor([1.0], requires_grad=True), GradScaler()
    optimizer = optim.SGD([parameter], lr=1.0)
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(error, match=text):
        action(scaler, optimizer)


def test_16_bit_gradients_are_refused():
    parameter = gpunn.tensor([1.0]).half().requires_grad_()
    optimizer, scaler = optim.SGD([parameter], lr=1.0), GradScaler()
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(ValueError, match="a gradient has dtype float16"):
        scaler.step(optimizer)


@pytest.mark.parametrize("scale", [2.0**10, 2.0**24])
@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_a_compiled_step_skips_and_scales_in_the_same_way(scale):
    """Captured launches read scale and flag where they lie: bit by bit the step that is not."""
    found = []
    for compiled in (False, True):
        gpunn.manual_seed(0)
        model = mlp().to("emulator")
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        scaler = GradScaler("emulator", init_scale=scale, growth_interval=2)

        def step(x, y, model=model, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            with gpunn.autocast("float16"):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            return loss

        if compiled:
            step = gpunn.compile(step, side_effects="allow")
        x, y = (tensor.to("emulator") for tensor in TASKS["mlp"][1:])
        losses = [step(x, y).item() for _ in range(12)]
        found.append((losses, scaler.state_dict()))
    assert found[0] == found[1]
    assert (scaler.skipped > 3) == (scale == 2.0**24) and losses[-1] < losses[0]
