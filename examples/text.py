"""Text, written character by character by a GPT or an LSTM that has read Python's documentation.

The data are the texts of Python's own help(), 373,000 characters of English prose and code once
what they say twice is left out, or a text file of your own. The first 80 % are learnt, the next
10 % validate, and the last 10 % are held out: on them the network tells how likely it held each
character, and so does a strong baseline, a Kneser-Ney n-gram model of the same training text.

What is reported is the perplexity of a character: 3.5 means that the model is as uncertain as if
it had to guess among 3.5 equally likely characters, so lower is better. Texts of a few hundred
thousand characters are the home ground of n-grams, and two minutes on a CPU are little for a
network: where the n-gram model wins, the outcome says so. With a GPU, train a larger model longer:

    gpunn train text                                   # a GPT; about two minutes on a CPU
    gpunn train text --set model=lstm
    gpunn train text --set file=book.txt --set width=384 --set layers=6 --set heads=6 \
        --set context=256 --set dropout=0.2 --batch-size 64 --epochs 30 --learning-rate 1e-3
    gpunn predict RUN_FOLDER "The import statement"    # goes on with it, character by character
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from text_ngrams import best_order
from text_pictures import context_picture, learning_picture, next_picture

import gpunn
import gpunn.nn.functional as F
from gpunn import data, models, nn, optim
from gpunn.train import History, Job, Outcome, Run, Trainer, check, device_setting, setting

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
TEMPERATURES = (0.5, 0.8, 1.0)
UNKNOWN = "<unk>"  # stands for characters that training knows from one place or from none
# What is best within two minutes on a CPU: little, but often.
SIZES = {
    "gpt": {"width": 128, "layers": 2, "context": 64, "batch_size": 8, "epochs": 5,
            "learning_rate": 5e-3, "dropout": 0.0},
    "lstm": {"width": 256, "layers": 1, "context": 64, "batch_size": 16, "epochs": 8,
             "learning_rate": 7e-3, "dropout": 0.1},
}  # fmt: skip


def by_model(name: str, meaning: str, **limits: Any) -> Any:
    """A setting whose default depends on the model."""
    values = {kind: sizes[name] for kind, sizes in SIZES.items()}
    unset = ", ".join(f"{value:g} for {kind}" for kind, value in values.items())
    return setting(None, meaning, unset=unset, **limits)


@dataclass(frozen=True)
class Config:
    """All that decides a run."""

    seed: int = setting(0, "seed of the initial weights, of the order and the dropout", low=0)
    device: str = device_setting()
    model: str = setting("gpt", "attention or recurrence", choices=tuple(SIZES))
    file: str | None = setting(None, "a text file of your own, UTF-8",
        unset="the documentation that comes with Python")  # fmt: skip
    width: int | None = by_model("width", "numbers that stand for a character in each layer", low=1)
    layers: int | None = by_model("layers", "layers on top of each other", low=1)
    heads: int = setting(4, "heads of attention in each layer of a GPT; divides the width", low=1)
    context: int | None = by_model("context", "characters that are seen together in training",
        low=2)  # fmt: skip
    epochs: int | None = by_model("epochs", "times that the text is read", low=1)
    batch_size: int | None = by_model("batch_size", "pieces of text of a training step", low=1)
    learning_rate: float | None = by_model("learning_rate", "its peak, after a short rise", above=0)
    dropout: float | None = by_model("dropout", "share of values left out while training", low=0,
        below=1)  # fmt: skip
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0)
    precision: str = setting("fp32", "of products, as of the Trainer", choices=PRECISIONS)
    limit: int | None = setting(None, "use only so many characters, for a quick look", low=1000,
        unset="all of them")  # fmt: skip
    order: int = setting(14, "longest n-grams that the baseline may try", low=1)
    prompt: str = setting("The ", "what the samples begin with")
    length: int = setting(500, "characters of a sample, and of a prediction", low=1)
    temperature: float = setting(0.8, "of a prediction: below 1 bolder in what is likely, 0 always "
        "the likeliest", low=0)  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together, for `check`."""
        width = self.width or SIZES[self.model]["width"]
        if self.model == "gpt" and width % self.heads:
            yield "heads", f"the width, {width}, is not a multiple of {self.heads} heads"

    def sized(self) -> Config:
        """The same with every size said."""
        own = SIZES[self.model].items()
        return replace(self, **{name: value for name, value in own if getattr(self, name) is None})


