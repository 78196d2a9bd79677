"""Normalisation: batch, layer, RMS, group, instance and local response norm."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from gpunn.autograd.aliases import DeviceLike, DTypeLike, Size
from gpunn.autograd.creation import empty, ones, zeros
from gpunn.autograd.functions import channel_norm, row_norm
from gpunn.autograd.tensor import Tensor
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter


def _positive(layer: Module, name: str, size: Any) -> int:
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(
            f"{type(layer).__name__}: {name} is {size!r}; expected an integer of 1 or more"
        )
    return int(size)


def _options(layer: Module) -> str:
    """For `extra_repr`: what PyTorch's layers do not have, where it is not as usual."""
    fused = getattr(layer, "activation", "identity")
    text = "" if fused == "identity" else f", activation={fused!r}"
    return text + (", channels_last=True" if layer.channels_last else "")


class _Affine(Module):
    """A layer with `weight` and `bias` of one shape, ones and zeros at first, or neither."""

    def _make_weights(
        self, shape: Any, weight: bool, bias: bool, device: DeviceLike, dtype: DTypeLike
    ) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, wanted in (("weight", weight), ("bias", bias)):
            self.register_parameter(name, Parameter(empty(*shape, **place)) if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of 1 and biases of 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self._parameters.get("bias") is not None:
            init.zeros_(self.bias)


# ---- batch and instance norm ---------------------------------------------------------------------


class _StatisticsNorm(_Affine):
    """What batch norm and instance norm share: parameters, buffers, and checks of the input."""

    dimensions: tuple[int, ...] = ()  # that the input may have
    image = ""  # the letters of its spatial dimensions

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, affine: bool,
        track_running_stats: bool, device: DeviceLike, dtype: DTypeLike, bias: bool,
        activation: str, channels_last: bool,
    ):  # fmt: skip
        super().__init__()
        self.num_features = _positive(self, "num_features", num_features)
        self.eps, self.momentum, self.affine = eps, momentum, affine
        self.track_running_stats = track_running_stats
        self.activation, self.channels_last = activation, channels_last
        size = self.num_features
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        keep = track_running_stats
        self.register_buffer("running_mean", zeros(size, **place) if keep else None)
        self.register_buffer("running_var", ones(size, **place) if keep else None)
        count = zeros((), dtype="int64", device=device) if keep else None
        self.register_buffer("num_batches_tracked", count)
        self._make_weights((size,), affine, affine and bias, device, dtype)

    def reset_running_stats(self) -> None:
        """Means of 0, variances of 1 and a count of 0."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weights of 1 and biases of 0, and the running statistics as at first."""
        self.reset_running_stats()
        super().reset_parameters()

    def _check(self, input: Tensor) -> None:
        axis = -1 if self.channels_last else self._channel_axis(input)
        if input.ndim not in self.dimensions or input.shape[axis] != self.num_features:
            c, sizes = self.num_features, ", ".join(self.image)
            image = f"({sizes}, {c})" if self.channels_last else f"({c}, {sizes})"
            shapes = [f"(N, {image[1:]}"]
            if min(self.dimensions) < len(self.image) + 2:
                shapes.append(f"(N, {c})" if "Batch" in type(self).__name__ else image)
            raise ValueError(
                f"{type(self).__name__}: input has shape {input.shape}; expected "
                f"{' or '.join(shapes)}"
            )

    def _channel_axis(self, input: Tensor) -> int:
        return 1

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}{_options(self)}"
        )


