"""The CTC loss as a module, and two ways to read labels from log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.autograd.tensor import Tensor
from gpunn.device import to_numpy
from gpunn.nn import functional as F
from gpunn.nn.loss import Loss


class CTCLoss(Loss):
    """-log of the probability that log-probabilities (T, B, C) spell the targets

    Parameters: `blank`, the class that stands for no label; `reduction`; `zero_infinity`, which
    makes the loss of a target too long for its input 0. See `functional.ctc_loss`.
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False):
        super().__init__(reduction)
        self.blank, self.zero_infinity = blank, zero_infinity

    def forward(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any
    ) -> Tensor:
        """The loss of log-probabilities (T, B, C) and labels (B, S), or all labels in a row"""
        return F.ctc_loss(
            log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction,
            self.zero_infinity,
        )  # fmt: skip


class Hypothesis(NamedTuple):
    """One reading of a sequence, and the log of its probability."""

    labels: list[int]
    log_probability: float


def _sequences(name: str, log_probs: Tensor, input_lengths: Any, blank: int) -> Any:
    """(T, B) and the length of each sequence."""
    if log_probs.ndim != 3:
        raise ValueError(f"{name}: log_probs has shape {log_probs.shape}; expected (T, B, C)")
    steps, batch, classes = log_probs.shape
    if not 0 <= blank < classes:
        raise ValueError(f"{name}: blank is {blank}; expected a class, 0 to {classes - 1}")
    if input_lengths is None:
        return steps, batch, [steps] * batch
    lengths = [int(length) for length in input_lengths]
    if len(lengths) != batch or not all(0 <= length <= steps for length in lengths):
        raise ValueError(
            f"{name}: input_lengths is {lengths}; expected {batch} numbers from 0 to {steps}"
        )
    return steps, batch, lengths


def ctc_greedy_decode(
    log_probs: Tensor, input_lengths: Any = None, blank: int = 0
) -> list[list[int]]:
    """The labels of the most probable path of each sequence: repetitions, then blanks, go.

    Parameters
    ----------
    log_probs : (T, B, C); any scores do whose order is that of the probabilities
    input_lengths : B integers; None: all steps count

    The largest of each step is found on the device; only those are read back.
    """
    steps, batch, lengths = _sequences("ctc_greedy_decode", log_probs, input_lengths, blank)
    if steps == 0:
        return [[] for _ in range(batch)]
    best = to_numpy(log_probs.detach().argmax(-1)._array)
    changed = np.ones(best.shape, bool)
    changed[1:] = best[1:] != best[:-1]
    kept = changed & (best != blank) & (np.arange(steps)[:, None] < np.asarray(lengths))
    return [best[kept[:, b], b].tolist() for b in range(batch)]


def ctc_beam_decode(
    log_probs: Tensor,
    input_lengths: Any = None,
    blank: int = 0,
    beam_width: int = 16,
    top: int = 1,
    classes: int = 40,
) -> list[list[Hypothesis]]:
    """The `top` most probable readings of each sequence, by prefix beam search, on the CPU.

    Unlike the greedy way it adds up all paths of a reading. Of each step the `classes` most
    probable classes are tried. Source: Graves, Supervised Sequence Labelling with Recurrent Neural
    Networks, 2012, chapter 7; Hannun et al., First-Pass Large Vocabulary Continuous Speech
    Recognition using Bi-Directional Recurrent DNNs, 2014.
    """
    if beam_width < 1 or top < 1 or classes < 1:
        raise ValueError(
            f"ctc_beam_decode: beam_width is {beam_width}, top {top}, classes {classes}; expected "
            "1 or more"
        )
    _, batch, lengths = _sequences("ctc_beam_decode", log_probs, input_lengths, blank)
    values = wide(to_numpy(log_probs.detach()._array)).astype(np.float64)
    return [
        _search(values[: lengths[b], b], blank, beam_width, classes)[:top] for b in range(batch)
    ]


def _search(logs: np.ndarray, blank: int, width: int, classes: int) -> list[Hypothesis]:
    """The best prefixes after all steps; each carries (log p ending in blank, in a label)."""
    beams = {(): (0.0, -np.inf)}
    for row in logs:
        tried = np.argsort(-row, kind="stable")[:classes].tolist()
        after: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [-np.inf, -np.inf])
        for prefix, (in_blank, in_label) in beams.items():
            both = np.logaddexp(in_blank, in_label)
            for label in tried:
                y = row[label]
                if label == blank:
                    _add(after[prefix], 0, both + y)
                elif prefix and prefix[-1] == label:
                    _add(after[prefix], 1, in_label + y)  # the same label goes on
                    _add(after[(*prefix, label)], 1, in_blank + y)  # or stands once more
                else:
                    _add(after[(*prefix, label)], 1, both + y)
        ranked = sorted(after.items(), key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        beams = {prefix: (scores[0], scores[1]) for prefix, scores in ranked[:width]}
    return [
        Hypothesis(list(prefix), float(np.logaddexp(*scores))) for prefix, scores in beams.items()
    ]


def _add(scores: list[float], place: int, value: float) -> None:
    scores[place] = np.logaddexp(scores[place], value)
