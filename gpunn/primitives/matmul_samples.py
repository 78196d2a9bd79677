"""The parity samples of the matrix products: every tile, layout, batch and edge."""

from __future__ import annotations

import math

import numpy as np

from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.samples import FLOAT32, FLOATING, Sample


def _tolerance(K: int) -> dict:
    """The bound that matmul's docstring states for float32."""
    return {FLOAT32: 1e-6 * max(1.0, math.sqrt(K) / 32)}


_ONE = (FLOAT32,)


def _shapes_and_layouts(rng):
    """(name, a, b, kwargs, dtypes) of single products: every tile, every layout, every edge."""
    for M, N, K, dtypes in (
        (1, 1, 1, _ONE),
        (3, 5, 7, FLOATING),
        (33, 65, 129, FLOATING),
        (1, 300, 70, _ONE),
        (300, 1, 70, _ONE),
        (2, 3, 0, _ONE),
        (0, 3, 4, _ONE),
        (8, 12, 2050, _ONE),
        (99, 101, 601, FLOATING),
        (1408, 1536, 40, _ONE),
    ):
        a, b = rng.normal(size=(M, K)), rng.normal(size=(K, N))
        yield f"{M}x{N}x{K}", a, b, {}, dtypes
    # Multiples of 8: packs in every layout, on each of the tiles.
    for M, N, K in ((24, 40, 72), (96, 104, 800), (192, 200, 56), (768, 768, 8)):
        for left in (False, True):
            for right in (False, True):
                a = rng.normal(size=(K, M) if left else (M, K))
                b = rng.normal(size=(N, K) if right else (K, N))
                kwargs = {"transpose_a": left, "transpose_b": right}
                name = f"{M}x{N}x{K}{', a transposed' * left}{', b transposed' * right}"
                yield name, a, b, kwargs, FLOATING
    a, b = rng.normal(size=(12, 20)), rng.normal(size=(20, 16))
    yield "transposed views", a.T.copy().T, b.T.copy().T, {}, _ONE
    a, b = rng.normal(size=(9, 22))[:, ::2], rng.normal(size=(11, 5))
    yield "every second column", a, b, {}, _ONE
    special = np.array([[np.inf, 1.0], [np.nan, 2.0], [3.0, 4.0]])
    yield "not finite", special, np.array([[1.0, 0.0, 2.0], [1.0, 1.0, -1.0]]), {}, FLOATING


def matmul_samples(rng):
    """Samples of matmul."""
    for name, a, b, kwargs, dtypes in _shapes_and_layouts(rng):
        small = a.size * b.shape[-1] < 4000
        yield Sample(name, (a, b), kwargs, dtypes, _tolerance(max(b.shape)), numba=small)
    for name, of_a, of_b, kwargs in (
        ("batch and one matrix", (2, 3, 4, 5), (5, 6), {}),
        ("batch and one matrix transposed", (2, 3, 4), (6, 4), {"transpose_b": True}),
        ("one matrix and batch", (4, 5), (3, 5, 8), {}),
        ("equal batches", (3, 4, 8), (3, 8, 12), {}),
        ("broadcast batches", (3, 1, 4, 5), (2, 5, 6), {}),
        ("three batch dimensions", (2, 1, 3, 4, 5), (1, 2, 1, 5, 3), {}),
        ("batch of transposed", (2, 8, 4), (2, 8, 12), {"transpose_a": True}),
        ("empty batch", (0, 3, 4), (4, 5), {}),
    ):
        yield Sample(name, (rng.normal(size=of_a), rng.normal(size=of_b)), kwargs)
    a, b, bias = rng.normal(size=(6, 9)), rng.normal(size=(9, 8)), rng.normal(size=8)
    for activation in ACTIVATIONS:
        kwargs = {"bias": bias, "activation": activation, "keep_preactivation": True}
        yield Sample(f"bias, {activation}", (a, b), kwargs)
    kwargs = {"bias": rng.normal(size=7), "activation": "relu"}
    args = (rng.normal(size=(5, 3)), rng.normal(size=(3, 7)))
    yield Sample("bias, relu, odd", args, kwargs, FLOATING)
    kwargs |= {"activation": "gelu", "keep_preactivation": True}
    args = (rng.normal(size=(2, 5, 900)) / 30, rng.normal(size=(900, 7)))
    yield Sample("parts of K, bias, gelu", args, kwargs, FLOATING, numba=False)
    kwargs = {"bias": bias, "activation": "leaky_relu", "alpha": 0.2}
    yield Sample("alpha", (a, b), kwargs)
    kwargs = {"bias": bias, "activation": "tanh"}
    yield Sample("K = 0 with bias", (np.zeros((3, 0)), np.zeros((0, 8))), kwargs)
    args = (rng.normal(size=(6, 9)), rng.normal(size=(9, 8)))
    kwargs = {"bias": bias, "residual": rng.normal(size=(6, 8)), "scale": 0.25}
    yield Sample("scale, bias, residual", args, kwargs, FLOATING)
    args = (rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 7, 3)))
    kwargs = {"residual": rng.normal(size=(2, 5, 3)), "activation": "silu"}
    yield Sample("residual of a batch, silu", args, kwargs | {"keep_preactivation": True})


