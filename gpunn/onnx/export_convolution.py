"""Convolutions and transposed convolutions: Conv and ConvTranspose."""

from __future__ import annotations

from gpunn.onnx.aligning import Varying
from gpunn.onnx.export_activation import activate
from gpunn.onnx.table import converts


def channels_first(graph, edge: str, ndim: int, last: bool) -> str:
    """(N, *spatial, C) as (N, C, *spatial)."""
    return graph.transpose(edge, (0, ndim - 1, *range(1, ndim - 1))) if last else edge


def channels_back(graph, edge: str, ndim: int, last: bool) -> str:
    """The reverse of `channels_first`."""
    return graph.transpose(edge, (0, *range(2, ndim), 1)) if last else edge


def _sizes(graph, call):
    x, weight, bias, how = call.arguments
    pairs = [p if isinstance(p, tuple) else (p, p) for p in how.sizes["padding"]]
    attributes = {
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(how.sizes["stride"]),
        "dilations": list(how.sizes["dilation"]),
        "group": how.sizes["groups"],
        "pads": [before for before, _ in pairs] + [after for _, after in pairs],
    }
    edge = channels_first(graph, graph.edge(x), len(x.shape), how.channels_last)
    inputs = (edge, graph.edge(weight), None if bias is None else graph.edge(bias))
    return inputs, attributes, pairs


def _finish(graph, call, edge):
    x, *_, how = call.arguments
    edge = activate(graph, edge, x.dtype, how.activation, how.alpha)
    return channels_back(graph, edge, len(x.shape), how.channels_last)


@converts("Convolution")
def _convolution(graph, call):
    inputs, attributes, _ = _sizes(graph, call)
    return _finish(graph, call, graph.op("Conv", *inputs, **attributes))


@converts("TransposedConvolution")
def _transposed(graph, call):
    x, weight, _, how = call.arguments
    inputs, attributes, pairs = _sizes(graph, call)
    spatial = x.shape[1:-1] if how.channels_last else x.shape[2:]
    more = []
    for n, made, k, s, d, pair in zip(
        spatial, how.result, weight.shape[2:], how.sizes["stride"], how.sizes["dilation"], pairs,
        strict=True,
    ):  # fmt: skip
        n, made = (size.values[0] if isinstance(size, Varying) else size for size in (n, made))
        more.append(made - ((n - 1) * s + d * (k - 1) + 1 - sum(pair)))
    edge = graph.op("ConvTranspose", *inputs, output_padding=more, **attributes)
    return _finish(graph, call, edge)
