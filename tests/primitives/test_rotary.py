"""Rotary embedding: what it is for, its inverse, in place, errors."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe, to_device
from gpunn.primitives.rotary import tables

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
COS, SIN = tables(20, 4)
RNG = np.random.default_rng(0)


def complex_form(x, positions, interleaved):
    """The definition: pairs as complex numbers, times exp(i p f)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2] if interleaved else x[..., :4] + 1j * x[..., 4:8]
    turned = pairs * np.exp(1j * positions[..., None] * 10000.0 ** (-np.arange(4) / 4))
    out = np.empty_like(x)
    ends = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(4), slice(4, 8))
    out[..., ends[0]], out[..., ends[1]] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_definition_and_back(interleaved):
    x = RNG.normal(size=(2, 3, 5, 8))
    y = kernels.rotary_forward(x, COS, SIN, offset=7, interleaved=interleaved)
    np.testing.assert_allclose(y, complex_form(x, np.arange(7, 12), interleaved), atol=1e-12)
    options = {"offset": 7, "interleaved": interleaved, "inverse": True}
    assert kernels.rotary_forward(y, COS, SIN, out=y, **options) is y
    np.testing.assert_allclose(y, x, atol=1e-12)
    positions = RNG.integers(0, 20, (2, 5))
    y = kernels.rotary_forward(x, COS, SIN, positions, interleaved=interleaved)
    np.testing.assert_allclose(y, complex_form(x, positions[:, None], interleaved), atol=1e-12)


def test_products_depend_on_the_distance_alone():
    q, k = RNG.normal(size=(2, 1, 8))
    scores = [
        kernels.rotary_forward(q, COS, SIN, offset=p + 3)
        @ kernels.rotary_forward(k, COS, SIN, offset=p).T
        for p in (0, 5, 16)
    ]
    np.testing.assert_allclose(scores, scores[0] * np.ones((3, 1, 1)), rtol=1e-12)


def test_time_before_or_after_the_heads():
    x = RNG.normal(size=(2, 3, 5, 8))
    y = kernels.rotary_forward(x, COS, SIN)
    other = kernels.rotary_forward(x.transpose(0, 2, 1, 3), COS, SIN, axis=1)
    np.testing.assert_array_equal(other.transpose(0, 2, 1, 3), y)
    nothing = kernels.rotary_forward(x, COS[:, :0], SIN[:, :0], np.arange(5))  # no column is turned
    np.testing.assert_array_equal(nothing, x)


@emulated
def test_in_place_and_unknown_positions_on_a_device():
    x = RNG.normal(size=(2, 4, 8)).astype(np.float32)
    cos, sin = (table.astype(np.float32) for table in (COS, SIN))
    expected = kernels.rotary_forward(x, cos, sin)
    device = [to_device(array, "emulator") for array in (x, cos, sin)]
    assert kernels.rotary_forward(*device, out=device[0]) is device[0]
    np.testing.assert_allclose(device[0].get(), expected, rtol=1e-6, atol=1e-6)
    positions = to_device(np.array([0, 20, 3, -1]), "emulator")
    y = kernels.rotary_forward(*device, positions).get()
    np.testing.assert_array_equal(np.isnan(y).all((0, 2)), [False, True, False, True])


X = np.zeros((2, 5, 8))


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        ((X, COS, SIN), {"offset": 16}, ValueError, "for positions 16 to 20; the tables .* 19"),
        ((X, COS, SIN), {"offset": -1}, ValueError, "offset is -1"),
        ((X, COS, SIN), {"axis": -1}, ValueError, "axis is -1"),
        ((X, COS, SIN[:5]), {}, ValueError, "sin has"),
        ((X[..., :6], COS, SIN), {}, ValueError, "8 columns of x; but x has 6"),
        ((X, COS.astype(np.float32), SIN), {}, TypeError, "cos has"),
        ((X, COS, SIN, np.arange(4)), {}, ValueError, r"positions .*\(5,\) or shape \(2, 5\)"),
        ((X, COS, SIN, np.arange(5)), {"offset": 16}, ValueError, "holds 20 at position 4"),
    ],
)
def test_errors(args, options, error, text):
    with pytest.raises(error, match=text):
        kernels.rotary_forward(*args, **options)
