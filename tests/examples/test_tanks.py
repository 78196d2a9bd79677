"""The tanks' physics, models, planning and PID, against closed forms and SciPy."""

import sys

import numpy as np
import pytest
from scipy import integrate, optimize

import gpunn
from gpunn.train import find_job

JOB = find_job("tanks")
tanks = sys.modules[JOB.train.__module__]
plant, experiments, rivals = (
    sys.modules[f"tanks_{part}"] for part in ("plant", "experiments", "rivals")
)


def test_rig_follows_torricelli():
    levels = np.array([[0.12, 0.05], [0.02, 0.15]])
    volts, inflow = np.array([4.0, 0.5]), np.array([0.0, 8e-7])
    found = plant.advance(levels, volts, inflow)
    for row, start, volt, water in zip(found, levels, volts, inflow, strict=True):

        def rates(_, h, volt=volt, water=water):
            upper, lower = 7.1e-6 * np.sqrt(2 * 9.81 * h)
            return [(3.33e-6 * volt - upper) / 28e-4, (upper + water - lower) / 28e-4]

        exact = integrate.solve_ivp(rates, (0, 5), start, rtol=1e-10, atol=1e-12).y[:, -1]
        np.testing.assert_allclose(row, exact, rtol=0, atol=2e-7)


def test_rig_rests_overflows_and_runs_dry():
    levels, volts = plant.at_rest(np.array([0.03, 0.1, 0.15]))
    np.testing.assert_allclose(plant.advance(levels, volts), levels, atol=1e-12)
    full = empty = np.full((1, 2), 0.1)
    for _ in range(200):
        full, empty = plant.advance(full, 10.0), plant.advance(empty, 0.0)
    np.testing.assert_allclose(full, 0.2)  # the upper one runs over, the lower one rests there
    assert (empty >= 0).all() and (empty < 1e-3).all()


def test_pieces_of_recordings_fit_together():
    recording = plant.record(np.random.default_rng(0), 2, 60)
    levels, volts, plan, measured, true = plant.stretches(recording, 7, 5)
    exact = rivals.TrueModel()
    ends = recording.true[:, plant.PAST]
    np.testing.assert_allclose(exact.rollout(ends[:, None], volts[:2], plan[:2]), true[:2])
    np.testing.assert_array_equal(levels[:2, -1], recording.levels[:, plant.PAST])
    np.testing.assert_array_equal(volts[:2, -1], recording.volts[:, plant.PAST - 1])
    assert 0.5e-3 < (measured - true).std() < 1.5e-3


def test_arx_recovers_a_linear_system():
    rng = np.random.default_rng(1)
    a, b, c = np.array([[0.9, 0.0], [0.1, 0.85]]), np.array([0.02, 0.001]), np.array([0.01, 0.02])
    volts, levels = rng.uniform(0, 5, (3, 60)), [rng.uniform(0, 1, (3, 2))]
    for at in range(59):
        levels.append(levels[-1] @ a.T + volts[:, at, None] * b + c)
    levels = np.stack(levels, 1)
    model = rivals.LinearModel.fit(plant.Recording(volts, levels, levels), 1)
    np.testing.assert_allclose(model.weights, np.vstack([a.T, b, c]), atol=1e-10)
    parts = levels[:, :3], volts[:, :2], volts[:, 2:12]
    unlimited = model.rollout(*parts, (-np.inf, np.inf))
    np.testing.assert_allclose(unlimited, levels[:, 3:13], atol=1e-10)
    assert (levels[:, 3:13] > 0.2).any()
    assert model.rollout(*parts).max() == 0.2  # a tank is never fuller than full


@pytest.mark.parametrize("kind", ["network", "ARX", "true"])
def test_derivatives_by_the_plan(kind):
    recording = plant.record(np.random.default_rng(2), 2, 80)
    levels, volts, plan, _, _ = plant.stretches(recording, 100, 9)
    plan = plan.clip(1, 5)
    gpunn.manual_seed(0)
    model = {
        "network": lambda: tanks.NetworkModel(tanks.Plant(8), None),
        "ARX": lambda: rivals.LinearModel.fit(recording, 3),
        "true": rivals.TrueModel,
    }[kind]()
    lower, derivative = model.linearise(levels, volts, plan)
    np.testing.assert_allclose(lower, model.rollout(levels, volts, plan)[..., 1], atol=1e-6)
    width = 0.2  # wide, for the network's float32
    for at in range(9):
        up, down = plan.copy(), plan.copy()
        up[:, at] += width
        down[:, at] -= width
        change = (model.rollout(levels, volts, up) - model.rollout(levels, volts, down))[..., 1]
        np.testing.assert_allclose(derivative[:, :, at], change / 2 / width, rtol=0.02, atol=3e-6)


