"""The pinball loss: closed forms, finite differences, what makes it least, and its errors."""

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.train.metrics import pinball_loss

Q = [0.05, 0.5, 0.9]


def tensor(values, dtype=np.float64):
    return gpunn.tensor(np.asarray(values, dtype), device="cpu")


def test_closed_form_and_reductions():
    x, y = tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), tensor([2.0, -4.0])
    expected = [[0.05, 0.0, 0.1], [3.8, 2.0, 0.4]]
    each = F.quantile_loss(x, y, Q, reduction="none")
    np.testing.assert_allclose(each.numpy(), expected, atol=1e-12)
    assert F.quantile_loss(x, y, Q, reduction="sum").item() == pytest.approx(np.sum(expected))
    assert F.quantile_loss(x, y.reshape(2, 1), Q).item() == pytest.approx(np.mean(expected))
    assert nn.QuantileLoss(Q)(x, y).item() == pytest.approx(np.mean(expected))
    assert nn.QuantileLoss(Q, "sum")(x, y).item() == pytest.approx(np.sum(expected))
    assert F.quantile_loss(x[:, 1:2], y, [0.5]).item() == pytest.approx(
        F.l1_loss(x[:, 1], y).item() / 2
    )


def test_agrees_with_the_metric_and_finite_differences():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 4, 3)), random.normal(size=(5, 4))
    rows = pinball_loss(x.reshape(20, 3), y.reshape(20), quantile=Q)
    assert F.quantile_loss(tensor(x), tensor(y), Q).item() == pytest.approx(rows, rel=1e-12)
    leaf, target = tensor(x), tensor(y)
    leaf.requires_grad, target.requires_grad = True, True
    assert gpunn.gradcheck(lambda a, b: F.quantile_loss(a, b, Q), (leaf, target))


def test_its_least_value_is_at_the_quantiles():
    y = tensor(np.random.default_rng(1).exponential(size=999))
    leaf = nn.Parameter(tensor([1.0, 1.0, 1.0]))
    loss, optimizer = nn.QuantileLoss(Q), optim.SGD([leaf], lr=6.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 6.0 * 0.98**step
        optimizer.zero_grad()
        loss(leaf.expand(999, 3), y).backward()
        optimizer.step()
    np.testing.assert_allclose(leaf.detach().numpy(), np.quantile(y.numpy(), Q), atol=0.02)


def test_narrow_types_and_errors():
    x, y = gpunn.ones(2, 3, device="cpu"), gpunn.zeros(2, device="cpu")
    assert F.quantile_loss(x, y.long(), Q).item() == pytest.approx((0.95 + 0.5 + 0.1) / 3)
    assert nn.QuantileLoss(Q)(x.half(), y.half()).dtype == np.float16
    for call, text in (
        (lambda: F.quantile_loss(x, y, [0.5, 1.5, 0.1]), "numbers from 0 to 1"),
        (lambda: F.quantile_loss(x, y, [0.5]), r"\(2, 3\) and there are \(1,\) quantiles"),
        (lambda: F.quantile_loss(x, x, Q), r"target has shape \(2, 3\).*expected \(2,\)"),
        (lambda: F.quantile_loss(x, y, Q, reduction="max"), "reduction 'max'"),
        (lambda: nn.QuantileLoss([]), "QuantileLoss: quantiles"),
        (lambda: nn.QuantileLoss(0.5), "QuantileLoss: quantiles"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
