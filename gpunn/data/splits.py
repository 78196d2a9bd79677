"""Splitting data at random: by seed alone, without overlap, and by class where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.data.dataset import Subset, gather
from gpunn.device import to_numpy


def permutation(length: int, *key: int) -> np.ndarray:
    """A random order of ``0 … length-1`` that depends only on `length` and the integers `key`.

    The order is that of 64 random bits for each element. The raw bits of PCG64 seeded through
    SeedSequence are fixed by NumPy's compatibility policy, while `Generator.permutation` may change
    between NumPy versions: so a run from last year shuffles alike.
    """
    bits = np.random.PCG64(np.random.SeedSequence([int(part) for part in key]))
    return np.argsort(bits.random_raw(length), kind="stable")


def resolve_seed(seed: Any) -> int:
    """A seed as a non-negative integer, from an integer or a random generator.

    A NumPy Generator gives its next integer; an object with ``initial_seed()`` gives that.
    """
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**63))
    if hasattr(seed, "initial_seed"):
        return int(seed.initial_seed())
    if isinstance(seed, (bool, float)) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed: expected an integer or a generator, got {seed!r}")
    seed = int(seed)
    if seed < 0:
        raise ValueError(f"seed: expected an integer of 0 or more, got {seed}")
    return seed


def random_split(dataset: Any, lengths: Sequence[float], generator: Any = 0) -> list[Subset]:
    """Split `dataset` at random into subsets that do not overlap and together hold every sample.

    Parameters
    ----------
    lengths : integers that add up to ``len(dataset)``, or fractions that add up to 1. With
        fractions each length is rounded down and the samples left over go to the first subsets.
    generator : the seed, or a generator that gives it

    ValueError if the lengths do not add up.
    """
    total = len(dataset)
    sizes = _sizes(lengths, total)
    order = permutation(total, resolve_seed(generator))
    ends = np.cumsum(sizes)
    return [Subset(dataset, order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _sizes(lengths: Sequence[float], total: int) -> list[int]:
    if not lengths or any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must be zero or more, got {list(lengths)}")
    if all(float(length).is_integer() for length in lengths) and sum(lengths) == total:
        return [int(length) for length in lengths]
    if abs(sum(lengths) - 1.0) < 1e-6 and all(length <= 1 for length in lengths):
        sizes = [int(np.floor(total * length + 1e-9)) for length in lengths]
        for left_over in range(total - sum(sizes)):
            sizes[left_over % len(sizes)] += 1
        return sizes
    raise ValueError(
        f"random_split: lengths {list(lengths)} add up to {sum(lengths):g}; they must add up to "
        f"the {total} samples, or to 1 as fractions"
    )


class Split(NamedTuple):
    """Training, validation and test data, each ``(x, y)``."""

    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]


def train_validation_test_split(
    x: Any,
    y: Any,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    stratify: bool = True,
) -> Split:
    """Split arrays into training, validation and test data that do not overlap.

    Parameters
    ----------
    x, y : arrays or Tensors with one row for each sample, in the same order
    fractions : three numbers of zero or more that add up to 1
    seed : the split depends on nothing else
    stratify : keep each class's share in each part, to within one sample; needs integer labels of
        shape (samples,). Pass False for regression.

    Returns
    -------
    ``(x_train, y_train), (x_validation, y_validation), (x_test, y_test)``, of the arrays' own kind

    Raises
    ------
    ValueError for lengths or fractions that do not match, labels that are not classes, or a part
    that would be left empty though its fraction is not zero.
    """
    x, y = raw_array(x), raw_array(y)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"train_validation_test_split: x has shape {x.shape} and y {y.shape}; "
            "they need the same number of rows"
        )
    parts = split_indices(len(x), to_numpy(y) if stratify else None, fractions, seed)
    return Split(*((gather(x, part), gather(y, part)) for part in parts))


def split_indices(
    length: int, labels: np.ndarray | None, fractions: Sequence[float], seed: int
) -> list[np.ndarray]:
    """Sorted, disjoint index arrays, one for each of `fractions`; stratified if there are `labels`.

    Within each class every part gets its exact share rounded down; the samples left over go to the
    parts that are furthest behind their share of all samples so far.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.ndim != 1 or np.any(shares < 0) or abs(shares.sum() - 1.0) > 1e-6:
        raise ValueError(
            f"fractions: expected numbers of zero or more that add up to 1, got {shares.tolist()}"
        )
    groups = [np.arange(length)] if labels is None else _class_groups(labels)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    order_key = resolve_seed(seed)
    assigned, wanted = np.zeros(len(shares)), np.zeros(len(shares))
    for number, group in enumerate(groups):
        exact = len(group) * shares
        wanted += exact
        counts = np.floor(exact + 1e-9).astype(np.int64)
        behind = np.where(shares > 0, wanted - assigned - counts, -np.inf)
        first = np.argsort(-behind, kind="stable")[: len(group) - counts.sum()]
        counts[first] += 1
        assigned += counts
        shuffled = group[permutation(len(group), order_key, number)]
        for part, chunk in zip(parts, np.split(shuffled, np.cumsum(counts)[:-1]), strict=True):
            part.append(chunk)
    result = [np.sort(np.concatenate(part)) if part else np.zeros(0, np.int64) for part in parts]
    for indices, fraction in zip(result, fractions, strict=True):
        if fraction > 0 and not len(indices):
            raise ValueError(
                f"a part with fraction {fraction:g} of {length} samples would be empty; "
                "give more samples or a larger fraction"
            )
    return result


def _class_groups(labels: np.ndarray) -> list[np.ndarray]:
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ValueError(
            f"stratify=True needs integer class labels of shape (samples,); y has dtype "
            f"{labels.dtype} and shape {labels.shape}. Pass stratify=False for regression."
        )
    _, codes = np.unique(labels, return_inverse=True)
    by_class = np.argsort(codes, kind="stable")
    return np.split(by_class, np.cumsum(np.bincount(codes))[:-1])
