"""Metrics: how good predictions are, over data that arrive in batches of any size.

A `Metric` object accumulates sums over samples where the predictions live, without waiting for the
device, and works out its value only in `compute`; so the value is that of all samples together,
never a mean over batches. Those that need all samples at once keep them until then. The functions
give the same for arrays at hand.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from gpunn.train.metrics.accuracy import (
    Accuracy,
    MultilabelAccuracy,
    TopKAccuracy,
    accuracy,
    multilabel_accuracy,
    top_k_accuracy,
)
from gpunn.train.metrics.base import FunctionMetric, Metric
from gpunn.train.metrics.counts import (
    F1,
    BalancedAccuracy,
    ConfusionMatrix,
    FBeta,
    MatthewsCorrelation,
    Precision,
    Recall,
    balanced_accuracy,
    confusion_matrix,
    f1_score,
    fbeta_score,
    matthews_correlation,
    precision,
    recall,
)
from gpunn.train.metrics.edits import (
    CharacterErrorRate,
    EditCounts,
    WordErrorRate,
    character_error_rate,
    edit_counts,
    edit_distance,
    word_error_rate,
)
from gpunn.train.metrics.probability import (
    BrierScore,
    CalibrationCurve,
    CalibrationError,
    LogLoss,
    Perplexity,
    brier_score,
    calibration_curve,
    calibration_error,
    log_loss,
    perplexity,
)
from gpunn.train.metrics.ranking import (
    ROCAUC,
    AveragePrecision,
    PrecisionRecallCurve,
    ROCCurve,
    average_precision,
    precision_recall_curve,
    roc_auc,
    roc_curve,
)
from gpunn.train.metrics.regression import (
    IntervalCoverage,
    IntervalWidth,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    PinballLoss,
    R2Score,
    RootMeanSquaredError,
    interval_coverage,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    pinball_loss,
    r2_score,
    root_mean_squared_error,
)
from gpunn.train.metrics.text import tokenize_13a
from gpunn.train.metrics.translation import BLEU, ChrF, bleu, chrf

__all__ = [
    "BLEU",
    "F1",
    "METRICS",
    "ROCAUC",
    "Accuracy",
    "AveragePrecision",
    "BalancedAccuracy",
    "BrierScore",
    "CalibrationCurve",
    "CalibrationError",
    "CharacterErrorRate",
    "ChrF",
    "ConfusionMatrix",
    "EditCounts",
    "FBeta",
    "FunctionMetric",
    "IntervalCoverage",
    "IntervalWidth",
    "LogLoss",
    "MatthewsCorrelation",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "Metric",
    "MultilabelAccuracy",
    "Perplexity",
    "PinballLoss",
    "Precision",
    "PrecisionRecallCurve",
    "R2Score",
    "ROCCurve",
    "Recall",
    "RootMeanSquaredError",
    "TopKAccuracy",
    "WordErrorRate",
    "accuracy",
    "as_metric",
    "average_precision",
    "balanced_accuracy",
    "bleu",
    "brier_score",
    "calibration_curve",
    "calibration_error",
    "character_error_rate",
    "chrf",
    "confusion_matrix",
    "edit_counts",
    "edit_distance",
    "f1_score",
    "fbeta_score",
    "interval_coverage",
    "log_loss",
    "matthews_correlation",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "multilabel_accuracy",
    "perplexity",
    "pinball_loss",
    "precision",
    "precision_recall_curve",
    "r2_score",
    "recall",
    "roc_auc",
    "roc_curve",
    "root_mean_squared_error",
    "tokenize_13a",
    "top_k_accuracy",
    "word_error_rate",
]

METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top_5_accuracy": TopKAccuracy,
    "balanced_accuracy": BalancedAccuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "matthews_correlation": MatthewsCorrelation,
    "confusion_matrix": ConfusionMatrix,
    "auc": ROCAUC,
    "roc_auc": ROCAUC,
    "average_precision": AveragePrecision,
    "log_loss": LogLoss,
    "perplexity": Perplexity,
    "brier": BrierScore,
    "calibration_error": CalibrationError,
    "exact_match": partial(MultilabelAccuracy, "exact"),
    "hamming_accuracy": partial(MultilabelAccuracy, "hamming"),
    "jaccard": partial(MultilabelAccuracy, "jaccard"),
    "mae": MeanAbsoluteError,
    "mean_absolute_error": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
    "rmse": RootMeanSquaredError,
    "mape": MeanAbsolutePercentageError,
    "r2": R2Score,
    "r2_score": R2Score,
    "interval_coverage": IntervalCoverage,
    "interval_width": IntervalWidth,
    "bleu": BLEU,
    "chrf": ChrF,
    "wer": WordErrorRate,
    "cer": CharacterErrorRate,
}

_AVERAGED = {"precision": Precision, "recall": Recall, "f1": F1}
_RANKED = {"auc": ROCAUC, "average_precision": AveragePrecision}
_ENDINGS = {"micro": "micro", "macro": "macro", "weighted": "weighted", "per_class": None}
for _name, _kind in _AVERAGED.items():
    METRICS.update({f"{_name}_{e}": partial(_kind, average=a) for e, a in _ENDINGS.items()})
for _name, _ranked in _RANKED.items():
    METRICS[f"{_name}_weighted"] = partial(_ranked, average="weighted")
    METRICS[f"{_name}_per_class"] = partial(_ranked, average=None)

_PATTERNS: tuple[tuple[str, Callable[[str], Metric]], ...] = (
    (r"top_(\d+)_accuracy", lambda k: TopKAccuracy(int(k))),
    (r"f(\d+(?:\.\d+)?)", lambda beta: FBeta(float(beta))),
    (r"pinball_(\d*\.?\d+)", lambda quantile: PinballLoss(float(quantile))),
)


def as_metric(metric: Any) -> Metric:
    """A `Metric` from one, from its name, or from a function of (prediction, target) arrays.

    Names are the keys of `METRICS`, and "top_3_accuracy", "f0.5", "pinball_0.9" with any numbers.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]()
        for pattern, make in _PATTERNS:
            found = re.fullmatch(pattern, metric)
            if found:
                return make(found[1])
        near = difflib.get_close_matches(metric, METRICS, 1, 0.5)
        raise ValueError(
            f"metric {metric!r} is not known; known are {', '.join(METRICS)}, and names such as "
            f"top_3_accuracy, f0.5 and pinball_0.9{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    if isinstance(metric, type) and issubclass(metric, Metric):
        raise TypeError(f"expected a metric, got the class {metric.__name__}: add parentheses")
    if callable(metric):
        return FunctionMetric(metric)
    raise TypeError(f"expected a metric, its name or a function, got {type(metric).__name__}")
