"""The generator: seeds, states, and what is drawn from it."""

import numpy as np
import pytest

import gpunn.autograd as g
from gpunn.autograd import random


def draws():
    return np.concatenate(
        [
            g.rand(5, device="cpu").numpy(),
            g.randn(5, device="cpu").numpy(),
            g.randperm(5, device="cpu").numpy(),
            g.randint(0, 100, (5,), device="cpu").numpy(),
        ]
    )


def test_a_seed_repeats_everything():
    g.manual_seed(5)
    first = draws()
    g.manual_seed(5)
    np.testing.assert_array_equal(draws(), first)
    assert not np.array_equal(draws(), first)
    g.manual_seed(6)
    assert not np.array_equal(draws(), first)
    assert g.initial_seed() == 6


def test_a_state_continues_where_it_was():
    g.manual_seed(1)
    draws()
    state = random.get_state()
    expected = draws()
    random.set_state(state)
    np.testing.assert_array_equal(draws(), expected)
    assert set(state) == {"seed", "offset"}
    with pytest.raises(ValueError, match="set_state: expected a dict"):
        random.set_state(3)


def test_a_generator_of_its_own():
    g.manual_seed(1)
    state = random.get_state()
    own = g.Generator(9)
    x = g.rand(4, device="cpu", generator=own)
    assert random.get_state() == state
    assert g.equal(x, g.rand(4, device="cpu", generator=g.Generator(9)))
    assert own.manual_seed(-1).initial_seed() == 2**64 - 1


def test_distributions():
    g.manual_seed(0)
    uniform, normal = g.rand(20_000, device="cpu").numpy(), g.randn(20_000, device="cpu").numpy()
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.std() - 12**-0.5) < 0.01
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.02
    whole = g.randint(-2, 3, (5000,), device="cpu").numpy()
    assert set(whole) == {-2, -1, 0, 1, 2} and abs((whole == 0).mean() - 0.2) < 0.03
    assert sorted(g.randperm(100, device="cpu").tolist()) == list(range(100))
    assert g.randint(5, (2, 3), device="cpu").shape == (2, 3)
    low = g.rand(100, dtype="bfloat16", device="cpu")
    assert low.dtype == g.bfloat16
    coins = g.bernoulli(g.full((4000,), 0.3, device="cpu")).numpy()
    assert set(coins) == {0, 1} and abs(coins.mean() - 0.3) < 0.03
    assert abs(g.normal(3.0, 0.5, (4000,), device="cpu").mean().item() - 3) < 0.05
    assert g.rand_like(low).shape == g.randn_like(low).shape == (100,)


def test_in_place():
    x = g.zeros(1000, device="cpu")
    x.uniform_(2, 3)
    assert 2 <= x.min().item() and x.max().item() < 3
    x.normal_(10, 0.1)
    assert abs(x.mean().item() - 10) < 0.05
    view = g.zeros(4, 6, device="cpu")
    view[:, ::2].uniform_(1, 2)
    assert (view[:, ::2] >= 1).all() and (view[:, 1::2] == 0).all()
    with pytest.raises(RuntimeError, match="normal_: a leaf"):
        g.zeros(1, device="cpu", requires_grad=True).normal_()


def test_multinomial():
    g.manual_seed(0)
    weights = g.tensor([0.0, 1.0, 3.0], device="cpu")
    found = g.multinomial(weights, 4000, replacement=True).numpy()
    assert set(found) == {1, 2} and abs((found == 2).mean() - 0.75) < 0.03
    two = g.multinomial(weights.expand(5, 3), 2)
    assert two.shape == (5, 2) and (two.sum(1) == 3).all()
    with pytest.raises(ValueError, match="3 samples without replacement"):
        g.multinomial(weights, 3)
    with pytest.raises(ValueError, match="not all zero"):
        g.multinomial(weights * 0, 1)