class _BatchNorm(_StatisticsNorm):
    """Each channel normalised over the batch, with running statistics for evaluation.

    As PyTorch's, and beyond: with `activation` ("relu", "leaky_relu", "silu" or "hard_swish") the
    function is computed in the same kernel, after the addition of a `residual` that `forward` may
    be given; with `channels_last` the input is (N, *spatial, C).

    Attributes
    ----------
    weight, bias : (num_features,), ones and zeros at first; None without `affine`, and the bias
        without `bias`
    running_mean, running_var : buffers (num_features,), zeros and ones at first; None without
        `track_running_stats`: then evaluation, too, uses the statistics of its input
    num_batches_tracked : an integer buffer. With ``momentum=None`` the running statistics are the
        averages over that many batches.
    """

    shared: Any = None  # what `synchronize_batch_norm` sets: the ranks whose batches count as one

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, device: DeviceLike = None,
        dtype: DTypeLike = None, *, bias: bool = True, activation: str = "identity",
        channels_last: bool = False,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias,
            activation, channels_last,
        )  # fmt: skip

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalised input, in its shape and layout; with a residual, plus that."""
        self._check(input)
        buffers, parameters = self._buffers, self._parameters
        training = self.training or buffers["running_mean"] is None
        if training and not self.track_running_stats:
            buffers = dict.fromkeys(buffers)  # switched off since they were made: they stay
        momentum = 0.0 if buffers["running_mean"] is None else self.momentum
        return channel_norm.batch_norm(
            input, buffers["running_mean"], buffers["running_var"], parameters["weight"],
            parameters["bias"], training, momentum, self.eps,
            num_batches_tracked=buffers["num_batches_tracked"], residual=residual,
            activation=self.activation, channels_last=self.channels_last,
            group=self.shared.group if self.training and self.shared else None,
        )  # fmt: skip

    def extra_repr(self) -> str:
        together = f", over {self.shared.group.size} ranks" if self.shared else ""
        return super().extra_repr() + together


class BatchNorm1d(_BatchNorm):
    __doc__ = str(_BatchNorm.__doc__).replace(
        "over the batch", "of (N, C) or (N, C, L) over the batch"
    )
    dimensions, image = (2, 3), "L"


class BatchNorm2d(_BatchNorm):
    __doc__ = str(_BatchNorm.__doc__).replace("over the batch", "of (N, C, H, W) over the batch")
    dimensions, image = (4,), "HW"


class BatchNorm3d(_BatchNorm):
    __doc__ = str(_BatchNorm.__doc__).replace("over the batch", "of (N, C, D, H, W) over the batch")
    dimensions, image = (5,), "DHW"


class _InstanceNorm(_StatisticsNorm):
    """Each channel of each sample normalised over its places.

    As PyTorch's: by default without weights and running statistics. With `track_running_stats`
    evaluation uses the running statistics. `activation`, `channels_last` and the residual are those
    of batch norm. An input without a batch is one sample.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = False, track_running_stats: bool = False, device: DeviceLike = None,
        dtype: DTypeLike = None, *, bias: bool = True, activation: str = "identity",
        channels_last: bool = False,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias,
            activation, channels_last,
        )  # fmt: skip

    def _channel_axis(self, input: Tensor) -> int:
        return 0 if input.ndim == len(self.image) + 1 else 1

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalised input, in its shape and layout; with a residual, plus that."""
        self._check(input)
        if input.ndim == len(self.image) + 1:
            residual = None if residual is None else residual.unsqueeze(0)
            return self.forward(input.unsqueeze(0), residual).squeeze(0)
        buffers, parameters = self._buffers, self._parameters
        own = self.training or not self.track_running_stats
        return channel_norm.instance_norm(
            input, buffers["running_mean"], buffers["running_var"], parameters["weight"],
            parameters["bias"], own, 0.0 if self.momentum is None else self.momentum, self.eps,
            residual=residual, activation=self.activation, channels_last=self.channels_last,
        )  # fmt: skip


class InstanceNorm1d(_InstanceNorm):
    __doc__ = str(_InstanceNorm.__doc__).replace("of each sample", "of each sample of (N, C, L)")
    dimensions, image = (2, 3), "L"


class InstanceNorm2d(_InstanceNorm):
    __doc__ = str(_InstanceNorm.__doc__).replace("of each sample", "of each sample of (N, C, H, W)")
    dimensions, image = (3, 4), "HW"


class InstanceNorm3d(_InstanceNorm):
    __doc__ = str(_InstanceNorm.__doc__).replace(
        "of each sample", "of each sample of (N, C, D, H, W)"
    )
    dimensions, image = (4, 5), "DHW"


# ---- layer, RMS and group norm -------------------------------------------------------------------


class _LastDimensions(_Affine):
    """What layer norm and RMS norm share: the shape that is normalised."""

    def _shape(self, normalized_shape: Any) -> None:
        sizes = (normalized_shape,) if isinstance(normalized_shape, Integral) else normalized_shape
        self.normalized_shape = tuple(_positive(self, "normalized_shape", size) for size in sizes)
        if not self.normalized_shape:
            raise ValueError(f"{type(self).__name__}: normalized_shape is empty; give a size")

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class LayerNorm(_LastDimensions):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last dimensions.

    Parameters: `normalized_shape`, their sizes (an int for one); `eps`; whether there are weights
    (`elementwise_affine`) and among them a `bias`; `device`, `dtype`.

    Attributes
    ----------
    weight, bias : of shape `normalized_shape`, ones and zeros at first, or None
    """

    def __init__(
        self, normalized_shape: Size, eps: float = 1e-5, elementwise_affine: bool = True,
        bias: bool = True, device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        self._shape(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        affine = elementwise_affine
        self._make_weights(self.normalized_shape, affine, affine and bias, device, dtype)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        """The normalised input. With a residual: ``(that of input + residual, their sum)``."""
        arguments = (self.normalized_shape, self.weight, self.bias, self.eps)
        if residual is None:
            return row_norm.layer_norm(input, *arguments)
        return row_norm.add_layer_norm(input, residual, *arguments)


class RMSNorm(_LastDimensions):
    """``x / sqrt(mean of x^2 + eps) * weight`` over the last dimensions.

    As `LayerNorm` without a mean and a bias; `eps` None is the resolution of float32 (of float64
    for such inputs).
    """

    def __init__(
        self, normalized_shape: Size, eps: float | None = None, elementwise_affine: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        self._shape(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        weight = Parameter(empty(*self.normalized_shape, **place)) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        """The normalised input. With a residual: ``(that of input + residual, their sum)``."""
        arguments = (self.normalized_shape, self.weight, self.eps)
        if residual is None:
            return row_norm.rms_norm(input, *arguments)
        return row_norm.add_rms_norm(input, residual, *arguments)


class GroupNorm(_Affine):
    """The channels of each sample in `num_groups` groups, each normalised over all that is in it.

    Input (N, C, …), or (N, …, C) with `channels_last`. `activation` and a residual are as in batch
    norm.

    Attributes
    ----------
    weight, bias : (num_channels,), ones and zeros at first; None without `affine`, and the bias
        without `bias`
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None, *, bias: bool = True,
        activation: str = "identity", channels_last: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.num_groups = _positive(self, "num_groups", num_groups)
        self.num_channels = _positive(self, "num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_channels {num_channels} must be a multiple of num_groups "
                f"{num_groups}"
            )
        self.eps, self.affine = eps, affine
        self.activation, self.channels_last = activation, channels_last
        self._make_weights((self.num_channels,), affine, affine and bias, device, dtype)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalised input, in its shape and layout; with a residual, plus that."""
        axis = -1 if self.channels_last else 1
        if input.ndim < 2 or input.shape[axis] != self.num_channels:
            place = "last" if self.channels_last else "second"
            raise ValueError(
                f"GroupNorm: input has shape {input.shape}; expected {self.num_channels} channels "
                f"in the {place} dimension"
            )
        return channel_norm.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, residual=residual,
            activation=self.activation, channels_last=self.channels_last,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
            f"{_options(self)}"
        )


class LocalResponseNorm(Module):
    """``x / (k + alpha / size * sum of x^2 over size neighbouring channels)^beta``.

    As PyTorch's; Krizhevsky, Sutskever & Hinton, 2012. Input (N, C, …), or (N, …, C) with
    `channels_last`.
    """

    def __init__(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *,
        channels_last: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.size = _positive(self, "size", size)
        self.alpha, self.beta, self.k, self.channels_last = alpha, beta, k, channels_last

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, in its shape."""
        return channel_norm.local_response_norm(
            input, self.size, self.alpha, self.beta, self.k, channels_last=self.channels_last
        )

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}{_options(self)}"
