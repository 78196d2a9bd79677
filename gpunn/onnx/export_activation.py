"""The activation functions of networks, softmax and dropout."""

from __future__ import annotations

import math

from gpunn.onnx.table import converts

_PLAIN = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "mish": "Mish",
          "hard_swish": "HardSwish", "selu": "Selu"}  # fmt: skip


@converts("Activation")
def _activation(graph, call):
    x, name, alpha = call.arguments
    return activate(graph, graph.edge(x), x.dtype, name, alpha)


def activate(graph, edge: str, dtype, name: str, alpha: float | None) -> str:
    """One of `gpunn.kernels.ACTIVATIONS`."""
    if name == "identity":
        return edge
    if name in _PLAIN:
        return graph.op(_PLAIN[name], edge)
    if name in ("leaky_relu", "elu"):
        alpha = {"leaky_relu": 0.01, "elu": 1.0}[name] if alpha is None else alpha
        kind = {"leaky_relu": "LeakyRelu", "elu": "Elu"}[name]
        return graph.op(kind, edge, alpha=float(alpha))
    if name == "silu":
        return graph.op("Mul", edge, graph.op("Sigmoid", edge))
    if name == "softplus":
        beta = 1.0 if alpha is None else alpha
        if beta == 1:
            return graph.op("Softplus", edge)
        scaled = graph.op("Mul", edge, graph.constant(beta, dtype))
        return graph.op("Div", graph.op("Softplus", scaled), graph.constant(beta, dtype))
    if name in ("gelu", "gelu_tanh"):
        return _gelu(graph, edge, dtype, "none" if name == "gelu" else "tanh")
    return graph.refuse(f"the activation {name!r} is not known here")


def _gelu(graph, edge, dtype, approximate: str) -> str:
    if graph.opset >= 20:
        return graph.op("Gelu", edge, approximate=approximate)

    def number(value):
        return graph.constant(value, dtype)

    if approximate == "none":
        inner = graph.op("Erf", graph.op("Mul", edge, number(math.sqrt(0.5))))
    else:
        cube = graph.op("Mul", graph.op("Mul", edge, edge), edge)
        inner = graph.op("Add", edge, graph.op("Mul", cube, number(0.044715)))
        inner = graph.op("Tanh", graph.op("Mul", inner, number(math.sqrt(2 / math.pi))))
    half = graph.op("Mul", edge, number(0.5))
    return graph.op("Mul", half, graph.op("Add", inner, number(1)))


@converts("Softmax", "LogSoftmax")
def _softmax(graph, call):
    return graph.op(call.kind, graph.edge(call.arguments[0]), axis=-1)


@converts("Dropout")
def _dropout(graph, call):
    graph.refuse(
        "dropout draws random numbers. In layers it is off, since export runs the model in "
        "evaluation mode; a call of nn.functional.dropout needs training=self.training"
    )
