"""Indexing against NumPy, and the deterministic scatter of its gradient."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpunn.autograd as g
from gpunn.autograd.functions import indexing
from gpunn.autograd.functions.loss import nll_loss

shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_basic_indices_are_views_with_exact_gradients(data):
    shape = data.draw(shapes)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = g.tensor(array, device="cpu", requires_grad=True)
    y = x[key]
    np.testing.assert_array_equal(y.detach().numpy(), array[key])
    (y * y).sum().backward()
    expected = np.zeros(shape)
    expected[key] = 2 * array[key]
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_integer_indices_add_up_where_they_repeat(data):
    shape = data.draw(shapes)
    key = data.draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_side=4)))
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = g.tensor(array, device="cpu", requires_grad=True)
    y = x[tuple(g.tensor(part, device="cpu") for part in key)]
    np.testing.assert_array_equal(y.detach().numpy(), array[key])
    weights = np.random.default_rng(0).integers(0, 9, y.shape).astype(np.float64)
    y.backward(g.tensor(weights, device="cpu"))
    expected = np.zeros(shape)
    np.add.at(expected, key, weights)
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_scatter_of_a_gpu_agrees_with_add_at(data):
    shape = data.draw(shapes)
    key = data.draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_side=6)))
    if data.draw(st.booleans()):
        key = key[0]
    values = np.random.default_rng(1).integers(-9, 9, np.zeros(shape)[key].shape).astype("float64")
    expected, found = np.ones(shape), np.ones(shape)
    np.add.at(expected, key, values)
    indexing.scatter_rows(np, found, key, values, most=data.draw(st.sampled_from([2, 2**30 - 1])))
    np.testing.assert_array_equal(found, expected)


def test_the_scatter_of_a_gpu_with_slices_masks_and_many_repeats():
    rng = np.random.default_rng(2)
    values = rng.integers(-9, 9, (1000, 3)).astype(np.float64)
    key = rng.integers(0, 2, 1000)
    expected, found = np.zeros((4, 3)), np.zeros((4, 3))
    np.add.at(expected, key, values)
    indexing.scatter_rows(np, found, key, values)
    np.testing.assert_array_equal(found, expected)
    key = (slice(1, 3), np.array([0, 0, 2]))
    values = rng.integers(-9, 9, (2, 3)).astype(np.float64)
    expected, found = np.zeros((4, 3)), np.zeros((4, 3))
    np.add.at(expected, key, values)
    indexing.scatter_rows(np, found, key, values)
    np.testing.assert_array_equal(found, expected)
    low = np.zeros(2, g.bfloat16)  # 300 ones in bfloat16 would stop at 256 if added one by one
    indexing.scatter_add(low, np.zeros(300, np.int64), np.ones(300, g.bfloat16))
    assert float(low[0]) == 300 and float(low[1]) == 0


def test_masks_lists_and_mixed_keys():
    array = np.arange(12.0).reshape(3, 4)
    x = g.tensor(array, device="cpu")
    for key in (
        array > 5,
        [2, 0],
        (slice(None), [1, 1]),
        (Ellipsis, None, 0),
        ([True, False, True],),
        np.int64(1),
        (1, np.array([0, 3])),
        [[0, 1], [2, 2]],
    ):
        expected = array[tuple(key) if isinstance(key, tuple) else key]
        np.testing.assert_array_equal(x[key].numpy(), expected)
    np.testing.assert_array_equal(x[x > 5].numpy(), array[array > 5])
    assert x[g.tensor(1, device="cpu")].tolist() == [4, 5, 6, 7]
    assert x[g.tensor(1, device="cpu") :].shape == (2, 4)
    assert x.index_select(1, g.tensor([3, 0], device="cpu")).tolist() == [[3, 0], [7, 4], [11, 8]]


def test_assignment():
    x = g.zeros(3, 4, device="cpu")
    x[0] = g.arange(4, device="cpu")
    x[1:, ::2] = 5
    x[x == 5] = -1.0
    x[[0, 2], [1, 3]] = np.array([7, 8])
    assert x.tolist() == [[0, 7, 2, 3], [-1, 0, -1, 0], [-1, 0, -1, 8]]
    w = g.tensor([1.0, 2.0], device="cpu", requires_grad=True)
    x[1, :2] = w * 3
    x[2] = w[0]
    x.sum().backward()
    assert w.grad.tolist() == [3 + 4, 3]
    with pytest.raises(IndexError, match="setitem"):
        x.detach()[7] = 1
    with pytest.raises(ValueError):
        x.detach()[0] = g.ones(3, device="cpu")


def test_what_a_gpu_does_not_look_at_has_no_effect_or_is_nan():
    labels = g.tensor(np.array([0, 5, -1]), device="emulator")
    assert g.one_hot(labels, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    scores = g.tensor(np.zeros((3, 2), np.float32), device="emulator", requires_grad=True)
    loss = nll_loss(scores, labels, reduction="none", ignore_index=-1)
    np.testing.assert_array_equal(loss.detach().numpy(), [0, np.nan, 0])
    with pytest.raises(ValueError, match="labels from -1 to 5; expected 0 to 1"):
        nll_loss(scores.cpu(), labels.cpu())


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_numbers_are_written_through_masks(device):
    array = np.arange(12.0).reshape(3, 4)
    x = g.tensor(array.copy(), device=device)
    x[x > 7] = -1.5
    x[g.tensor([True, False, False], device=device)] = 9
    expected = np.where(array > 7, -1.5, array)
    expected[0] = 9
    np.testing.assert_array_equal(x.numpy(), expected)
    whole = g.tensor(np.arange(4), device=device)
    whole[whole > 1] = 0.7
    assert whole.tolist() == [0, 1, 0, 0]
    with pytest.raises(IndexError, match=r"a mask of shape \(2,\) does not fit its first 1"):
        x[g.tensor([True, False], device=device)] = 0
