"""From y to what a network learns, and from its outputs back: classes, labels, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from gpunn import nn
from gpunn.autograd.tensor import wrap
from gpunn.nn import functional as F
from gpunn.sklearn.sparse import dense


class Classifies(ClassifierMixin):  # type: ignore[misc]  # which has no annotations
    """A class for each sample, or several labels (y as an indicator matrix).

    Attributes after `fit`
    ----------------------
    classes_ : the classes in the order of the outputs; for several labels their numbers
    """

    def _read_target(self, y: Any, weights: Any, fresh: bool, classes: Any, partial: bool) -> Any:
        y = dense(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        several = type_of_target(y) == "multilabel-indicator"
        if y.ndim > 1 and not several:
            raise ValueError(
                f"{type(self).__name__} learns one class for each sample, or several labels as "
                f"columns of 0 and 1; y has shape {y.shape} and other values. "
                "sklearn.multioutput.MultiOutputClassifier trains one classifier for each column."
            )
        if fresh:
            if partial and classes is None and not several:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self._several = several
            self.classes_ = np.arange(y.shape[1]) if several else np.unique(
                y if classes is None else classes
            )  # fmt: skip
            self.n_outputs_ = len(self.classes_)
        target = self._codes(y, several, classes if partial else None)
        return target, self._with_class_weight(y, target, weights, partial)

    def _codes(self, y: np.ndarray, several: bool, classes: Any) -> np.ndarray:
        """Numbers of classes, or rows of 0 and 1; ValueError for what the first fit did not have"""
        if several != self._several or (several and y.shape[1] != self.n_outputs_):
            raise ValueError(
                f"y has shape {y.shape}, and {type(self).__name__} was trained on "
                + (f"{self.n_outputs_} labels a sample" if self._several else "one class a sample")
            )
        if several:
            return y.astype(np.float32)
        if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                f"{self.classes_!r}"
            )
        unknown = np.setdiff1d(y, self.classes_)
        if unknown.size:
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {unknown}."
            )
        return np.searchsorted(self.classes_, y).astype(np.int64)

    def _with_class_weight(
        self, y: np.ndarray, target: np.ndarray, weights: Any, partial: bool
    ) -> Any:
        if self.class_weight is None:
            return weights
        if partial and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which does not see all "
                "samples; give a dictionary of weights"
            )
        if isinstance(self.class_weight, Mapping) and not self._several:
            # By all classes, for samples of `partial_fit` that have not every one of them.
            given = dict(self.class_weight)
            factors = compute_class_weight(given, classes=self.classes_, y=y)[target]
        else:
            factors = compute_sample_weight(self.class_weight, y)
        weights = factors if weights is None else weights * factors
        if not weights.any():
            raise ValueError("With class_weight all weights of samples are zero.")
        return weights

    def _make_default_loss(self) -> Any:
        return nn.BCEWithLogitsLoss() if self._several else nn.CrossEntropyLoss()

    def _decide(self, outputs: np.ndarray) -> np.ndarray:
        return (outputs > 0).astype(np.int64) if self._several else outputs.argmax(1)

    def _score(self, outputs: np.ndarray, target: np.ndarray, weights: Any) -> float:
        return float(accuracy_score(target, self._decide(outputs), sample_weight=weights))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample (samples,), or labels of 0 and 1 (samples, k)."""
        found = self._decide(self._outputs(X))
        return found if self._several else self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities in the order of `classes_`: float32 (samples, classes)."""
        outputs = wrap(self._outputs(X))
        if self._several:
            return F.sigmoid(outputs).array
        return F.softmax(outputs, dim=1).array

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`, exact also where those round to 0."""
        outputs = wrap(self._outputs(X))
        if self._several:
            return F.logsigmoid(outputs).array
        return F.log_softmax(outputs, dim=1).array

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class Regresses(RegressorMixin):  # type: ignore[misc]
    """A number for each sample, or several (y of shape (samples, k))."""

    def _read_target(self, y: Any, weights: Any, fresh: bool, classes: Any, partial: bool) -> Any:
        y = dense(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        with np.errstate(over="ignore"):
            target = y.astype(np.float32).reshape(len(y), -1)
        if not np.isfinite(target).all():
            raise ValueError(
                "Input y contains a value too large for dtype('float32'), in which networks are "
                "trained; scale y, as sklearn.compose.TransformedTargetRegressor does."
            )
        if fresh:
            self.n_outputs_, self._flat = target.shape[1], y.ndim == 1
            self._dtype = y.dtype.str if y.dtype.kind == "f" else "float32"
        elif target.shape[1] != self.n_outputs_:
            raise ValueError(
                f"y has {target.shape[1]} outputs, and {type(self).__name__} was trained on "
                f"{self.n_outputs_}"
            )
        return target, weights

    def _score(self, outputs: np.ndarray, target: np.ndarray, weights: Any) -> float:
        return float(r2_score(target, outputs.reshape(target.shape), sample_weight=weights))

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers (samples,), or (samples, k) if y had several.

        Computed in float32; of the floating dtype of the y in `fit`, float32 if that was integers.
        """
        outputs = self._outputs(X).astype(self._dtype)
        return outputs.reshape(-1) if self._flat else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
