"""The learning rule and the baselines of the robot, against closed forms, SciPy and gymnasium."""

import dataclasses
import sys

import gymnasium
import numpy as np
import pytest
from scipy import linalg, stats

import gpunn
from gpunn.train import History, Run, find_job

JOB = find_job("cartpole")
cartpole = sys.modules[JOB.train.__module__]
rivals = sys.modules["cartpole_rivals"]


def test_advantages_are_the_discounted_sums_of_surprises():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(6, 2)), rng.normal(size=(7, 2))
    fallen, ended = np.zeros((6, 2), bool), np.zeros((6, 2), bool)
    fallen[2, 0] = ended[2, 0] = True  # the first environment fell
    ended[3, 1] = True  # the second ran out of time
    found = cartpole.advantages(rewards, values, fallen, ended, 0.9, 0.8)
    for row in range(2):
        for step in range(6):
            total = 0.0
            for later in range(step, 6):
                following = 0 if fallen[later, row] else 0.9 * values[later + 1, row]
                surprise = rewards[later, row] + following - values[later, row]
                total += (0.9 * 0.8) ** (later - step) * surprise
                if ended[later, row]:
                    break
            assert found[step, row] == pytest.approx(total)


def test_probabilities_and_entropies():
    gpunn.manual_seed(1)
    rng = np.random.default_rng(1)
    policy = cartpole.Policy(cartpole.TASKS["cartpole"])
    seen = rng.normal(size=(5, 4)).astype("f4")
    logits, chosen = policy(gpunn.tensor(seen)).detach().numpy(), np.array([0, 1, 1, 0, 1])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    log_probability, entropy = policy.judge(gpunn.tensor(seen), gpunn.tensor(chosen))
    log_probability, entropy = log_probability.detach().numpy(), entropy.item()
    np.testing.assert_allclose(log_probability, np.log(shares[np.arange(5), chosen]), rtol=1e-5)
    assert entropy == pytest.approx(stats.entropy(shares, axis=1).mean(), rel=1e-5)

    policy = cartpole.Policy(cartpole.TASKS["pendulum"])
    policy.log_std.data.fill_(-0.3)
    seen, torque = rng.normal(size=(5, 3)).astype("f4"), rng.normal(size=(5, 1)).astype("f4")
    normal = stats.norm(policy(gpunn.tensor(seen)).detach().numpy(), np.exp(-0.3))
    log_probability, entropy = policy.judge(gpunn.tensor(seen), gpunn.tensor(torque))
    log_probability = log_probability.detach().numpy()
    np.testing.assert_allclose(log_probability, normal.logpdf(torque)[:, 0], rtol=1e-4)
    assert entropy.item() == pytest.approx(normal.entropy()[0, 0], rel=1e-5)


def test_lqr_solves_the_riccati_equation():
    rng = np.random.default_rng(2)
    a, b = np.eye(3) + 0.1 * rng.normal(size=(3, 3)), rng.normal(size=(3, 1))
    q, r = np.diag([1.0, 0.1, 2.0]), np.array([[0.5]])
    p = linalg.solve_discrete_are(a, b, q, r)
    expected = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
    np.testing.assert_allclose(rivals.lqr(a, b, q, r), expected, rtol=1e-6)


def test_engineers_controllers_know_the_environments():
    """LQR stands to the end; the energy rule is near the top in the second half of its episodes."""
    task = cartpole.TASKS["cartpole"]
    assert (cartpole.play(task, rivals.balance_cart(), 20, 5).returns == 500).all()
    played = cartpole.play(cartpole.TASKS["pendulum"], rivals.swing_up(), 8, 5)
    assert (played.observations[120:, :, 0] > 0.99).all()


def test_playing_is_gymnasiums_own_environment():
    """Falls, times and points are those of single environments from the same start states."""
    task = cartpole.TASKS["cartpole"]
    played = cartpole.play(task, lambda seen: (seen[:, 2] > 0).astype(np.int64), 3, 9)
    for row in range(3):
        single = gymnasium.make("CartPole-v1").unwrapped
        single.reset(seed=0)
        single.state = played.observations[0, row].astype(float)
        length, fallen = 0, False
        while not fallen:
            seen, _, fallen, _, _ = single.step(int(single.state[2] > 0))
            length += 1
        assert played.returns[row] == length == played.first[:, row].sum()
        assert played.fallen[length - 1, row] and not played.valid[length, row]
        np.testing.assert_allclose(played.observations[length, row], seen, atol=1e-3)
        assert np.abs(played.observations[length + 1, row]).max() < 0.06  # begins anew
    again = cartpole.play(task, lambda seen: (seen[:, 2] > 0).astype(np.int64), 3, 9)
    np.testing.assert_array_equal(played.observations, again.observations)


@pytest.fixture
def config(monkeypatch):
    short = dataclasses.replace(cartpole.TASKS["pendulum"], steps=20)
    monkeypatch.setitem(cartpole.TASKS, "pendulum", short)
    monkeypatch.setattr(History, "plot", lambda *arguments: None)
    return JOB.configure(environment="pendulum", iterations=12, environments=2, epochs=1)


def test_an_interrupted_run_ends_as_it_would_have(tmp_path, config, monkeypatch):
    class Power(Exception):
        pass

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = Run(JOB, config, tmp_path / "whole", verbose=False)
    cartpole.train(whole)
    improve, calls = cartpole.improve, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise Power
        return improve(*arguments)

    monkeypatch.setattr(cartpole, "improve", fails)
    with pytest.raises(Power):
        cartpole.train(Run(JOB, config, tmp_path / "cut", verbose=False))
    cartpole.train(Run(JOB, config, tmp_path / "cut", verbose=False))
    assert len(calls) == 14  # the last two iterations were played again, from the tenth on
    first, second = (Run(JOB, config, tmp_path / n, verbose=False).load("model") for n in
                     ("whole", "cut"))  # fmt: skip
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_held_out_episodes_are_of_no_other_use():
    """The seeds of training, of the test and of `predict` lie apart, for any number of episodes."""
    assert 2**32 + 10**9 < cartpole.HELD_OUT < cartpole.HELD_OUT + 10**9 < cartpole.FURTHER


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match="pip install gymnasium"):
        cartpole.play(cartpole.TASKS["cartpole"], rivals.balance_cart(), 1, 0)


def test_predict_asks_for_a_number(tmp_path, config):
    with pytest.raises(ValueError, match="how many episodes"):
        next(cartpole.predict(Run(JOB, config, tmp_path, verbose=False), "many"))
