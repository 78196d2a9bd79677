"""Schedules: their formulas, their state, warm-up, wrong arguments."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest

from gpunn import nn, optim
from gpunn.optim import lr_scheduler


def sgd(lr=1.0, groups=1, **options):
    made = [{"params": [nn.Parameter(np.zeros(1, np.float32))]} for _ in range(groups)]
    return optim.SGD(made, lr=lr, **options)


def run(optimizer, schedule, steps):
    """The rates of the first group, the first one included."""
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def expect(make, steps, expected):
    optimizer = sgd()
    np.testing.assert_allclose(run(optimizer, make(optimizer), steps), expected, rtol=1e-12)


def test_formulas():
    expect(lambda o: lr_scheduler.StepLR(o, 2), 4, [1, 1, 0.1, 0.1, 0.01])
    expect(lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5), 4, [1, 0.5, 0.5, 0.25, 0.25])
    expect(lambda o: lr_scheduler.ConstantLR(o, 0.5, 2), 3, [0.5, 0.5, 1, 1])
    expect(lambda o: lr_scheduler.ConstantLR(o, 0.0, 2), 3, [0, 0, 1, 1])
    expect(lambda o: lr_scheduler.LinearLR(o, 0.25, 1, 3), 4, [0.25, 0.5, 0.75, 1, 1])
    expect(lambda o: lr_scheduler.LinearLR(o, 1, 0, 2), 4, [1, 0.5, 0, 0, 0])
    expect(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 3, [1, 0.5, 0.25, 0.125])
    expect(lambda o: lr_scheduler.PolynomialLR(o, 2, 2.0), 3, [1, 0.25, 0, 0])
    expect(lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)), 2, [1, 1 / 2, 1 / 3])
    half = math.sqrt(0.5) / 2
    cosine = [1, 0.5 + half, 0.5, 0.5 - half, 0, 0.5 - half]
    expect(lambda o: lr_scheduler.CosineAnnealingLR(o, 4), 3, cosine[:4])
    restarts = [*cosine[:4], 1, 0.5 + half]
    expect(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4), 5, restarts)


def test_cosine_comes_back_from_its_lowest_point():
    optimizer = sgd()
    found = run(optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=0.1), 8)
    np.testing.assert_allclose(found, found[::-1], rtol=1e-12)
    assert min(found) == pytest.approx(0.1) and found[0] == 1


def test_one_cycle():
    optimizer = sgd(momentum=0.5)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=11, pct_start=0.4)
    momenta = [optimizer.param_groups[0]["momentum"]]
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert rates[0] == pytest.approx(1 / 25) and rates[-1] == pytest.approx(1 / 25 / 1e4)
    assert 0.97 < max(rates) <= 1 and momenta[0] == 0.95 and momenta[-1] == pytest.approx(0.95)
    assert min(momenta) == pytest.approx(0.85, abs=3e-3)
    schedule.step()
    with pytest.raises(ValueError, match="step 12 of 11"):
        schedule.step()


def test_warm_up_then_cosine():
    optimizer = sgd()
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
        lr_scheduler.CosineAnnealingLR(optimizer, 4),
    ]
    schedule = lr_scheduler.SequentialLR(optimizer, parts, [3])
    found = run(optimizer, schedule, 7)
    np.testing.assert_allclose(found[:5], [0.1, 0.4, 0.7, 1, 0.5 + math.sqrt(0.5) / 2])
    assert found[-1] == pytest.approx(0, abs=1e-15)


def test_reduce_on_plateau():
    optimizer = sgd(groups=2)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5, min_lr=[0, 0.4])
    for metric in (3.0, 2.0, np.float32(2.0), 2.0, 2.0, 2.0):
        schedule.step(metric)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.4]
    assert schedule.get_last_lr() == [0.25, 0.4] and schedule.best == 2.0


SCHEDULES = [
    lambda o: lr_scheduler.StepLR(o, 2),
    lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=20),
    lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
]


@pytest.mark.parametrize("make", SCHEDULES)
def test_resume(make):
    """A schedule goes on from its state and the optimizer's."""
    optimizer = sgd(momentum=0.9)
    schedule = make(optimizer)
    run(optimizer, schedule, 3)
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), schedule.state_dict())))
    expected = run(optimizer, schedule, 5)
    optimizer = sgd(lr=9.0, momentum=0.9)
    schedule = make(optimizer)
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert run(optimizer, schedule, 5) == expected


def test_resume_by_last_epoch():
    optimizer = sgd()
    expected = run(optimizer, lr_scheduler.ExponentialLR(optimizer, 0.5), 3)
    state = optimizer.state_dict()
    optimizer = sgd()
    with pytest.raises(KeyError, match="no initial_lr"):
        lr_scheduler.ExponentialLR(optimizer, 0.5, last_epoch=2)
    optimizer.load_state_dict(state)
    lr_scheduler.ExponentialLR(optimizer, 0.5, last_epoch=3)
    assert optimizer.param_groups[0]["lr"] == expected[-1] / 2


def test_the_rate_reaches_the_update():
    """A schedule writes a Python number; the next step takes it to the device."""
    parameter = nn.Parameter(np.zeros(1))
    optimizer = optim.SGD([parameter], lr=1.0)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        parameter.sum().backward()
        optimizer.step()
        schedule.step()
    assert parameter.item() == -1.75


def test_order_of_steps():
    optimizer = sgd()
    schedule = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match=r"StepLR: step\(\) was called before optimizer.step"):
        schedule.step()
    optimizer = sgd()
    schedule = lr_scheduler.StepLR(optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        schedule.step()
        schedule.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: lr_scheduler.StepLR(o, 0), "StepLR: step_size is 0"),
        (lambda o: lr_scheduler.LambdaLR(o, [abs]), "lr_lambda has 1 values; .* 2 parameter"),
        (lambda o: lr_scheduler.ConstantLR(o, 1.5), "ConstantLR: factor is 1.5"),
        (lambda o: lr_scheduler.LinearLR(o, 0), "LinearLR: start_factor is 0"),
        (lambda o: lr_scheduler.LinearLR(o, 1, 2), "LinearLR: end_factor is 2"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 0), "T_max is 0"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0), "give total_steps, or epochs and"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=0), "total_steps is 0"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 5, pct_start=2), "pct_start is 2"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 5, anneal_strategy="x"), "anneal_strategy"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "up"), "mode is 'up'"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=1.0), "factor is 1.0"),
        (lambda o: lr_scheduler.SequentialLR(o, [], []), "got no schedules"),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 1)], [3]),
            "1 schedules need 0 milestones, got 1",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(sgd(), 1)], []),
            "belongs to another optimizer",
        ),
        (
            lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ReduceLROnPlateau(o)]),
            "whose step needs a metric",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(sgd(groups=2))


def test_wrong_optimizers():
    with pytest.raises(TypeError, match="optimizer is int"):
        lr_scheduler.StepLR(3, 2)
    adagrad = optim.Adagrad([nn.Parameter(np.zeros(1, np.float32))])
    with pytest.raises(ValueError, match="Adagrad has neither momentum nor betas"):
        lr_scheduler.OneCycleLR(adagrad, 1.0, total_steps=5)
