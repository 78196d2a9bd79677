"""Splits: complete, disjoint, stratified, and decided by the seed alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.data import TensorDataset, random_split, split_indices, train_validation_test_split
from gpunn.data.splits import permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 9))
def test_permutation_is_one_and_repeats(length, seed, epoch):
    order = permutation(length, seed, epoch)
    assert sorted(order.tolist()) == list(range(length))
    assert np.array_equal(order, permutation(length, seed, epoch))


def test_permutation_is_fixed_for_ever():
    # Written down once: another NumPy, another machine must shuffle alike.
    assert permutation(10, 0, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert not np.array_equal(permutation(50, 0, 0), permutation(50, 0, 1))
    assert not np.array_equal(permutation(50, 0, 0), permutation(50, 1, 0))


def test_permutation_is_uniform():
    first = [permutation(4, seed)[0] for seed in range(2000)]
    assert np.all(np.abs(np.bincount(first, minlength=4) - 500) < 90)  # 4.6 standard deviations


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.integers(-2, 4), min_size=30, max_size=200),
    cut=st.tuples(st.floats(0.1, 0.4), st.floats(0.1, 0.4)),
    seed=st.integers(0, 1000),
)
def test_stratified_split_keeps_shares(labels, cut, seed):
    labels = np.array(labels)
    fractions = (1 - sum(cut), *cut)
    parts = split_indices(len(labels), labels, fractions, seed)
    together = np.concatenate(parts)
    assert sorted(together.tolist()) == list(range(len(labels)))
    for label in np.unique(labels):
        for part, fraction in zip(parts, fractions, strict=True):
            exact = fraction * np.sum(labels == label)
            assert abs(np.sum(labels[part] == label) - exact) < 1 + 1e-6
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(labels)) < 2


def test_split_of_arrays_matches_rows():
    x, y = np.arange(100.0)[:, None], np.repeat(np.arange(4), 25)
    (xt, yt), (xv, yv), (xe, ye) = train_validation_test_split(x, y, (0.6, 0.2, 0.2), seed=3)
    assert (len(xt), len(xv), len(xe)) == (60, 20, 20)
    assert np.bincount(yt).tolist() == [15] * 4 and np.bincount(ye).tolist() == [5] * 4
    for part_x, part_y in ((xt, yt), (xv, yv), (xe, ye)):
        assert np.array_equal(part_x[:, 0] // 25, part_y)
    again = train_validation_test_split(x, y, (0.6, 0.2, 0.2), seed=3)
    other = train_validation_test_split(x, y, (0.6, 0.2, 0.2), seed=4)
    assert np.array_equal(again.train[0], xt) and not np.array_equal(other.train[0], xt)


def test_split_of_regression_data():
    y = np.linspace(0, 1, 50)
    with pytest.raises(ValueError, match="stratify=False"):
        train_validation_test_split(y[:, None], y)
    split = train_validation_test_split(y[:, None], y, stratify=False)
    assert [len(part[1]) for part in split] == [35, 8, 7]


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ((0.5, 0.2, 0.2), "add up to 1"),
        ((1.2, -0.1, -0.1), "zero or more"),
        ((0.98, 0.01, 0.01), "would be empty"),
    ],
)
def test_split_refuses_fractions(fractions, words):
    with pytest.raises(ValueError, match=words):
        train_validation_test_split(np.zeros((9, 1)), np.zeros(9, int), fractions)


def test_split_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="same number of rows"):
        train_validation_test_split(np.zeros((9, 1)), np.zeros(8, int))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_random_split_by_fractions(length, weights, seed):
    fractions = [weight / sum(weights) for weight in weights]
    parts = random_split(TensorDataset(np.arange(length)), fractions, seed)
    indices = np.concatenate([part.indices for part in parts])
    assert sorted(indices.tolist()) == list(range(length))
    for part, fraction in zip(parts, fractions, strict=True):
        assert fraction * length - 1 <= len(part) <= fraction * length + 2


def test_random_split_by_lengths():
    dataset = TensorDataset(np.arange(10))
    parts = random_split(dataset, [7, 2, 1], 5)
    assert [len(part) for part in parts] == [7, 2, 1]
    same = random_split(dataset, [7, 2, 1], np.random.default_rng(1))
    again = random_split(dataset, [7, 2, 1], np.random.default_rng(1))
    assert np.array_equal(same[0].indices, again[0].indices)
    for lengths in ([7, 2], [0.5, 0.4], [11, -1]):
        with pytest.raises(ValueError, match="add up|zero or more"):
            random_split(dataset, lengths)
    for seed in (1.5, "a", True):
        with pytest.raises(TypeError, match="seed"):
            random_split(dataset, [10], seed)
    with pytest.raises(ValueError, match="seed"):
        random_split(dataset, [10], -1)
