"""Cross-entropy: parity samples and benchmark inputs; the specification is in `cross_entropy`.

The samples of the backward call need results of the forward one; `cross_entropy` makes them.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.samples import BFLOAT16, FLOAT32, FLOAT64, FLOATING


def _labels(rng, rows: int, classes: int, ignored: int | None = None, dtype=np.int64):
    """Random labels; every third of them `ignored`, if that is given."""
    labels = rng.integers(0, classes, rows).astype(dtype)
    if ignored is not None:
        labels[::3] = ignored
    return labels


def _probabilities(rng, rows: int, classes: int):
    """Rows that sum to one, but for a few that do not, with some zeros."""
    odds = rng.random((rows, classes)) * (rng.random((rows, classes)) < 0.8)
    odds[::4] *= 2
    return odds / classes


def cases(rng):
    """(name, logits, target, options, dtypes, whether Numba's simulator is quick enough)."""
    f32, two, every = (FLOAT32,), (FLOAT32, FLOAT64), FLOATING

    def logits(*shape):
        return 3 * rng.normal(size=shape)

    yield "one row of one class", logits(1, 1), np.array([0]), {}, f32, True
    yield "no rows", np.zeros((0, 3)), np.zeros(0, np.int64), {}, f32, True
    yield "no rows, probabilities", np.zeros((0, 3)), np.zeros((0, 3)), {}, f32, True
    yield "7x3", logits(7, 3), _labels(rng, 7, 3, dtype=np.int32), {}, every, True
    yield "5x37 of a view", logits(5, 74)[:, ::2], _labels(rng, 10, 37)[::2], {}, every, True
    weight, smooth = {"weight": rng.uniform(0.2, 3, 13)}, {"label_smoothing": 0.1}
    ignored = {"ignore_index": 4}
    both = _labels(rng, 9, 13, 4)
    yield "weight", logits(9, 13), _labels(rng, 9, 13), weight, every, True
    yield "ignored", logits(9, 13), _labels(rng, 9, 13, -100, np.int32), {}, two, True
    yield "weight, ignored", logits(9, 13), both, weight | ignored, two, True
    yield "smoothing", logits(9, 13), _labels(rng, 9, 13), smooth, every, True
    yield "smoothing, ignored", logits(9, 13), both, smooth | ignored, f32, True
    yield "smoothing, weight", logits(9, 13), both, smooth | ignored | weight, two, True
    yield "smoothing 1", logits(9, 13), _labels(rng, 9, 13), {"label_smoothing": 1.0}, f32, True
    far = {"ignore_index": -(2**40)}
    yield "all ignored", logits(4, 5), np.full(4, -(2**40)), far, f32, True
    yield "probabilities", logits(9, 13), _probabilities(rng, 9, 13), {}, every, True
    mixed = _probabilities(rng, 9, 13)
    yield "probabilities, all", logits(9, 13), mixed, smooth | weight, two, True
    yield from _extremes(rng)
    # Rows of a warp, rows of a block, more rows than groups; odd lengths break the alignment.
    yield "6x1021", logits(6, 1021), _labels(rng, 6, 1021, -100), {}, every, False
    yield "3x4999", logits(3, 4999), _labels(rng, 3, 4999, 7), {"ignore_index": 7}, every, False
    wide = {"label_smoothing": 0.2, "weight": rng.uniform(0.2, 3, 4999)}
    yield "3x4999, all", logits(3, 4999), _labels(rng, 3, 4999), wide, two, False
    yield "3x4100, probabilities", logits(3, 4100), _probabilities(rng, 3, 4100), smooth, two, False
    yield "5000x10", logits(5000, 10), _labels(rng, 5000, 10, -100), {}, two, False
    yield "50x1200", logits(50, 1200), _labels(rng, 50, 1200), {}, f32, False
    # One for each size of a cluster, on a chip that has them.
    for rows, classes in ((3, 9001), (2, 17003), (1, 36000), (1, 72000)):
        size = f"{rows}x{classes}"
        yield size, logits(rows, classes), _labels(rng, rows, classes), {}, every, False
        one = _labels(rng, rows, classes)
        yield f"{size}, smoothing", logits(rows, classes), one, smooth, every, False
        odds = _probabilities(rng, rows, classes)
        yield f"{size}, probabilities", logits(rows, classes), odds, {}, every, False
    wide = {"label_smoothing": 0.2, "weight": rng.uniform(0.2, 3, 17003), "ignore_index": 7}
    yield "3x17003, all", logits(3, 17003), _labels(rng, 3, 17003, 7), wide, two, False
    # As in a language model.
    yield "8x50257", logits(8, 50257), _labels(rng, 8, 50257), {}, (BFLOAT16, FLOAT32), False


def _extremes(rng):
    """Logits where a careless softmax overflows, and where infinity and NaN have a meaning."""
    two = (FLOAT32, FLOAT64)
    large = np.array([[6e4, -6e4, 0], [-6e4, -5.9e4, -6e4], [3e4, 3e4, 3e4], [0, 1e-30, 88]])
    yield "large", large, np.array([0, 1, 2, 1]), {}, FLOATING, True
    inf = np.inf
    masked = np.array([[-inf, 1, 2, -inf], [-inf, -inf, 3, -inf], [1, -inf, 1, 1], [-inf] * 4])
    yield "masked", masked, np.array([1, 2, 1, 0]), {}, two, True
    shares = np.array([[0, 0.5, 0.5, 0], [0, 0, 1, 0], [0.2, 0, 0.4, 0.4], [0, 1, 0, 0]])
    yield "masked, probabilities", masked, shares, {}, two, True
    yield "masked, smoothing", masked, np.array([1, 2, 1, 0]), {"label_smoothing": 0.1}, two, True
    # Labels of a masked class that weighs nothing.
    unweighted = {"weight": np.array([0.0, 1.0, 2.0, 0.5])}
    labels, masked_out = np.array([0, 2, 0, 2]), masked.copy()
    masked_out[2:, 0] = (0, -inf)
    masked_out[3, 2] = 3
    yield "masked, weight 0", masked_out, labels, unweighted, two, True
    smooth = unweighted | {"label_smoothing": 0.1}
    whole = np.where(np.arange(4) == 0, masked_out, 1.5)
    yield "masked, weight 0, smoothing", whole, labels, smooth, two, True
    wrong = np.array([[inf, 0, 1], [np.nan, 0, 1], [0, 1, 2], [np.nan, inf, 0]])
    yield "not numbers", wrong, np.array([0, 1, 2, -100]), {}, two, True
    yield "not numbers, probabilities", wrong, np.full((4, 3), 1 / 3), {}, two, True


def reductions(number: int) -> tuple[str, str]:
    """Mean everywhere, the others in turn: each meets each option in some sample."""
    return ("mean", ("sum", "none")[number % 2])


# ---- benchmark inputs ----------------------------------------------------------------------------

# The usual size, and rows from 1 to 10^6 long: a thread, a part of a warp, a block, a cluster.
BENCH_SHAPES = (
    (8192, 32768), (1 << 22, 1), (1 << 20, 10), (1 << 17, 128), (65536, 1000), (8192, 8192),
    (4096, 128256), (32, 1_000_000),
)  # fmt: skip


def forward_inputs(rng, shape):
    """Random logits and labels."""
    return (rng.standard_normal(shape, np.float32), rng.integers(0, shape[1], shape[0])), {}


def backward_inputs(rng, shape):
    """Random logits and labels with their normalizers and the gradient 1."""
    (logits, target), _ = forward_inputs(rng, shape)
    normalizer = np.empty(shape[0], np.float32)
    step = max(1, (1 << 20) // shape[1])
    for start in range(0, shape[0], step):
        normalizer[start : start + step] = np.log(np.exp(logits[start : start + step]).sum(axis=1))
    grad, total_weight = np.array(1, np.float32), np.array(shape[0], np.float32)
    return (grad, logits, target, normalizer, total_weight), {}
