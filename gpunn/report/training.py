"""`Report`: the page of a training, from a history, a model and predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from gpunn.nn.module import Module
from gpunn.report import diagnosis
from gpunn.report.images import data_uri, figure_uri, grey
from gpunn.report.page import Card, Cell, Finding, Page, Section
from gpunn.report.pieces import (
    classes_section,
    confidence_charts,
    figure_text,
    filters_section,
    layers_section,
    learning_curve,
    other_curves,
    record_cell,
    value_text,
    weights_chart,
)
from gpunn.report.svg import element
from gpunn.train.history import History
from gpunn.train.plots.curves import (
    best_epoch,
    curve_names,
    metric_title,
)
from gpunn.train.plots.figures import class_names, class_values
from gpunn.train.plots.histograms import arrays_by_layer
from gpunn.train.plots.images import as_images
from gpunn.train.plots.scores import wilson_interval, worst_first

_SHOWN = 24  # misclassified samples


class Report:
    """A report of a training of one's own.

    Parameters
    ----------
    title, subtitle : what was trained
    history : the `History` that `Trainer.fit` gave, for the curves and the warnings
    facts : names and values of the configuration: data, device, learning rate …
    command : what to type to do it again

    Sections stand in the order in which they are added: the history first.

    Examples
    --------
    >>> from gpunn.train import History
    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    >>> report = Report("Two epochs", history=history, facts={"learning rate": 0.01})
    >>> "<h1>Two epochs</h1>" in report.html()
    True
    """

    def __init__(
        self,
        title: str,
        subtitle: str = "",
        *,
        history: History | None = None,
        facts: Mapping[str, Any] | None = None,
        command: str = "",
        note: str = "",
    ):
        self.page = Page(title, subtitle, "gpunn · training report")
        self.command = command
        self._findings = self.page.section("Summary")
        if history is not None:
            self._findings.findings(diagnosis.of_history(history))
        if facts:
            self._findings.facts([(name, value_text(value)) for name, value in facts.items()])
        if history is not None and len(history):
            self._history(history, note)

    # ---- the history -----------------------------------------------------------------------------

    def _history(self, history: History, note: str) -> None:
        best = best_epoch(history)
        at = next((r for r in history if r["epoch"] == best), history[-1])
        for name in curve_names(history)[:2]:
            if f"validation_{name}" in at:
                self.add_card(
                    f"Validation {metric_title(name).lower()}",
                    figure_text(at[f"validation_{name}"], name),
                    f"epoch {at['epoch']:g}",
                )
        detail = f"the best is epoch {best}" if best is not None else ""
        self.add_card("Epochs", str(len(history)), detail)
        section = self.page.section("Learning curves", note)
        section.charts(
            *[learning_curve(history, name, best) for name in curve_names(history)],
            *other_curves(history),
        )
        headers = history.metrics()
        rows = [[record_cell(record.get(name), name) for name in headers] for record in history]
        inside = Section("").table(
            [metric_title(name) for name in headers],
            rows,
            right=range(len(headers)),
            search=False,
            caption="One row an epoch",
        )
        section.details("All epochs as a table", inside)

    # ---- what can be added -----------------------------------------------------------------------

    def add_card(self, label: str, value: str, detail: str = "") -> None:
        """A figure for the top of the page; the first added stands first."""
        self.page.cards.append(Card(label, value, detail))

    def add_finding(self, kind: str, text: str) -> None:
        """A sentence for the summary; `kind` is "bad", "warning", "good" or "note"."""
        self._findings.findings([Finding(kind, text)])

    def add_text(self, title: str, text: str) -> Section:
        """A section with a paragraph; what is returned takes more."""
        return self.page.section(title).text(text)

    def add_table(
        self, title: str, headers: Sequence[str], rows: Sequence[Sequence[object]], **options: Any
    ) -> Section:
        """A section with a table that can be sorted; options as of `Section.table`."""
        return self.page.section(title).table(headers, rows, **options)

    def add_figure(self, title: str, figure: Any, alt: str, caption: str = "") -> Section:
        """A section with a matplotlib Figure, as a PNG of 120 dots an inch.

        `alt` says what it shows for those who cannot see it.
        """
        image = element("img", src=figure_uri(figure), alt=alt)
        return self.page.section(title).picture(Markup(image), caption)

    def add_classification(
        self,
        labels: Any,
        predictions: Any,
        confidence: Any = None,
        *,
        names: Sequence[str] | None = None,
        images: Any = None,
        shape: tuple[int, ...] | None = None,
        rows: Sequence[int] | None = None,
        classes: int | None = None,
    ) -> None:
        """Accuracy, confusion matrix, a row a class, calibration and misclassified samples.

        Parameters
        ----------
        labels, predictions : class indices (samples,)
        confidence : probabilities (samples, classes), or of the predictions (samples,)
        names : of the classes; `classes` is their number where there are none
        images : of the samples, as for `plots.plot_misclassified`, with `shape` if they are flat
        rows : numbers of the samples in their source, by default their positions

        ValueError for shapes that do not match.
        """
        labels = class_values(labels, len(labels))
        predictions = class_values(predictions, len(labels), "predictions")
        if not len(labels):
            raise ValueError("there is no sample")
        count = classes or (len(names) if names is not None else 0)
        count = max(count, int(labels.max()) + 1, int(predictions.max()) + 1)
        names = class_names(names, count)
        matrix = np.zeros((count, count), int)
        np.add.at(matrix, (labels, predictions), 1)
        right = int(np.trace(matrix))
        low, high = wilson_interval(right, len(labels))
        self.page.cards.insert(
            0,
            Card(
                "Test accuracy",
                f"{right / len(labels):.2%}",
                f"{right} of {len(labels)}; 95% interval {low:.1%} to {high:.1%}",
            ),
        )
        self._findings.findings(diagnosis.of_classes(matrix, names))
        classes_section(self.page.section("Classes"), matrix, names)
        wrong, sure = worst_first(labels, predictions, confidence)
        if sure is not None:
            section = self.page.section(
                "Confidence",
                "How often the model is right among the predictions that it is so "
                "and so sure of. On the dashed line its confidence can be believed; below it the "
                "model is too sure.",
            )
            section.charts(*confidence_charts(sure, labels == predictions))
        self._mistakes(labels, predictions, sure, wrong, names, images, shape, rows)

    def _mistakes(
        self,
        labels: Any,
        predictions: Any,
        sure: Any,
        wrong: Any,
        names: Any,
        images: Any,
        shape: Any,
        rows: Any,
    ) -> None:
        section = self.page.section("Misclassified")
        if not len(wrong):
            section.text("None: every sample of the test data is right.")
            return
        section.note = f"{len(wrong)} of {len(labels)}" + (
            ", the surest mistakes first." if sure is not None else "."
        )
        numbers = np.arange(len(labels)) if rows is None else np.asarray(rows)
        shown = wrong[:_SHOWN]
        if images is not None:
            pictures = as_images(images, shape)
            span = float(pictures[shown].min()), float(pictures[shown].max())
            found = []
            for index in shown:
                text = f"{names[labels[index]]} taken for {names[predictions[index]]}"
                percent = "" if sure is None else f", {sure[index]:.0%} sure"
                found.append(
                    (
                        data_uri(grey(pictures[index], *span)),
                        f"sample {numbers[index]}: a {text}",
                        f"{text}{percent}\n#{numbers[index]}",
                    )
                )
            section.images(found, 112)
        cells = [
            [
                Cell(str(numbers[i]), float(numbers[i])),
                names[labels[i]],
                names[predictions[i]],
                "" if sure is None else Cell(f"{sure[i]:.1%}", float(sure[i])),
            ]
            for i in wrong[:500]
        ]
        section.table(
            ["Sample", "Is", "Taken for", "Confidence"],
            cells,
            right=(0, 3),
            caption=f"Misclassified samples, {len(cells)} of {len(wrong)}",
        )

    def add_model(
        self, model: Module, input_shape: Sequence[int], image_shape: tuple[int, ...] | None = None
    ) -> None:
        """The layers, the first layer's filters and the weights of each layer.

        Parameters
        ----------
        model : it is run once on zeros, as `Module.summary` does
        input_shape : of one sample, without the batch
        image_shape : of one sample as an image, for the filters of a dense first layer
        """
        layers_section(self.page, model, tuple(input_shape))
        filters_section(self.page, model, image_shape)
        arrays = arrays_by_layer(model)
        charts = [weights_chart(name, a) for name, a in arrays.items() if a.ndim > 1][:24]
        if charts:
            self.page.section("Weights", "How the values of each parameter are spread.").charts(
                *charts
            )

    # ---- the page --------------------------------------------------------------------------------

    def html(self) -> str:
        """The page as text."""
        self._close()
        return self.page.html()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all. FileNotFoundError if the folder is not there."""
        self._close()
        self.page.write(path)

    def _close(self) -> None:
        if self.command:
            self.page.section("Reproduce").code(self.command)
            self.command = ""
