"""Activation functions, the teaching version: one thread an element, in a grid-stride loop.

    activation_forward_<name>(x, out, alpha)          out[i] = f(x[i])
    activation_backward_<name>(grad, x, out, alpha)   out[i] = grad[i] * f'(x[i])

Each function is written so that no intermediate overflows: exp is only taken of numbers <= 0.
"""

import math

from numba import cuda


@cuda.jit(device=True)
def identity(x, alpha):
    return x


@cuda.jit(device=True)
def identity_derivative(x, alpha):
    return 1.0


@cuda.jit(device=True)
def sigmoid(x, alpha):
    e = math.exp(-abs(x))
    return (1.0 if x >= 0 else e) / (1.0 + e)


@cuda.jit(device=True)
def sigmoid_derivative(x, alpha):
    e = math.exp(-abs(x))
    return e / ((1.0 + e) * (1.0 + e))


@cuda.jit(device=True)
def tanh(x, alpha):
    return math.tanh(x)


@cuda.jit(device=True)
def tanh_derivative(x, alpha):
    # 1 - tanh(x)^2 in a form that keeps its digits where tanh is near 1
    e = math.exp(-2.0 * abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@cuda.jit(device=True)
def relu(x, alpha):
    return 0.0 if x <= 0 else x


@cuda.jit(device=True)
def relu_derivative(x, alpha):
    return 0.0 if x <= 0 else 1.0


@cuda.jit(device=True)
def leaky_relu(x, alpha):
    return alpha * x if x <= 0 else x


@cuda.jit(device=True)
def leaky_relu_derivative(x, alpha):
    return alpha if x <= 0 else 1.0


@cuda.jit(device=True)
def elu(x, alpha):
    return alpha * math.expm1(x) if x <= 0 else x


@cuda.jit(device=True)
def elu_derivative(x, alpha):
    return alpha * math.exp(x) if x <= 0 else 1.0


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@cuda.jit(device=True)
def selu(x, alpha):
    return SELU_SCALE * (SELU_ALPHA * math.expm1(x) if x <= 0 else x)


@cuda.jit(device=True)
def selu_derivative(x, alpha):
    return SELU_SCALE * (SELU_ALPHA * math.exp(x) if x <= 0 else 1.0)


@cuda.jit(device=True)
def gelu(x, alpha):
    return 0.5 * x * math.erfc(-x * 0.7071067811865476)


@cuda.jit(device=True)
def gelu_derivative(x, alpha):
    density = 0.3989422804014327 * math.exp(-0.5 * x * x)
    return 0.5 * math.erfc(-x * 0.7071067811865476) + x * density


GELU_C = 0.7978845608028654  # sqrt(2 / pi)


@cuda.jit(device=True)
def gelu_tanh(x, alpha):
    z = min(max(x, -10.0), 10.0) if x == x else x
    return 0.5 * x * (1.0 + math.tanh(GELU_C * (z + 0.044715 * z * z * z)))


@cuda.jit(device=True)
def gelu_tanh_derivative(x, alpha):
    z = min(max(x, -10.0), 10.0) if x == x else x
    t = math.tanh(GELU_C * (z + 0.044715 * z * z * z))
    slope = GELU_C * (1.0 + 3.0 * 0.044715 * z * z)
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope


@cuda.jit(device=True)
def silu(x, alpha):
    e = math.exp(-abs(x))
    return x * ((1.0 if x >= 0 else e) / (1.0 + e))


@cuda.jit(device=True)
def silu_derivative(x, alpha):
    e = math.exp(-abs(x))
    return (1.0 if x >= 0 else e) / (1.0 + e) + x * (e / ((1.0 + e) * (1.0 + e)))


@cuda.jit(device=True)
def softplus(x, alpha):
    z = alpha * x
    return ((0.0 if z <= 0 else z) + math.log1p(math.exp(-abs(z)))) / alpha


@cuda.jit(device=True)
def softplus_derivative(x, alpha):
    z = alpha * x
    e = math.exp(-abs(z))
    return (1.0 if z >= 0 else e) / (1.0 + e)


@cuda.jit(device=True)
def mish(x, alpha):
    # with e = exp(-|x|), tanh(log(1 + exp(x))) is a ratio of polynomials in e
    e = math.exp(-abs(x))
    numerator = 1.0 + 2.0 * e if x > 0 else e * (e + 2.0)
    remainder = 2.0 * e * e if x > 0 else 2.0
    return x * (numerator / (numerator + remainder))


@cuda.jit(device=True)
def mish_derivative(x, alpha):
    e = math.exp(-abs(x))
    numerator = 1.0 + 2.0 * e if x > 0 else e * (e + 2.0)
    remainder = 2.0 * e * e if x > 0 else 2.0
    t = numerator / (numerator + remainder)
    rest = remainder / (numerator + remainder)
    logistic = (1.0 if x >= 0 else e) / (1.0 + e)
    return t + x * logistic * rest * (1.0 + t)


@cuda.jit(device=True)
def hard_swish(x, alpha):
    if x <= -3.0:
        return 0.0 * alpha
    return x if x >= 3.0 else x * (x + 3.0) / 6.0


@cuda.jit(device=True)
def hard_swish_derivative(x, alpha):
    if x <= -3.0:
        return 0.0
    return 1.0 if x >= 3.0 else (2.0 * x + 3.0) / 6.0


def _forward_kernel(function):
    @cuda.jit
    def activation_forward(x, out, alpha):
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            out[i] = function(x[i], alpha)

    return activation_forward


def _backward_kernel(derivative):
    @cuda.jit
    def activation_backward(grad, x, out, alpha):
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            out[i] = grad[i] * derivative(x[i], alpha)

    return activation_backward


_NAMES = (
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh",
    "silu", "softplus", "mish", "hard_swish",
)  # fmt: skip
for _name in _NAMES:
    globals()[f"activation_forward_{_name}"] = _forward_kernel(globals()[_name])
    globals()[f"activation_backward_{_name}"] = _backward_kernel(globals()[f"{_name}_derivative"])
