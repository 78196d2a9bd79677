"""The activation functions of networks, softmax and dropout, each over its kernel."""

from __future__ import annotations

from gpunn.autograd import random
from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.autocast import widened
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import array_xp, as_float, normal_dim
from gpunn.autograd.functions.layout import in_axes, memory_order
from gpunn.autograd.functions.shape import moveaxis
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.device import device_of
from gpunn.primitives import activation as primitives
from gpunn.primitives import random as random_primitives
from gpunn.primitives import softmax as softmax_primitives


def needs_only_output(activation: str, alpha: float | None) -> bool:
    """Whether the derivative follows from the output: it keeps the sign of the input there."""
    return activation == "relu" or (activation == "leaky_relu" and (alpha is None or alpha > 0))


class Activation(Function):
    """One of the thirteen functions of `gpunn.kernels.ACTIVATIONS`"""

    def forward(self, x, name, alpha):
        self.how, self.order = {"activation": name, "alpha": alpha}, memory_order(x)
        if self.order is None:
            out = primitives.activation_forward(x, **self.how)
        else:
            out = primitives.activation_forward(x.transpose(self.order), **self.how)
            out = in_axes(out, self.order)
        self.save(out if needs_only_output(name, alpha) else x)
        return out

    def backward(self, grad):
        (x,) = self.saved
        if self.order is None:
            return primitives.activation_backward(grad, x, **self.how)
        grad, x = grad.transpose(self.order), x.transpose(self.order)
        return in_axes(primitives.activation_backward(grad, x, **self.how), self.order)


class Softmax(Function):
    """Softmax over the last axis; its gradient needs the output alone"""

    def forward(self, x):
        out = softmax_primitives.softmax_forward(x)
        self.save(out)
        return out

    def backward(self, grad):
        return softmax_primitives.softmax_backward(grad, self.saved[0])


class LogSoftmax(Function):
    """Log-softmax over the last axis; its gradient needs the output alone"""

    def forward(self, x):
        out = softmax_primitives.log_softmax_forward(x)
        self.save(out)
        return out

    def backward(self, grad):
        return softmax_primitives.log_softmax_backward(grad, self.saved[0])


class Dropout(Function):
    """Zeros with probability p, the rest divided by 1 - p

    No mask is stored: the same draw gives the same mask on the way back. It is counted along the
    memory of the input, whatever the order of its axes there.
    """

    def forward(self, x, p):
        self.p, self.order = p, memory_order(x)
        self.draw = random.default_generator.draw(device_of(x))._asdict()
        return self._dropped(x)

    def backward(self, grad):
        return self._dropped(grad)

    def _dropped(self, x):
        if self.order is None:
            return random_primitives.dropout(x, p=self.p, **self.draw)
        x = x.transpose(self.order)
        return in_axes(random_primitives.dropout(x, p=self.p, **self.draw), self.order)


def activate(input: Tensor, activation: str, alpha: float | None = None) -> Tensor:
    """Any of `gpunn.kernels.ACTIVATIONS` by its name, element by element."""
    if state.low is not None and activation == "softplus":
        input = widened(input)
    return Activation.apply(as_float(input), activation, alpha)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x)"""
    return activate(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent"""
    return activate(input, "tanh")


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0). `inplace` is accepted for PyTorch's sake; a new tensor is made all the same."""
    return activate(input, "relu")


def _along(function, input: Tensor, dim: int, name: str) -> Tensor:
    """Apply a function of the last dimension along `dim`."""
    dim = normal_dim(name, dim, input.ndim)
    if state.low is not None:
        input = widened(input)
    if input.ndim == 0:
        return function.apply(input.reshape(1)).reshape(())
    if dim == input.ndim - 1:
        return function.apply(input)
    return moveaxis(function.apply(moveaxis(input, dim, -1)), -1, dim)


def softmax(input: Tensor, dim: int, dtype: DTypeLike = None) -> Tensor:
    """e^x / sum(e^x) along `dim`, computed without overflow."""
    input = input.to(dtype) if dtype is not None else as_float(input)
    return _along(Softmax, input, dim, "softmax")


def log_softmax(input: Tensor, dim: int, dtype: DTypeLike = None) -> Tensor:
    """x - log(sum(e^x)) along `dim`, computed without overflow."""
    input = input.to(dtype) if dtype is not None else as_float(input)
    return _along(LogSoftmax, input, dim, "log_softmax")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Each element zero with probability `p`, the others divided by 1 - p; itself if not training.

    Drawn from gpunn's generator (`manual_seed`): one seed gives one mask on every device.
    Raises ValueError unless 0 <= p <= 1.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p is {p}; expected a probability from 0 to 1")
    if not training or p == 0:
        return input
    if p == 1:
        return input * array_xp(input._array).zeros((), input.dtype)
    return Dropout.apply(input, float(p))
