"""Compiled loops for the CPU: the same values as NumPy's, and when they are left alone."""

from __future__ import annotations

import builtins

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.primitives import convolution_cpu, cpu_compiled, cpu_threads

FLOAT32 = np.dtype(np.float32)
needs_numba = pytest.mark.skipif(not cpu_compiled._available(), reason="Numba is not there")


def both(function) -> list:
    """What `function` gives by NumPy and by compiled loops, each as a list of arrays."""
    results = []
    for compiled in (False, True):
        with cpu_compiled.forced(compiled):
            found = function()
        results.append(list(found) if isinstance(found, tuple) else [found])
    return results


def same(function) -> None:
    for by_numpy, compiled in zip(*both(function), strict=True):
        np.testing.assert_array_equal(by_numpy, compiled)


def odd_values(rng, shape, dtype):
    """Ties, NaN, -inf and both zeros."""
    x = np.round(rng.normal(size=shape) * 2).astype(dtype)
    for value, share in ((np.nan, 0.05), (-np.inf, 0.1), (-0.0, 0.1)):
        x[rng.random(shape) < share] = value
    return x


WINDOWS = [
    ((2, 9, 8, 7), {"kernel_size": 2}),
    ((2, 9, 8, 4), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 5, 6, 7, 6), {"kernel_size": 2, "stride": 1, "padding": 1}),
    ((3, 17, 1), {"kernel_size": 4, "stride": 5}),
    ((2, 9, 8, 6), {"kernel_size": 1, "stride": 2}),
    ((0, 4, 4, 6), {"kernel_size": 2}),
    ((2, 7, 9, 6), {"output_size": (3, 4)}),
    ((2, 3, 9, 6), {"output_size": (5, 1)}),
    ((1, 6, 7, 6), {"kernel_size": (3, 2), "stride": 1, "padding": (2, 1), "dilation": (2, 3)}),
]


@needs_numba
def test_pooling():
    rng = np.random.default_rng(0)
    for shape, options in WINDOWS:
        x = odd_values(rng, shape, FLOAT32)
        spatial = {"spatial": shape[1:-1]}
        same(lambda: kernels.max_pool_forward(x, **options))  # noqa: B023
        same(lambda: kernels.max_pool_forward(x, return_indices=False, **options)[0])  # noqa: B023
        y, places = kernels.max_pool_forward(x, **options)
        grad = rng.normal(size=y.shape).astype(FLOAT32)
        same(lambda: kernels.max_pool_backward(grad, places, **spatial, **options))  # noqa: B023
        if "dilation" in options:
            continue
        for more in ({}, {"count_include_pad": False}, {"divisor_override": 3}):
            more |= options
            same(lambda: kernels.avg_pool_forward(x, **more))  # noqa: B023
            same(lambda: kernels.avg_pool_backward(grad, **spatial, **more))  # noqa: B023


@needs_numba
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "corners"])
def test_resizing(mode):
    rng = np.random.default_rng(2)
    options = {"mode": "linear", "align_corners": True} if mode == "corners" else {"mode": mode}
    shapes = [((2, 3, 4, 5), (6, 8)), ((2, 7, 5, 3), (5, 9)), ((2, 5, 3), (9,)),
              ((1, 2, 3, 2, 4), (3, 3, 5)), ((1, 4, 3, 2), (7, 1))]  # fmt: skip
    for shape, size in shapes:
        x = rng.normal(size=shape)
        x = x.astype(FLOAT32) if mode != "corners" else x
        same(lambda: kernels.resize_forward(x, output_size=size, **options))  # noqa: B023
        grad = rng.normal(size=(shape[0], *size, shape[-1])).astype(x.dtype)
        same(lambda: kernels.resize_backward(grad, spatial=shape[1:-1], **options))  # noqa: B023


@needs_numba
def test_rows_of_an_embedding():
    """Rows of few come in the order they stand in; more than 128 of a number in sums of 128."""
    rng = np.random.default_rng(3)
    grad = rng.normal(size=(600, 130)).astype(FLOAT32)
    for count, padding in ((400, 7), (3, None)):
        indices = rng.integers(0, count, 600)
        for accumulate in (False, True):

            def run(indices=indices, padding=padding, count=count, accumulate=accumulate):
                out = np.ones((count, 130), FLOAT32)
                return kernels.embedding_backward(
                    grad, indices, num_embeddings=count, padding_idx=padding,
                    accumulate=accumulate, out=out,
                )  # fmt: skip

            (by_numpy,), (compiled,) = both(run)
            np.testing.assert_allclose(compiled, by_numpy, atol=2e-5)
            exact = np.full((count, 130), float(accumulate))
            kept = indices != (-1 if padding is None else padding)
            np.add.at(exact, indices[kept], grad[kept])
            np.testing.assert_allclose(compiled, exact, atol=2e-5)


