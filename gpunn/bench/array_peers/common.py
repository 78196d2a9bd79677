"""Primitives as a user would write them in NumPy, or with the same lines in CuPy.

Every function takes the module, then what the primitive takes; 16-bit numbers are computed in
float32, as the primitives do. Options that the benchmark inputs do not use are left out: a call
with one raises a TypeError, and the peer is then not timed.
"""

from __future__ import annotations

import numpy as np

PEERS = {}


def peer(function):
    """Add a function to the table under its own name."""
    PEERS[function.__name__] = function
    return function


def wide(x):
    """x in float32 if it has 16 bits."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def put(value, out):
    """The value, in `out` if there is one."""
    if out is None:
        return value
    out[...] = value
    return out


def _erf(xp, x):
    if xp is np:
        from scipy.special import erf
    else:
        from cupyx.scipy.special import erf
    return erf(x)


def _sigmoid(xp, x):
    return 1 / (1 + xp.exp(-x))


_FORWARD = {
    "relu": lambda xp, x: xp.maximum(x, 0),
    "sigmoid": _sigmoid,
    "tanh": lambda xp, x: xp.tanh(x),
    "silu": lambda xp, x: x * _sigmoid(xp, x),
    "gelu": lambda xp, x: 0.5 * x * (1 + _erf(xp, x * 0.7071067811865476)),
}
_BACKWARD = {
    "relu": lambda xp, x: x > 0,
    "sigmoid": lambda xp, x: _sigmoid(xp, x) * (1 - _sigmoid(xp, x)),
    "tanh": lambda xp, x: 1 - xp.tanh(x) ** 2,
    "gelu": lambda xp, x: 0.5 * (1 + _erf(xp, x * 0.7071067811865476))
    + x * xp.exp(-0.5 * x * x) * 0.3989422804014327,
}


@peer
def activation_forward(xp, x, *, activation, out=None):
    return put(_FORWARD[activation](xp, wide(x)), out)


@peer
def activation_backward(xp, grad_output, x, *, activation, out=None):
    return put(wide(grad_output) * _BACKWARD[activation](xp, wide(x)), out)


@peer
def activation_bias_backward(xp, grad_output, x, *, activation, out=None):
    value = wide(grad_output) * _BACKWARD[activation](xp, wide(x))
    sums = value.sum(axis=tuple(range(value.ndim - 1))).astype(grad_output.dtype)
    return put(value, out), sums


# ---- matmul, reductions --------------------------------------------------------------------------


@peer
def matmul(
    xp, a, b, *, transpose_a=False, transpose_b=False, bias=None, activation="identity", out=None
):
    a = a.swapaxes(-1, -2) if transpose_a else a
    b = b.swapaxes(-1, -2) if transpose_b else b
    if xp is np and a.dtype.itemsize == 2:
        out = put(np.matmul(wide(a), wide(b)), out)
    else:
        out = xp.matmul(a, b, out=out)
    if bias is not None:
        out += bias
    if activation != "identity":
        out[...] = _FORWARD[activation](xp, out)
    return out


@peer
def matmul_activation_backward(
    xp, a, b, preactivation, *, activation, keep_bias_gradient=True, out=None
):
    value = wide(matmul(xp, a, b)) * _BACKWARD[activation](xp, wide(preactivation))
    return put(value.astype(a.dtype, copy=False), out), value.sum(0).astype(a.dtype)


@peer
def linear_weight_gradient(xp, grad_output, x, *, out=None):
    return matmul(xp, grad_output.T, x, out=out), bias_gradient(xp, grad_output).astype(x.dtype)


@peer
def bias_gradient(xp, grad_output, *, out=None):
    return put(wide(grad_output).reshape(-1, grad_output.shape[-1]).sum(0), out)


@peer
def reduce_sum(xp, x, *, axis=None, keepdims=False, out=None):
    return put(wide(x).sum(axis, keepdims=keepdims), out)


@peer
def reduce_mean(xp, x, *, axis=None, keepdims=False, out=None):
    return put(wide(x).mean(axis, keepdims=keepdims), out)


@peer
def reduce_max(xp, x, *, axis=None, keepdims=False, out=None):
    return xp.max(x, axis, keepdims=keepdims, out=out)


@peer
def reduce_argmax(xp, x, *, axis=None, keepdims=False, out=None):
    return put(xp.argmax(x, axis, keepdims=keepdims), out)


# ---- softmax -------------------------------------------------------------------------------------


@peer
def softmax_forward(xp, x, *, out=None):
    x = wide(x)
    e = xp.exp(x - x.max(-1, keepdims=True))
    return put(e / e.sum(-1, keepdims=True), out)


@peer
def softmax_backward(xp, grad_output, y, *, out=None):
    g, y = wide(grad_output), wide(y)
    return put(y * (g - (g * y).sum(-1, keepdims=True)), out)


@peer
def log_softmax_forward(xp, x, *, out=None):
    x = wide(x)
    x = x - x.max(-1, keepdims=True)
    return put(x - xp.log(xp.exp(x).sum(-1, keepdims=True)), out)


@peer
def log_softmax_backward(xp, grad_output, y, *, out=None):
    g, y = wide(grad_output), wide(y)
    return put(g - xp.exp(y) * g.sum(-1, keepdims=True), out)


# ---- losses (mean over all) ----------------------------------------------------------------------


@peer
def mse_forward(xp, prediction, target, *, out=None):
    return put(((wide(prediction) - wide(target)) ** 2).mean(), out)


@peer
def mse_backward(xp, grad_output, prediction, target, *, out=None):
    scale = grad_output * 2 / prediction.size
    return put((wide(prediction) - wide(target)) * scale.astype(wide(prediction).dtype), out)


@peer
def l1_forward(xp, prediction, target, *, out=None):
    return put(xp.abs(wide(prediction) - wide(target)).mean(), out)


@peer
def l1_backward(xp, grad_output, prediction, target, *, out=None):
    scale = grad_output / prediction.size
    return put(xp.sign(wide(prediction) - wide(target)) * scale, out)


@peer
def huber_forward(xp, prediction, target, *, delta=1.0, out=None):
    d = xp.abs(wide(prediction) - wide(target))
    return put(xp.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)).mean(), out)


@peer
def huber_backward(xp, grad_output, prediction, target, *, delta=1.0, out=None):
    d = wide(prediction) - wide(target)
    return put(xp.clip(d, -delta, delta) * (grad_output / prediction.size), out)


@peer
def binary_cross_entropy_forward(xp, logits, target, *, out=None):
    x, t = wide(logits), wide(target)
    return put((xp.maximum(x, 0) - x * t + xp.log1p(xp.exp(-xp.abs(x)))).mean(), out)


@peer
def binary_cross_entropy_backward(xp, grad_output, logits, target, *, out=None):
    x, t = wide(logits), wide(target)
    return put((_sigmoid(xp, x) - t) * (grad_output / logits.size), out)


@peer
def cross_entropy_forward(xp, logits, target, *, out=None):
    x = wide(logits)
    x = x - x.max(1, keepdims=True)
    log_sum = xp.log(xp.exp(x).sum(1))
    return put((log_sum - x[xp.arange(len(x)), target]).mean(), out)


@peer
def cross_entropy_forward_backward(xp, logits, target, *, out=None):
    x, rows = wide(logits), xp.arange(len(logits))
    x = x - x.max(1, keepdims=True)
    gradient = xp.exp(x)
    total = gradient.sum(1, keepdims=True)
    loss = (xp.log(total[:, 0]) - x[rows, target]).mean()
    gradient /= total
    gradient[rows, target] -= 1
    gradient /= len(x)
    gradient = gradient.astype(logits.dtype, copy=False)  # made like ours; the loss is compared
    return put(loss, out)


@peer
def cross_entropy_backward(
    xp, grad_output, logits, target, log_normalizer, total_weight, *, out=None
):
    probability = xp.exp(wide(logits) - log_normalizer[:, None])
    probability[xp.arange(len(probability)), target] -= 1
    return put(probability * (grad_output / total_weight), out)


# ---- updates, in place ---------------------------------------------------------------------------


@peer
def sgd_update(xp, parameters, gradients, momentum_buffer, hyper, *, nesterov=False):
    rate, momentum, dampening, decay, *_ = hyper
    g = gradients + decay * parameters
    if momentum_buffer is not None:
        momentum_buffer *= momentum
        momentum_buffer += (1 - dampening) * g
        g = g + momentum * momentum_buffer if nesterov else momentum_buffer
    parameters -= rate * g


@peer
def adam_update(xp, parameters, gradients, exp_avg, exp_avg_sq, hyper, *, decoupled=False):
    rate, beta1, beta2, eps, decay, step, *_ = hyper
    if decoupled:
        parameters *= 1 - rate * decay
        g = gradients
    else:
        g = gradients + decay * parameters
    exp_avg *= beta1
    exp_avg += (1 - beta1) * g
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * g * g
    denominator = xp.sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    parameters -= rate / (1 - beta1**step) * exp_avg / denominator


@peer
def rmsprop_update(xp, parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper):
    rate, alpha, eps, decay, momentum, *_ = hyper
    g = gradients + decay * parameters
    square_avg *= alpha
    square_avg += (1 - alpha) * g * g
    variance = square_avg
    if grad_avg is not None:
        grad_avg += (1 - alpha) * (g - grad_avg)
        variance = square_avg - grad_avg * grad_avg
    change = g / (xp.sqrt(variance) + eps)
    if momentum_buffer is not None:
        momentum_buffer *= momentum
        momentum_buffer += change
        change = momentum_buffer
    parameters -= rate * change


@peer
def adagrad_update(xp, parameters, gradients, state_sum, hyper):
    rate, rate_decay, decay, eps, step, *_ = hyper
    g = gradients + decay * parameters
    state_sum += g * g
    parameters -= rate / (1 + (step - 1) * rate_decay) * g / (xp.sqrt(state_sum) + eps)


@peer
def lion_update(xp, parameters, gradients, exp_avg, hyper):
    rate, beta1, beta2, decay, *_ = hyper
    parameters *= 1 - rate * decay
    parameters -= rate * xp.sign(beta1 * exp_avg + (1 - beta1) * gradients)
    exp_avg *= beta2
    exp_avg += (1 - beta2) * gradients


@peer
def global_norm(xp, gradients, *, out=None):
    return put(xp.sqrt(xp.square(wide(gradients)).sum()), out)


@peer
def clip_by_norm(xp, gradients, norm, *, max_norm):
    gradients *= xp.minimum(max_norm / (norm + 1e-6), 1)


@peer
def clip_by_value(xp, gradients, *, limit):
    xp.clip(gradients, -limit, limit, out=gradients)


@peer
def penalty_gradient(xp, parameters, gradients, *, l1=0.0, l2=0.0):
    gradients += l1 * xp.sign(parameters) + 2 * l2 * parameters


@peer
def scale(xp, x, factor, *, out=None):
    return put(wide(x) * factor, out)


@peer
def accumulate(xp, total, part, *, scale=1.0):
    total += scale * wide(part)


@peer
def accumulate_parts(xp, total, part, parts):
    for start, stop in parts:
        total[start:stop] += wide(part[start:stop])


@peer
def add_loss(xp, state, loss, *, weight, count):
    state[0] += weight * loss
    state[1] += count
    state[2] += 1


# ---- random numbers (others than ours: only their distribution is checked) -----------------------


@peer
def random_uniform(xp, out, *, seed, low=0.0, high=1.0):
    if xp is np:
        generator = np.random.default_rng(seed)
        return put(generator.random(out.shape, dtype=out.dtype) * (high - low) + low, out)
    return put(xp.random.random(out.shape, dtype=out.dtype) * (high - low) + low, out)


@peer
def random_normal(xp, out, *, seed, mean=0.0, std=1.0):
    if xp is np:
        generator = np.random.default_rng(seed)
        return put(generator.standard_normal(out.shape, dtype=out.dtype) * std + mean, out)
    return put(xp.random.standard_normal(out.shape, dtype=out.dtype) * std + mean, out)


@peer
def dropout(xp, x, *, p, seed, out=None):
    if xp is np:
        uniform = np.random.default_rng(seed).random(x.shape, dtype=np.float32)
    else:
        uniform = xp.random.random(x.shape, dtype=np.float32)
    return put(wide(x) * (uniform >= p) / (1 - p), out)
