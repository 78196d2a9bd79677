"""Optimizers, schedules and clipping against PyTorch: 20 steps each, every option."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gpunn import nn, optim
from gpunn.autograd.tensor import wrap
from gpunn.optim import clip, lr_scheduler

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

SHAPES = [(4, 3), (3,), (5, 4), (), (17,)]
STEPS = 20

OPTIMIZERS = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
        {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.1, "maximize": True},
    ],
    "Adam": [
        {},
        {"betas": (0.8, 0.99), "eps": 1e-3},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
        {"decoupled_weight_decay": True, "weight_decay": 0.1},
    ],
    "AdamW": [{}, {"weight_decay": 0.3}, {"amsgrad": True}, {"maximize": True}],
    "RMSprop": [
        {},
        {"alpha": 0.9, "eps": 1e-3},
        {"momentum": 0.9},
        {"centered": True},
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
        {"maximize": True},
    ],
    "Adagrad": [
        {},
        {"lr_decay": 0.1},
        {"weight_decay": 0.1, "initial_accumulator_value": 0.5},
        {"eps": 1e-3, "maximize": True},
    ],
}
CASES = [(name, options) for name, cases in OPTIMIZERS.items() for options in cases]


def start(dtype=np.float64, seed=0):
    """The same parameters for both libraries."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    ours = [nn.Parameter(value.copy()) for value in values]
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    return ours, theirs, rng


def give_gradients(ours, theirs, rng, which=None):
    """The same random gradients; None for parameters not in `which`."""
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if which is not None and i not in which:
            mine.grad = other.grad = None
            continue
        # The scale varies, so that AMSGrad's maximum and the centered variance matter.
        value = (rng.normal(size=mine.shape) * rng.uniform(0.1, 3) + 0.2).astype(mine.dtype)
        mine.grad, other.grad = wrap(np.array(value)), torch.tensor(value)


def assert_close(ours, theirs, rtol):
    for mine, other in zip(ours, theirs, strict=True):
        expected = other.detach().numpy()
        np.testing.assert_allclose(mine.array, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_twenty_steps(name, options):
    """In float64, where only a wrong formula can differ; every state array as well."""
    ours, theirs, rng = start()
    mine = getattr(optim, name)(ours, lr=0.05, **options)
    other = getattr(torch.optim, name)(theirs, lr=0.05, **options)
    for _ in range(STEPS):
        give_gradients(ours, theirs, rng)
        mine.step()
        other.step()
        assert_close(ours, theirs, 1e-10)
    for p, q in zip(ours, theirs, strict=True):
        for key, value in other.state.get(q, {}).items():
            if key != "step" and value is not None:
                actual = mine.state[p][key].array
                np.testing.assert_allclose(actual, value.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_twenty_steps_in_float32(name, options):
    ours, theirs, rng = start(np.float32)
    mine = getattr(optim, name)(ours, lr=0.01, **options)
    other = getattr(torch.optim, name)(theirs, lr=0.01, **options)
    for _ in range(STEPS):
        give_gradients(ours, theirs, rng)
        mine.step()
        other.step()
    assert_close(ours, theirs, 2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_a_gradient_wait(name):
    """Their step count stands still, as in PyTorch."""
    ours, theirs, rng = start()
    options = {"SGD": {"momentum": 0.9, "dampening": 0.5}, "Adagrad": {"lr_decay": 0.1}}
    mine = getattr(optim, name)(ours, lr=0.05, **options.get(name, {}))
    other = getattr(torch.optim, name)(theirs, lr=0.05, **options.get(name, {}))
    everyone = {0, 1, 2, 3, 4}
    for which in ({0, 1}, {0, 1, 4}, everyone, {2}, set(), everyone, {0, 3}) * 3:
        give_gradients(ours, theirs, rng, which)
        mine.step()
        other.step()
        assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_changed_hyperparameters_and_groups(name):
    ours, theirs, rng = start()

    def groups(p):
        return [{"params": p[:2], "lr": 0.1}, {"params": p[2:], "weight_decay": 0.2}]

    mine = getattr(optim, name)(groups(ours), lr=0.05)
    other = getattr(torch.optim, name)(groups(theirs), lr=0.05)
    for step in range(STEPS):
        give_gradients(ours, theirs, rng)
        for optimizer in (mine, other):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.param_groups[1]["weight_decay"] = 0.01 * step
            if name == "SGD" and step == 5:  # momentum switched on late starts its buffer then
                optimizer.param_groups[0]["momentum"] = 0.9
                optimizer.param_groups[0]["dampening"] = 0.5
        mine.step()
        other.step()
        assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_saved_by_torch_can_be_loaded(name):
    ours, theirs, rng = start()
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    other = getattr(torch.optim, name)(theirs, lr=0.05, **options)
    for _ in range(5):
        give_gradients(ours, theirs, rng)
        other.step()
    for mine, q in zip(ours, theirs, strict=True):
        mine.array[...] = q.detach().numpy()
    loaded = getattr(optim, name)(ours, lr=1.0)
    loaded.load_state_dict(other.state_dict())
    for _ in range(5):
        give_gradients(ours, theirs, rng)
        loaded.step()
        other.step()
    assert_close(ours, theirs, 1e-10)


def test_defaults_are_torchs():
    for name in OPTIMIZERS:
        ours, theirs, _ = start()
        mine = getattr(optim, name)(ours).param_groups[0]
        other = getattr(torch.optim, name)(theirs).param_groups[0]
        for key in set(mine) & set(other) - {"params"}:
            assert mine[key] == other[key], (name, key)


# ---- schedules ---------------------------------------------------------------------------------

SCHEDULES = [
    ("LambdaLR", {"lr_lambda": lambda t: 0.9**t}),
    ("LambdaLR", {"lr_lambda": [lambda t: 1 / (1 + t), lambda t: 0.5**t]}),
    ("MultiplicativeLR", {"lr_lambda": lambda t: 1 - 0.01 * t}),
    ("StepLR", {"step_size": 3}),
    ("StepLR", {"step_size": 4, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 11], "gamma": 0.3}),
    ("ConstantLR", {}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 7}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.01, "end_factor": 0.7, "total_iters": 12}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 6}),
    ("ExponentialLR", {"gamma": 0.93}),
    ("PolynomialLR", {"total_iters": 9, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 20}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.02}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 31}),
    ("OneCycleLR", {"max_lr": [0.5, 0.1], "epochs": 8, "steps_per_epoch": 5}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 31, "three_phase": True}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 40, "anneal_strategy": "linear"}),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": 33, "pct_start": 0.1, "div_factor": 5.0,
         "final_div_factor": 10.0, "base_momentum": 0.8, "max_momentum": 0.9},
    ),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 31, "cycle_momentum": False}),
]  # fmt: skip


