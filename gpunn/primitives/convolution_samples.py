"""The parity samples of the convolutions, and the inputs of their benchmarks."""

from __future__ import annotations

import math

import numpy as np

from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Sample

# Single elements and packs. Of the 16-bit types, whose kernels are the same lines, the weight's
# gradient takes float16 in place of bfloat16.
_ELEMENTS, _PACKS, _WIDE = (BFLOAT16, FLOAT32, FLOAT64), (BFLOAT16, FLOAT32), (FLOAT32, FLOAT64)

# name: (x, weight, stride, padding, dilation, groups, dtypes). Sizes are the smallest that show it.
_SHAPES = {
    "one element": ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 1, 1, (FLOAT32,)),
    "odd channels": ((2, 5, 6, 3), (5, 3, 2, 3), (2, 1), (1, 0), 1, 1, _ELEMENTS),
    "channels of 8, dilated": ((2, 6, 5, 16), (24, 3, 2, 16), 1, (2, 1), 2, 1, _PACKS),
    "asymmetric, strided": ((1, 7, 8, 8), (16, 3, 3, 8), 2, ((0, 1), (2, 1)), 1, 1, (FLOAT32,)),
    "one dimension": ((3, 20, 6), (4, 5, 6), 3, 2, 2, 1, (FLOAT32,)),
    "three dimensions": ((1, 3, 4, 5, 2), (3, 2, 3, 2, 2), (1, 2, 3), 1, (2, 1, 1), 1, (FLOAT32,)),
    "groups": ((2, 4, 5, 16), (24, 3, 3, 8), 1, 1, 1, 2, _PACKS),
    "odd groups": ((2, 9, 6), (9, 3, 2), 2, 1, 1, 3, (FLOAT32,)),
    "pointwise": ((2, 3, 4, 8), (16, 1, 1, 8), 1, 0, 1, 1, (FLOAT32,)),
    "depthwise": ((2, 5, 6, 16), (16, 3, 3, 1), 1, 1, 1, 16, _PACKS),
    "two outputs a channel": ((2, 6, 9, 3), (6, 2, 4, 1), (2, 3), (0, 2), (1, 2), 3, _WIDE),
    "empty batch": ((0, 4, 4, 3), (2, 3, 3, 3), 1, 1, 1, 1, (FLOAT32,)),
    "strides beyond the kernel": ((1, 7, 9, 3), (4, 2, 1, 3), (3, 4), 0, 1, 1, (FLOAT32,)),
}  # fmt: skip