# ---- the data ----------------------------------------------------------------------------------


def read(config: Config) -> list[str]:
    """The text for training, for validation and for the test: one behind the other."""
    own = os.path.expanduser(config.file or "")
    text = data.read_text(own) if own else data.load_python_documentation()
    text = text[: config.limit]
    cuts = [0, int(0.8 * len(text)), int(0.9 * len(text)), len(text)]
    parts = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    if len(parts[1]) <= config.context:
        raise ValueError(
            f"the text has {len(text):,} characters; for pieces of {config.context} it takes at "
            f"least {10 * config.context + 10:,}: choose a smaller context or a longer text"
        )
    return parts


def pieces(numbers: np.ndarray, length: int, step: int) -> np.ndarray:
    """(n, length) pieces of a text that begin `step` characters apart; views, nothing is copied."""
    return np.lib.stride_tricks.sliding_window_view(numbers, length)[::step]


def cut(fields: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Half of each piece, from another place in every batch: characters, and those that follow."""
    (rows,) = fields
    length = rows.shape[1] // 2
    start = int(rng.integers(length))
    return rows[:, start : start + length], rows[:, start + 1 : start + length + 1]


# ---- the networks ------------------------------------------------------------------------------


def network(config: Config, characters: int) -> nn.Module:
    """A model of the next character among so many."""
    if config.model == "gpt":
        sizes = (config.context, config.layers, config.heads, config.width, config.dropout)
        return models.GPT(models.GPTConfig(characters, *sizes))
    embedding = min(64, config.width)  # a hundred characters need no more
    model = models.LSTMLanguageModel(
        characters, embedding, config.width, config.layers, config.dropout, tie_weights=False
    )
    nn.init.normal_(model.embedding.weight)
    return model


class Logits(nn.Module):
    """What is trained: the model without the state that an LSTM hands on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, characters: gpunn.Tensor) -> gpunn.Tensor:
        """(B, T) characters -> (B, T, vocabulary) logits of those that follow."""
        out = self.model(characters)
        return out[0] if isinstance(out, tuple) else out


