"""The estimators on a GPU. Collected where a GPU is usable."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn.sklearn import MLPClassifier, NeuralRegressor

pytestmark = pytest.mark.gpu


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("weighted", [False, True])
def test_classifier_as_on_the_cpu(weighted):
    rng = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = rng.normal(size=(600, 4)) + 2 * np.eye(3, 4)[y]
    options = {"hidden_layer_sizes": (16,), "max_iter": 5, "random_state": 0}
    weights = 1.0 + y if weighted else None
    found = [
        MLPClassifier(device=device, **options).fit(x, y, weights).predict_proba(x)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*found, atol=2e-4)


def test_regressor_learns():
    x = np.random.default_rng(0).normal(size=(500, 3))
    model = NeuralRegressor(device="cuda", lr=0.01, epochs=40, random_state=0)
    assert model.fit(x, x @ [1.0, -2, 0.5]).score(x, x @ [1.0, -2, 0.5]) > 0.95
