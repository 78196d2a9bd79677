"""The same primitives by PyTorch's own functions and optimizers.

`PEERS` holds plain functions of tensors, run eagerly and by `torch.compile`; `PREPARED` holds
functions that set something up for one set of inputs (an optimizer) and return what to call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

PEERS = {}
PREPARED = {}


def peer(function):
    """Add a function to the table under its own name."""
    PEERS[function.__name__] = function
    return function


def prepared(function):
    """Add a function to the table of those that prepare."""
    PREPARED[function.__name__] = function
    return function


def put(value, out):
    return value if out is None else out.copy_(value)


_FORWARD = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
_BACKWARD = {
    "relu": lambda g, x: torch.ops.aten.threshold_backward(g, x, 0),
    "sigmoid": lambda g, x: torch.ops.aten.sigmoid_backward(g, torch.sigmoid(x)),
    "tanh": lambda g, x: torch.ops.aten.tanh_backward(g, torch.tanh(x)),
    "silu": torch.ops.aten.silu_backward,
    "gelu": torch.ops.aten.gelu_backward,
}
_INTO = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": torch.ops.aten.gelu.out}


@peer
def activation_forward(x, *, activation, out=None):
    if out is not None and activation in _INTO:
        return _INTO[activation](x, out=out)
    return _FORWARD[activation](x)


@peer
def activation_backward(grad_output, x, *, activation, out=None):
    if out is not None and activation == "gelu":
        return torch.ops.aten.gelu_backward.grad_input(grad_output, x, grad_input=out)
    return _BACKWARD[activation](grad_output, x)


@peer
def activation_bias_backward(grad_output, x, *, activation, out=None):
    grad = activation_backward(grad_output, x, activation=activation, out=out)
    return grad, grad.sum(tuple(range(grad.ndim - 1)))


@peer
def matmul(
    a, b, *, transpose_a=False, transpose_b=False, bias=None, activation="identity", out=None
):
    a = a.mT if transpose_a else a
    b = b.mT if transpose_b else b
    if bias is not None and a.ndim == 2:
        y = torch.addmm(bias, a, b, out=out)
    else:
        y = torch.matmul(a, b, out=out)
        y = y if bias is None else y.add_(bias)
    return y if activation == "identity" else _FORWARD[activation](y)


@peer
def matmul_activation_backward(
    a, b, preactivation, *, activation, keep_bias_gradient=True, out=None
):
    grad = activation_backward(torch.mm(a, b), preactivation, activation=activation, out=out)
    return grad, grad.sum(0)


@peer
def linear_weight_gradient(grad_output, x, *, out=None):
    return torch.mm(grad_output.mT, x, out=out), torch.sum(grad_output, 0)


@peer
def bias_gradient(grad_output, *, out=None):
    return torch.sum(grad_output.reshape(-1, grad_output.shape[-1]), 0, out=out)


@peer
def reduce_sum(x, *, axis=None, keepdims=False, out=None):
    axes = tuple(range(x.ndim)) if axis is None else axis
    return torch.sum(x, axes, keepdim=keepdims, out=out)


@peer
def reduce_mean(x, *, axis=None, keepdims=False, out=None):
    axes = tuple(range(x.ndim)) if axis is None else axis
    return torch.mean(x, axes, keepdim=keepdims, out=out)


@peer
def reduce_max(x, *, axis=None, keepdims=False, out=None):
    axes = tuple(range(x.ndim)) if axis is None else axis
    return torch.amax(x, axes, keepdim=keepdims, out=out)


@peer
def reduce_argmax(x, *, axis=None, keepdims=False, out=None):
    return torch.argmax(x, axis, keepdim=keepdims)


@peer
def softmax_forward(x, *, out=None):
    return torch.softmax(x, -1, out=out)


@peer
def softmax_backward(grad_output, y, *, out=None):
    return torch.ops.aten._softmax_backward_data(grad_output, y, -1, y.dtype)


@peer
def log_softmax_forward(x, *, out=None):
    return torch.log_softmax(x, -1, out=out)


@peer
def log_softmax_backward(grad_output, y, *, out=None):
    return torch.ops.aten._log_softmax_backward_data(grad_output, y, -1, y.dtype)


@peer
def mse_forward(prediction, target, *, out=None):
    return F.mse_loss(prediction, target)


@peer
def mse_backward(grad_output, prediction, target, *, out=None):
    return torch.ops.aten.mse_loss_backward(grad_output, prediction, target, 1)


@peer
def l1_forward(prediction, target, *, out=None):
    return F.l1_loss(prediction, target)


@peer
def l1_backward(grad_output, prediction, target, *, out=None):
    return torch.sign(prediction - target) * (grad_output / prediction.numel())


@peer
def huber_forward(prediction, target, *, delta=1.0, out=None):
    return F.huber_loss(prediction, target, delta=delta)


@peer
def huber_backward(grad_output, prediction, target, *, delta=1.0, out=None):
    grad_output = grad_output.to(prediction.dtype)
    return torch.ops.aten.huber_loss_backward(grad_output, prediction, target, 1, delta)


@peer
def binary_cross_entropy_forward(logits, target, *, out=None):
    return F.binary_cross_entropy_with_logits(logits, target)


@peer
def binary_cross_entropy_backward(grad_output, logits, target, *, out=None):
    return (torch.sigmoid(logits) - target) * (grad_output / logits.numel())


@peer
def cross_entropy_forward(logits, target, *, out=None):
    return F.cross_entropy(logits, target.long())


@peer
def cross_entropy_forward_backward(logits, target, *, out=None):
    """As a training step does it: the loss, and then its gradient by autograd."""
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(logits, target.long())
    torch.autograd.grad(loss, logits)
    return loss.detach()


@prepared
def cross_entropy_backward(grad_output, logits, target, log_normalizer, total_weight):
    """PyTorch's own two functions for it, from the log-probabilities that its forward keeps."""
    logs, target = torch.log_softmax(logits, 1), target.long()
    total = total_weight.to(logits.dtype)
    grad = grad_output.to(logits.dtype)

    def run():
        inner = torch.ops.aten.nll_loss_backward(grad, logs, target, None, 1, -100, total)
        return torch.ops.aten._log_softmax_backward_data(inner, logs, 1, logs.dtype)

    return run


