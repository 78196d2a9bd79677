"""The generator: seeds, states, and what is drawn from it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn as nn
import gpunn.nn.functional as F
from gpunn import kernels
from gpunn.autograd import random
from gpunn.device import probe, to_device


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


# ---- draws of a captured step --------------------------------------------------------------------

needs_emulator = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)


def test_draws_are_by_value_outside_and_from_the_counter_inside():
    own, counter = g.Generator(9), np.zeros(2, np.uint64)
    assert own.draw("cpu") == (9, 0, None) and own.draw(None, draws=3) == (9, 1, None)
    assert own.counter_values().tolist() == [9, 4]
    with own.capturing(counter) as captured:
        draws = [own.draw("cpu"), own.draw("cpu", 2), own.draw("cpu")]
    assert [(seed, offset) for seed, offset, _ in draws] == [(0, 0), (0, 1), (0, 3)]
    assert all(draw.counter is counter for draw in draws) and captured.draws == 4
    assert own.draw("cpu") == (9, 4, None)
    with own.capturing(counter) as again:
        assert again.draws == 0 and own.draw("cpu").offset == 0


def test_a_capture_refuses_what_it_cannot_repeat():
    own, counter = g.Generator(9), np.zeros(2, np.uint64)
    for wrong, error in ((np.zeros(2), TypeError), (3, TypeError), (counter[:1], ValueError)):
        with pytest.raises(error, match="Generator.capturing: counter"), own.capturing(wrong):
            pass
    with own.capturing(counter) as captured:
        with pytest.raises(RuntimeError, match="capturing a step already"):
            with g.Generator(1).capturing(counter):
                pass
        with pytest.raises(RuntimeError, match="not the one that its counter stands for"):
            g.rand(3, device="cpu", generator=g.Generator(1))
    assert captured.draws == 0 and own.draw("cpu") == (9, 0, None)
    with pytest.raises(ZeroDivisionError), own.capturing(counter):
        raise ZeroDivisionError
    assert own.draw("cpu") == (9, 1, None)


@needs_emulator
def test_a_capture_is_of_one_device():
    own = g.Generator(9)
    with own.capturing(to_device(np.zeros(2, np.uint64), "emulator")) as captured:
        with pytest.raises(RuntimeError, match="for cpu are asked for while a step on emulator"):
            g.randperm(3, device="emulator", generator=own)
        assert g.randn(3, device="emulator", generator=own).device == "emulator"
    assert captured.draws == 1


def test_other_threads_draw_as_ever_while_a_step_is_captured():
    own = g.Generator(9)
    with own.capturing(np.zeros(2, np.uint64)) as captured:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(own.draw, "cpu").result() == (9, 0, None)
    assert captured.draws == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("emulator", marks=needs_emulator)])
def test_a_captured_step_repeats_with_new_numbers(device):
    """What a graph does: one set of launches, and a counter that moves on between them."""
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 8)).astype(np.float32)
    drop = nn.Dropout(0.3)

    def step():
        values = g.tensor(x, device=device, requires_grad=True)
        out = drop(values + g.randn(2, 2, 3, 8, device=device))
        out = F.scaled_dot_product_attention(out, out, out, dropout_p=0.4)
        out.sum().backward()
        return out.detach().cpu().numpy(), values.grad.cpu().numpy()

    g.manual_seed(5)
    g.rand(1, device=device)
    expected = [step() for _ in range(3)]
    state = random.get_state()
    g.manual_seed(5)
    g.rand(1, device=device)
    counter = to_device(random.default_generator.counter_values(), device)
    for out, gradient in expected:
        with random.default_generator.capturing(counter) as captured:
            got = step()
        assert captured.draws == 3
        kernels.advance_counter(counter, draws=captured.draws)
        random.default_generator.take(captured.draws)
        np.testing.assert_array_equal(got[0], out)
        np.testing.assert_array_equal(got[1], gradient)
    assert random.get_state() == state
    assert to_device(counter, "cpu").tolist() == [5, state["offset"]]
    assert not np.array_equal(expected[0][0], expected[1][0])
