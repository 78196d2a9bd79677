"""Convolutions and transposed convolutions with 1 to 3 spatial dimensions, over their kernels.

A tensor is (N, C, *spatial) to the user and a view of channels-last memory to the kernels, see
`layout`; a weight is (O, C / groups, *kernel) in the same way. What lies so is not copied, and the
results lie so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpunn.autograd.aliases import Size
from gpunn.autograd.function import Function
from gpunn.autograd.functions.activation import needs_only_output
from gpunn.autograd.functions.common import array_xp, named
from gpunn.autograd.functions.convolution_checks import (
    check_channels,
    checked,
    each,
    padding_of,
)
from gpunn.autograd.functions.layout import channels_first_view, channels_last_view
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor
from gpunn.primitives import convolution as primitives
from gpunn.primitives.activation import activation_backward, activation_forward
from gpunn.primitives.activation_bias import activation_bias_backward
from gpunn.primitives.matmul_backward import bias_gradient


class _How(NamedTuple):
    """What a convolution is told beside its tensors."""

    sizes: dict[str, Any]  # stride, padding, dilation, groups, as the primitives take them
    activation: str
    alpha: float | None
    channels_last: bool
    result: tuple[int, ...] | None = None  # the spatial sizes of a transposed one's result


def _innermost(array, channels_last: bool):
    """An array with its channels last and C-contiguous; a view where it lies so already."""
    view = array if channels_last else channels_last_view(array)
    return view if view.flags.c_contiguous else array_xp(view).ascontiguousarray(view)


class Convolution(Function):
    """act(conv(x, W) + b) in one kernel; gradients by x, W and b

    relu and leaky_relu find their derivative from the output; the others keep the pre-activation.
    The gradient by W is written straight into the optimizer's arena where it lies channels-last.
    """

    def forward(self, x, weight, bias, how):
        rows, factor = _innermost(x, how.channels_last), _innermost(weight, False)
        self.how, self.shape, self.kernel = how, rows.shape, factor.shape[1:-1]
        from_output = needs_only_output(how.activation, how.alpha) or not any(self.needs)
        self.from_output = from_output
        out, before = self.compute(rows, factor, bias)
        out = out if how.channels_last else channels_first_view(out)
        self.save(
            # The tensors' own arrays, so that a write to them is noticed, and what was made of
            # them, so that it is not made twice.
            *((x, rows) if self.needs[1] else (None, None)),
            *((weight, factor) if self.needs[0] else (None, None)),
            None if how.activation == "identity" else out if from_output else before,
        )
        return out

    def backward(self, grad):
        _, rows, _, factor, kept = self.saved
        how, grad_x, grad_weight = self.how, None, None
        grad, grad_bias = self._through_activation(_innermost(grad, how.channels_last), kept)
        if self.needs[0]:
            grad_x = self.to_input(grad, factor)
            grad_x = grad_x if how.channels_last else channels_first_view(grad_x)
        sums = self.needs[2] and grad_bias is None
        if self.needs[1]:
            slot = self.slot(1)
            into = None if slot is None else channels_last_view(slot)
            if into is not None and not into.flags.c_contiguous:
                into = None
            grad_weight, found = self.to_weight(grad, rows, into, sums)
            grad_weight = channels_first_view(grad_weight) if into is None else slot
            grad_bias = found if sums else grad_bias
        elif sums:
            grad_bias = bias_gradient(grad, out=self.slot(2))
        return grad_x, grad_weight, grad_bias

    def _through_activation(self, grad, kept):
        """(the gradient before the activation, that of the bias if it came with it)"""
        how = {"activation": self.how.activation, "alpha": self.how.alpha}
        if kept is None:
            return grad, None
        if self.from_output:
            kept = _innermost(kept, self.how.channels_last)
        if self.needs[2]:
            return activation_bias_backward(grad, kept, **how, bias_gradient=self.slot(2))
        return activation_backward(grad, kept, **how), None

    def compute(self, rows, factor, bias):
        """(the output, what the activation was applied to or None), channels last."""
        how, keep = self.how, not self.from_output and self.how.activation != "identity"
        out = primitives.convolution_forward(
            rows, factor, bias=bias, activation=how.activation, alpha=how.alpha,
            keep_preactivation=keep, **how.sizes,
        )  # fmt: skip
        return out if keep else (out, None)

    def to_input(self, grad, factor):
        """The gradient by the input, channels last."""
        return primitives.convolution_input_gradient(
            grad, factor, input_shape=self.shape, **self.how.sizes
        )

    def to_weight(self, grad, rows, out, sums: bool):
        """(the gradient by the weight, that by the bias or None), channels last."""
        found = primitives.convolution_weight_gradient(
            grad, rows, kernel_size=self.kernel, keep_bias_gradient=sums, out=out, **self.how.sizes
        )
        return found if sums else (found, None)


class TransposedConvolution(Convolution):
    """act(the transpose of a convolution of x + b); its passes are the other's, exchanged"""

    def compute(self, rows, factor, bias):
        how = self.how
        channels = factor.shape[-1] * how.sizes["groups"]
        options = {"input_shape": (len(rows), *how.result, channels), "bias": bias, **how.sizes}
        activation = {"activation": how.activation, "alpha": how.alpha}
        if self.from_output or how.activation == "identity":
            options.update(activation)
            return primitives.convolution_input_gradient(rows, factor, **options), None
        before = primitives.convolution_input_gradient(rows, factor, **options)
        return activation_forward(before, **activation), before

    def to_input(self, grad, factor):
        return primitives.convolution_forward(grad, factor, **self.how.sizes)

    def to_weight(self, grad, rows, out, sums: bool):
        found = primitives.convolution_weight_gradient(
            rows, grad, kernel_size=self.kernel, out=out, **self.how.sizes
        )
        return found, bias_gradient(grad, out=self.slot(2)) if sums else None