def activation_backward_samples(rng):
    """Samples of matmul_activation_backward."""
    for M, N, K, dtypes in ((3, 5, 2, _ONE), (9, 12, 20, _ONE), (70, 33, 5, FLOATING)):
        for activation in ACTIVATIONS:
            args = rng.normal(size=(M, K)), rng.normal(size=(K, N)), rng.normal(size=(M, N))
            kwargs = {"activation": activation, "keep_bias_gradient": True}
            name, few = f"{M}x{N}x{K}, {activation}", M * N * K < 4000
            yield Sample(name, args, kwargs, dtypes, _tolerance(K), numba=few)
    relu = {"activation": "relu", "keep_bias_gradient": True}
    turned = {"transpose_a": True, "transpose_b": True}
    for name, shapes, kwargs, dtypes in (
        ("transposed", ((8, 24), (16, 8), (24, 16)), turned, FLOATING),
        ("parts of K", ((8, 2050), (2050, 12), (8, 12)), {}, FLOATING),
        ("large tile", ((768, 40), (40, 768), (768, 768)), {}, _ONE),
        ("batch", ((3, 5, 8), (3, 8, 12), (3, 5, 12)), {}, _ONE),
        ("batch and one matrix", ((3, 5, 8), (8, 12), (3, 5, 12)), {}, _ONE),
        ("three batch dimensions", ((2, 1, 3, 4, 5), (1, 2, 1, 5, 3), (2, 2, 3, 4, 3)), {}, _ONE),
        ("K = 0", ((3, 0), (0, 4), (3, 4)), {}, _ONE),
        ("no rows", ((0, 5), (5, 4), (0, 4)), {}, _ONE),
        ("one element", ((1, 1), (1, 1), (1, 1)), {}, _ONE),
    ):  # fmt: skip
        args = tuple(rng.normal(size=shape) for shape in shapes)
        small = args[0].size * args[1].shape[-1] < 4000
        yield Sample(name, args, relu | kwargs, dtypes, _tolerance(shapes[0][-1]), numba=small)
    args = (rng.normal(size=(5, 6)), rng.normal(size=(6, 8)), rng.normal(size=(5, 8)))
    yield Sample("no gradient of the bias", args, {"activation": "gelu"})


def weight_gradient_samples(rng):
    """Samples of linear_weight_gradient."""
    for rows, outputs, inputs, dtypes in (
        (1, 1, 1, _ONE),
        (7, 3, 5, FLOATING),
        (64, 40, 24, FLOATING),
        (2050, 12, 8, FLOATING),
        (40, 768, 760, _ONE),
        (0, 3, 4, _ONE),
        (5, 3, 0, _ONE),
    ):
        args = rng.normal(size=(rows, outputs)), rng.normal(size=(rows, inputs))
        name, few = f"{rows} rows, {outputs}x{inputs}", rows * outputs * inputs < 4000
        yield Sample(name, args, {}, dtypes, _tolerance(rows), numba=few)
    args = rng.normal(size=(9, 12)).T, rng.normal(size=(12, 10))[:, ::2]
    yield Sample("views", args)


def bias_gradient_samples(rng):
    """Samples of bias_gradient."""
    for shape, dtypes in (
        ((1,), _ONE),
        ((5, 3), FLOATING),
        ((128, 10), _ONE),
        ((2, 3, 24), FLOATING),
        ((300, 72), FLOATING),
        ((1500, 40), FLOATING),
        ((1025, 3), FLOATING),
        ((0, 4), _ONE),
        ((4, 0), _ONE),
    ):
        name = "x".join(map(str, shape))
        yield Sample(name, (rng.normal(size=shape),), {}, dtypes, numba=math.prod(shape) < 4000)
    yield Sample("transposed view", (rng.normal(size=(6, 9)).T,))
    yield Sample("not finite", (np.array([[np.inf, 1.0, np.inf], [-np.inf, np.nan, 2.0]]),))
