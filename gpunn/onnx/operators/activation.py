"""The activation functions of networks."""

from __future__ import annotations

from gpunn.autograd.functions import arithmetic, elementwise
from gpunn.autograd.functions.activation import activate, sigmoid
from gpunn.autograd.functions.shape import reshape
from gpunn.onnx.operators.common import floating, plain
from gpunn.onnx.operators.registry import Node, operator


def _activation(name: str, make, first: int = 1) -> None:
    @operator(name, first)
    def build(node: Node):
        node.skip("consumed_inputs")  # of version 1, a hint about memory
        return make(node)


def _relu(node: Node):
    return lambda x: (
        activate(x, "relu") if floating(x) else plain(lambda xp, a: xp.maximum(a, 0), x)
    )


def _leaky_relu(node: Node):
    slope = node.float("alpha", 0.01)
    return lambda x: activate(x, "leaky_relu", slope)


def _elu(node: Node):
    alpha = node.float("alpha", 1.0)
    return lambda x: activate(x, "elu", alpha)


def _celu(node: Node):
    alpha = node.float("alpha", 1.0)
    return lambda x: activate(x * (1 / alpha), "elu", 1.0) * alpha


def _selu(node: Node):
    early = node.version < 6
    alpha = node.float("alpha", 1.6732 if early else 1.67326319217681884765625)
    gamma = node.float("gamma", 1.0507 if early else 1.05070102214813232421875)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return lambda x: activate(x, "selu")
    return lambda x: activate(x, "elu", alpha) * gamma


def _gelu(node: Node):
    kernel = {"none": "gelu", "tanh": "gelu_tanh"}[
        node.choice("approximate", "none", ("none", "tanh"))
    ]
    return lambda x: activate(x, kernel)


def _hard_sigmoid(node: Node):
    alpha, beta = node.float("alpha", 0.2), node.float("beta", 0.5)
    return lambda x: elementwise.clamp(x * alpha + beta, 0.0, 1.0)


def _swish(node: Node):
    alpha = node.float("alpha", 1.0)
    return lambda x: activate(x, "silu") if alpha == 1 else x * sigmoid(x * alpha)


def _swiglu(node: Node):
    alpha = node.float("alpha", 1.0)
    return lambda gate, x: gate * sigmoid(gate * alpha) * x


def _thresholded_relu(node: Node):
    alpha = node.float("alpha", 1.0)
    return lambda x: arithmetic.where(x > alpha, x, 0.0)


def _shrink(node: Node):
    bias, lambd = node.float("bias", 0.0), node.float("lambd", 0.5)

    def run(x):
        if not floating(x):
            return plain(
                lambda xp, a: xp.where(a < -lambd, a + bias, xp.where(a > lambd, a - bias, 0)), x
            )
        return arithmetic.where(x < -lambd, x + bias, arithmetic.where(x > lambd, x - bias, 0.0))

    return run


def _prelu(node: Node):
    def run(x, slope):
        if node.version < 7 and slope.ndim == 1 and slope.shape[0] > 1:
            slope = reshape(slope, -1, *(1,) * (x.ndim - 2))  # channels, before broadcasting came
        if not floating(x):
            return plain(lambda xp, a, b: xp.where(a < 0, a * b, a), x, slope)
        return arithmetic.where(x < 0, x * slope, x)

    return run


_activation("Relu", _relu)
_activation("LeakyRelu", _leaky_relu)
_activation("Elu", _elu)
_activation("Celu", _celu, 12)
_activation("Selu", _selu)
_activation("Gelu", _gelu, 20)
_activation("Mish", lambda node: lambda x: activate(x, "mish"), 18)
_activation("HardSigmoid", _hard_sigmoid)
_activation("HardSwish", lambda node: lambda x: activate(x, "hard_swish"), 14)
_activation("Softplus", lambda node: lambda x: activate(x, "softplus"))
_activation("Softsign", lambda node: lambda x: x / (1 + elementwise.abs(x)))
_activation("Swish", _swish, 24)
_activation("SwiGLU", _swiglu, 28)
_activation("ThresholdedRelu", _thresholded_relu, 10)
_activation("Shrink", _shrink, 9)
_activation("PRelu", _prelu)
