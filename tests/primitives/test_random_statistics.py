"""Random numbers as a statistician sees them: distributions and independence.

Every bound is four standard deviations or more of what is tested, and the seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpunn.primitives.random import dropout, random_bits, random_normal, random_uniform

ALL_ONES = (1 << 64) - 1


def bits(size, seed=0, offset=0):
    return random_bits(np.empty(size, np.uint32), seed=seed, offset=offset)


def uniform(size, seed=0, offset=0, dtype=np.float32):
    return random_uniform(np.empty(size, dtype), seed=seed, offset=offset)


def normal(size, seed=0, offset=0, dtype=np.float32):
    return random_normal(np.empty(size, dtype), seed=seed, offset=offset)


N = 1 << 18


def kolmogorov_smirnov(probabilities: np.ndarray) -> float:
    """sqrt(n) times the largest distance from the uniform distribution; above 1.95 in 0.1%."""
    ordered, n = np.sort(probabilities), probabilities.size
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    return math.sqrt(n) * distance


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In units of its standard deviation for independent sequences."""
    return abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(a.size)


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 0), (0, 1), (ALL_ONES, 2**40)])
def test_words_are_even(seed, offset):
    words = bits(N, seed, offset)
    ones = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1).sum(axis=0)
    assert (np.abs(ones - N / 2) < 4.5 * math.sqrt(N / 4)).all()  # each of the 32 bits
    counts = np.bincount(words.view(np.uint8), minlength=256)
    chi = ((counts - N / 64) ** 2 / (N / 64)).sum()  # mean 255, standard deviation 22.6
    assert abs(chi - 255) < 4 * 22.6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 0), (0, 1), (ALL_ONES, 2**40)])
def test_uniform_distribution(dtype, seed, offset):
    u = uniform(N, seed, offset, dtype).astype(np.float64)
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / N)
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / N)
    assert kolmogorov_smirnov(u) < 1.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 0), (0, 1), (ALL_ONES, 2**40)])
def test_normal_distribution(dtype, seed, offset):
    z = normal(N, seed, offset, dtype).astype(np.float64)
    assert abs(z.mean()) < 4 / math.sqrt(N)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / N)
    assert kolmogorov_smirnov(np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in z])) < 1.95
    beyond = np.count_nonzero(np.abs(z) > 4)  # 6.3e-5 of them
    assert abs(beyond - 6.334e-5 * N) < 4.5 * math.sqrt(6.334e-5 * N)


@pytest.mark.parametrize("make", [uniform, normal])
def test_independence(make):
    z = make(N, 1, 1).astype(np.float64)
    for lag in (1, 2, 3, 4, 5, 8, 16, 65536):
        assert correlation(z[:-lag], z[lag:]) < 4.5, f"elements {lag} apart"
    for seed, offset in ((0, 1), (2, 1), (1, 0), (1, 2), (1 + 2**32, 1), (1, 1 + 2**32)):
        other = make(N, seed, offset).astype(np.float64)
        assert correlation(z, other) < 4.5, f"seed {seed}, offset {offset}"
        assert np.count_nonzero(z == other) < 10
    assert correlation(np.abs(z)[:-1], np.abs(z)[1:]) < 4.5


def test_offsets_never_overlap():
    """Not even with each other's blocks: 8 offsets give no run of four words twice."""
    blocks = np.concatenate([bits(40000, 5, offset).reshape(-1, 4) for offset in range(8)])
    rows = np.ascontiguousarray(blocks).view([("", np.uint32)] * 4)
    assert np.unique(rows).size == len(rows)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_dropout_rate_and_mean(p):
    y = dropout(np.ones((512, 512), np.float32), p=p, seed=3)
    kept = np.count_nonzero(y) / y.size
    assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / y.size)
    assert abs(y.mean(dtype=np.float64) - 1) < 4 * math.sqrt(p / (1 - p) / y.size)
    assert np.unique(y).size == 2