def test_plan_is_the_bounded_least_squares():
    rng = np.random.default_rng(3)
    config = JOB.configure(horizon=10)
    control = tanks.PredictiveControl(rivals.TrueModel(), (4, 0.3), config)
    control.start(*plant.at_rest(np.array([0.05, 0.12])))
    derivative = np.tril(rng.uniform(0, 0.3, (2, 10, 10)))
    missing = rng.uniform(-3, 3, (2, 10))
    found = control.improved(missing, derivative)
    root = np.sqrt(config.smoothness)
    for row in range(2):
        before, plan = control.volts[row, -1], control.plan[row]
        rows = np.vstack([derivative[row], root * control.differences])
        wanted = np.concatenate(
            [missing[row] + derivative[row] @ plan, root * before * np.eye(10)[0]]
        )
        exact = optimize.lsq_linear(rows, wanted, (0, 10), tol=1e-12)
        cost = ((rows @ found[row] - wanted) ** 2).sum()
        assert (found[row] >= 0).all() and (found[row] <= 10).all()
        assert cost <= 2 * exact.cost * 1.01 + 1e-6


def test_pid_integrates_and_does_not_wind_up():
    levels, volts = plant.at_rest(np.array([0.1]))
    reference = np.full((1, 5), 0.105)
    pid = rivals.PID(np.array([2.0, 50.0, 0.0, 3, 0.0, 0]))
    pid.start(levels, volts)
    for step in range(4):  # 0.5 cm of error: 1 V at once, and 0.1 V more with each step
        assert pid(levels, reference) == pytest.approx(volts + 1.0 + 0.1 * step)
    for _ in range(500):
        assert pid(levels, np.full((1, 5), 0.2)) == pytest.approx(10)
    for _ in range(30):
        low = pid(levels, np.full((1, 5), 0.095))
    assert low < 10  # a wound-up integral would need as long to come down as it went up


def test_feed_forward_of_the_pid_is_the_voltage_at_rest():
    reference = np.array([[0.05, 0.08, 0.1]])
    levels, volts = plant.at_rest(reference[:, 0])
    pid = rivals.PID(np.array([0.0, 50.0, 0.0, 0, 0.5, 2]))
    pid.start(levels, volts)
    expected = (volts + plant.at_rest(reference[:, 2])[1]) / 2
    np.testing.assert_allclose(pid(levels, reference), expected)


def test_the_tuned_pid_is_better_than_a_textbook_one():
    profile = experiments.profiles(np.random.default_rng(4), 1, 2)
    gains = rivals.tune_pid(profile, 5)
    assert (gains[[3, 5]] == gains[[3, 5]].round()).all() and 0 <= gains[4] <= 1
    tuned, textbook = (
        experiments.follow(rivals.PID(one), profile, 5).errors[0]
        for one in (gains, np.array([3.0, 240, 6, 2, 0, 0]))
    )
    assert tuned < 0.8 * textbook


def test_reference_files(tmp_path):
    path = tmp_path / "reference.csv"
    for text in ("time,level\n0,5\n\n5,7.5\n", '\ufefftime,"h, cm"\r\n0,"5"\r\n5,7.5', "5\n7.5"):
        path.write_bytes(text.encode())
        np.testing.assert_allclose(experiments.read_reference(str(path)), [[0.05, 0.075]])
    for text, place in (
        ("5\n25\n", "line 2"), ("5\nx\n", "line 2"), ("level\n", "no level"), ("", "no level"),
        ("25\n5\n", "line 1"), ("5\nnan\n", "line 2"), ("5\n0;5,5\n", "line 2.*decimal point"),
        ("5\0\n", "line 1"), (b"\x89PNG\r\n\xff", "no text in UTF-8"),
    ):  # fmt: skip
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=place):
            experiments.read_reference(str(path))


def test_the_end_of_a_programme_is_held(tmp_path):
    """A reference of one sample: the rig rests at it, and the voltage stays that of rest."""
    profile = experiments.Profile(np.array([[0.1]]), np.zeros((1, 1)))
    control = tanks.PredictiveControl(rivals.TrueModel(), (4, 0.3), JOB.configure(horizon=8))
    found = experiments.follow(control, profile, 0, noise=0.0)
    np.testing.assert_allclose(found.levels, [[[0.1, 0.1]]])
    np.testing.assert_allclose(found.volts[:, 0], plant.at_rest(np.array([0.1]))[1], rtol=1e-6)