def _options(name: str) -> dict:
    _, _, stride, padding, dilation, groups, _ = _SHAPES[name]
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def _output_shape(name: str) -> tuple[int, ...]:
    x, weight, stride, padding, dilation, _, _ = _SHAPES[name]
    count = len(x) - 2

    def each(value):
        return value if isinstance(value, tuple) else (value,) * count

    out = []
    for size, kernel, s, p, d in zip(
        x[1:-1], weight[1:-1], each(stride), each(padding), each(dilation), strict=True
    ):
        low, high = p if isinstance(p, tuple) else (p, p)
        out.append((size + low + high - d * (kernel - 1) - 1) // s + 1)
    return (x[0], *out, weight[0])


def _small(name: str) -> bool:
    """Whether Numba's simulator gets through it."""
    return math.prod(_output_shape(name)) * math.prod(_SHAPES[name][1][1:]) < 2500


def _tolerance(K: int) -> dict:
    """As the docstring of matmul states it for float32."""
    return {FLOAT32: 1e-6 * max(1.0, math.sqrt(K) / 32)}


def forward_samples(rng):
    """Samples of convolution_forward."""
    for name, (x, weight, *_, dtypes) in _SHAPES.items():
        args = rng.normal(size=x), rng.normal(size=weight)
        yield Sample(name, args, _options(name), dtypes, numba=_small(name))
    name = "odd channels"
    args = rng.normal(size=(2, 5, 6, 3)), rng.normal(size=(5, 3, 2, 3))
    more = {"bias": rng.normal(size=5), "activation": "gelu", "keep_preactivation": True}
    more["residual"] = rng.normal(size=_output_shape(name))
    yield Sample("bias, gelu, residual", args, _options(name) | more, _ELEMENTS)
    x = rng.normal(size=(1, 4, 4, 8))
    x[0, 0, 0, 0], x[0, 3, 3, 1] = np.nan, np.inf
    args = x, np.abs(rng.normal(size=(8, 2, 2, 8)))
    yield Sample("not finite", args, {"bias": rng.normal(size=8), "activation": "relu"}, _PACKS)
    args = rng.normal(size=(1, 6, 6, 8)), rng.normal(size=(8, 3, 3, 8))
    yield Sample("unaligned", args, {"padding": 1}, _PACKS, unaligned=True, numba=False)
    # As small as wgmma is chosen for.
    args = rng.normal(size=(2, 48, 64, 64)), rng.normal(size=(136, 1, 3, 64))
    padded = {"padding": (0, 1)}
    yield Sample("large", args, padded | {"bias": rng.normal(size=136)}, (BFLOAT16,), numba=False)
    more = {"residual": rng.normal(size=(2, 48, 64, 136)), "activation": "silu"}
    yield Sample("large, residual", args, padded | more, (FLOAT16,), numba=False)
    args = rng.normal(size=(1, 4, 8, 40)).swapaxes(1, 2), rng.normal(size=(8, 5, 3, 40))
    yield Sample("parts of K, a view", args, {}, _PACKS, _tolerance(600), numba=False)


def input_gradient_samples(rng):
    """Samples of convolution_input_gradient."""
    for name, (x, weight, *_, dtypes) in _SHAPES.items():
        args = rng.normal(size=_output_shape(name)), rng.normal(size=weight)
        kwargs = _options(name) | {"input_shape": x}
        yield Sample(name, args, kwargs, dtypes, numba=_small(name))
    name = "asymmetric, strided"
    args = rng.normal(size=_output_shape(name)), rng.normal(size=_SHAPES[name][1])
    kwargs = _options(name) | {"input_shape": _SHAPES[name][0], "bias": rng.normal(size=8)}
    yield Sample("transposed, leaky_relu", args, kwargs | {"activation": "leaky_relu"}, _PACKS)
    args = rng.normal(size=(2, 24, 24, 256)), rng.normal(size=(256, 3, 3, 72))
    kwargs = {"input_shape": (2, 24, 24, 72), "padding": 1}
    yield Sample("large", args, kwargs, (BFLOAT16,), numba=False)


def weight_gradient_samples(rng):
    """Samples of convolution_weight_gradient."""
    for name, (x, weight, *_, dtypes) in _SHAPES.items():
        args = rng.normal(size=_output_shape(name)), rng.normal(size=x)
        kwargs = _options(name) | {"kernel_size": weight[1:-1], "keep_bias_gradient": True}
        dtypes = tuple(FLOAT16 if dtype is BFLOAT16 else dtype for dtype in dtypes)
        yield Sample(name, args, kwargs, dtypes, _tolerance(args[0].size), numba=_small(name))
    args = rng.normal(size=(3, 20, 20, 8)), rng.normal(size=(3, 20, 20, 8))
    kwargs = {"kernel_size": 3, "padding": 1}
    packs = FLOAT16, FLOAT32
    yield Sample("parts of K", args, kwargs, packs, _tolerance(1200), numba=False)
    args = rng.normal(size=(2, 20, 20, 16)), rng.normal(size=(2, 20, 20, 16))
    depthwise = kwargs | {"groups": 16}
    yield Sample("parts of K, depthwise", args, depthwise, packs, _tolerance(800), numba=False)
    args = rng.normal(size=(2, 32, 48, 72)), rng.normal(size=(2, 32, 48, 192))
    kwargs = {"kernel_size": (1, 3), "padding": (0, 1)}
    yield Sample("large", args, kwargs, (BFLOAT16,), numba=False)


# ---- benchmarks ----------------------------------------------------------------------------------

# (batch, side of the image, channels, outputs, side of the kernel, stride, groups): layers of
# ResNet-50, ResNeXt, and MobileNet.
BENCH_SHAPES = (
    (32, 56, 64, 64, 3, 1, 1),
    (32, 224, 3, 64, 7, 2, 1),
    (32, 28, 128, 128, 3, 1, 1),
    (32, 14, 256, 256, 3, 1, 1),
    (32, 7, 512, 512, 3, 1, 1),
    (32, 56, 128, 128, 3, 2, 1),
    (32, 14, 1024, 256, 1, 1, 1),
    (32, 56, 144, 144, 3, 1, 144),
)


def _bench(rng, shape):
    """(x, weight, grad_output's shape, options)"""
    batch, side, channels, outputs, kernel, stride, groups = shape
    groups = math.gcd(groups, channels, outputs)
    kernel = min(kernel, side)
    x = rng.standard_normal((batch, side, side, channels), np.float32)
    weight = rng.standard_normal((outputs, kernel, kernel, channels // groups), np.float32)
    out = (side + kernel // 2 * 2 - kernel) // stride + 1
    options = {"stride": stride, "padding": kernel // 2, "groups": groups}
    return x, weight, (batch, out, out, outputs), options


def forward_inputs(rng, shape):
    """Benchmark inputs of convolution_forward."""
    x, weight, _, options = _bench(rng, shape)
    bias = rng.standard_normal(len(weight), np.float32)
    return (x, weight), options | {"bias": bias, "activation": "relu"}


def input_gradient_inputs(rng, shape):
    """Benchmark inputs of convolution_input_gradient."""
    x, weight, out, options = _bench(rng, shape)
    grad = rng.standard_normal(out, np.float32)
    return (grad, weight), options | {"input_shape": x.shape}


def weight_gradient_inputs(rng, shape):
    """Benchmark inputs of convolution_weight_gradient."""
    x, weight, out, options = _bench(rng, shape)
    grad = rng.standard_normal(out, np.float32)
    return (grad, x), options | {"kernel_size": weight.shape[1], "keep_bias_gradient": True}
