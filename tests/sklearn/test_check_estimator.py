"""scikit-learn's own checks of what an estimator must be, in full."""

from __future__ import annotations

import warnings

import pytest
from sklearn.utils.estimator_checks import check_estimator

from gpunn.sklearn import MLPClassifier, MLPRegressor, NeuralClassifier, NeuralRegressor

QUICK = {"hidden_layer_sizes": (20,), "learning_rate_init": 0.01, "max_iter": 30}
# What these estimators have nothing of: SciPy's experimental array API, and decision_function.
ABSENT = {
    "check_array_api_input",
    "check_classifiers_multilabel_output_format_decision_function",
}


@pytest.mark.parametrize(
    "estimator",
    [
        MLPClassifier(**QUICK),
        MLPRegressor(**QUICK),
        NeuralClassifier(),
        NeuralRegressor(module__hidden=(20,), lr=0.01),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_passes_every_check(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # thirty epochs do not converge, and checks skip aloud
        results = check_estimator(estimator, on_skip=None)
    assert len(results) > 55
    wrong = {
        result["check_name"]: result["status"]
        for result in results
        if result["status"] != "passed" and result["check_name"] not in ABSENT
    }
    assert not wrong
