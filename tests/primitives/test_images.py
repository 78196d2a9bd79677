"""Pooling, resizing and padding of channels-last arrays: known values, edges, launches, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def image(*rows):
    """One channel of one image."""
    return np.array(rows, np.float64)[None, ..., None]


def plain(array):
    return array[0, ..., 0].tolist()


def launched(source, made, *args, multiprocessors=132, **kwargs):
    """(kernel, threads that share an output) of each launch."""
    launcher, found = RecordingLauncher(source, multiprocessors=multiprocessors), []
    launcher_call = RecordingLauncher.__call__

    def note(self, expression, grid, block, args, shared=0):
        found.append((expression, grid[0]))
        launcher_call(self, expression, grid, block, args, shared)

    RecordingLauncher.__call__ = note
    try:
        with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
            made(*args, **kwargs)
    finally:
        RecordingLauncher.__call__ = launcher_call
    return found


# ---- pooling -------------------------------------------------------------------------------------


def test_max_pooling_by_hand():
    x = image([1, 3, 3], [2, 3, 0], [5, -1, np.nan])
    y, places = kernels.max_pool_forward(x, kernel_size=2, stride=1)
    np.testing.assert_array_equal(plain(y), [[3, 3], [5, np.nan]])
    assert plain(places) == [[1, 1], [6, 8]]  # of equal values the first
    grad = kernels.max_pool_backward(
        np.ones_like(y), places, spatial=(3, 3), kernel_size=2, stride=1
    )
    assert plain(grad) == [[0, 2, 0], [0, 0, 0], [1, 0, 1]]
    y, none = kernels.max_pool_forward(x, output_size=1, return_indices=False)
    assert none is None and np.isnan(y).all()


def test_a_window_of_padding_alone():
    """Dilation can carry a window over the image: nothing is largest there."""
    y, places = kernels.max_pool_forward(image([7.0]), kernel_size=2, padding=2, dilation=3)
    assert plain(y) == [[-np.inf]] and plain(places) == [[-1]]
    grad = kernels.max_pool_backward(
        np.ones_like(y), places, spatial=(1, 1), kernel_size=2, padding=2, dilation=3
    )
    assert plain(grad) == [[0]]


def test_many_places_in_one_window():
    """More than one byte counts; the last place is the largest."""
    x = np.arange(20 * 30, dtype=np.float32).reshape(1, 20, 30, 1)
    y, places = kernels.max_pool_forward(x, output_size=1)
    assert y.item() == places.item() == 599


def test_the_means_divisors():
    x = image([1, 2], [3, 4], [5, 6])
    options = {"kernel_size": 2, "padding": 1, "stride": 2, "ceil_mode": True}
    mean = lambda **more: plain(kernels.avg_pool_forward(x, **options, **more))  # noqa: E731
    assert mean() == [[1 / 4, 2 / 4], [8 / 4, 10 / 4]]
    assert mean(count_include_pad=False) == [[1, 2], [4, 5]]
    assert mean(divisor_override=2) == [[1 / 2, 1], [4, 5]]
    assert plain(kernels.avg_pool_forward(x, output_size=(2, 1))) == [[2.5], [4.5]]
    grad = kernels.avg_pool_backward(image([1.0], [2.0]), spatial=(3, 2), output_size=(2, 1))
    assert plain(grad) == [[0.25, 0.25], [0.75, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_means_are_rounded_once(dtype):
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(dtype)
    y = kernels.avg_pool_forward(x, kernel_size=3)
    exact = x.astype(np.float64).reshape(2, 3, 3, 3, 3, 8).mean((2, 4))
    np.testing.assert_array_equal(y, exact.astype(np.float32).astype(dtype))
    largest, _ = kernels.max_pool_forward(x, kernel_size=3)
    np.testing.assert_array_equal(largest, x.reshape(2, 3, 3, 3, 3, 8).max((2, 4)))


def test_pooling_launches():
    x = np.zeros((1, 8, 8, 8), np.float16)
    (found,) = launched("pooling.cu", kernels.max_pool_forward, x, kernel_size=2)
    assert found == ("max_pool_forward<__half, 8>", 1)
    (found,) = launched("pooling.cu", kernels.max_pool_forward, x[..., :7], kernel_size=2)
    assert found[0] == "max_pool_forward<__half, 1>"
    (found,) = launched("pooling.cu", kernels.avg_pool_forward, x.astype(float), kernel_size=2)
    assert found[0] == "avg_pool_forward<double, 1>"
    # A window for 32 threads on a large GPU, and for one where windows are enough to fill it.
    large = np.zeros((1, 64, 64, 32), np.float32)
    blocks = [
        launched("pooling.cu", kernels.avg_pool_forward, large, output_size=2, multiprocessors=n)
        for n in (132, 0)
    ]
    assert [found[0][1] for found in blocks] == [4, 1]
    assert launched("pooling.cu", kernels.max_pool_forward, x[:0], kernel_size=2) == []


def test_bytes_of_pooling():
    x = np.zeros((2, 8, 8, 4), np.float32)
    cost = kernels.max_pool_forward.cost_of(x, kernel_size=2)
    assert (cost.read, cost.written) == (x.nbytes, 2 * x.nbytes / 4)
    cost = kernels.avg_pool_forward.cost_of(x, kernel_size=1, stride=2)
    assert (cost.read, cost.written) == (x.nbytes / 4, x.nbytes / 4)


# ---- resizing ------------------------------------------------------------------------------------


def test_resizing_by_hand():
    x = image([0, 4])
    assert plain(kernels.resize_forward(x, output_size=(1, 4))) == [[0, 0, 4, 4]]
    y = kernels.resize_forward(x, output_size=(1, 4), mode="linear")
    assert plain(y) == [[0, 1, 3, 4]]
    y = kernels.resize_forward(x, output_size=(1, 5), mode="linear", align_corners=True)
    assert plain(y) == [[0, 1, 2, 3, 4]]
    grad = kernels.resize_backward(image([1, 2, 4, 8]), spatial=(1, 2), mode="linear")
    assert plain(grad) == [[1 + 0.75 * 2 + 0.25 * 4, 0.25 * 2 + 0.75 * 4 + 8]]
    grad = kernels.resize_backward(image([1, 2, 4, 8]), spatial=(1, 2))
    assert plain(grad) == [[3, 12]]


def test_a_line_stays_a_line_in_large_images():
    """Fractions are right where float32 places would be 1e-4 off."""
    size, count = 5000, 12347
    x = np.arange(size, dtype=np.float32).reshape(1, size, 1)
    y = kernels.resize_forward(x, output_size=count, mode="linear").reshape(-1)
    exact = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
    np.testing.assert_allclose(y, exact, 2e-7, 1e-7)
    weights = kernels.resize_backward(np.ones((1, count, 1)), spatial=(size,), mode="linear")
    assert weights.sum() == pytest.approx(count)


def test_backward_is_the_transpose():
    """<resize(x), g> = <x, resize_backward(g)>, and the same for padding."""
    rng = np.random.default_rng(0)
    for mode, more in (("nearest", {}), ("nearest-exact", {"scale_factor": (1.3, 0.6)}),
                       ("linear", {"align_corners": True}), ("linear", {})):  # fmt: skip
        x, g = rng.normal(size=(2, 7, 5, 3)), rng.normal(size=(2, 9, 3, 3))
        y = kernels.resize_forward(x, output_size=(9, 3), mode=mode, **more)
        back = kernels.resize_backward(g, spatial=(7, 5), mode=mode, **more)
        assert (y * g).sum() == pytest.approx((x * back).sum(), rel=1e-12)
    for mode in ("constant", "reflect", "replicate", "circular"):
        x, g = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(2, 9, 8, 3))
        y = kernels.pad_forward(x, padding=((2, 3), (3, 0)), mode=mode)
        back = kernels.pad_backward(g, padding=((2, 3), (3, 0)), mode=mode)
        assert (y * g).sum() == pytest.approx((x * back).sum(), rel=1e-12)


# ---- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("constant", [9, 9, 1, 2, 3, 9]),
        ("reflect", [3, 2, 1, 2, 3, 2]),
        ("replicate", [1, 1, 1, 2, 3, 3]),
        ("circular", [2, 3, 1, 2, 3, 1]),
    ],
)
def test_padding_by_hand(mode, expected):
    x = np.array([1, 2, 3]).reshape(1, 3, 1)
    for dtype in (np.int64, np.float32, np.uint8):
        y = kernels.pad_forward(x.astype(dtype), padding=((2, 1),), mode=mode, value=9)
        assert y.dtype == dtype and plain(y) == expected
    grad = kernels.pad_backward(np.ones((1, 6, 1)), padding=((2, 1),), mode=mode)
    assert plain(grad) == [expected.count(n) for n in (1, 2, 3)]
    if mode != "circular":
        y = kernels.pad_forward(x, padding=((-1, 1),), mode=mode, value=9)
        assert plain(y) == [2, 3, expected[-1]]


def test_padding_launches_by_the_size_of_a_pixel():
    x = np.zeros((1, 3, 8), np.float16)
    found = lambda x: launched("pad.cu", kernels.pad_forward, x, padding=((1, 1),))[0][0]  # noqa: E731
    assert found(x) == "pad_forward<ulonglong2>"
    assert found(x[..., :4]) == "pad_forward<unsigned short>"
    assert found(np.zeros((1, 3, 3), bool)) == "pad_forward<unsigned char>"


# ---- errors --------------------------------------------------------------------------------------

X = np.zeros((1, 4, 4, 2), np.float32)
P, Q, A, R = (
    kernels.max_pool_forward, kernels.max_pool_backward, kernels.avg_pool_forward,
    kernels.resize_forward,
)  # fmt: skip


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: P(X[0, 0], kernel_size=2), ValueError, r"max_pool_forward: x .*\(4, 2\).*spatial"),
        (lambda: P(X.astype(int), kernel_size=2), TypeError, "max_pool_forward: x has .*int64"),
        (lambda: P(X, kernel_size=5), ValueError, "kernel_size is 5 .* there are 4 and 0"),
        (lambda: P(X, kernel_size=2, padding=2), ValueError, "padding is 2 .* over 2 pixels"),
        (lambda: P(X, kernel_size=(2, 2, 2)), ValueError, "kernel_size .*3 numbers.* 2 spatial"),
        (lambda: P(X, kernel_size=2.5), TypeError, "kernel_size is 2.5; expected an int"),
        (lambda: P(X, kernel_size=2, stride=0), ValueError, "stride is 0; .* at least 1"),
        (lambda: P(X, kernel_size=2, stride=1 << 31), ValueError, "kernel_size is 2 .*fewer than"),
        (
            lambda: P(X, kernel_size=3, dilation=1 << 30, padding=1 << 30),
            ValueError, "dilation 1073741824: .* fewer than",
        ),
        (lambda: P(X, output_size=0), ValueError, "output_size is 0"),
        (lambda: P(X, output_size=1, kernel_size=2), ValueError, "output_size is 1, and kernel"),
        (lambda: P(X[:, :0], kernel_size=1), ValueError, r"spatial sizes \(0, 4\)"),
        (
            lambda: Q(X, np.zeros(X.shape, np.int32), spatial=(4, 4), kernel_size=2),
            ValueError, r"max_pool_backward: grad_output .* expected shape \(1, 2, 2, 2\)",
        ),
        (
            lambda: Q(X, np.zeros(X.shape), spatial=(4, 4), kernel_size=1),
            TypeError, "max_pool_backward: indices .*int32",
        ),
        (lambda: A(X, kernel_size=2, divisor_override=0), ValueError, "divisor_override is 0"),
        (lambda: R(X, output_size=(0, 2)), ValueError, r"output_size is \(0, 2\)"),
        (lambda: R(X, output_size=2, mode="cubic"), ValueError, "mode is 'cubic'"),
        (lambda: R(X, output_size=2, align_corners=True), ValueError, "align_corners is set"),
        (lambda: R(X, output_size=2, scale_factor=-1), ValueError, "scale_factor is -1"),
        (
            lambda: kernels.pad_forward(X, padding=((4, 0), (0, 0)), mode="reflect"),
            ValueError, "reflect can pad 4 pixels by 3 at most",
        ),
        (
            lambda: kernels.pad_forward(X, padding=((0, 0), (-1, 0)), mode="circular"),
            ValueError, "circular cuts nothing off",
        ),
        (
            lambda: kernels.pad_forward(X, padding=((-3, -2), (0, 0))),
            ValueError, "leaves -1 of 4",
        ),
        (lambda: kernels.pad_forward(X, padding=(1, 1)), TypeError, "expected a pair"),
        (lambda: kernels.pad_forward(X, padding=((1, 1),)), ValueError, "has 1 pairs"),
        (
            lambda: kernels.pad_backward(X, padding=((3, 2), (0, 0))),
            ValueError, r"more than the padded sizes \(4, 4\)",
        ),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
