"""Elementwise losses and their gradients against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from gpunn.primitives import loss as ours  # noqa: E402

pytestmark = pytest.mark.oracle

LOSSES = {
    "mse": (F.mse_loss, [{}]),
    "l1": (F.l1_loss, [{}]),
    "huber": (F.huber_loss, [{"delta": 1.0}, {"delta": 0.3}]),
    "binary_cross_entropy": (
        F.binary_cross_entropy_with_logits,
        [{}, {"weight": (5,)}, {"weight": (7, 1)}, {"pos_weight": (5,)},
         {"weight": (7, 5), "pos_weight": (1,)}],
    ),
}  # fmt: skip
CASES = [
    (name, options, reduction)
    for name, (_, choices) in LOSSES.items()
    for options in choices
    for reduction in ("mean", "sum", "none")
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options", "reduction"), CASES)
def test_value_and_gradient(name, options, reduction, dtype):
    rng = np.random.default_rng(0)
    p, t = (3 * rng.normal(size=(7, 5))).astype(dtype), rng.random((7, 5)).astype(dtype)
    p[0], t[0] = t[0], p[0] if name != "binary_cross_entropy" else [0, 1, 0, 1, 0.5]
    p[1] = [-100, 100, 0, -50, 1000]
    options = {
        key: rng.uniform(0.3, 3, value).astype(dtype) if isinstance(value, tuple) else value
        for key, value in options.items()
    }
    x = torch.from_numpy(p.copy()).requires_grad_()
    theirs = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    expected = LOSSES[name][0](x, torch.from_numpy(t), reduction=reduction, **theirs)
    forward, backward = getattr(ours, f"{name}_forward"), getattr(ours, f"{name}_backward")
    bound = 1e-5 if dtype == np.float32 else 1e-12
    actual = forward(p, t, reduction=reduction, **options)
    assert actual.shape == tuple(expected.shape)
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=bound, atol=bound)
    grad = np.asarray(rng.normal(size=actual.shape), dtype)
    expected.backward(torch.from_numpy(grad))
    actual = backward(grad, p, t, reduction=reduction, **options)
    np.testing.assert_allclose(actual, x.grad.numpy(), rtol=bound, atol=bound)
