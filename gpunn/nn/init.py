"""Initialisers, with PyTorch's names; they write into the tensor and return it.

All draw from gpunn's counter-based generator, so one seed gives the same weights on every device.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.autograd.mode import no_grad
from gpunn.autograd.random import Generator
from gpunn.autograd.sampling import rand, randn
from gpunn.autograd.tensor import Tensor


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before `nonlinearity` should be larger to keep the variance.

    linear, sigmoid 1; tanh 5/3; relu sqrt 2; leaky_relu sqrt(2 / (1 + slope^2)), `param` being the
    slope (0.01); selu 3/4. Raises ValueError for other names.
    """
    if nonlinearity in ("linear", "identity", "sigmoid"):
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity == "selu":
        return 0.75
    raise ValueError(
        f"calculate_gain: {nonlinearity!r} is not known; use linear, sigmoid, tanh, relu, "
        "leaky_relu or selu"
    )


def _fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out): inputs and outputs of one unit; dimensions past two are its field."""
    if tensor.ndim < 2:
        raise ValueError(
            f"{name}: needs a tensor with at least 2 dimensions, this one has shape {tensor.shape}"
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


@no_grad()
def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform numbers from [a, b)."""
    return tensor.uniform_(a, b, generator=generator)


@no_grad()
def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Normal numbers."""
    return tensor.normal_(mean, std, generator=generator)


@no_grad()
def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value everywhere."""
    return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones."""
    return constant_(tensor, 1.0)


@no_grad()
def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix (2 dimensions)."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: needs a matrix, this tensor has shape {tensor.shape}")
    tensor[...] = np.eye(*tensor.shape, dtype=np.float32)
    return tensor


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform in ±gain sqrt(6 / (fan_in + fan_out)). Glorot and Bengio, AISTATS 2010."""
    bound = gain * math.sqrt(6.0 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with deviation gain sqrt(2 / (fan_in + fan_out)). Glorot and Bengio, 2010."""
    std = gain * math.sqrt(2.0 / sum(_fans("xavier_normal_", tensor)))
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode {mode!r} is not known; use 'fan_in' or 'fan_out'")
    fan = _fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in ±gain sqrt(3 / fan); `a` is the slope for leaky_relu. He et al., ICCV 2015."""
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with deviation gain / sqrt(fan); `a` is the slope for leaky_relu. He et al., 2015."""
    std = _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity)
    return normal_(tensor, 0.0, std, generator)


@no_grad()
def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Orthonormal rows or columns (the fewer of them), times gain. Saxe et al., ICLR 2014.

    Dimensions past the first are taken as columns. Computed on the CPU, the same for all devices.
    """
    if tensor.ndim < 2:
        raise ValueError(
            f"orthogonal_: needs at least 2 dimensions, this tensor has shape {tensor.shape}"
        )
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    drawn = randn(rows, columns, dtype=np.float64, device="cpu", generator=generator)._array
    q, r = np.linalg.qr(drawn.T if rows < columns else drawn)
    signs = np.diagonal(r)
    q = q * np.where(signs < 0, -1.0, 1.0)  # makes the matrix uniformly distributed
    q = (q.T if rows < columns else q) * gain
    tensor[...] = q.reshape(tensor.shape).astype(np.float32 if tensor.itemsize < 8 else np.float64)
    return tensor


@no_grad()
def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal numbers of (mean, std) conditioned to lie in [a, b].

    By the inverse of the distribution function, on the CPU, the same for all devices.
    """
    from statistics import NormalDist  # slow to import, seldom needed

    if not a < b:
        raise ValueError(f"trunc_normal_: a is {a} and b {b}; expected a < b")
    distribution = NormalDist(mean, std)
    low, high = distribution.cdf(a), distribution.cdf(b)
    drawn = rand(*tensor.shape, dtype=np.float64, device="cpu", generator=generator)._array
    places = np.clip(low + (high - low) * drawn, 1e-300, 1 - 2**-53)
    values = np.frompyfunc(distribution.inv_cdf, 1, 1)(places).astype(np.float64)
    values = np.clip(values, a, b)
    tensor[...] = values.astype(np.float32 if tensor.itemsize < 8 else np.float64)
    return tensor