def pair_of_optimizers(name="SGD", **options):
    """Both libraries' optimizer with two groups of different rates."""
    made = []
    ours, theirs, _ = start()
    for library, params in ((optim, ours), (torch.optim, theirs)):
        groups = [{"params": params[:2], "lr": 0.2}, {"params": params[2:]}]
        made.append(getattr(library, name)(groups, lr=0.05, **options))
    return made


def rates(optimizer):
    """What a schedule may have changed."""
    return [
        (g["lr"], g.get("momentum", 0), g.get("betas", (0, 0))[0]) for g in optimizer.param_groups
    ]


def follow(optimizers, schedules, steps=30, metrics=None):
    """Step both and compare after each."""
    assert np.allclose(*map(rates, optimizers), rtol=1e-12, atol=1e-16)
    for t in range(steps):
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                schedule.step() if metrics is None else schedule.step(metrics[t])
        assert np.allclose(*map(rates, optimizers), rtol=1e-11, atol=1e-16), t
        assert np.allclose(schedules[0].get_last_lr(), schedules[1].get_last_lr(), rtol=1e-11)


@pytest.mark.parametrize(("name", "options"), SCHEDULES)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_schedule(name, options, optimizer):
    pair = pair_of_optimizers(optimizer, **({"momentum": 0.9} if optimizer == "SGD" else {}))
    mine = getattr(lr_scheduler, name)(pair[0], **options)
    other = getattr(torch.optim.lr_scheduler, name)(pair[1], **options)
    follow(pair, (mine, other))


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_reduce_on_plateau(mode, threshold_mode, cooldown):
    pair = pair_of_optimizers()
    options = {
        "mode": mode, "threshold_mode": threshold_mode, "cooldown": cooldown, "patience": 2,
        "factor": 0.5, "threshold": 0.01, "min_lr": [0.05, 0.001], "eps": 1e-3,
    }  # fmt: skip
    schedules = [
        library.ReduceLROnPlateau(optimizer, **options)
        for library, optimizer in zip((lr_scheduler, torch.optim.lr_scheduler), pair, strict=True)
    ]
    rng = np.random.default_rng(3)
    follow(pair, schedules, 60, np.round(rng.normal(size=60), 2).tolist())


def test_sequential():
    pair = pair_of_optimizers()
    schedules = []
    for library, optimizer in zip((lr_scheduler, torch.optim.lr_scheduler), pair, strict=True):
        parts = [
            library.LinearLR(optimizer, 0.1, total_iters=5),
            library.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.001),
            library.ExponentialLR(optimizer, 0.9),
        ]
        schedules.append(library.SequentialLR(optimizer, parts, [5, 17]))
    follow(pair, schedules)


def test_chained_and_side_by_side():
    pair = pair_of_optimizers()
    schedules = []
    for library, optimizer in zip((lr_scheduler, torch.optim.lr_scheduler), pair, strict=True):
        parts = [
            library.ConstantLR(optimizer, 0.1, total_iters=4),
            library.ExponentialLR(optimizer, 0.95),
            library.StepLR(optimizer, 6),
        ]
        schedules.append(library.ChainedScheduler(parts))
    follow(pair, schedules)


# ---- clipping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("in_arena", [False, True])
def test_clip_grad_norm(norm_type, max_norm, in_arena):
    ours, theirs, rng = start(np.float32)
    optimizer = optim.SGD(ours, lr=0.0) if in_arena else None
    give_gradients(ours, theirs, rng)
    if optimizer is not None:
        optimizer.step()  # brings the gradients into the arena
        assert all(p.grad.array is p._grad_slot for p in ours)
    norm = clip.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert np.isclose(norm.item(), expected.item(), rtol=1e-6)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.array, q.grad.numpy(), rtol=2e-6)


def test_clip_grad_value():
    ours, theirs, rng = start(np.float32)
    give_gradients(ours, theirs, rng)
    clip.clip_grad_value_(ours, 0.3)
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(p.grad.array, q.grad.numpy())
