"""Activation modules, each over one kernel of `gpunn.kernels.activation_forward`."""

from __future__ import annotations

from typing import Any

from gpunn.autograd.functions.activation import activate
from gpunn.autograd.tensor import Tensor
from gpunn.nn import functional as F
from gpunn.nn.module import Module


class Activation(Module):
    """Base of the elementwise activations.

    Attributes
    ----------
    kernel : (name, alpha) as `activation_forward` takes them. `Sequential` hands it to the matrix
        product of a preceding Linear.
    """

    kernel: Any = ("identity", None)

    def forward(self, input: Tensor) -> Tensor:
        return activate(input, *self.kernel)


class Sigmoid(Activation):
    """1 / (1 + e^-x)"""

    kernel = ("sigmoid", None)


class Tanh(Activation):
    """The hyperbolic tangent"""

    kernel = ("tanh", None)


class _InplaceActivation(Activation):
    """Takes PyTorch's `inplace`, and makes a new tensor all the same."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLU(_InplaceActivation):
    """max(x, 0)"""

    kernel = ("relu", None)


class SELU(_InplaceActivation):
    """1.0507 (x, or 1.6733 (e^x - 1) below zero): keeps mean 0 and variance 1 through layers"""

    kernel = ("selu", None)


class SiLU(_InplaceActivation):
    """x sigmoid(x)"""

    kernel = ("silu", None)


class Mish(_InplaceActivation):
    """x tanh(log(1 + e^x))"""

    kernel = ("mish", None)


class Hardswish(_InplaceActivation):
    """x clamp(x + 3, 0, 6) / 6"""

    kernel = ("hard_swish", None)


class LeakyReLU(_InplaceActivation):
    """x, or negative_slope x below zero"""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__(inplace)
        self.negative_slope = negative_slope

    @property
    def kernel(self) -> tuple[str, float | None]:
        return ("leaky_relu", self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(_InplaceActivation):
    """x, or alpha (e^x - 1) below zero"""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace)
        self.alpha = alpha

    @property
    def kernel(self) -> tuple[str, float | None]:
        return ("elu", self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class GELU(Activation):
    """x Phi(x) with the normal distribution Phi, or its approximation by tanh"""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        F.gelu_kernel(approximate)
        self.approximate = approximate

    @property
    def kernel(self) -> tuple[str, float | None]:
        return (F.gelu_kernel(self.approximate), None)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softplus(Module):
    """log(1 + e^(beta x)) / beta; x itself where beta x > threshold"""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class LogSigmoid(Module):
    """log(sigmoid(x)), stable for large negative x"""

    def forward(self, input: Tensor) -> Tensor:
        return F.logsigmoid(input)


class Softmax(Module):
    """e^x / sum(e^x) along `dim`"""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """x - log(sum(e^x)) along `dim`"""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)


# The exact classes that Sequential may fuse; a subclass could compute something else.
FUSABLE = frozenset({Sigmoid, Tanh, ReLU, SELU, SiLU, Mish, Hardswish, LeakyReLU, ELU, GELU})
