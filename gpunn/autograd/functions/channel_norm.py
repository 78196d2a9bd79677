"""Batch, group, instance and local response norm of channels.

Images are (N, C, *spatial) to the user, in memory with the channels first or, as a view, last: the
kernels take either and the result lies in memory as the input did, see `layout`. With
``channels_last=True`` the shape is (N, *spatial, C).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import as_float, operands
from gpunn.autograd.functions.layout import (
    channels_first_view,
    channels_last_view,
    is_channels_last,
)
from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.functions.shape import narrow
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.device import device_of, empty
from gpunn.primitives import batch_norm as batch_primitives
from gpunn.primitives import group_norm as group_primitives
from gpunn.primitives import sync_batch_norm as sync_primitives
from gpunn.primitives.samples import accumulator_dtype


class _ChannelNorm(Function):
    """Normalised channels: the input as the kernels want it, and their results as it was"""

    def lay_out(self, x, last):
        """Whether the channels lie last, and how to get there: `to` and `back`."""
        self.view = not last and x.ndim > 2 and not x.flags.c_contiguous and is_channels_last(x)
        self.last = last or x.ndim == 2 or self.view
        return self.to(x)

    def to(self, array):
        return channels_last_view(array) if self.view and array is not None else array

    def back(self, array):
        return channels_first_view(array) if self.view else array

    def sums(self):
        """The arguments that say which gradients of weights to make, and where."""
        wanted = {}
        for position, name in ((1, "weight_gradient"), (2, "bias_gradient")):
            slot = self.slot(position) if self.needs[position] else None
            wanted[name] = self.needs[position] if slot is None else slot
        return wanted

    def gradients(self, made):
        out, dweight, dbias, residual = made
        return self.back(out), dweight, dbias, None if residual is None else self.back(residual)


class BatchNorm(_ChannelNorm):
    """Channels normalised over the batch, or by running statistics"""

    def forward(self, x, weight, bias, residual, mean, variance, last, training, options, how):
        self.options, self.how = options, {**how, "training": training}
        images = self.lay_out(x, last)
        out, *statistics = batch_primitives.batch_norm_forward(
            images, weight, bias, residual=self.to(residual), running_mean=mean,
            running_var=variance, channels_last=self.last, **self.how, **options,
        )  # fmt: skip
        if not training:
            statistics = (mean, variance)
        kept = residual if how["activation"] != "identity" else None
        self.with_residual = residual is not None
        self.save(x, weight, bias, kept, *statistics)
        return self.back(out)

    def backward(self, grad):
        x, weight, bias, residual, mean, spread = self.saved
        made = batch_primitives.batch_norm_backward(
            self.to(grad), self.to(x), mean, spread, weight, bias, residual=self.to(residual),
            channels_last=self.last, **self.how, **self.sums(),
        )  # fmt: skip
        made = (*made[:3], self.to(grad)) if self.with_residual and residual is None else made
        return self.gradients(made)


class SyncBatchNorm(_ChannelNorm):
    """Channels normalised over the batches of all ranks, which meet once on each way"""

    def forward(self, x, weight, bias, residual, mean, variance, last, group, options, how):
        self.group, self.how, self.counts = group, how, group.counts
        images = self.lay_out(x, last)
        channels, dtype = images.shape[-1 if self.last else 1], accumulator_dtype(x.dtype)
        moments = empty((group.size, channels, 3), dtype, device_of(x))
        own = moments[group.rank]
        if self.counts:
            sync_primitives.sync_batch_norm_moments(images, channels_last=self.last, out=own)
        else:
            own[...] = 0
        starts = [3 * channels * rank for rank in range(group.size + 1)]
        group.all_gather(moments.reshape(-1), list(zip(starts, starts[1:], strict=False)))
        _enough(moments, group)
        out, *statistics = sync_primitives.sync_batch_norm_forward(
            images, moments, weight, bias, residual=self.to(residual), running_mean=mean,
            running_var=variance, channels_last=self.last, **how, **options,
        )  # fmt: skip
        kept = residual if how["activation"] != "identity" else None
        self.with_residual = residual is not None
        self.save(x, weight, bias, kept, *statistics)
        return self.back(out)

    def backward(self, grad):
        x, weight, bias, residual, mean, variance, count = self.saved
        grad, x, how = self.to(grad), self.to(x), self.how
        means, dweight, dbias, grad_z = sync_primitives.sync_batch_norm_sums(
            grad, x, mean, variance, count, weight, bias, residual=self.to(residual),
            channels_last=self.last, **how, **self.sums(),
        )  # fmt: skip
        if not self.counts:
            means[...] = 0
        self.group.all_reduce(means)
        if not self.counts:  # the statistics do not depend on x
            means[...] = 0
        if residual is not None:  # the derivative of the activation is in it
            grad, how = grad_z, {**how, "activation": "identity", "alpha": None}
        out = sync_primitives.sync_batch_norm_backward(
            grad, x, mean, variance, means, weight, bias, channels_last=self.last, **how
        )
        return self.gradients((out, dweight, dbias, grad if self.with_residual else None))


def _enough(moments: Any, group: Any) -> None:
    """Refuse fewer than two values in all; elsewhere than on the CPU one would have to wait."""
    count = int(moments[:, 0, 0].sum()) if type(moments) is np.ndarray else 2
    if count < 2:
        raise ValueError(
            f"batch_norm: the {group.size} ranks together have {count} value(s) per channel in "
            "training; expected 2 or more. Give a larger batch or evaluate."
        )


class GroupNorm(_ChannelNorm):
    """Groups of channels normalised in each sample"""

    def forward(self, x, weight, bias, residual, mean, variance, groups, last, eps, options, how):
        self.groups, self.how = groups, how
        images = self.lay_out(x, last)
        out, *statistics = group_primitives.group_norm_forward(
            images, groups, weight, bias, residual=self.to(residual), running_mean=mean,
            running_var=variance, channels_last=self.last, eps=eps, **how, **options,
        )  # fmt: skip
        kept = residual if how["activation"] != "identity" else None
        self.with_residual = residual is not None
        self.save(x, weight, bias, kept, *statistics)
        return self.back(out)

    def backward(self, grad):
        x, weight, bias, residual, mean, reciprocal = self.saved
        made = group_primitives.group_norm_backward(
            self.to(grad), self.to(x), mean, reciprocal, self.groups, weight, bias,
            residual=self.to(residual), channels_last=self.last, **self.how, **self.sums(),
        )  # fmt: skip
        made = (*made[:3], self.to(grad)) if self.with_residual and residual is None else made
        return self.gradients(made)


# ---- public functions ----------------------------------------------------------------------------


def _channels(name: str, input: Tensor, channels_last: bool, **named: Tensor | None) -> int:
    """The number of channels, where all that is named must have one element for each."""
    if input.ndim < 2:
        raise ValueError(f"{name}: input has shape {input.shape}; expected (N, C) or (N, C, …)")
    channels = input.shape[-1 if channels_last else 1]
    for argument, tensor in named.items():
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(
                f"{name}: {argument} has shape {tensor.shape}, and input {input.shape} has "
                f"{channels} channels; expected shape ({channels},)"
            )
    check_devices(name, *(t for t in (input, *named.values()) if t is not None))
    return channels


def _with_residual(name: str, input: Tensor, residual: Tensor | None):
    """Both, which must be alike; inside `autocast` in the wider of their dtypes."""
    if residual is None:
        return input, None
    if state.low is not None:
        input, residual = operands(name, input, residual)
    if (residual.shape, residual.dtype) != (input.shape, input.dtype):
        raise ValueError(
            f"{name}: residual has shape {residual.shape} and dtype {residual.dtype}, input "
            f"{input.shape} and {input.dtype}; they must be equal"
        )
    return input, residual


def _counted(*tensors: Tensor | None) -> None:
    """The kernel has written to these, without a record."""
    for tensor in tensors:
        if tensor is not None:
            tensor._cell[0] += 1


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float | None = 0.1, eps: float = 1e-5, *, num_batches_tracked: Tensor | None = None,
    residual: Tensor | None = None, activation: str = "identity", alpha: float | None = None,
    channels_last: bool = False, group: Any = None,
) -> Tensor:  # fmt: skip
    """``act((x - mean) / sqrt(variance + eps) * weight + bias + residual)``, channel by channel.

    Parameters
    ----------
    input : (N, C) or (N, C, *spatial); (N, *spatial, C) with `channels_last`
    running_mean, running_var : (C,). In training they move towards the mean and the unbiased
        variance of the input; in evaluation they are the statistics.
    momentum : how far they move; None for the average of all batches, by `num_batches_tracked`
    num_batches_tracked : an int64 tensor of shape (), counted up in training
    residual : a tensor like `input`, added before the activation
    activation, alpha : "identity", "relu", "leaky_relu", "silu" or "hard_swish", in the same kernel
    group : processes (`gpunn.distributed.Group`), all of which call this: in training the
        statistics are those of all their inputs, which may have different lengths, and of which
        some may be empty. The gradients of weight and bias are each rank's own.

    Raises ValueError for shapes that do not fit and for one value per channel in training (of all
    ranks together; on a GPU, where looking would mean waiting, such statistics are NaN).
    """
    input = as_float(input)
    _channels(
        "batch_norm", input, channels_last, running_mean=running_mean, running_var=running_var,
        weight=weight, bias=bias,
    )  # fmt: skip
    input, residual = _with_residual("batch_norm", input, residual)
    options: dict[str, Any] = {"momentum": momentum}
    if training and num_batches_tracked is not None:
        options["num_batches_tracked"] = num_batches_tracked._array
    how = {"eps": eps, "activation": activation, "alpha": alpha}
    together = training and group is not None and group.size > 1
    out = (SyncBatchNorm if together else BatchNorm).apply(
        input, weight, bias, residual, running_mean, running_var, channels_last,
        group if together else bool(training), options if training else {}, how,
    )  # fmt: skip
    if training:
        _counted(running_mean, running_var, num_batches_tracked)
    return out


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *, residual: Tensor | None = None, activation: str = "identity",
    alpha: float | None = None, channels_last: bool = False,
) -> Tensor:  # fmt: skip
    """The channels of each sample in `num_groups` groups, each normalised over all that is in it.

    Arguments and errors as in `batch_norm`; the number of groups must divide the channels.
    """
    input = as_float(input)
    _channels("group_norm", input, channels_last, weight=weight, bias=bias)
    input, residual = _with_residual("group_norm", input, residual)
    how = {"activation": activation, "alpha": alpha}
    return GroupNorm.apply(
        input, weight, bias, residual, None, None, num_groups, channels_last, eps, {}, how
    )


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5, *, residual: Tensor | None = None,
    activation: str = "identity", alpha: float | None = None, channels_last: bool = False,
) -> Tensor:  # fmt: skip
    """Each channel of each sample normalised over its places.

    With `use_input_stats` by its own statistics, towards whose averages over the samples the
    running ones move; else by the running statistics. Other arguments as in `batch_norm`.
    """
    input = as_float(input)
    running: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var}
    channels = _channels(
        "instance_norm", input, channels_last, **running, weight=weight, bias=bias
    )  # fmt: skip
    how: dict[str, Any] = {"activation": activation, "alpha": alpha}
    if not use_input_stats:
        return batch_norm(
            input, running_mean, running_var, weight, bias, False, eps=eps, residual=residual,
            channels_last=channels_last, **how,
        )  # fmt: skip
    input, residual = _with_residual("instance_norm", input, residual)
    out = GroupNorm.apply(
        input, weight, bias, residual, running_mean, running_var, channels, channels_last, eps,
        {"momentum": momentum}, how,
    )  # fmt: skip
    _counted(running_mean, running_var)
    return out


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *,
    channels_last: bool = False,
) -> Tensor:  # fmt: skip
    """x / (k + alpha / size * sum of x^2 over `size` neighbouring channels)^beta."""
    if input.ndim < 3:
        raise ValueError(
            f"local_response_norm: input has shape {input.shape}; expected (N, C, …) with three "
            "dimensions or more"
        )
    if size < 1:
        raise ValueError(f"local_response_norm: size is {size}; expected 1 or more")
    axis = input.ndim - 1 if channels_last else 1
    channels, pairs = input.shape[axis], [(0, 0)] * input.ndim
    pairs[axis] = (size // 2, (size - 1) // 2)
    squares = pad_dimensions(input * input, pairs)
    total = narrow(squares, axis, 0, channels)
    for shift in range(1, size):
        total = total + narrow(squares, axis, shift, channels)
    return input / (total * (alpha / size) + k) ** beta
