"""What sentiment.py's network is measured beside, and how sure the difference is."""

from __future__ import annotations

import numpy as np
from sentiment_texts import SPLIT_SEED, Texts, words_of

from gpunn.train.metrics import f1_score


def logistic_regression(texts: Texts) -> np.ndarray:
    """The probabilities for the test texts by scikit-learn: TF-IDF of words and pairs of words.

    Strength and weighting of the classes are chosen by macro F1 on the validation texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    count = TfidfVectorizer(tokenizer=words_of, token_pattern=None, lowercase=False,
                            ngram_range=(1, 2), min_df=2, sublinear_tf=True)  # fmt: skip
    x = [
        count.fit_transform(texts.part(0)[0]),
        *(count.transform(texts.part(n)[0]) for n in (1, 2)),
    ]
    best, answer = -1.0, np.zeros(0)
    for strength in (1.0, 3.0, 10.0):
        for weights in (None, "balanced"):
            model = LogisticRegression(C=strength, class_weight=weights, max_iter=300, tol=1e-3)
            model.fit(x[0], texts.part(0)[1])
            score = f1_score(model.predict_proba(x[1]), texts.part(1)[1], average="macro")
            if score > best:
                best, answer = score, model.predict_proba(x[2])
    return answer


def difference(
    found: np.ndarray, other: np.ndarray, true: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """The 95 % interval of the difference in macro F1, by 500 bootstrap samples.

    Whole groups are drawn: texts that say the same are right or wrong together, so they count as
    one observation.
    """
    rng, gaps = np.random.default_rng(SPLIT_SEED), []
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for _ in range(500):
        drawn = np.concatenate([members[n] for n in rng.integers(len(members), size=len(members))])
        one, two = (
            f1_score(answer[drawn], true[drawn], average="macro") for answer in (found, other)
        )
        gaps.append(one - two)
    low, high = np.quantile(gaps, (0.025, 0.975))
    return float(low), float(high)
