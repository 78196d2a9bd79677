"""The finance example: no look-ahead, its volatility and its baselines by closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpunn import data
from gpunn.train import find_job
from gpunn.train.metrics import pinball_loss

Q = (0.05, 0.25, 0.5, 0.75, 0.95)


@pytest.fixture(scope="module")
def finance():
    return SimpleNamespace(**find_job("finance").train.__globals__)


@pytest.fixture(scope="module")
def baselines(finance):
    return SimpleNamespace(**finance.garch.__globals__)


def prices(count=400, change_from=None):
    random = np.random.default_rng(0)
    returns = random.normal(size=count) * 0.01
    if change_from is not None:
        returns[change_from:] *= 5
    close = 100 * np.exp(np.cumsum(returns))
    spread = np.abs(random.normal(size=(2, count))) * 0.005
    values = np.stack([close * (1 + spread[0]), close * (1 - spread[1]), close], axis=1)
    times = np.datetime64("2001-01-01T00:00:00") + np.arange(count) * np.timedelta64(86400, "s")
    return data.Series(times, values, ("High", "Low", "Close"))


def walk_of(finance, series):
    return finance.Walk(finance.Config(test=100, parts=2, window=10, batch_size=8), series)


def test_nothing_before_a_day_depends_on_it(finance):
    one, other = walk_of(finance, prices()), walk_of(finance, prices(change_from=350))
    same = 349  # rows of days whose prices are alike: returns begin on the second day
    np.testing.assert_array_equal(one.scaling.mean, other.scaling.mean)
    np.testing.assert_array_equal(one.x[:same], other.x[:same])
    np.testing.assert_array_equal(one.known[: same + 1], other.known[: same + 1])
    assert (one.x[same:] != other.x[same:]).any()
    for _, first, last in one.parts():
        train, test = one.days(0, first), one.days(first, last)
        assert train.starts.max() + 10 == first - 1 and test.starts.min() + 10 == first
        assert len(test) == last - first
    for forecast in (finance.riskmetrics, finance.recent_quantiles, finance.range_regression):
        options = {"days": 50} if forecast is finance.recent_quantiles else {}
        mine, theirs = (forecast(walk, 340, 349, Q, **options) for walk in (one, other))
        np.testing.assert_array_equal(mine, theirs)


def test_exponential_mean_and_inputs(finance):
    values = np.random.default_rng(1).normal(size=30)
    weights = 0.9 ** np.arange(30)[::-1]
    mean = finance.exponential_mean(values, 0.9)
    assert mean[-1] == pytest.approx((weights * values).sum() / weights.sum())
    assert mean[0] == pytest.approx(values[0])
    x = finance.inputs(prices())
    assert x.shape == (399, 5) and np.isfinite(x).all() and (abs(x[:, 2]) <= 1).all()
    wrong = prices()
    wrong.values[7, 0] = 1.0
    with pytest.raises(ValueError, match="2001-01-08: prices must be above 0, and the highest not"):
        finance.inputs(wrong)


def test_baselines(finance, baselines):
    walk = SimpleNamespace(returns=np.random.default_rng(2).normal(size=200), known=np.full(200, 2))
    found = baselines.recent_quantiles(walk, 150, 153, Q, 100)
    for row, day in zip(found, (150, 151, 152), strict=True):
        np.testing.assert_allclose(row, np.quantile(walk.returns[day - 100 : day], Q))
    normal = baselines.riskmetrics(walk, 0, 1, Q)[0]
    np.testing.assert_allclose(normal, [-3.2897, -1.349, 0, 1.349, 3.2897], atol=1e-4)
    move = walk.returns / walk.known  # ranges that follow from the days before without noise
    logs = np.zeros(200)
    for day in range(21, 200):
        logs[day] = 0.1 + 0.3 * logs[day - 1] + 0.2 * logs[day - 5 : day].mean()
        logs[day] += 0.1 * logs[day - 21 : day].mean() - 0.2 * min(move[day - 1], 0)
    exact = SimpleNamespace(returns=walk.returns, known=walk.known, spans=np.exp(logs))
    units = np.quantile(walk.returns[21:150] / exact.spans[21:150], Q)
    found = baselines.range_regression(exact, 150, 160, Q)
    np.testing.assert_allclose(found, exact.spans[150:160, None] * units, rtol=1e-9)
    decaying = SimpleNamespace(returns=np.zeros(200))
    decaying.returns[:5] = [1, -2, 3, 0.5, 1]
    for day in range(5, 200):  # an autoregression without noise is found again
        decaying.returns[day] = (
            0.2 + 0.5 * decaying.returns[day - 1] - 0.3 * decaying.returns[day - 3]
        )
    found = baselines.autoregression(decaying, 100, 120)
    np.testing.assert_allclose(found, decaying.returns[100:120], atol=1e-9)
    np.testing.assert_array_equal(
        baselines.drift_of(walk, 9, 11), np.median(walk.returns[:9]) * np.ones(2)
    )


def test_losses_and_what_is_said_of_them(finance):
    random = np.random.default_rng(3)
    quantiles, returns = np.sort(random.normal(size=(50, 5)), axis=1), random.normal(size=50)
    losses = finance.losses_of(quantiles, returns)
    assert losses.mean() == pytest.approx(pinball_loss(quantiles, returns, quantile=Q))
    assert "more than two standard errors" in finance.difference(losses, losses + 1 + 0.1 * returns)
    assert finance.difference(losses + returns, losses).startswith("0.")
    errors = finance.level_errors(returns, returns + 1, returns - 2, returns)
    assert [round(error, 9) for error in errors.values()][:3] == [0, 1, 2]


def test_settings_that_do_not_go_together(finance):
    with pytest.raises(ValueError, match="8 days cannot be cut into 9 parts"):
        finance.Config(test=8, parts=9)
    with pytest.raises(ValueError, match="399 days are too few to forecast the last 390"):
        finance.Walk(finance.Config(test=390), prices())
