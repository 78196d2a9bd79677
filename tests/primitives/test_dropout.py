"""Dropout: the mask's definition, values at the edge, places to write, and wrong input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.primitives.random import dropout, random_uniform
from gpunn.primitives.samples import FLOATING


def uniform(size, seed=0, offset=0):
    return random_uniform(np.empty(size, np.float32), seed=seed, offset=offset)



@pytest.mark.parametrize("p", [1e-9, 0.1, 0.3, 0.5, 0.999, 1 - 1e-12])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_dropout_keeps_where_uniform_is_not_below_p(p, dtype):
    x = np.random.default_rng(1).normal(size=5000).astype(dtype)
    kept = uniform(5000, 6, 7).astype(np.float64) >= p
    accumulator = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        scaled = (x.astype(accumulator) * accumulator(1 / (1 - p))).astype(dtype)
    expected = np.where(kept, scaled, dtype.type(0))
    np.testing.assert_array_equal(dropout(x, p=p, seed=6, offset=7), expected)


def test_dropout_at_the_ends():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    x[0, 0] = np.nan
    copied = dropout(x, p=0, seed=1)
    np.testing.assert_array_equal(copied, x)
    assert not np.shares_memory(copied, x)
    zeros = dropout(x, p=1, seed=1)
    assert (zeros == 0).all() and not np.signbit(zeros).any()


def test_dropout_zeroes_what_is_not_finite():
    x = np.tile(np.array([np.nan, np.inf, -np.inf, -1], np.float32), 25)
    y = dropout(x, p=0.5, seed=1)
    kept = uniform(100, 1) >= 0.5
    np.testing.assert_array_equal(y, np.where(kept, 2 * x, 0))
    assert not np.signbit(y[~kept]).any()


def test_backward_has_the_mask_of_forward():
    ones = np.ones(1000, np.float32)
    forward, backward = (dropout(ones, p=0.4, seed=9, offset=3) for _ in range(2))
    np.testing.assert_array_equal(forward, backward)
    assert (dropout(ones, p=0.4, seed=9, offset=4) != forward).mean() > 0.3


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    dtype=st.sampled_from(FLOATING),
    p=st.floats(0, 1),
    shift=st.integers(0, 3),
)
@settings(max_examples=60)
def test_dropout_in_place_and_into_views(shape, dtype, p, shift):
    size = math.prod(shape)
    x = np.arange(-10, size - 10).astype(dtype).reshape(shape)
    expected = dropout(x, p=p, seed=2, offset=1)
    memory = np.full(size + 5, 7, dtype)
    view = memory[shift : shift + size].reshape(shape)
    assert dropout(x, p=p, seed=2, offset=1, out=view) is view
    np.testing.assert_array_equal(view, expected)
    assert (memory[:shift] == 7).all() and (memory[shift + size :] == 7).all()
    assert dropout(x, p=p, seed=2, offset=1, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_dropout_takes_strided_and_read_only_input():
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    for view in (x.T, x[:, ::2], x[::-1]):
        np.testing.assert_array_equal(
            dropout(view, p=0.3, seed=1), dropout(np.ascontiguousarray(view), p=0.3, seed=1)
        )
    expected = dropout(x, p=0.3, seed=1)
    x.flags.writeable = False
    np.testing.assert_array_equal(dropout(x, p=0.3, seed=1), expected)


def test_wrong_dtypes_of_dropout():
    with pytest.raises(TypeError, match=r"dropout: x has .* int64 .*x\.astype\('float32'\)"):
        dropout(np.arange(4), p=0.5, seed=0)
    with pytest.raises(TypeError, match="dropout: out has .* expected dtype float32"):
        dropout(np.empty(4, np.float32), p=0.5, seed=0, out=np.empty(4))


def test_flags_are_kept_for_one_backward_pass_within_bounds():
    from gpunn.primitives.random_reference import _KeepFlags

    flags = _KeepFlags(capacity=100)
    first = flags.take(60, 1, 0, np.uint32(1 << 23))
    assert flags.held == 60 and flags.take(60, 1, 0, np.uint32(1 << 23)) is first
    assert flags.held == 0 and not flags.flags
    np.testing.assert_array_equal(flags.take(60, 1, 0, np.uint32(1 << 23)), first)
    flags.take(60, 2, 0, np.uint32(1 << 23))  # the older one has to go
    assert flags.held == 60 and [key[1] for key in flags.flags] == [2]
    flags.take(101, 3, 0, np.uint32(1 << 23))  # never kept
    assert flags.held == 60
