"""Pictures of training: each function gives a matplotlib Figure and writes it where `path=` says.

The suffix of the path decides the format: .png, .svg, .pdf. Needs ``pip install "gpunn[plots]"``,
but no screen: pyplot is not used.
"""

from gpunn.train.plots.classes import (
    confusion_matrix_figure,
    plot_calibration,
    plot_misclassified,
    plot_precision_recall,
    plot_roc,
)
from gpunn.train.plots.curves import overfitting_gap, plot_batches, smoothed, training_curves
from gpunn.train.plots.embedding import plot_embedding, principal_components
from gpunn.train.plots.figures import new_figure, save_figure
from gpunn.train.plots.histograms import layer_outputs, plot_histograms
from gpunn.train.plots.images import plot_filters
from gpunn.train.plots.values import plot_attention, plot_forecast, plot_quantiles, plot_regression
from gpunn.train.plots.words import plot_top_words, plot_word_weights

__all__ = [
    "confusion_matrix_figure",
    "layer_outputs",
    "new_figure",
    "overfitting_gap",
    "plot_attention",
    "plot_batches",
    "plot_calibration",
    "plot_embedding",
    "plot_filters",
    "plot_forecast",
    "plot_histograms",
    "plot_misclassified",
    "plot_precision_recall",
    "plot_quantiles",
    "plot_regression",
    "plot_roc",
    "plot_top_words",
    "plot_word_weights",
    "principal_components",
    "save_figure",
    "smoothed",
    "training_curves",
]