# ---- public functions ----------------------------------------------------------------------------


def _convolve(
    name, dimensions, input, weight, bias, stride, padding, dilation, groups, activation, alpha,
    channels_last,
):  # fmt: skip
    alone = input.ndim == dimensions + 1
    x, weight, bias = checked(name, input, weight, bias, dimensions, channels_last)
    groups = check_channels(
        name, x, weight, bias, groups, x.ndim - 1 if channels_last else 1, weight.shape[0]
    )
    stride = each(name, "stride", stride, dimensions, 1)
    dilation = each(name, "dilation", dilation, dimensions, 1)
    padding = padding_of(name, padding, stride, weight.shape[2:], dilation)
    sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    how = _How(sizes, activation, alpha, channels_last)
    out = Convolution.apply(x, weight, bias, how)
    return reshape(out, *out.shape[1:]) if alone else out


def _convolve_transposed(
    name, dimensions, input, weight, bias, stride, padding, output_padding, groups, dilation,
    activation, alpha, channels_last,
):  # fmt: skip
    alone = input.ndim == dimensions + 1
    x, weight, bias = checked(name, input, weight, bias, dimensions, channels_last)
    groups = check_channels(
        name, x, weight, bias, groups, x.ndim - 1 if channels_last else 1, None
    )
    stride = each(name, "stride", stride, dimensions, 1)
    dilation = each(name, "dilation", dilation, dimensions, 1)
    padding = each(name, "padding", padding, dimensions, 0)
    more = each(name, "output_padding", output_padding, dimensions, 0)
    size = x.shape[1:-1] if channels_last else x.shape[2:]
    result, pairs = [], []
    for n, k, s, p, d, extra in zip(
        size, weight.shape[2:], stride, padding, dilation, more, strict=True
    ):
        made = (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        if extra >= s and extra > p:
            raise ValueError(
                f"{name}: output_padding {output_padding} must be smaller than the stride {stride}"
                f", or at most the padding {padding}"
            )
        if made < 1:
            raise ValueError(
                f"{name}: the result of an input of shape {x.shape} would have the size {made} "
                f"with kernel {weight.shape[2:]}, stride {stride} and padding {padding}; use less "
                "padding"
            )
        result.append(made)
        pairs.append((p, p if extra < s else p - extra))
    sizes = {"stride": stride, "padding": tuple(pairs), "dilation": dilation, "groups": groups}
    how = _How(sizes, activation, alpha, channels_last, tuple(result))
    out = TransposedConvolution.apply(x, weight, bias, how)
    return reshape(out, *out.shape[1:]) if alone else out


# (letters of the spatial sizes, of the kernel's) by the number of spatial dimensions
_LETTERS = {1: ("L", "K"), 2: ("H, W", "KH, KW"), 3: ("D, H, W", "KD, KH, KW")}


def _forward(dimensions: int):
    name, (image, kernel) = f"conv{dimensions}d", _LETTERS[dimensions]

    def convolution(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1,
        padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
        activation: str = "identity", alpha: float | None = None, channels_last: bool = False,
    ) -> Tensor:  # fmt: skip
        return _convolve(
            name, dimensions, input, weight, bias, stride, padding, dilation, groups, activation,
            alpha, channels_last,
        )  # fmt: skip

    return named(convolution, name, f"""``act(conv(input, weight) + bias)`` in one kernel.

    As in PyTorch it is a cross-correlation: ``out[n, o, i] = sum over c, k of
    input[n, c, stride i + dilation k - padding] weight[o, c, k] + bias[o]``.

    Parameters
    ----------
    input : (N, C, {image}) or (C, {image}), floating
    weight : (O, C / groups, {kernel}), bias : (O,) or None, of the same dtype
    stride, dilation : int, or one for each spatial dimension
    padding : zeros on both sides, an int or one for each dimension; "valid" for none, or "same"
        (stride 1) for an output of the input's size
    groups : of channels; the outputs of a group see the channels of that group alone
    activation, alpha : one of `gpunn.kernels.ACTIVATIONS` and its parameter (beyond PyTorch)
    channels_last : input and output are (N, {image}, C) (beyond PyTorch)

    Returns (N, O, …), each size ``(size + 2 padding - dilation (kernel - 1) - 1) // stride + 1``, a
    view of memory where the channels lie last.

    Raises
    ------
    ValueError : channels, groups or shapes that do not fit, a kernel larger than the padded input,
        tensors on different devices
    TypeError : dtypes that differ
    """)  # fmt: skip


def _transposed(dimensions: int):
    name, (image, kernel) = f"conv_transpose{dimensions}d", _LETTERS[dimensions]

    def convolution(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1,
        padding: Size | str = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
        activation: str = "identity", alpha: float | None = None, channels_last: bool = False,
    ) -> Tensor:  # fmt: skip
        return _convolve_transposed(
            name, dimensions, input, weight, bias, stride, padding, output_padding, groups,
            dilation, activation, alpha, channels_last,
        )  # fmt: skip

    return named(convolution, name, f"""The gradient of `conv{dimensions}d` by its input.

    ``out[n, o, j] = sum over c, i, k with stride i + dilation k - padding = j of
    input[n, c, i] weight[c, o, k] + bias[o]``

    Parameters
    ----------
    input : (N, C, {image}) or (C, {image}), floating
    weight : (C, O / groups, {kernel}), bias : (O,) or None, of the same dtype
    stride, padding, dilation, groups : those of the convolution that it transposes
    output_padding : added to the sizes of the result, below the stride: several sizes of input give
        a convolution the same size of output
    activation, alpha, channels_last : as in `conv{dimensions}d`

    Returns (N, O, …), each size ``(size - 1) stride - 2 padding + dilation (kernel - 1) +
    output_padding + 1``.

    Raises ValueError and TypeError as `conv{dimensions}d`, and for a result without elements.
    """)  # fmt: skip


conv1d, conv2d, conv3d = map(_forward, _LETTERS)
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_transposed, _LETTERS)
