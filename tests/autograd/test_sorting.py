"""sort, argsort, topk, unique, bincount: values, ties, NaN, gradients, wrong input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpunn as g


def cpu(value, **options):
    return g.tensor(value, device="cpu", **options)


@given(
    array=hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
                     elements=st.integers(-3, 3)),
    descending=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_sort_is_stable_along_any_dim(array, descending, data):
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    values, indices = cpu(array).sort(dim, descending)
    expected = np.argsort(-array if descending else array, axis=dim, kind="stable")
    np.testing.assert_array_equal(indices.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(array, expected, dim))
    np.testing.assert_array_equal(g.argsort(cpu(array), dim, descending).numpy(), expected)


def test_nan_is_the_largest_and_16_bits_are_sorted():
    x = cpu([1.0, float("nan"), -2.0], dtype=g.bfloat16)
    assert x.sort().indices.tolist() == [2, 0, 1]
    assert x.sort(descending=True).indices.tolist() == [1, 0, 2]
    assert x.sort().values.dtype == g.bfloat16
    assert g.sort(cpu(3.0)).values.item() == 3 and g.argsort(cpu(3.0)).item() == 0


def test_gradients_go_back_to_their_places():
    x = cpu([[3.0, 1.0, 2.0]], requires_grad=True)
    (x.sort(1).values * cpu([[1.0, 10.0, 100.0]])).sum().backward()
    assert x.grad.tolist() == [[100, 1, 10]]
    x.grad = None
    values, indices = g.topk(x, 2)
    (values * cpu([[1.0, 10.0]])).sum().backward()
    assert indices.tolist() == [[0, 2]] and x.grad.tolist() == [[1, 0, 10]]


def test_topk_of_the_smallest_and_along_another_dim():
    x = cpu(np.arange(6.0).reshape(2, 3)[:, ::-1])
    assert x.topk(1, dim=0, largest=False).values.tolist() == [[2, 1, 0]]
    assert x.topk(0).values.shape == (2, 0)
    with pytest.raises(ValueError, match=r"topk: k is 4; expected 0 to 3, the size of dim 1"):
        x.topk(4)


def test_unique_and_bincount():
    assert cpu([3, 1, 3]).unique().tolist() == [1, 3]
    assert g.unique(cpu([[2.0, 2.0]], dtype=g.bfloat16)).dtype == g.bfloat16
    assert g.bincount(cpu([0, 1, 1]), minlength=4).tolist() == [1, 2, 0, 0]
    assert cpu([0, 1, 1]).bincount(cpu([0.5, 1.0, 2.0])).tolist() == [0.5, 3.0]
    with pytest.raises(TypeError, match="bincount: input has dtype float32; expected integers"):
        g.bincount(cpu([0.5]))
    with pytest.raises(ValueError, match="no negative numbers"):
        g.bincount(cpu([-1]))