def next_character_loss(logits: gpunn.Tensor, following: gpunn.Tensor) -> gpunn.Tensor:
    """The mean cross-entropy over all places of all pieces."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), following.reshape(-1))


def train(run: Run) -> None:
    """Train on pieces of the text that are cut elsewhere in every epoch."""
    config = run.config.sized()
    texts = read(config)
    vocabulary = data.Vocabulary.of([texts[0]], at_least=2, special=(UNKNOWN,))
    learnt, checked, _ = (vocabulary.encode(text) for text in texts)
    train_pieces = pieces(learnt, 2 * config.context, config.context)
    rows = pieces(checked, config.context + 1, config.context)

    model = network(config, len(vocabulary))
    size = sum(parameter.numel() for parameter in model.parameters())
    steps = config.epochs * math.ceil(len(train_pieces) / config.batch_size)
    run.say(f"  model       {config.model}, {size:,} parameters; {steps:,} steps")
    trainer = Trainer(
        Logits(model),
        next_character_loss,
        lambda parameters: optim.AdamW(
            parameters, config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay
        ),
        metrics=["perplexity"],
        device=run.device,
        gradient_clip_norm=1.0,
        scheduler=lambda optimizer: optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            steps,
            pct_start=0.05,
            anneal_strategy="linear",
            cycle_momentum=False,
        ),
        seed=config.seed,
        precision=config.precision,
    )
    run.fit(
        trainer, train_pieces, (rows[:, :-1], rows[:, 1:]), epochs=config.epochs,
        batch_size=config.batch_size, transform=cut,
    )  # fmt: skip
    vocabulary.save(run.folder / "vocabulary.json")
    run.save("text", {"sha256": digest(texts)})
    run.save("model", model)


def digest(texts: list[str]) -> np.ndarray:
    """By which it is known whether a text is still that of the training."""
    return np.frombuffer(hashlib.sha256("\0".join(texts).encode()).digest(), np.uint8)


# ---- measuring ---------------------------------------------------------------------------------


def losses(model: nn.Module, config: Config, numbers: np.ndarray, batch: int = 32) -> np.ndarray:
    """-log of the probability that a network gave to each character behind the first.

    An LSTM reads the text once, from its beginning. A GPT sees pieces of `context` characters that
    overlap by half, and each piece tells of its second half, so that at least context / 2
    characters are known everywhere but at the text's beginning.
    """
    count, context = len(numbers) - 1, config.context
    found = np.empty(count)
    if config.model == "lstm":
        state = None
        for start in range(0, count, 2048):
            part = on_device(model, numbers[None, start : start + 2049])
            logits, state = model(part[:, :-1], state)
            found[start : start + 2048] = by_place(logits, part)[0]
        return found
    half = context // 2
    starts = np.append(np.arange(0, count - context, half), count - context)
    for some in (starts[n : n + batch] for n in range(0, len(starts), batch)):
        rows = on_device(model, numbers[some[:, None] + np.arange(context + 1)])
        for start, row in zip(some, by_place(model(rows[:, :-1]), rows), strict=True):
            first = context - half if start else 0
            found[start + first : start + context] = row[first:]
    return found


def on_device(model: nn.Module, numbers: np.ndarray) -> gpunn.Tensor:
    """Characters where the model is."""
    return gpunn.tensor(numbers, device=next(model.parameters()).device)


def by_place(logits: gpunn.Tensor, rows: gpunn.Tensor) -> np.ndarray:
    """-log of the probability of each character of rows (B, T + 1) behind the first: (B, T)."""
    flat = logits.reshape(-1, logits.shape[-1])
    found = F.cross_entropy(flat, rows[:, 1:].reshape(-1), reduction="none")
    return found.numpy().reshape(logits.shape[:2]).astype(np.float64)


def opened(run: Run) -> tuple[Config, data.Vocabulary, nn.Module]:
    """What `train` saved."""
    config = run.config.sized()
    vocabulary = data.Vocabulary.load(run.folder / "vocabulary.json")
    return config, vocabulary, run.load("model", into=network(config, len(vocabulary)))


@gpunn.no_grad()
def evaluate(run: Run) -> Outcome:
    """The perplexity on the held-out text, beside that of n-grams; samples; pictures."""
    config, vocabulary, model = opened(run)
    texts = read(config)
    if not np.array_equal(run.load("text")["sha256"], digest(texts)):
        raise ValueError(
            f"{config.file or 'the documentation of this version of Python'} is another text than "
            f"{run.folder} was trained on, so that its last part may not be one that was held out"
        )
    learnt, checked, held = (vocabulary.encode(text) for text in texts)
    ngrams = best_order(learnt, checked, len(vocabulary), config.order)
    order = len(ngrams)

    own, other = losses(model, config, held), ngrams[-1].losses(held)
    both = -np.log((np.exp(-own) + np.exp(-other)) / 2)
    counted = [perplexity(one.losses(held)) for one in ngrams]
    outcome = Outcome(
        "test perplexity of a character",
        perplexity(own),
        {f"{order}-gram model": counted[-1], "frequency alone": counted[0]},
        samples=len(own),
        what="characters",
        higher_is_better=False,
        more={
            "bits per character": own.mean() / math.log(2),
            f"bits per character, {order}-gram model": other.mean() / math.log(2),
            "perplexity of the mean of both": perplexity(both),
        },
        notes=[verdict(perplexity(own), counted[-1], perplexity(both), order, config)],
    )
    if run.keeps:
        run.text("samples.txt", samples(model, vocabulary, config))
        history = History.from_csv(run.folder / "history.csv")
        line = perplexity(ngrams[-1].losses(checked))
        whole = perplexity(losses(model, config, checked))
        known = by_context(model, config, held)
        run.figure("learning", lambda: learning_picture(history, whole, line, order))
        run.figure("context", lambda: context_picture(known, counted[1:], config.model.upper()))
        run.figure("next", lambda: next_picture(*expected(model, config, held), vocabulary.tokens))
    return outcome


def perplexity(found: np.ndarray) -> float:
    """exp of the mean of -log of probabilities."""
    return math.exp(found.mean())


def verdict(own: float, other: float, both: float, order: int, config: Config) -> str:
    """Who predicts better, in a sentence."""
    name = config.model.upper()
    gain = f", yet the mean of their probabilities ({both:.3f}) beats both" if both < other else ""
    if abs(math.log(own / other)) < 0.01:
        return f"The {name} and {order}-grams are even, less than 1 % apart{gain}"
    if own < other:
        return f"The {name} predicts the held-out text better than {order}-grams"
    return (
        f"The {order}-grams predict the held-out text better than this {name}{gain}: so short a "
        "text suits them, and the network needs more training than this or a longer text"
    )


def by_context(model: nn.Module, config: Config, held: np.ndarray) -> np.ndarray:
    """The mean loss where 1, 2, … characters before are known and none before those."""
    length = min(config.context if config.model == "gpt" else 256, len(held) - 1)
    rows, whole = pieces(held, length + 1, length), Logits(model)
    parts = [on_device(model, rows[n : n + 32]) for n in range(0, len(rows), 32)]
    return np.concatenate([by_place(whole(part[:, :-1]), part) for part in parts]).mean(0)


def expected(model: nn.Module, config: Config, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (40, vocabulary) at places in the middle of the text, and what came (40,)."""
    known = min(config.context, len(held) - 1)
    start = (len(held) - known) // 2
    logits = Logits(model)(on_device(model, held[None, start : start + known]))
    chances = F.softmax(logits[0].float(), -1).numpy()[-40:]
    return chances, held[start + known - len(chances) + 1 : start + known + 1]


