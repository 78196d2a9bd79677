"""Activation functions: each thread four elements at a time, in a grid-stride loop.

    activation_forward_<dtype>_<name>(x, out, alpha)          out[i] = f(x[i])
    activation_backward_<dtype>_<name>(grad, x, out, alpha)   out[i] = grad[i] * f'(x[i])
    activation_bias_backward_<dtype>_<name>(grad, x, out, sums, alpha)
        out[m, n] = grad[m, n] * f'(x[m, n]), and sums[n] = sum over m of out[m, n]

The limit is memory: 8 bytes an element forward and 12 backward in float32. A thread asks for four
elements before it uses the first, so that four loads are under way; they lie a whole grid apart, so
that neighbouring threads always read neighbours.

Each function is written so that no intermediate overflows: exp is only taken of numbers <= 0. And
each is compiled for a dtype with constants of that dtype: beside a plain 1.0, which Numba takes for
a float64, a float32 would be widened and all that follows computed at a fraction of the speed.
"""

import math

import numpy as np
from numba import cuda, float32, float64

_NAMES = (
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh",
    "silu", "softplus", "mish", "hard_swish",
)  # fmt: skip


def _functions(number):
    """{name: function(x, alpha)} of all activations and ``<name>_derivative``, for a dtype."""
    zero, half, one, two, three, four, six, ten = map(number, (0, 0.5, 1, 2, 3, 4, 6, 10))
    selu_scale, selu_alpha = number(1.0507009873554805), number(1.6732632423543772)
    root_half, root_2_over_pi = number(0.7071067811865476), number(0.7978845608028654)
    normal_density, cubic = number(0.3989422804014327), number(0.044715)

    @cuda.jit(device=True)
    def identity(x, alpha):
        return x

    @cuda.jit(device=True)
    def identity_derivative(x, alpha):
        return one

    @cuda.jit(device=True)
    def sigmoid(x, alpha):
        e = math.exp(-abs(x))
        return (one if x >= zero else e) / (one + e)

    @cuda.jit(device=True)
    def sigmoid_derivative(x, alpha):
        e = math.exp(-abs(x))
        return e / ((one + e) * (one + e))

    @cuda.jit(device=True)
    def tanh(x, alpha):
        return math.tanh(x)

    @cuda.jit(device=True)
    def tanh_derivative(x, alpha):
        # 1 - tanh(x)^2 in a form that keeps its digits where tanh is near 1
        e = math.exp(-two * abs(x))
        return four * e / ((one + e) * (one + e))

    @cuda.jit(device=True)
    def relu(x, alpha):
        return zero if x <= zero else x

    @cuda.jit(device=True)
    def relu_derivative(x, alpha):
        return zero if x <= zero else one

    @cuda.jit(device=True)
    def leaky_relu(x, alpha):
        return alpha * x if x <= zero else x

    @cuda.jit(device=True)
    def leaky_relu_derivative(x, alpha):
        return alpha if x <= zero else one

    @cuda.jit(device=True)
    def elu(x, alpha):
        return alpha * math.expm1(x) if x <= zero else x

    @cuda.jit(device=True)
    def elu_derivative(x, alpha):
        return alpha * math.exp(x) if x <= zero else one

    @cuda.jit(device=True)
    def selu(x, alpha):
        return selu_scale * (selu_alpha * math.expm1(x) if x <= zero else x)

    @cuda.jit(device=True)
    def selu_derivative(x, alpha):
        return selu_scale * (selu_alpha * math.exp(x) if x <= zero else one)

    @cuda.jit(device=True)
    def gelu(x, alpha):
        return half * x * math.erfc(-x * root_half)

    @cuda.jit(device=True)
    def gelu_derivative(x, alpha):
        density = normal_density * math.exp(-half * x * x)
        return half * math.erfc(-x * root_half) + x * density

    @cuda.jit(device=True)
    def gelu_tanh(x, alpha):
        z = min(max(x, -ten), ten) if x == x else x
        return half * x * (one + math.tanh(root_2_over_pi * (z + cubic * z * z * z)))

    @cuda.jit(device=True)
    def gelu_tanh_derivative(x, alpha):
        z = min(max(x, -ten), ten) if x == x else x
        t = math.tanh(root_2_over_pi * (z + cubic * z * z * z))
        slope = root_2_over_pi * (one + three * cubic * z * z)
        return half * (one + t) + half * z * (one - t * t) * slope

    @cuda.jit(device=True)
    def silu(x, alpha):
        e = math.exp(-abs(x))
        return x * ((one if x >= zero else e) / (one + e))

    @cuda.jit(device=True)
    def silu_derivative(x, alpha):
        e = math.exp(-abs(x))
        return (one if x >= zero else e) / (one + e) + x * (e / ((one + e) * (one + e)))

    @cuda.jit(device=True)
    def softplus(x, alpha):
        z = alpha * x
        return ((zero if z <= zero else z) + math.log1p(math.exp(-abs(z)))) / alpha

    @cuda.jit(device=True)
    def softplus_derivative(x, alpha):
        z = alpha * x
        e = math.exp(-abs(z))
        return (one if z >= zero else e) / (one + e)

    @cuda.jit(device=True)
    def mish(x, alpha):
        # with e = exp(-|x|), tanh(log(1 + exp(x))) is a ratio of polynomials in e
        e = math.exp(-abs(x))
        numerator = one + two * e if x > zero else e * (e + two)
        remainder = two * e * e if x > zero else two
        return x * (numerator / (numerator + remainder))

    @cuda.jit(device=True)
    def mish_derivative(x, alpha):
        e = math.exp(-abs(x))
        numerator = one + two * e if x > zero else e * (e + two)
        remainder = two * e * e if x > zero else two
        t = numerator / (numerator + remainder)
        rest = remainder / (numerator + remainder)
        logistic = (one if x >= zero else e) / (one + e)
        return t + x * logistic * rest * (one + t)

    @cuda.jit(device=True)
    def hard_swish(x, alpha):
        if x <= -three:
            return zero * alpha
        return x if x >= three else x * (x + three) / six

    @cuda.jit(device=True)
    def hard_swish_derivative(x, alpha):
        if x <= -three:
            return zero
        return one if x >= three else (two * x + three) / six

    made = locals()
    return {name: made[name] for base in _NAMES for name in (base, f"{base}_derivative")}


