"""Cross-entropy and its gradient against PyTorch's, over all its options."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from gpunn.primitives.cross_entropy import (  # noqa: E402
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
)

pytestmark = pytest.mark.oracle

ROWS, CLASSES = 9, 6


def compare(logits, target, options, bound):
    """Hold loss and gradient to PyTorch's for one set of arguments."""
    x = torch.from_numpy(logits.copy()).requires_grad_()
    theirs = dict(options)
    if "weight" in theirs:
        theirs["weight"] = torch.from_numpy(theirs["weight"])
    # PyTorch takes only int64 labels.
    labels = target if target.ndim == 2 else target.astype(np.int64)
    expected = F.cross_entropy(x, torch.from_numpy(labels), **theirs)
    loss, normalizer, total = cross_entropy_forward(logits, target, **options)
    assert loss.shape == tuple(expected.shape)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=bound, atol=bound)
    *_, at_once = cross_entropy_forward_backward(logits, target, **options)
    expected.backward(torch.ones_like(expected), retain_graph=True)
    np.testing.assert_allclose(at_once, x.grad.numpy(), rtol=bound, atol=bound)
    x.grad = None
    grad = np.asarray(np.random.default_rng(1).normal(size=loss.shape), loss.dtype)
    expected.backward(torch.from_numpy(grad))
    actual = cross_entropy_backward(grad, logits, target, normalizer, total, **options)
    np.testing.assert_allclose(actual, x.grad.numpy(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["labels", "ignore -100", "ignore 2", "probabilities"])
def test_every_combination_of_options(kind, dtype):
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(ROWS, CLASSES))).astype(dtype)
    logits[3] += 500
    for weighted, smoothing, reduction in itertools.product(
        (False, True), (0.0, 0.1, 1.0), ("mean", "sum", "none")
    ):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        if weighted:
            options["weight"] = rng.uniform(0.2, 3, CLASSES).astype(dtype)
        if kind == "probabilities":
            target = rng.random((ROWS, CLASSES)).astype(dtype)
        else:
            target = rng.integers(0, CLASSES, ROWS, dtype=np.int32)
        if kind.startswith("ignore"):
            options["ignore_index"] = int(kind.split()[1])
            target[::2] = options["ignore_index"]
        # exp(x - L) feels one rounding of L = 500 in float32.
        compare(logits, target, options, 1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored_and_no_rows(reduction, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    compare(np.ones((3, 4)), np.full(3, -100), options, 1e-12)
    compare(np.ones((0, 4)), np.zeros(0, np.int64), options, 1e-12)


def test_masked_classes_with_labels():
    logits = np.array([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, 0.0], [0.0, -np.inf, 1.0]])
    for reduction in ("mean", "sum", "none"):
        compare(logits, np.array([0, 2, 1]), {"reduction": reduction}, 1e-12)


def test_negative_and_zero_weights():
    logits = np.random.default_rng(3).normal(size=(5, 3))
    for weight in ([1.0, 0.0, 2.0], [1.0, -2.0, 0.5]):
        compare(logits, np.array([0, 1, 2, 1, 0]), {"weight": np.array(weight)}, 1e-12)


def test_many_classes():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, 5000)).astype(np.float32)
    for smoothing in (0.0, 0.1):
        compare(logits, rng.integers(0, 5000, 3), {"label_smoothing": smoothing}, 1e-5)
