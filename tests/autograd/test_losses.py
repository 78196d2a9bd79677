"""Losses and softmax as functions of Tensors: closed forms and errors."""

import math

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn.functional as F


def cpu(data, **options):
    return g.tensor(data, device="cpu", **options)


def test_closed_forms():
    a, b = cpu([1.0, 2.0, 5.0]), cpu([1.0, 4.0, 1.0])
    assert F.mse_loss(a, b).item() == pytest.approx(20 / 3)
    assert F.l1_loss(a, b, reduction="sum").item() == 6
    assert F.huber_loss(a, b, reduction="none", delta=1.0).tolist() == [0, 1.5, 3.5]
    assert F.smooth_l1_loss(a, b, beta=2.0).item() == pytest.approx((0 + 1 + 3) / 3)
    assert F.smooth_l1_loss(a, b, beta=0.0).item() == 2
    assert F.cross_entropy(g.zeros(2, 4, device="cpu"), cpu([0, 3])).item() == pytest.approx(
        math.log(4)
    )
    assert F.cross_entropy(g.zeros(4, device="cpu"), cpu(1)).item() == pytest.approx(math.log(4))
    logits = cpu([100.0, -100.0])
    assert F.binary_cross_entropy_with_logits(logits, cpu([0.0, 1.0])).item() == 100
    assert F.binary_cross_entropy(cpu([0.0, 1.0]), cpu([1.0, 1.0])).item() == 50
    assert F.nll_loss(cpu([[-1.0, -2.0], [-3.0, -4.0]]), cpu([1, 0])).item() == 2.5
    ignored = F.nll_loss(cpu([[-1.0, -2.0], [-3.0, -4.0]]), cpu([1, -100]))
    assert ignored.item() == 2


def test_weights_of_binary_cross_entropy():
    x, t = cpu([0.3, -0.2]), cpu([1.0, 0.0])
    p = 1 / (1 + np.exp(-np.array([0.3, -0.2])))
    expected = np.mean([-3 * np.log(p[0]) * 2, -np.log(1 - p[1]) * 0.5])
    loss = F.binary_cross_entropy_with_logits(
        x, t, weight=cpu([2.0, 0.5]), pos_weight=cpu([3.0, 3.0])
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_16_bit_logits_is_float32():
    x = g.randn(4, 3, device="cpu").bfloat16().requires_grad_()
    loss = F.cross_entropy(x, cpu([0, 1, 2, 0]))
    loss.backward()
    assert loss.dtype == np.float32 and x.grad.dtype == g.bfloat16


def cross_entropy_gradient(x, labels, upstream=None, **options):
    """The gradient by the logits, after `upstream`; and what it is by the definition."""
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(x, labels, **options)
    loss.backward(upstream)
    p = np.exp(x.detach().float().numpy().astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), labels.numpy()] -= 1
    return x.grad.float().numpy(), p / (1 if options.get("reduction") == "sum" else len(p))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, g.bfloat16, np.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_of_the_forward_pass_is_multiplied_by_what_comes_back(dtype, reduction):
    x = g.tensor(np.random.default_rng(0).normal(size=(6, 5)), device="cpu").to(dtype)
    labels = cpu([0, 1, 2, 3, 4, 0])
    bound = {8: 1e-6, 4: 1e-6, 2: 8e-3}[x.itemsize]
    for upstream in (None, 1.0, -3.0):
        seed = None if upstream is None else cpu(upstream)
        found, one = cross_entropy_gradient(x, labels, seed, reduction=reduction)
        np.testing.assert_allclose(found, one * (upstream or 1), rtol=bound, atol=bound / 100)
    x.requires_grad_()
    (F.cross_entropy(x, labels, reduction=reduction) * 2.0 + 1.0).backward()
    np.testing.assert_allclose(x.grad.float().numpy(), 2 * one, rtol=bound, atol=bound / 100)


def test_a_retained_graph_keeps_its_gradient():
    x = g.randn(4, 3, device="cpu", requires_grad=True)
    loss = F.cross_entropy(x, cpu([0, 1, 2, 0]))
    loss.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    loss.backward(retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), 2 * once, rtol=1e-6)
    x.grad = None
    (loss * 3.0).backward(retain_graph=True)  # the walk starts elsewhere
    np.testing.assert_allclose(x.grad.numpy(), 3 * once, rtol=1e-6)
    x.grad = None
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), once)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, g.bfloat16])
def test_a_loss_that_is_not_the_root_is_multiplied_in_place(dtype):
    """As with a loss divided by the steps of gradient accumulation; only if no graph is kept."""
    x = g.randn(4, 3, device="cpu").to(dtype).requires_grad_()
    loss = F.cross_entropy(x, cpu([0, 1, 2, 0]))
    (saved,) = loss.grad_fn.saved
    once = saved.copy()
    (loss / 4).backward(retain_graph=True)
    np.testing.assert_array_equal(saved, once)
    assert not np.shares_memory(x.grad.array, saved)
    found = x.grad.float().numpy().copy()
    np.testing.assert_allclose(found, once.astype(float) / 4, rtol=4e-3)
    x.grad = None
    (loss / 4).backward()
    assert np.shares_memory(x.grad.array, saved)
    np.testing.assert_array_equal(x.grad.float().numpy(), found)


