"""Initialisers: bounds, moments, shapes, seeds, errors."""

import math

import numpy as np
import pytest

import gpunn.autograd as g
from gpunn.nn import init


def empty(*shape, **options):
    return g.empty(*shape, device="cpu", **options)


@pytest.fixture(autouse=True)
def seed():
    g.manual_seed(0)


@pytest.mark.parametrize(
    ("function", "std", "bound"),
    [
        (lambda t: init.xavier_uniform_(t, 2.0), 2 * math.sqrt(2 / 700), 2 * math.sqrt(6 / 700)),
        (init.xavier_normal_, math.sqrt(2 / 700), None),
        (init.kaiming_uniform_, math.sqrt(2 / 300), math.sqrt(6 / 300)),
        (lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)), 1 / 30, 1 / math.sqrt(300)),
        (lambda t: init.kaiming_normal_(t, mode="fan_out"), math.sqrt(2 / 400), None),
        (lambda t: init.kaiming_normal_(t, nonlinearity="tanh"), 5 / 3 / math.sqrt(300), None),
        (lambda t: init.normal_(t, 0.0, 0.3), 0.3, None),
        (lambda t: init.uniform_(t, -2, 2), 4 / math.sqrt(12), 2.0),
        (lambda t: init.trunc_normal_(t, 0, 1, -1, 1), 0.5396, 1.0),
        (init.orthogonal_, 1 / math.sqrt(400), None),
    ],
)
def test_moments_and_bounds(function, std, bound):
    t = empty(400, 300)
    assert function(t) is t
    values = t.numpy()
    assert abs(values.mean()) < std * 0.02 and values.std() == pytest.approx(std, rel=0.02)
    if bound:
        assert bound * 0.99 < np.abs(values).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 3)])
def test_orthogonal(shape):
    q = init.orthogonal_(empty(*shape, dtype="float64"), gain=2.0).numpy().reshape(shape[0], -1)
    small = min(q.shape)
    product = q @ q.T if q.shape[0] == small else q.T @ q
    np.testing.assert_allclose(product, 4 * np.eye(small), atol=1e-12)


def test_constants_and_parameters():
    t = empty(2, 3, requires_grad=True)
    assert init.ones_(t).tolist() == [[1] * 3] * 2 and init.zeros_(t).sum().item() == 0
    assert init.constant_(t, 0.5).mean().item() == 0.5
    assert init.eye_(t).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert t.is_leaf and t.requires_grad and t.grad is None


def test_far_tail_of_the_truncated_normal():
    t = init.trunc_normal_(empty(100), 0, 1, 6, 7)
    assert 6 <= t.min().item() and t.max().item() <= 7


def test_a_seed_gives_the_same_weights():
    for function in (init.kaiming_uniform_, init.orthogonal_, init.trunc_normal_):
        g.manual_seed(4)
        one = function(empty(6, 5))
        g.manual_seed(4)
        assert g.equal(function(empty(6, 5)), one)


def test_gains():
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04))
    assert init.calculate_gain("selu") == 0.75 and init.calculate_gain("linear") == 1


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda: init.xavier_uniform_(empty(3)), "at least 2 dimensions"),
        (lambda: init.orthogonal_(empty(3)), "at least 2 dimensions"),
        (lambda: init.eye_(empty(3)), "needs a matrix"),
        (lambda: init.kaiming_normal_(empty(2, 2), mode="in"), "mode 'in'"),
        (lambda: init.calculate_gain("gelu"), "'gelu' is not known"),
        (lambda: init.trunc_normal_(empty(2), a=1, b=0), "a < b"),
    ],
)
def test_errors(action, text):
    with pytest.raises(ValueError, match=text):
        action()