# ---- updates: PyTorch's optimizers, on the very same arrays --------------------------------------


def _optimizer(kind, parameters, gradients, state, **options):
    """An optimizer of one parameter in the middle of training; `step` is what to call."""
    parameter = torch.nn.Parameter(parameters, requires_grad=True)
    parameter.grad = gradients
    made = kind([parameter], **options)
    made.state[parameter].update(state)
    return made.step


@prepared
def sgd_update(parameters, gradients, momentum_buffer, hyper, *, nesterov=False):
    rate, momentum, dampening, decay, *_ = hyper
    state = {} if momentum_buffer is None else {"momentum_buffer": momentum_buffer}
    options = {"momentum": 0.0 if momentum_buffer is None else momentum, "nesterov": nesterov}
    options |= {"lr": rate, "dampening": dampening, "weight_decay": decay, "fused": True}
    return _optimizer(torch.optim.SGD, parameters, gradients, state, **options)


@prepared
def adam_update(parameters, gradients, exp_avg, exp_avg_sq, hyper, *, decoupled=False):
    rate, beta1, beta2, eps, decay, step, *_ = hyper
    count = torch.tensor(step - 1, dtype=torch.float32, device=parameters.device)
    state = {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    options = {"lr": rate, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    options["fused"] = True
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return _optimizer(kind, parameters, gradients, state, **options)


@prepared
def rmsprop_update(parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper):
    rate, alpha, eps, decay, momentum, step, *_ = hyper
    state = {"step": torch.tensor(step - 1), "square_avg": square_avg}
    if momentum_buffer is not None:
        state["momentum_buffer"] = momentum_buffer
    if grad_avg is not None:
        state["grad_avg"] = grad_avg
    options = {"lr": rate, "alpha": alpha, "eps": eps, "weight_decay": decay}
    options["momentum"] = 0.0 if momentum_buffer is None else momentum
    options["centered"] = grad_avg is not None
    return _optimizer(torch.optim.RMSprop, parameters, gradients, state, **options)


@prepared
def adagrad_update(parameters, gradients, state_sum, hyper):
    rate, rate_decay, decay, eps, step, *_ = hyper
    state = {"step": torch.tensor(step - 1), "sum": state_sum}
    options = {"lr": rate, "lr_decay": rate_decay, "eps": eps, "weight_decay": decay}
    return _optimizer(torch.optim.Adagrad, parameters, gradients, state, **options)


@peer
def lion_update(parameters, gradients, exp_avg, hyper):
    """PyTorch has no Lion: its formula, in place."""
    rate, beta1, beta2, decay, *_ = hyper
    direction = torch.sign(torch.lerp(gradients, exp_avg, beta1))
    parameters.mul_(1 - rate * decay).sub_(rate * direction)
    exp_avg.mul_(beta2).add_((1 - beta2) * gradients)


@peer
def global_norm(gradients, *, out=None):
    return torch.linalg.vector_norm(gradients)


@peer
def clip_by_norm(gradients, norm, *, max_norm):
    gradients.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))