@needs_numba
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_of_an_lstm(reverse):
    """The same bits, whatever the lengths of the sequences; with and without what is kept."""
    rng = np.random.default_rng(4)
    steps, batch, hidden = 5, 3, 9

    def made(*shape):
        return rng.normal(size=shape).astype(FLOAT32)

    gates, weight, bias = made(steps, batch, 4 * hidden), made(4 * hidden, hidden), made(4 * hidden)
    h0, c0, lengths = made(batch, hidden), made(batch, hidden), np.array([2, 5, 4])
    grads = made(steps, batch, hidden), made(batch, hidden), made(batch, hidden)
    more = {"mode": "lstm", "reverse": reverse}

    def run():
        states = weight, bias, h0, c0, lengths
        alone = kernels.recurrent_forward(gates, weight, None, None, None, **more, keep=False)
        made = kernels.recurrent_forward(gates, *states, **more)
        output, _, _, activated, inner = made
        copies = [each.copy() for each in made]
        back = kernels.recurrent_backward(
            *grads, output, activated, inner, weight, h0, c0, lengths, **more, grad_gates=activated
        )  # in place
        return (*alone[:3], *copies, *(each for each in back if each is not None))

    same(run)


@needs_numba
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_layer_and_rms_norm(dtype):
    """Against float64; NaN and inf stay in their row and in the sums down the columns."""
    rng = np.random.default_rng(6)
    close = {"rtol": 2e-5, "atol": 2e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for shape in ((3, 1), (40, 7), (67, 64), (5, 255), (35, 3, 333), (9, 768)):
        x, grad, more = (1 + rng.normal(size=(3, *shape))).astype(dtype)
        weight, bias = rng.normal(size=(2, shape[-1])).astype(dtype)

        def run(x=x, grad=grad, more=more, weight=weight, bias=bias):
            made = kernels.layer_norm_forward(x, weight, bias, residual=more)
            _, mean, scale, total = made
            back = kernels.layer_norm_backward(
                grad, total, mean, scale, weight, grad_residual=more, out=grad.copy()
            )
            alone = kernels.rms_norm_forward(x)
            in_place = grad.copy()
            kernels.rms_norm_backward(in_place, x, alone[1], weight_gradient=False, out=in_place)
            return *made, *back, *alone, in_place

        for by_numpy, compiled in zip(*both(run), strict=True):
            np.testing.assert_allclose(compiled, by_numpy, **close)
        x[1, ..., -1], x[2, ..., 0] = np.nan, np.inf
        for by_numpy, compiled in zip(*both(run), strict=True):
            np.testing.assert_array_equal(np.isnan(compiled), np.isnan(by_numpy))


@needs_numba
def test_columns_of_batch_and_group_norm():
    rng = np.random.default_rng(7)
    for shape, groups in (((6, 5, 7, 3), 0), ((70, 64), 0), ((3, 4, 5, 12), 4), ((2, 9, 6), 6),
                          ((1, 37, 41, 24), 3)):  # fmt: skip
        x, grad, more = (3 + rng.normal(size=(3, *shape))).astype(FLOAT32)
        weight, bias = rng.normal(size=(2, shape[-1])).astype(FLOAT32)
        start = rng.random((2, shape[-1])).astype(FLOAT32)
        name = "group_norm" if groups else "batch_norm"
        ways = [getattr(kernels, f"{name}_{way}") for way in ("forward", "backward")]
        sets = (groups,) if groups else ()
        for activation, residual in (("identity", None), ("relu", None), ("relu", more),
                                     ("silu", None)):  # fmt: skip

            def run(activation=activation, residual=residual, sets=sets, x=x, grad=grad, ways=ways,
                    weight=weight, bias=bias, start=start):  # fmt: skip
                more, (forward, backward) = {"residual": residual, "activation": activation}, ways
                mean, var = running = start.copy()
                kept = {} if sets and sets[0] != x.shape[-1] else {
                    "running_mean": mean, "running_var": var}  # fmt: skip
                made = forward(x, *sets, weight, bias, **kept, **more)
                back = backward(grad, x, made[1], made[2], *sets, weight, bias, **more)
                found = [*made, running, *back]
                if not sets:
                    more["training"] = False
                    found += forward(x, weight, bias, **kept, **more)[:1]
                    found += backward(grad, x, mean, var, weight, bias, **more)
                return tuple(each for each in found if each is not None)

            for by_numpy, compiled in zip(*both(run), strict=True):
                np.testing.assert_allclose(compiled, by_numpy, rtol=2e-4, atol=2e-4)
        x[0, ..., 0], x[-1, ..., 1] = np.nan, np.inf
        for by_numpy, compiled in zip(*both(run), strict=True):
            np.testing.assert_array_equal(np.isnan(compiled), np.isnan(by_numpy))


@needs_numba
def test_batch_statistics_of_large_numbers():
    """A mean 1e4 times the deviation, and another one in a late piece of the columns."""
    x = np.random.default_rng(8).normal(size=(1 << 13, 16))
    x[:, 1] += 1e4
    x[1 << 12 :, 2] -= 1e3
    x = x.astype(FLOAT32)
    with cpu_compiled.forced(True):
        _, mean, scale = kernels.batch_norm_forward(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt(exact.var(0) + 1e-5), rtol=1e-6)


@needs_numba
def test_depthwise_convolution():
    """Padding, cropping, strides, gaps between the taps, kernels of 1 to 7; a NaN in its place."""
    rng = np.random.default_rng(9)
    for (height, width), stride, low, dilation, kernel in (
        ((9, 8), (1, 1), (1, 1), (1, 1), (3, 3)), ((9, 8), (2, 2), (1, 1), (1, 1), (3, 3)),
        ((11, 7), (1, 3), (0, 3), (2, 1), (2, 7)), ((6, 5), (2, 1), (0, 0), (1, 1), (1, 1)),
        ((8, 9), (1, 1), (-1, 2), (1, 2), (4, 5)),
    ):  # fmt: skip
        gaps = zip((height, width), kernel, stride, low, dilation, strict=True)
        places = [(n + 2 * max(p, 0) + min(p, 0) - d * (k - 1) - 1) // s + 1
                  for n, k, s, p, d in gaps]  # fmt: skip
        x, weight = rng.normal(size=(3, height, width, 5)), rng.normal(size=(5, *kernel, 1))
        x, weight = x.astype(FLOAT32), weight.astype(FLOAT32)
        grad = rng.normal(size=(3, *places, 5)).astype(FLOAT32)
        x[0, 2, 2, 1] = grad[1, 1, 1, 3] = np.nan

        def run(stride=stride, low=low, dilation=dilation, x=x, weight=weight, grad=grad):
            more = {"stride": stride, "low": low, "dilation": dilation, "groups": 5}
            y, dx, dw = np.empty_like(grad), np.empty_like(x), np.empty_like(weight)
            bias = weight[:, 0, 0, 0]
            convolution_cpu.forward(x, weight, y, bias=bias, activation="relu", **more)
            convolution_cpu.input_gradient(grad, weight, dx, bias=bias, **more)
            convolution_cpu.weight_gradient(grad, x, dw, **more)
            return y, dx, dw

        (y, dx, dw), (y_compiled, *rest) = both(run)
        np.testing.assert_array_equal(y_compiled, y)
        for compiled, by_numpy in zip(rest, (dx, dw), strict=True):
            np.testing.assert_allclose(compiled, by_numpy, rtol=1e-5, atol=1e-5)


def test_small_arrays_and_those_of_16_bits_are_left_to_numpy():
    large = cpu_compiled.LARGE
    assert cpu_compiled.loops("axis", FLOAT32, large - 1) is None
    for dtype in (np.float16, ml_dtypes.bfloat16, np.int32):
        assert cpu_compiled.loops("axis", np.dtype(dtype), large) is None
    with cpu_compiled.forced(False):
        assert cpu_compiled.loops("axis", FLOAT32, large) is None


@needs_numba
def test_switched_off(monkeypatch):
    assert cpu_compiled.loops("axis", FLOAT32, cpu_compiled.LARGE) is not None
    monkeypatch.setenv("GPUNN_CPU_COMPILED", "0")
    assert cpu_compiled.loops("axis", FLOAT32, cpu_compiled.LARGE) is None


def test_without_numba(monkeypatch):
    load = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name == "numba":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert not cpu_compiled._available.__wrapped__()


@needs_numba
def test_without_a_folder_for_what_was_compiled():
    """As in a read-only installation: of a source that is no file Numba can keep nothing either."""
    made = {}
    exec("def half(x):\n    return x / 2", made)
    assert cpu_compiled.compiled(made["half"])(3.0) == 1.5


@needs_numba
def test_the_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(5, 64, 64, 32)).astype(FLOAT32)  # more than one piece
    results = []
    for count in (1, 3):
        monkeypatch.setattr(cpu_threads, "thread_count", lambda count=count: count)
        with cpu_compiled.forced(True):
            y = kernels.avg_pool_forward(x, kernel_size=3, padding=1)
            back = kernels.resize_backward(x, spatial=(30, 31), mode="linear")
            rows = x.reshape(-1, 32)
            by_rows = kernels.layer_norm_forward(rows)
            by_columns = kernels.batch_norm_forward(x)
            slopes = kernels.layer_norm_backward(rows, rows, *by_rows[1:])
            others = kernels.batch_norm_backward(x, x, *by_columns[1:])
        results.append((y, back, *by_rows, *by_columns, *slopes, *others))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
