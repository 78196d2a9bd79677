"""Losses of classes."""

from __future__ import annotations

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.tensor import Tensor
from gpunn.onnx.operators.registry import Node, operator

_REDUCTIONS = ("none", "mean", "sum")


def _options(node: Node) -> dict:
    # Without an index to ignore there is none; the number stands for no class.
    return {
        "reduction": node.choice("reduction", "mean", _REDUCTIONS),
        "ignore_index": node.int("ignore_index", -(2**31)),
    }


def _classes(labels: Tensor) -> Tensor:
    return labels.long()


@operator("NegativeLogLikelihoodLoss", 12, frozen=(2,))
def negative_log_likelihood(node: Node):
    options = _options(node)
    return lambda x, labels, weight=None: F.nll_loss(x, _classes(labels), weight, **options)


@operator("SoftmaxCrossEntropyLoss", 12, frozen=(2,))
def softmax_cross_entropy(node: Node):
    options, wants_logarithms = _options(node), node.wants(1)

    def run(x, labels, weight=None):
        loss = F.cross_entropy(x, _classes(labels), weight, **options)
        return (loss, gpunn.log_softmax(x, 1)) if wants_logarithms else loss

    return run
