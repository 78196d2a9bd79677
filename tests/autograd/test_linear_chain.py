"""Chains of `linear` with activations: a layer's backward may begin the one below."""

import numpy as np
import pytest

import gpunn as g
import gpunn.nn.functional as F
from gpunn.autograd.functions.linalg import Linear

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "gelu", "identity")


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return g.tensor(values, device="cpu", dtype="float64", requires_grad=True)


@pytest.fixture
def begun(monkeypatch):
    """Counts the layers whose backward the layer above has begun."""
    count = []
    original = Linear._through_activation

    def counting(self, grad):
        count.append(self.ahead is not None)
        return original(self, grad)

    monkeypatch.setattr(Linear, "_through_activation", counting)
    return count


def chain(x, parameters, activation, join=lambda h: h):
    """Three layers; `join` makes something of the first one's result."""
    (w1, b1), (w2, b2), (w3, b3) = parameters
    h = F.linear(x, w1, b1, activation=activation)
    h = F.linear(join(h), w2, b2, activation=activation)
    return F.linear(h, w3, b3)


def parameters(bias=True, shared=False):
    shapes = ((5, 4), (5, 5), (3, 5))
    made = [
        (leaf(*shape, seed=i), leaf(shape[0], seed=9 + i) if bias else None)
        for i, shape in enumerate(shapes)
    ]
    if shared:
        made[1] = made[1][0], made[0][1]
    return made


def gradients(output, inputs):
    for tensor in inputs:
        tensor.grad = None
    (output * output).sum().backward()
    return [tensor.grad.numpy().copy() for tensor in inputs]


def numeric(function, inputs, step=1e-6):
    """Central differences of the sum of squares."""
    result = []
    for tensor in inputs:
        values = tensor.detach().numpy()
        grad = np.zeros_like(values)
        for at in np.ndindex(values.shape):
            sums = []
            for sign in (1, -1):
                before = values[at]
                values[at] = before + sign * step
                with g.no_grad():
                    out = function().numpy()
                sums.append((out * out).sum())
                values[at] = before
            grad[at] = (sums[0] - sums[1]) / (2 * step)
        result.append(grad)
    return result


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [(6,), (2, 3)])
def test_values(activation, rows, begun):
    x, p = leaf(*rows, 4, seed=7), parameters()
    inputs = [x, *(t for pair in p for t in pair)]
    out = chain(x, p, activation)
    wanted = numeric(lambda: chain(x, p, activation), inputs)
    for found, value in zip(gradients(out, inputs), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    assert begun == [False, activation != "identity", activation != "identity"]


@pytest.mark.parametrize(
    "bias, shared, join",
    [
        (False, False, lambda h: h),
        (True, True, lambda h: h),
        (True, False, lambda h: h * 2),
        (True, False, lambda h: h + h.tanh()),
        (True, False, lambda h: h[:, :]),
    ],
)
def test_whatever_stands_between(bias, shared, join):
    x, p = leaf(6, 4, seed=7), parameters(bias, shared)
    every = [x, *(t for pair in p for t in pair if t is not None)]
    inputs = list({id(t): t for t in every}.values())
    found = gradients(chain(x, p, "gelu", join), inputs)
    wanted = numeric(lambda: chain(x, p, "gelu", join), inputs)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_result_whose_gradient_is_kept_gets_its_own(begun):
    x, p = leaf(6, 4, seed=7), parameters()
    (w1, b1), (w2, b2), _ = p
    h = F.linear(x, w1, b1, activation="tanh")
    h.retain_grad()
    out = F.linear(h, w2, b2)
    (out * out).sum().backward()
    assert begun == [False, False]
    np.testing.assert_allclose(h.grad.numpy(), 2 * out.detach().numpy() @ w2.detach().numpy())


def test_twice_over_the_same_graph(begun):
    x, p = leaf(6, 4, seed=7), parameters()
    out = chain(x, p, "silu").sum()
    out.backward(retain_graph=True)
    first = p[0][0].grad.numpy().copy()
    out.backward()
    np.testing.assert_allclose(p[0][0].grad.numpy(), 2 * first)
    assert begun == [False, True, True] * 2


def test_a_walk_that_broke_off_leaves_nothing_behind(monkeypatch):
    x, p = leaf(6, 4, seed=7), parameters()
    out = chain(x, p, "relu").sum()

    def broken(self, grad):
        raise MemoryError("no room")

    # The second layer's step fails after the third has begun it.
    with monkeypatch.context() as patch:
        original, calls = Linear.backward, []

        def backward(self, grad):
            calls.append(self)
            return broken(self, grad) if len(calls) == 2 else original(self, grad)

        patch.setattr(Linear, "backward", backward)
        with pytest.raises(MemoryError):
            out.backward(retain_graph=True)
    for pair in p:
        for tensor in pair:
            tensor.grad = None
    out.backward()
    other = chain(x, p, "relu").sum()
    found = p[0][0].grad.numpy().copy()
    p[0][0].grad = None
    other.backward()
    np.testing.assert_array_equal(found, p[0][0].grad.numpy())
