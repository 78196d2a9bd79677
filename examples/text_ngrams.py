"""The baseline of text.py: how likely a character is, told from how often n-grams came."""

from __future__ import annotations

import numpy as np


class Grams:
    """All n-grams of a text up to a length; those of each length have numbers from 0.

    An n-gram is found by the number of its first n - 1 characters and its last character, so that
    any length fits into whole numbers.

    Attributes
    ----------
    names : of each length the sorted pairs, each as one number
    at : of each length the number of the n-gram that begins at each place of the text
    """

    def __init__(self, numbers: np.ndarray, characters: int, longest: int):
        self.characters, self.names = characters, [np.zeros(1, np.int64)]
        self.at = [np.zeros(len(numbers), np.int64)]  # the one of no characters
        for length in range(1, min(longest, len(numbers)) + 1):
            places = len(numbers) - length + 1
            pairs = self.at[-1][:places] * characters + numbers[length - 1 :]
            names, at = np.unique(pairs, return_inverse=True)
            self.names.append(names)
            self.at.append(at)

    def find(self, numbers: np.ndarray) -> list[np.ndarray]:
        """As `at`, of another text: -1 for n-grams that are none of these."""
        found = [np.zeros(len(numbers), np.int64)]
        for length, names in enumerate(self.names[1 : len(numbers) + 1], 1):
            begin = found[-1][: len(numbers) - length + 1]
            pairs = begin * self.characters + numbers[length - 1 :]
            at = np.minimum(np.searchsorted(names, pairs), len(names) - 1)
            found.append(np.where((begin >= 0) & (names[at] == pairs), at, -1))
        return found


class NGrams:
    """Interpolated Kneser-Ney with three discounts: probabilities from how often n-grams came.

    An n-gram's count, less a discount, is divided by that of its first n - 1 characters; what the
    discounts leave is shared out as the n-grams of n - 1 characters say. Those count in how many
    different characters' company they came, not how often (Chen, Goodman: An empirical study of
    smoothing techniques for language modeling, 1998).
    """

    def __init__(self, grams: Grams, order: int):
        if not 1 <= order < len(grams.at):
            raise ValueError(f"order is {order}; expected 1 to {len(grams.at) - 1}, as of the text")
        self.grams, self.levels = grams, []
        places = np.arange(len(grams.at[order]))  # one for each time that an n-gram counts
        for length in range(order, 0, -1):
            counts = np.bincount(grams.at[length][places], minlength=len(grams.names[length]))
            ones, twos, threes, fours = (max(1, int((counts == n).sum())) for n in (1, 2, 3, 4))
            share = ones / (ones + 2 * twos)
            discounts = np.array([0, 1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos,
                                  3 - 4 * share * fours / threes])  # fmt: skip
            discount = np.clip(discounts, 0, (0, 1, 2, 3))[np.minimum(counts, 3)]
            begins = grams.names[length] // grams.characters
            size = len(grams.names[length - 1])
            total, left = (np.bincount(begins, some, size) for some in (counts, discount))
            self.levels.insert(0, (counts - discount, total, left))
            # A shorter one counts once for each of these that ends in it.
            places = places[np.unique(grams.at[length][places], return_index=True)[1]] + 1

    def probabilities(self, numbers: np.ndarray) -> np.ndarray:
        """Of each character of a text, given those before it."""
        found = np.full(len(numbers), 1 / self.grams.characters)
        known = self.grams.find(numbers)
        for length, (counts, total, left) in enumerate(self.levels[: len(numbers)], 1):
            gram, begin = known[length], known[length - 1][: len(numbers) - length + 1]
            lower = found[length - 1 :]
            whole = np.where(begin >= 0, total[begin], 0)
            count = np.where(gram >= 0, counts[gram], 0)
            mixed = (count + left[begin] * lower) / np.maximum(whole, 1)
            found[length - 1 :] = np.where(whole > 0, mixed, lower)
        return found

    def losses(self, numbers: np.ndarray) -> np.ndarray:
        """-log of the probability of each character behind the first."""
        return -np.log(self.probabilities(numbers)[1:])


def best_order(
    learnt: np.ndarray, checked: np.ndarray, characters: int, longest: int
) -> list[NGrams]:
    """N-grams of all orders from 1 to the one that predicts the validation text best."""
    grams = Grams(learnt, characters, longest)
    tried = [NGrams(grams, order) for order in range(1, len(grams.at))]
    return tried[: 1 + int(np.argmin([one.losses(checked).mean() for one in tried]))]
