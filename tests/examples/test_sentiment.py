"""The sentiment example: its split, its network's padding, its figures against scikit-learn's."""

import sys

import numpy as np
import pytest
from sklearn.metrics import f1_score

import gpunn
from gpunn import data
from gpunn.train import find_job
from gpunn.train.run import Run

JOB = find_job("sentiment")
example = sys.modules[JOB.config.__module__]
texts_of, baseline = sys.modules["sentiment_texts"], sys.modules["sentiment_baseline"]


def test_texts_that_say_the_same_are_on_one_side():
    texts = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)} flies" for n in range(400)]
    again = [f"RT @user{n}: {text.upper()}!! http://t.co/x{n}" for n, text in enumerate(texts[:90])]
    labels = np.arange(490) % 3
    groups = texts_of.groups_of(texts + again)
    assert np.bincount(groups).tolist() == [2] * 90 + [1] * 310
    assert groups[400:].tolist() == groups[:90].tolist()
    parts = texts_of.split(groups, labels)
    assert sorted(np.concatenate(parts)) == list(range(490))
    sides = [set(groups[part]) for part in parts]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert [len(side) for side in sides] == pytest.approx([280, 40, 80], abs=1)
    assert texts_of.gist(again[3]) == texts_of.gist(texts[3]) == ["wordda", "flies"]


def test_a_retweet_that_is_cut_off_is_with_its_tweet():
    texts = [
        "one two three four five six seven eight nine ten",
        "only seven: two three four five six seven eight",
        "RT @me: Well! Two three four five six seven eight nine te…",
        "ten eleven",
        "a b c d e f g five six seven eight nine ten p q r",
        "nine ten p q r s t u v a b c d e f g five",
        "a b c d e f g five x; nine ten p q r s t u",
    ]
    assert texts_of.groups_of(texts).tolist() == [0, 1, 0, 2, 3, 3, 3]


def test_no_tweet_has_its_like_in_another_part():
    texts = texts_of.load("", 2000)
    sides = [
        {" ".join(texts_of.gist(text)) for text in texts.part(number)[0]} for number in range(3)
    ]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert texts.repeated > 50 and sum(map(len, texts.parts)) == 2000


def test_the_words_it_reads():
    text = "I&#39;m 25 &amp; can’t<br />WAIT: https://t.co/Ab1 @me"
    assert texts_of.words_of(text) == ["i'm", "00", "&", "can't", "wait", ":", "http", "@me"]


def test_padding_changes_nothing():
    gpunn.manual_seed(0)
    model = example.Reader(30, 3, JOB.configure(embedding=5, hidden=4)).eval()
    for parameter in (model.wide.words.weight, model.wide.pairs.weight):
        gpunn.nn.init.normal_(parameter)
    numbers = np.random.default_rng(0).integers(1, 30, (3, 6))
    lengths = np.array([6, 2, 1])
    padded = np.where(np.arange(9) < lengths[:, None], np.pad(numbers, ((0, 0), (0, 3))), 0)
    with gpunn.no_grad():
        together = model(gpunn.tensor(padded), gpunn.tensor(lengths)).numpy()
        weights = model.attention(gpunn.tensor(padded), gpunn.tensor(lengths)).numpy()
        for row, length in enumerate(lengths):
            alone = model(gpunn.tensor(numbers[row : row + 1, :length]), gpunn.tensor([length]))
            np.testing.assert_allclose(together[row], alone.numpy()[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert (weights[np.arange(9) >= lengths[:, None]] == 0).all()


def test_the_wide_part_adds_a_number_for_each_word_and_pair():
    wide = example.Wide(30, 3, gpunn.nn.Dropout(0.0))
    words = np.array([[5, 7, 9, 0]])
    for parameter in (wide.words.weight, wide.pairs.weight):
        gpunn.nn.init.normal_(parameter)
    said, pairs = (w.weight.detach().numpy().astype(np.float64) for w in (wide.words, wide.pairs))
    places = [(a * 40503 + b * 2654435) % 2**16 for a, b in ((5, 7), (7, 9))]
    expected = 3 * (said[[5, 7, 9]].sum(0) + pairs[places].sum(0)) / np.sqrt(3)
    inside = example.inside_of(gpunn.tensor(words), gpunn.tensor([3]))
    found = wide(gpunn.tensor(words), inside).detach().numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_figures_against_scikit_learn():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, 300)
    good, bad = rng.random((300, 3)), rng.random((300, 3))
    good[np.arange(300), true] += 0.6
    low, high = baseline.difference(good, bad, true, np.arange(300))
    gap = f1_score(true, good.argmax(1), average="macro") - f1_score(
        true, bad.argmax(1), average="macro"
    )
    assert 0 < low < gap < high
    two = baseline.difference(good, bad, true, np.arange(300) // 150)
    halves = [
        f1_score(true[half], good[half].argmax(1), average="macro")
        - f1_score(true[half], bad[half].argmax(1), average="macro")
        for half in (slice(150), slice(150, 300))
    ]
    np.testing.assert_allclose(two, sorted(halves))  # of two groups often one is drawn twice
    low, high = baseline.difference(bad, bad, true, np.arange(300))
    assert low == high == 0
    weights = example.class_weights(np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(weights, [4 / 6, 4 / 2])


def test_reviews_from_a_folder(tmp_path):
    for split in ("train", "test"):
        for kind, star, word in (("neg", 2, "awful"), ("pos", 9, "lovely")):
            (tmp_path / split / kind).mkdir(parents=True)
            for n in range(20):
                text = f"{word} film number {n}<br />{word}!"
                (tmp_path / split / kind / f"{n}_{star}.txt").write_text(text)
    config = JOB.configure(folder=str(tmp_path), epochs=3, batch_size=4, embedding=8, hidden=8,
                           device="cpu", words=8, learning_rate=0.03)  # fmt: skip
    run = Run(JOB, config, tmp_path, False)
    run.figure = lambda name, draw: None
    JOB.train(run)
    outcome = JOB.evaluate(run)
    assert outcome.samples == 40 and outcome.what == "reviews"
    assert outcome.value == outcome.baselines["logistic regression on words and pairs"] == 1
    assert outcome.baselines["most frequent class"] == pytest.approx(1 / 3)
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbfLovely film number 30!\r\n\r\nawful film number 7\r\n")
    rows = list(JOB.predict(run, str(file)))
    assert [(row["text"], row["class"]) for row in rows] == [
        ("Lovely film number 30!", "positive"),
        ("awful film number 7", "negative"),
    ]
    assert rows[0]["positive"] + rows[0]["negative"] == pytest.approx(1)
    with pytest.raises(ValueError, match="no text"):
        list(JOB.predict(run, " "))
    with pytest.raises(ValueError, match="is a folder"):
        list(JOB.predict(run, str(tmp_path)))
    assert data.IMDB_CLASSES == ("negative", "positive")