# ---- writing -----------------------------------------------------------------------------------


def written(
    model: nn.Module, vocabulary: data.Vocabulary, begin: str, count: int, temperature: float
) -> Iterator[str]:
    """How the model goes on with a text, a character at a time."""
    tokens = on_device(model, vocabulary.encode(begin or "\n")[None])
    for token in model.stream(tokens, count, temperature):
        (character,) = vocabulary.decode(token[0])
        yield "\N{REPLACEMENT CHARACTER}" if character == UNKNOWN else character


def samples(model: nn.Module, vocabulary: data.Vocabulary, config: Config) -> str:
    """A text at each temperature."""
    parts = []
    for temperature in TEMPERATURES:
        text = "".join(written(model, vocabulary, config.prompt, config.length, temperature))
        parts.append(f"---- temperature {temperature} ----\n{config.prompt}{text}\n")
    return "\n".join(parts)


def predict(run: Run, text: str) -> Iterator[str]:
    """The text, and how the model goes on with it."""
    config, vocabulary, model = opened(run)
    yield text
    yield from written(model, vocabulary, text, config.length, config.temperature)


JOB = Job(
    name="text",
    title="Text, character by character",
    use="text generation",
    data="the texts of Python's help() (pydoc_data.topics, 373,000 characters without repeats, PSF "
    "licence), or a text file of your own",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a text to begin with",
    variants={"GPT": {"model": "gpt"}, "LSTM": {"model": "lstm"}},
    quick={"width": 16, "layers": 1, "context": 16, "batch_size": 16, "epochs": 1, "limit": 6000,
           "order": 4, "length": 8},
)  # fmt: skip

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "text", *sys.argv[1:]]))