@peer
def clip_by_value(gradients, *, limit):
    gradients.clamp_(-limit, limit)


@peer
def penalty_gradient(parameters, gradients, *, l1=0.0, l2=0.0):
    gradients.add_(l1 * torch.sign(parameters) + 2 * l2 * parameters)


@peer
def scale(x, factor, *, out=None):
    return torch.mul(x, factor, out=out)  # a scalar tensor does not widen the result


@peer
def accumulate(total, part, *, scale=1.0):
    total.add_(part, alpha=scale)


@peer
def accumulate_parts(total, part, parts):
    for start, stop in parts:
        total[start:stop] += part[start:stop]


@peer
def add_loss(state, loss, *, weight, count):
    state[0].add_(loss, alpha=weight)
    state[1].add_(count)
    state[2].add_(1)


@peer
def random_uniform(out, *, seed, low=0.0, high=1.0):
    return out.uniform_(low, high)


@peer
def random_normal(out, *, seed, mean=0.0, std=1.0):
    return out.normal_(mean, std)


@peer
def dropout(x, *, p, seed, out=None):
    return F.dropout(x, p, training=True)


# ---- PyTorch compiled ----------------------------------------------------------------------------

# Optimizers as formulas, for torch.compile to fuse (the eager peers above have state of their own).


def _adam_formula(parameters, gradients, exp_avg, exp_avg_sq, hyper, *, decoupled=False):
    rate, beta1, beta2, eps, decay, step, *_ = hyper
    g = gradients
    if decoupled:
        parameters.mul_(1 - rate * decay)
    else:
        g = g + decay * parameters
    exp_avg.lerp_(g, 1 - beta1)
    exp_avg_sq.mul_(beta2).add_((1 - beta2) * g * g)
    denominator = torch.sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    parameters.sub_(rate / (1 - beta1**step) * exp_avg / denominator)


def _cross_entropy_formula(grad_output, logits, target, log_normalizer, total_weight):
    probability = torch.exp(logits.float() - log_normalizer[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    return ((probability - hit.float()) * (grad_output / total_weight)).to(logits.dtype)


# What `torch.compile` gets where it is not the eager function.
COMPILED = {
    "adam_update": _adam_formula,
    "cross_entropy_backward": _cross_entropy_formula,
}


def compiled(name: str, **options):
    """The function `name` through torch.compile, afresh: it gives up after a few shapes of one."""
    torch._dynamo.reset()
    return torch.compile(COMPILED.get(name) or PEERS[name], dynamic=False, **options)
