"""Translation: English to French by a Transformer, or by a GRU with attention.

By itself it learns from the texts of JupyterLab's interface, 3,287 pairs of labels, messages and
explanations as its translators wrote them, which ship in the package jupyterlab-language-pack-fr-FR
(BSD-3)::

    gpunn train translation
    gpunn train translation --set model=seq2seq --set width=128
    gpunn predict RUN "Close all open files"

The same script trains on your own copy of Tatoeba's sentences; nothing is downloaded::

    gpunn train translation --set file=~/data/fra.txt

What is held out: a tenth of the English texts, chosen by the seed, with all their translations;
texts that differ only in case, digits or signs ("Open…", "open") are on the same side. Another
tenth is for validation, by which the epoch is chosen. The translations are made by beam search from
the English text alone and compared with the true ones by BLEU and chrF. The same texts are given to
three that need no network: the translation of the most similar training text (a translation
memory), a word-by-word dictionary learnt from the training pairs, and the English text as it is.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from translation_baselines import Pairs, by_dictionary, by_memory
from translation_pictures import as_text, length_figure

import gpunn
from gpunn import Tensor, data, models, nn, optim
from gpunn.nn import functional as F
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
from gpunn.train.metrics import bleu, chrf
from gpunn.train.plots import plot_attention

PADDING, START, END = data.Subwords.padding, data.Subwords.start, data.Subwords.end
EVALUATED = 1000  # test texts at most: translating takes longer than training on them


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the split, the initial weights, the shuffling and the dropout",
        low=0)  # fmt: skip
    device: str = device_setting()
    model: str = setting("transformer", "which network: a Transformer, or GRUs with attention",
        choices=("transformer", "seq2seq"))  # fmt: skip
    file: str = setting("", "your copy of Tatoeba's sentence pairs (manythings.org's fra.txt or "
        "tatoeba.org's export); without, the texts of JupyterLab's interface")  # fmt: skip
    longest: int = setting(12, "leave out pairs with more words than this", low=2)
    subwords: int = setting(2000, "tokens of both languages together: characters, parts of words "
        "and words, learnt from the training texts", low=1)  # fmt: skip
    width: int = setting(96, "features of a token", low=2)
    layers: int = setting(2, "layers of the Transformer's encoder, and of its decoder", low=1)
    heads: int = setting(4, "heads of the Transformer's attention", low=1)
    dropout: float = setting(0.3, "share of the values left out while training", low=0, below=1)
    label_smoothing: float = setting(0.1, "label smoothing of the training loss", low=0, below=1)
    epochs: int = setting(25, "epochs", low=1)
    batch_size: int = setting(32, "pairs of a training step", low=1)
    learning_rate: float = setting(3e-3, "the peak of the one-cycle schedule of AdamW", above=0)
    beams: int = setting(4, "unfinished translations kept by the beam search", low=1)
    limit: int | None = setting(None, "use only so many pairs, chosen by the seed", low=50,
        unset="all of them")  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together."""
        if self.model == "transformer" and self.width % self.heads:
            yield "width", f"width {self.width} is not a multiple of heads {self.heads}"
        if self.model == "seq2seq" and (self.width % 2 or self.width > 256):
            yield "width", f"width is {self.width}; for seq2seq it must be even and at most 256"


# ---- the data ------------------------------------------------------------------------------------


def load(config: Config) -> data.Split:
    """Training, validation and test pairs that share no English text."""
    path = os.path.expanduser(config.file)
    pairs = data.load_tatoeba(path) if path else data.load_interface_sentences()
    pairs = [(" ".join(english.split()), " ".join(french.split())) for english, french in pairs]
    pairs = [pair for pair in pairs if max(len(text.split()) for text in pair) <= config.longest]
    if config.limit is not None and config.limit < len(pairs):
        share = config.limit / len(pairs)
        chosen = data.split_indices(len(pairs), None, (share, 1 - share), config.seed)[0]
        pairs = [pairs[number] for number in chosen]
    # "Open…", "Open" and "open" are one text here: knowing the one is knowing the others.
    groups: dict[str, Pairs] = defaultdict(list)
    for english, french in pairs:
        groups[re.sub(r"[\W\d_]", "", english).casefold() or english].append((english, french))
    members = list(groups.values())
    if len(members) < 10:
        raise ValueError(
            f"{path or 'the data'}: {len(members)} English texts of at most {config.longest} words "
            "are too few to hold some of them out; it takes 10 or more"
        )
    parts = data.split_indices(len(members), None, (0.8, 0.1, 0.1), config.seed)
    return data.Split(*([pair for number in part for pair in members[number]] for part in parts))


