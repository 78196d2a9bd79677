"""The kernel table's own rules: what is checked, what is said, which implementation runs."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn import kernels
from gpunn.errors import UnsupportedError
from gpunn.primitives import parity, registry
from gpunn.primitives.activation import activation_backward, activation_forward
from gpunn.primitives.samples import Accumulator, Sample


def forward(x, **options):
    return activation_forward(x, activation="relu", **options)


X = np.array([[-1.0, 2.0, 3.0]], np.float32)


@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        (np.arange(3), {}, TypeError,
         r"activation_forward: x has shape \(3,\) and dtype int64 on cpu; expected dtype float16, "
         r"bfloat16, float32 or float64. Convert it with x.astype\('float32'\)."),
        (None, {}, TypeError, "x is None; expected an array"),
        ("text", {}, TypeError, "x has shape .*dtype <U4"),
        ([[1.0], [1.0, 2.0]], {}, TypeError, "x is list, which is no array that can be used"),
        (np.array([object()]), {}, TypeError, r"expected dtype float16"),
        (X, {"out": np.empty(3, np.float32)}, ValueError, r"out has shape \(3,\).*shape \(1, 3\)"),
        (X, {"out": np.empty((1, 3))}, TypeError, "out has .*float64 on cpu; .*dtype float32"),
        (X, {"out": np.empty((3, 1), np.float32).T[:, ::1]}, None, ""),
        (np.zeros((2, 3), np.float32), {"out": np.empty((3, 2), np.float32).T}, ValueError,
         "out has .*a C-contiguous array, because it is written in place. Give a contiguous"),
        (X, {"out": 5}, ValueError, "out is 5; expected an array to write into"),
        (X, {"alpha": 0.1}, ValueError, "alpha is 0.1 but relu has no parameter; leave alpha out"),
    ],
)  # fmt: skip
def test_what_is_refused(x, options, error, text):
    if error is None:
        np.testing.assert_array_equal(forward(x, **options), np.maximum(x, 0))
        return
    with pytest.raises(error, match=text):
        forward(x, **options)


def test_a_read_only_output_is_refused():
    out = np.empty_like(X)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out .*expected a writable array; this one is read-only"):
        forward(X, out=out)


def test_relations_between_arguments():
    with pytest.raises(
        ValueError, match=r"x has shape \(2,\).*expected the shape of grad_output, \(3,\)"
    ):
        activation_backward(np.ones(3), np.ones(2), activation="relu")
    with pytest.raises(
        TypeError, match=r"expected the dtype of grad_output, float64. .*astype\('float64'\)"
    ):
        activation_backward(np.ones(3), np.ones(3, np.float32), activation="relu")
    with pytest.raises(
        ValueError, match="activation is 'rely'; expected one of 'identity', 'sigmoid'"
    ):
        activation_forward(X, activation="rely")
    with pytest.raises(TypeError, match="alpha is 'x'; expected a number"):
        activation_forward(X, activation="elu", alpha="x")
    with pytest.raises(ValueError, match="alpha is nan; expected a number from -inf to inf"):
        activation_forward(X, activation="elu", alpha=float("nan"))


def test_nothing_is_written_when_a_check_fails():
    out = np.full((1, 3), 7.0, np.float32)
    with pytest.raises(ValueError):
        activation_forward(np.ones((2, 3), np.float32), activation="relu", out=out)
    assert (out == 7).all()


def test_out_is_returned_and_may_be_the_input():
    x = X.copy()
    assert forward(x, out=x) is x
    np.testing.assert_array_equal(x, [[0, 2, 3]])


def test_lists_and_views_are_taken():
    np.testing.assert_array_equal(forward([-1.0, 2.0]), [0.0, 2.0])
    np.testing.assert_array_equal(forward(X.T), [[0], [2], [3]])


def test_signature_and_docstring_are_the_users():
    import inspect

    assert list(inspect.signature(activation_forward).parameters) == [
        "x",
        "activation",
        "alpha",
        "out",
    ]
    assert activation_forward.__doc__.startswith("An activation function")
    assert repr(activation_forward).startswith("<primitive activation_forward(x, *, activation")


def test_cost_without_running():
    x = np.ones((10, 10), np.float32)
    cost = activation_forward.cost_of(x, activation="relu")
    assert (cost.flops, cost.read, cost.written, cost.bytes) == (100, 400, 400, 800)


def test_using_refuses_what_cannot_run():
    with pytest.raises(
        ValueError, match="'cudnn' is not an implementation; use one of numpy, cuda"
    ):
        with kernels.using("cudnn"):
            pass
    with kernels.using("numba"), pytest.raises(UnsupportedError, match="NUMBA_ENABLE_CUDASIM=1"):
        forward(X)
    with (
        kernels.using("cuda"),
        pytest.raises(UnsupportedError, match="CUDA kernels do not run on CPU"),
    ):
        forward(X)
    with kernels.using("numpy"):
        np.testing.assert_array_equal(forward(X), [[0, 2, 3]])


def test_environment_chooses_the_implementation(monkeypatch):
    monkeypatch.setattr(registry, "_FORCED_BY_ENVIRONMENT", True)
    monkeypatch.setenv("GPUNN_KERNELS", "fast")
    with pytest.raises(ValueError, match="GPUNN_KERNELS=fast is not an implementation"):
        forward(X)
    monkeypatch.setenv("GPUNN_KERNELS", "numpy")
    np.testing.assert_array_equal(forward(X), [[0, 2, 3]])


def test_numba_names_the_dtype_it_lacks():
    with pytest.raises(
        UnsupportedError, match="no Numba kernel for dtype float16 .*float32 or float64"
    ):
        registry._require_numba(activation_forward, (np.ones(3, np.float16),))


def test_debug_prints_each_call(monkeypatch, capsys):
    monkeypatch.setattr(registry, "_DEBUG", 1)
    forward(X)
    line = capsys.readouterr().out
    assert line.startswith("activation_forward ") and "GB/s" in line and "float32[1, 3]" in line


# ---- parity itself: it must see what is wrong ----------------------------------------------------


def compare(actual, expected, bound=1e-6):
    return parity.compare(np.asarray(actual, np.float32), np.asarray(expected, float), bound)[1]


def test_compare_sees_every_kind_of_difference():
    good = np.linspace(-3, 3, 100)
    assert compare(good, good) == ""
    assert "relative error" in compare(good * 1.001, good)
    one_off = good.copy()
    one_off[50] += 1e-4
    assert compare(one_off, good)
    assert "shape" in compare(good[:50], good)
    assert "nan" in compare(np.where(good > 2, np.nan, good), good)
    assert "expected nan" in compare(good, np.where(good > 2, np.nan, good))
    assert compare(np.where(good > 2, np.inf, good), np.where(good > 2, np.inf, good)) == ""
    assert compare(np.where(good > 2, -np.inf, good), np.where(good > 2, np.inf, good))
    assert compare([], []) == "" and compare([0.0, 0.0], [0.0, 0.0]) == ""
    assert compare([0.0, 1e-3], [0.0, 0.0])
    assert parity.compare(np.array([1, 2]), np.array([1, 3]), 0)[1] == "1 of 2 integers differ"


def test_samples_keep_strides_and_roles():
    view = np.arange(12.0).reshape(3, 4)[:, ::2]
    sample = Sample("s", (view, Accumulator(np.ones(2)), np.arange(3)), {"k": np.ones(2)})
    (x, state, labels), kwargs = sample.cast(np.float16)
    assert not x.flags.c_contiguous and x.dtype == np.float16
    assert (state.dtype, labels.dtype, kwargs["k"].dtype) == (np.float32, np.int64, np.float16)
    (x64, state64, _), _ = sample.cast_reference(np.float16)
    assert x64.dtype == state64.dtype == np.float64
    np.testing.assert_array_equal(x64, view)
