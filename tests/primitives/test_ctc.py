"""CTC: against all paths, lengths on a device, errors. PyTorch is in the oracle tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe, to_device
from gpunn.primitives.ctc import log_softmax

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
LOGS = log_softmax(np.random.default_rng(0).normal(size=(5, 2, 3)))


def by_all_paths(logs, target, blank):
    """-log of the sum over every path that collapses to the target."""
    total = -np.inf
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        labels = [label for label, _ in itertools.groupby(path) if label != blank]
        if labels == list(target):
            total = np.logaddexp(total, logs[np.arange(len(logs)), path].sum())
    return -total


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target", [[], [1], [1, 1], [1, 1, 1], [1, 1, 1, 1]])
def test_the_sum_over_all_paths(target, blank):
    lengths = [5, 4], [len(target)] * 2
    targets = np.array([target] * 2, np.int64).reshape(2, len(target))
    loss, _ = kernels.ctc_forward(LOGS, targets, *lengths, blank=blank)
    expected = [by_all_paths(LOGS[:n, b], target, blank) for b, n in enumerate(lengths[0])]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_the_gradient_by_logits_is_that_of_differences():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 2, 4))
    problem = np.array([1, 2, 2, 3]), [6, 5], [3, 1]
    weights = rng.normal(size=2)

    def loss(x):
        return kernels.ctc_forward(log_softmax(x), *problem)[0] @ weights

    logs = log_softmax(x)
    found = kernels.ctc_backward(weights, logs, *problem, *kernels.ctc_forward(logs, *problem))
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-13)
    numeric = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = 1e-6
        numeric[at] = (loss(x + step) - loss(x - step)) / 2e-6
    np.testing.assert_allclose(found, numeric, atol=1e-8)


@emulated
def test_lengths_on_a_device_are_not_looked_at():
    targets = np.array([[1, 2, 0], [2, 1, 9]])
    lengths = np.array([5, 4]), np.array([2, 2])
    expected, _ = kernels.ctc_forward(LOGS, targets, *lengths)
    logs, labels, inputs, outputs = (to_device(a, "emulator") for a in (LOGS, targets, *lengths))
    found, alpha = kernels.ctc_forward(logs, labels, inputs, outputs)
    np.testing.assert_allclose(found.get(), expected, rtol=1e-12)
    assert alpha.shape == (2, 5, 7)  # for the width of targets, as the lengths are not known here
    found, alpha = kernels.ctc_forward(logs, labels, list(lengths[0]), lengths[1])
    np.testing.assert_allclose(found.get(), expected, rtol=1e-12)
    assert alpha.shape == (2, 5, 5)
    # Not valid: a length beyond the steps, a label that is no class.
    wrong = to_device(np.array([6, 4]), "emulator"), to_device(np.array([2, 3]), "emulator")
    found, alpha = kernels.ctc_forward(logs, labels, *wrong)
    assert np.isnan(found.get()).all()
    grad = to_device(np.ones(2), "emulator")
    assert np.isnan(kernels.ctc_backward(grad, logs, labels, *wrong, found, alpha).get()[:4]).all()


def test_more_labels_than_steps_take_no_room():
    logs = log_softmax(np.zeros((3, 1, 5)))
    loss, alpha = kernels.ctc_forward(logs, np.ones((1, 1000), np.int64), [3], [1000])
    assert loss == np.inf and alpha.shape == (1, 3, 7) and (alpha == -np.inf).all()
    loss, alpha = kernels.ctc_forward(LOGS[:0], np.zeros((2, 0), np.int64), [0, 0], [0, 0])
    np.testing.assert_array_equal(loss, [0, 0])


TARGETS = np.array([[1, 2], [2, 1]])


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        (
            (TARGETS, [5, 6], [1, 2]),
            {},
            ValueError,
            "input_lengths has 6 for sequence 1; .* 0 to 5",
        ),
        ((TARGETS, [5, 5], [1, 3]), {}, ValueError, "target_lengths has 3 for .* 0 to 2"),
        ((TARGETS, [5], [1, 2]), {}, ValueError, "input_lengths .* 2 integers"),
        ((TARGETS, [5, 5.5], [1, 2]), {}, TypeError, "input_lengths"),
        ((TARGETS + 1, [5, 5], [2, 2]), {}, ValueError, "has 3 at label 1 of sequence 0"),
        ((TARGETS, [5, 5], [2, 2]), {"blank": 2}, ValueError, "has 2 at label 1 .* the blank 2"),
        ((TARGETS, [5, 5], [2, 2]), {"blank": 3}, ValueError, "blank is 3; expected 0 to 2"),
        ((TARGETS.reshape(-1), [5, 5], [2, 1]), {}, ValueError, "adds up to 3; targets has 4"),
        ((TARGETS[:1], [5, 5], [2, 1]), {}, ValueError, r"\(2, S\)"),
        ((TARGETS * 1.0, [5, 5], [2, 1]), {}, TypeError, "targets has"),
    ],
)
def test_errors(args, options, error, text):
    with pytest.raises(error, match=text):
        kernels.ctc_forward(LOGS, *args, **options)
