"""A multilayer perceptron: layers of neurons, each with an activation, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpunn import nn


class MLP(nn.Sequential):
    """Linear layers with an activation (and dropout) between them.

    Parameters
    ----------
    in_features, out_features : features of an example, and numbers to predict
    hidden : the sizes of the layers between
    activation : makes the activation's module; each Linear runs with it in one kernel
    dropout : probability that a hidden neuron is dropped in training

    >>> MLP(784, (256, 128), 10)
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ):
        parts: list[nn.Module] = []
        for size in hidden:
            parts += [nn.Linear(in_features, size), activation()]
            if dropout:
                parts.append(nn.Dropout(dropout))
            in_features = size
        super().__init__(*parts, nn.Linear(in_features, out_features))
