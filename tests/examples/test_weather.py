"""The weather example: no look-ahead, causal convolutions, ordered quantiles, its baselines."""

from types import SimpleNamespace

import numpy as np
import pytest

import gpunn
from gpunn import data
from gpunn.train import find_job


@pytest.fixture(scope="module")
def weather():
    return SimpleNamespace(**find_job("weather").train.__globals__)


def days(count=500, change_from=None):
    """A series like Seattle's, as a function for `load`; from a row on everything is another."""
    random = np.random.default_rng(0)
    values = random.gamma(2.0, 4.0, size=(count, 4))
    if change_from is not None:
        values[change_from:] = 100 + random.gamma(2.0, 9.0, size=(count - change_from, 4))
    times = np.datetime64("2012-01-01T00:00:00") + np.arange(count) * np.timedelta64(86400, "s")
    return data.Series(times, values, ("precipitation", "temp_max", "temp_min", "wind"))


def walk_of(weather, series, begin=300, parts=2):
    config = weather.Config(data="days", parts=parts)
    globals_ = weather.Walk.__init__.__globals__
    kept, globals_["load"] = globals_["load"], lambda config: (
        weather.DAYS, series, begin, len(series)
    )  # fmt: skip
    try:
        return weather.Walk(config), config
    finally:
        globals_["load"] = kept


def test_nothing_before_a_part_depends_on_it(weather):
    one, _ = walk_of(weather, days())
    other, _ = walk_of(weather, days(change_from=400))  # the second part
    np.testing.assert_array_equal(one.scaling.mean, other.scaling.mean)
    np.testing.assert_array_equal(one.x[:400], other.x[:400])
    for a, b in zip(one.parts, other.parts, strict=True):
        for mine, theirs in zip(a.train.whole(), b.train.whole(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        span = weather.DAYS.window + weather.DAYS.horizon
        assert a.train.starts.max() + span == a.test.starts.min() + weather.DAYS.window
    first = weather.simple_forecasts(one, one.parts[1])
    second = weather.simple_forecasts(other, other.parts[1])
    for name, forecast in first.items():  # the first forecast is made before anything differs
        np.testing.assert_allclose(forecast[0], second[name][0], rtol=1e-6)
    quantiles = [weather.linear_quantiles(w, w.parts[1], [0.05, 0.95])[0] for w in (one, other)]
    np.testing.assert_allclose(*quantiles, rtol=1e-6)
    assert (quantiles[0][:, 0] < quantiles[0][:, 1]).all()


@pytest.mark.parametrize("network", ["gru", "convolution"])
@pytest.mark.parametrize("task", ["HOURS", "DAYS"])
def test_quantiles_are_in_order(weather, network, task):
    task = getattr(weather, task)
    config = weather.Config(network=network, hidden=8)
    model = weather.Forecaster(task, 9, config).to("cpu").eval()
    x = np.random.default_rng(1).normal(size=(6, task.window, 9)).astype(np.float32)
    found = model(gpunn.tensor(x, device="cpu")).detach().numpy()
    assert found.shape == (6, task.horizon, 5) and (np.diff(found, axis=2) > 0).all()


def test_convolutions_reach_over_the_window_and_no_further_back(weather):
    for window in (7, 28, 72):
        past = weather.CausalConvolutions(2, 4, window).to("cpu")
        levels = len(past.layers)
        assert 2 ** (levels + 1) - 1 >= window > 2**levels - 1
        x = np.zeros((1, 200, 2), np.float32)
        base = past(gpunn.tensor(x, device="cpu")).detach().numpy()
        reach = 2 ** (levels + 1) - 1
        x[:, : 200 - reach] = 5.0
        np.testing.assert_array_equal(past(gpunn.tensor(x, device="cpu")).detach().numpy(), base)
        x[:, 199] = 5.0
        assert (past(gpunn.tensor(x, device="cpu")).detach().numpy() != base).any()


def test_ridge_is_least_squares_with_rows_that_pull_to_zero(weather):
    ridge = weather.simple_forecasts.__globals__["ridge"]
    random = np.random.default_rng(2)
    x, y = random.normal(size=(80, 5)) * [1, 9, 1, 0.1, 2] + 3, random.normal(size=(80, 2))
    mean, scale = x.mean(0), x.std(0) + 1e-6
    penalty = np.array([0.3, 0.3, 0.3, 2.0, 0.0])
    pull = np.diag(np.sqrt(penalty * 80))
    rows = np.concatenate([(x - mean) / scale, pull])
    weights, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((5, 2))]))
    new = random.normal(size=(7, 5))
    expected = (new - mean) / scale @ weights + y.mean(0)
    np.testing.assert_allclose(ridge(x, y, penalty)(new), expected)


def test_climatology_knows_what_is_periodic(weather):
    climatology = weather.simple_forecasts.__globals__["climatology"]
    hours = np.arange(24 * 40)
    raw = 10 + 5 * np.sin(2 * np.pi * hours / 24)
    found = climatology(SimpleNamespace(task=weather.HOURS, raw=raw), hours[-48:, None])
    np.testing.assert_allclose(found[:, 0], raw[-48:])
    series = days(800)
    year = 2 * np.pi * (np.arange(800) % 366) / 365.25  # 2012 is a leap year
    year[366:] = 2 * np.pi * (np.arange(800 - 366) % 365) / 365.25
    series.values[:, 1] = 12 + 8 * np.cos(year) - 2 * np.sin(2 * year)
    walk, _ = walk_of(weather, series, begin=600)
    rows = np.arange(600, 800)[:, None]
    # The mean of eight numbers in float32 is the clock's precision.
    np.testing.assert_allclose(climatology(walk, rows), series.values[rows, 1], atol=1e-4)


def test_what_a_network_of_days_refuses_to_forecast_after(weather, tmp_path, monkeypatch):
    monkeypatch.setitem(weather.predict.__globals__, "load", lambda config: (
        weather.DAYS, days(), 300, 500))  # fmt: skip
    run, path = SimpleNamespace(config=weather.Config(data="days", parts=1)), tmp_path / "own.csv"
    header, cells = "when,temp_max,temp_min,precipitation,wind", "9,4,0,2"
    for times, wrong, message in (
        (["2020-01-01 00:00", "2020-01-01 01:00"], cells, "the network was trained on 86400 s"),
        (["2020-01-01"], cells, "its last rows without a gap are 1; a forecast needs 28 days"),
        ([f"2020-01-{day:02}" for day in range(1, 30)], "9,4,-99.9,2", "precipitation cannot be"),
    ):
        path.write_text("\n".join([header, *(f"{time},{wrong}" for time in times)]))
        with pytest.raises(ValueError, match=message):
            next(weather.predict(run, str(path)))


def test_settings_that_do_not_go_together(weather):
    with pytest.raises(ValueError, match="ett needs a file"):
        weather.Config(data="ett")
    with pytest.raises(ValueError, match="a file goes with hours or ett"):
        weather.Config(data="days", file="a.csv")
    with pytest.raises(ValueError, match="200 days cannot be cut into 29 parts of 7 or more"):
        walk_of(weather, days(), parts=29)