def with_references(pairs: Pairs) -> dict[str, list[str]]:
    """Each English text with all its translations."""
    found: dict[str, list[str]] = defaultdict(list)
    for english, french in pairs:
        found[english].append(french)
    return found


def as_source(english: str) -> str:
    """An English text as the network reads it: a word is the same at the start and in a title."""
    return " " + english.lower()


def as_target(french: str) -> str:
    """A French text as the network says it: without the capital of its first word."""
    first = french.partition(" ")[0]
    return " " + (french if first[1:] != first[1:].lower() else french[:1].lower() + french[1:])


def as_french(said: str, english: str) -> str:
    """What the network said as a text, with a capital where the English text has one."""
    said = said.strip()
    return said[:1].upper() + said[1:] if english[:1].isupper() else said


def as_arrays(pairs: Pairs, subwords: data.Subwords) -> tuple[np.ndarray, ...]:
    """What the network reads, what the decoder is shown, their lengths, and what it is to say.

    At each place the decoder is shown the true tokens before it (teacher forcing).
    """
    sources = [[*subwords.encode(as_source(english)), END] for english, _ in pairs]
    targets = [[START, *subwords.encode(as_target(french)), END] for _, french in pairs]
    steps = max(len(tokens) for tokens in [*sources, *targets])
    steps = -(-steps // 8) * 8  # room for batches cut to a multiple of eight
    source, source_lengths = data.pad_sequences(sources, steps)
    shown, target_lengths = data.pad_sequences([tokens[:-1] for tokens in targets], steps)
    said, _ = data.pad_sequences([tokens[1:] for tokens in targets], steps)
    return source, shown, np.stack([source_lengths, target_lengths], 1), said


def loader(pairs: Pairs, subwords: data.Subwords, run: Run, shuffle: bool) -> data.DataLoader:
    """Batches of texts of like length, cut where all of them end."""
    arrays = as_arrays(pairs, subwords)
    longest = arrays[2].max(1)
    if not shuffle:
        order = np.argsort(longest, kind="stable")
        arrays = tuple(array[order] for array in arrays)
    return data.DataLoader(
        arrays,
        min(run.config.batch_size, len(pairs)) if shuffle else 128,
        shuffle=shuffle,
        drop_last=shuffle,
        lengths=longest if shuffle else None,
        seed=run.config.seed,
        transform=data.TrimPadding(sequences=(0, 1, 3), lengths=2),
        device=run.device,
    )


# ---- the networks --------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Encoder and decoder of attention; one embedding for both languages and for what it says."""

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width, PADDING)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.places = nn.SinusoidalPositionalEncoding(config.width, dropout=config.dropout)
        self.body = nn.Transformer(
            config.width, config.heads, config.layers, config.layers, 2 * config.width,
            config.dropout, batch_first=True, norm_first=True,
        )  # fmt: skip

    def embed(self, tokens: Tensor, before: int = 0) -> Tensor:
        """Tokens (B, T) behind so many others as vectors (B, T, width)."""
        return self.places(self.embedding(tokens) * math.sqrt(self.config.width), before)

    def forward(self, source: Tensor, shown: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of the token behind each of those shown (B, T)."""
        padding = source == PADDING
        out = self.body(
            self.embed(source), self.embed(shown), src_key_padding_mask=padding,
            memory_key_padding_mask=padding, tgt_is_causal=True,
        )  # fmt: skip
        return F.linear(out, self.embedding.weight)

    def begin(self, source: Tensor, lengths: Tensor, room: int) -> Any:
        """What the beam search begins with: the encoder's output, and memory for `room` tokens."""
        padding, heads = source == PADDING, self.config.heads
        memory = self.body.encoder(self.embed(source), src_key_padding_mask=padding)
        sizes = (source.shape[0], room, heads, self.config.width // heads)
        caches = [nn.KeyValueCache(*sizes, device=source.device) for _ in self.body.decoder.layers]
        return memory, padding, caches

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (rows, vocabulary) behind the latest tokens (rows, 1)."""
        memory, padding, caches = state
        out = self.body.decoder(
            self.embed(tokens, caches[0].length), memory, memory_key_padding_mask=padding,
            caches=caches,
        )  # fmt: skip
        return F.linear(out[:, -1], self.embedding.weight), state

    def attention(self, source: Tensor, shown: Tensor) -> Tensor:
        """How much of each source token each step looked at, in the last layer: (T, S)."""
        attend, seen = self.body.decoder.layers[-1].multihead_attn, []
        with attend.register_forward_hook(lambda module, inputs, output: seen.append(inputs)):
            self(source, shown, None)
        return attend(*seen[0])[1][0]


class Recurrent(models.Seq2Seq):
    """A GRU reads in both directions, another one writes and looks at all that was read."""

    def __init__(self, config: Config, vocabulary: int):
        super().__init__(
            vocabulary, vocabulary, config.width, config.width, config.dropout, PADDING
        )
        self.source.weight = self.target.weight  # one embedding for both languages

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's states, to which the tokens themselves are added, and the decoder's first.

        So what a token means by itself reaches the decoder directly; with few pairs it could hardly
        learn which French word goes with which English one through the GRU alone.
        """
        states, hidden = super().encode(source, lengths)
        return states + self.dropout(self.source(source)), hidden

    def forward(self, source: Tensor, shown: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of the token behind each of those shown (B, T)."""
        return super().forward(source, shown, lengths[:, 0])

    def begin(self, source: Tensor, lengths: Tensor, room: int) -> Any:
        """What the beam search begins with: the encoder's states and the decoder's first one."""
        states, hidden = self.encode(source, lengths)
        return states, hidden[0], lengths

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (rows, vocabulary) behind the latest tokens (rows, 1)."""
        states, hidden, lengths = state
        logits, hidden = self.decode(tokens, states, hidden.unsqueeze(0), lengths)
        return logits[:, -1], (states, hidden[0], lengths)

    def attention(self, source: Tensor, shown: Tensor) -> Tensor:
        """How much of each source token each step looked at: (T, S)."""
        return super().attention(source, shown)[0]


def network(config: Config, vocabulary: int) -> Any:
    """The untrained network."""
    kind: Any = Transformer if config.model == "transformer" else Recurrent
    return kind(config, vocabulary)


def load_network(run: Run) -> tuple[Any, data.Subwords]:
    """The trained network and its tokens, from the run folder."""
    subwords = data.Subwords.from_json((run.folder / "subwords.json").read_text(encoding="utf-8"))
    return run.load("model", into=network(run.config, len(subwords))), subwords


def translate(
    run: Run, model: Any, subwords: data.Subwords, texts: Sequence[str], beams: int
) -> list[tuple[str, float]]:
    """Each text's likeliest translation, and its mean log-probability of a token."""
    sources = [[*subwords.encode(as_source(text)), END] for text in texts]
    order = sorted(range(len(texts)), key=lambda number: len(sources[number]))
    found: dict[int, tuple[str, float]] = {}
    for begin in range(0, len(order), 64):
        some = order[begin : begin + 64]
        tokens, lengths = data.pad_sequences([sources[number] for number in some])
        room = 2 * tokens.shape[1] + 10
        source, lengths = (gpunn.tensor(array, device=run.device) for array in (tokens, lengths))
        with gpunn.no_grad():
            state = model.begin(source, lengths, room)
            best = models.beam_search(model.step, state, len(some), START, END, beams, room)
        said, scores = best.tokens[:, 0].tolist(), best.scores[:, 0].tolist()
        for place, number in enumerate(some):
            found[number] = as_french(subwords.decode(said[place]), texts[number]), scores[place]
    return [found[number] for number in range(len(texts))]


# ---- the job -------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """Learn the tokens from the training texts, train, keep the epoch best in validation."""
    config = run.config
    split = load(config)
    texts = [text for pair in split.train for text in (as_source(pair[0]), as_target(pair[1]))]
    subwords = data.Subwords.learn(texts, config.subwords)
    run.text("subwords.json", subwords.to_json())
    batches = loader(split.train, subwords, run, shuffle=True)
    model = network(config, len(subwords))
    count = sum(parameter.numel() for parameter in model.parameters())
    run.say(
        f"{len(split.train):,} pairs to train on, {len(split.validation):,} for validation, "
        f"{len(split.test):,} to test; {len(subwords):,} tokens, {count:,} parameters"
    )
    trainer = Trainer(
        model,
        partial(
            F.sequence_cross_entropy, ignore_index=PADDING, label_smoothing=config.label_smoothing
        ),
        lambda parameters: optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.01),
        callbacks=[EarlyStopping(patience=config.epochs)],
        device=run.device,
        seed=config.seed,
        gradient_clip_norm=1.0,
        scheduler=lambda optimizer: LearningRateScheduler(
            optim.lr_scheduler.OneCycleLR(
                optimizer, config.learning_rate, total_steps=config.epochs * len(batches)
            ),
            every="batch",
        ),
    )
    run.fit(trainer, batches, loader(split.validation, subwords, run, False), epochs=config.epochs)
    run.save("model", model)


def evaluate(run: Run) -> Outcome:
    """BLEU and chrF of the test texts' translations, beside those made without a network."""
    split = load(run.config)
    model, subwords = load_network(run)
    references = with_references(split.test)
    step = -(-len(references) // EVALUATED)
    texts, truths = list(references)[::step], list(references.values())[::step]
    found = {
        "network": [text for text, _ in translate(run, model, subwords, texts, run.config.beams)],
        "translation memory": by_memory(split.train, texts),
        "word-by-word dictionary": with_dictionary(split.train, texts),
        "the English text": texts,
    }
    scores = {name: bleu(said, truths) for name, said in found.items()}
    more = {f"chrF, {name}": chrf(said, truths) for name, said in found.items()}
    greedy = [text for text, _ in translate(run, model, subwords, texts, 1)]
    more["BLEU of the network without beam search"] = bleu(greedy, truths)
    right = sum(said in true for said, true in zip(found["network"], truths, strict=True))
    more["share translated exactly as in the reference"] = right / len(texts)
    run.text("translations.txt", as_text(found, truths))
    run.figure("lengths", lambda: length_figure(found, truths))
    run.figure("attention", lambda: attention_figure(model, subwords, run, found["network"], texts))
    value = scores.pop("network")
    return Outcome(
        metric="test BLEU",
        value=value,
        baselines=dict(sorted(scores.items(), key=lambda item: -item[1])),
        samples=len(texts),
        what="texts",
        more=more,
        notes=list(notes_on(run.config, found, truths)),
    )


def notes_on(config: Config, found: dict[str, list[str]], truths: list[list[str]]) -> Iterator[str]:
    """What belongs to the numbers."""
    yield f"Pairs with more than {config.longest} words are left out, of the test texts, too."
    every = range(len(truths))
    long = [at for at in every if len(found["the English text"][at].split()) > 8]
    for chosen, which in ((every, "all texts"), (long, f"the {len(long)} of more than 8 words")):
        for measure, unit in ((bleu, "BLEU"), (chrf, "chrF")) if chosen else ():
            scores = {
                name: measure([said[at] for at in chosen], [truths[at] for at in chosen])
                for name, said in found.items()
            }
            best = max(scores, key=scores.__getitem__)
            if best != "network":
                yield (
                    f"The network does not win on {which}: it has {scores['network']:.1f} {unit}, "
                    f"{best} {scores[best]:.1f}."
                )


def with_dictionary(pairs: Pairs, texts: Sequence[str]) -> list[str]:
    """Word by word, with capitals treated as the network has them treated."""
    pairs = [(as_source(english), as_target(french)) for english, french in pairs]
    made = by_dictionary(pairs, [as_source(text) for text in texts])
    return [as_french(said, text) for said, text in zip(made, texts, strict=True)]


def attention_figure(
    model: Any, subwords: data.Subwords, run: Run, said: Sequence[str], texts: Sequence[str]
) -> Any:
    """Where the network looked while it said each token, for one of the test texts."""
    fitting = [at for at, text in enumerate(texts) if 5 <= len(text.split()) <= 9 and said[at]]
    at = (fitting or [max(range(len(texts)), key=lambda at: len(said[at]))])[0]
    source = [*subwords.encode(as_source(texts[at])), END]
    target = [*subwords.encode(as_target(said[at])), END]
    with gpunn.no_grad():
        weights = model.attention(
            gpunn.tensor([source], device=run.device),
            gpunn.tensor([[START, *target[:-1]]], device=run.device),
        )
    names = [[subwords.tokens[token] for token in tokens] for tokens in (target, source)]
    figure = plot_attention(weights, *names, title=f"Attention: {texts[at]}")
    figure.axes[0].set(xlabel="English, as it is read", ylabel="French, as it is said")
    return figure


def predict(run: Run, text: str) -> Iterator[dict[str, Any]]:
    """The translation of an English text, or of each line of a file."""
    lines = data.read_text(text).splitlines() if os.path.isfile(text) else [text]
    lines = [" ".join(line.split()) for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{text!r} holds no text to translate")
    model, subwords = load_network(run)
    for begin in range(0, len(lines), 64):
        some = lines[begin : begin + 64]
        made = translate(run, model, subwords, some, run.config.beams)
        for line, (said, score) in zip(some, made, strict=True):
            yield {"english": line, "french": said, "score": score}


JOB = Job(
    name="translation",
    title="Translation, English to French",
    use="translation",
    data="3,287 texts of JupyterLab's interface with their French translations, packaged in "
    "jupyterlab-language-pack-fr-FR (BSD-3); or your copy of Tatoeba's sentence pairs",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="an English text, or a file with one on each line",
    variants={
        "Transformer": {"model": "transformer"},
        "GRU with attention": {"model": "seq2seq", "width": 128},
    },
    quick={"limit": 100, "epochs": 1, "width": 16, "layers": 1, "subwords": 200, "beams": 2},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "translation", *sys.argv[1:]]))