def test_what_a_broken_walk_has_changed_is_not_used_again(monkeypatch):
    from gpunn.autograd import function

    x = g.randn(4, 3, device="cpu", requires_grad=True)
    loss = F.cross_entropy(x, cpu([0, 1, 2, 0]))

    def broken(*args):
        raise MemoryError

    monkeypatch.setattr(function, "accumulate", broken)
    with pytest.raises(MemoryError):
        (loss * 3.0).backward()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_masked_label_that_weighs_nothing_adds_nothing(reduction, smoothing):
    """0 times the infinite loss of a class with the logit -inf."""
    logits = [[-math.inf, 1.0, 2.0], [-math.inf, 0.5, 0.0]]
    x, weight = cpu(logits, requires_grad=True), cpu([0.0, 1.0, 2.0])
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss = F.cross_entropy(x, cpu([0, 1]), weight, **options)
    expected = F.cross_entropy(x.detach()[:, 1:], cpu([-100, 0]), weight[1:], **options)
    if smoothing == 0:
        np.testing.assert_allclose(loss.detach().numpy(), expected.numpy(), rtol=1e-6)
    assert np.isfinite(loss.detach().numpy()).all()
    loss.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_a_scaled_loss_in_float16_is_multiplied_before_it_is_rounded():
    """1e-4 of a probability of 1e-5 is below float16; 65536 times that is not."""
    rows = 10_000
    x = np.zeros((rows, 2), np.float16)
    x[:, 1] = -10
    x = g.tensor(x, device="cpu").requires_grad_()
    (F.cross_entropy(x, cpu(np.zeros(rows, np.int64))) * 65536.0).backward()
    expected = 65536 / rows * math.exp(-10) / (1 + math.exp(-10))
    np.testing.assert_allclose(x.grad.float().numpy()[:, 1], expected, rtol=2e-3)


def test_broadcasting_a_target_warns():
    with pytest.warns(UserWarning, match="rarely meant"):
        loss = F.mse_loss(g.ones(3, 1, device="cpu"), g.zeros(3, device="cpu"))
    assert loss.item() == 1


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: F.cross_entropy(g.ones(2, 3), cpu([0, 1, 2])), ValueError, r"target has shape"),
        (lambda: F.cross_entropy(g.ones(2, 3), cpu([0, 3])), ValueError, "target"),
        (lambda: F.cross_entropy(g.ones(2, 3), cpu([0, 1]), reduction="avg"), ValueError, "avg"),
        (lambda: F.mse_loss(g.ones(2), g.ones(3)), ValueError, "do not broadcast"),
        (lambda: F.binary_cross_entropy(g.ones(2), g.ones(3)), ValueError, "must be equal"),
        (lambda: F.nll_loss(g.ones(2, 3), cpu([0, 3])), ValueError, "labels from 0 to 3"),
        (
            lambda: F.cross_entropy(g.ones(2, 3), g.ones(2, 3, requires_grad=True)),
            NotImplementedError,
            "cross_entropy: target requires a gradient",
        ),
        (lambda: F.gelu(g.ones(2), approximate="erf"), ValueError, "gelu"),
        (lambda: F.linear(g.ones(2, 3), g.ones(4, 2)), ValueError, r"linear: input has shape"),
        (lambda: F.linear(g.ones(2, 3).double(), g.ones(4, 3)), TypeError, "linear: input has"),
        (lambda: F.softmax(g.ones(2, 3), 2), IndexError, "softmax: dim 2"),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()


def test_whole_numbers_as_targets_of_a_regression_become_floats():
    x = cpu([1.5, 2.0], requires_grad=True)
    loss = F.mse_loss(x, cpu([1, 2]))
    loss.backward()
    assert loss.item() == 0.125 and x.grad.tolist() == [0.5, 0]


def test_binary_cross_entropy_refuses_what_is_no_probability():
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="binary_cross_entropy: input must hold probabilities"):
            F.binary_cross_entropy(cpu([bad]), cpu([1.0]))
