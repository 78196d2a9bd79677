"""scikit-learn estimators: networks that fit into pipelines, grid searches and cross-validation.

>>> from gpunn.sklearn import MLPClassifier
>>> MLPClassifier(hidden_layer_sizes=(64,), random_state=0).fit(x, y).predict(x)

`MLPClassifier` and `MLPRegressor` take the arguments of scikit-learn's own; `NeuralClassifier` and
`NeuralRegressor` train any module. All of them train with `gpunn.train.Trainer`, on a GPU where
there is one, in float32.
"""

try:
    from sklearn.utils.validation import validate_data  # noqa: F401  since scikit-learn 1.6
except ImportError as error:
    raise ImportError(
        "gpunn.sklearn needs scikit-learn 1.6 or newer: pip install -U 'scikit-learn>=1.6'"
    ) from error

from gpunn.sklearn.mlp import MLPClassifier, MLPRegressor
from gpunn.sklearn.neural import NeuralClassifier, NeuralRegressor

__all__ = ["MLPClassifier", "MLPRegressor", "NeuralClassifier", "NeuralRegressor"]