def _forward_kernel(function):
    @cuda.jit
    def activation_forward(x, out, alpha):
        n, step = x.size, cuda.gridsize(1)
        for i in range(cuda.grid(1), n, 4 * step):
            j, k, l = i + step, i + 2 * step, i + 3 * step  # noqa: E741
            a = x[i]
            b = x[j] if j < n else a
            c = x[k] if k < n else a
            d = x[l] if l < n else a
            out[i] = function(a, alpha)
            if j < n:
                out[j] = function(b, alpha)
            if k < n:
                out[k] = function(c, alpha)
            if l < n:
                out[l] = function(d, alpha)

    return activation_forward


def _backward_kernel(derivative):
    @cuda.jit
    def activation_backward(grad, x, out, alpha):
        n, step = x.size, cuda.gridsize(1)
        for i in range(cuda.grid(1), n, 2 * step):  # two of each array: four loads as well
            j = i + step
            a, of_a = x[i], grad[i]
            b, of_b = a, of_a
            if j < n:
                b, of_b = x[j], grad[j]
            out[i] = of_a * derivative(a, alpha)
            if j < n:
                out[j] = of_b * derivative(b, alpha)

    return activation_backward


def _bias_kernel(derivative, number):
    @cuda.jit
    def activation_bias_backward(grad, x, out, sums, alpha):
        """A block of 32 x 8 threads owns 32 columns; thread (i, j) takes every 8th row of column i.

        Neighbouring threads read neighbouring columns. The eight sums of a column are added in
        order, so the result is always the same.
        """
        shared = cuda.shared.array((8, 32), number)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        n = cuda.blockIdx.x * 32 + i
        total = number(0)
        if n < sums.size:
            for m in range(j, grad.shape[0], 8):
                value = grad[m, n] * derivative(x[m, n], alpha)
                out[m, n] = value
                total += value
        shared[j, i] = total
        cuda.syncthreads()
        if j == 0 and n < sums.size:
            for other in range(1, 8):
                total += shared[other, i]
            sums[n] = total

    return activation_bias_backward


for _number in (float32, float64):
    _made = _functions(getattr(np, str(_number)))
    for _name in _NAMES:
        _kind, _slope = f"{_number}_{_name}", _made[f"{_name}_derivative"]
        globals()[f"activation_forward_{_kind}"] = _forward_kernel(_made[_name])
        globals()[f"activation_backward_{_kind}"] = _backward_kernel(_slope)
        globals()[f"activation_bias_backward_{_kind}"] = _bias_kernel(_slope, _number)
