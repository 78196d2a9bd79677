"""Digits spoken one after the other, written down by a network that learns from the text alone.

    gpunn train speech                                # train and measure
    gpunn predict runs/speech runs/speech/sample.wav  # what is said in a WAV file?
    gpunn train speech --set folder=speech_commands --set clips=2000 --set utterances=10000

**Data.** The package captcha has a real recording of each spoken digit, and of each letter. An
utterance is one to six digits in any order, with and without pauses, each at a pitch, a speed and a
loudness of its own, in noise: a babble of the recorded letters, or hiss.

**What this can show.** There is one clip of each digit, by one voice. A network cannot be tested on
another voice here, so this measures what noise, pitch, speed and connected speech do to recognition
of a known voice, and nothing about strangers. What is held out is how the clips are changed: test
utterances are spoken higher or lower and faster or slower than any in training, before the noise of
letters that training never heard, down to noise louder than the voice. For many voices give a
`folder` with Speech Commands, read in its official format and split: 2,618 speakers, those of the
test never heard in training.

**Network.** Log-mel spectrogram (100 frames a second, 24 bands) -> two convolutions, the first of
which keeps every third frame -> bidirectional GRU -> for every 30 ms the probability of each word,
and of "nothing new", the blank. Nobody tells it when a word was said: the CTC loss adds up all ways
in which the frames could spell the words.

**Compared with** template matching, the method before neural networks: dynamic programming finds
the sequence of stretched clips that is nearest to the utterance (Ney 1984). Its two numbers are
chosen on the validation utterances.
"""

import sys
from dataclasses import dataclass

import numpy as np
from speech_sounds import BANDS, BLANK, LEVELS, VARIATIONS, Utterances, features, utterances
from speech_templates import constant, matched

import gpunn
from gpunn import data, nn, optim
from gpunn.nn import functional as F
from gpunn.train import Job, Outcome, Run, Trainer, check, device_setting, setting
from gpunn.train.metrics import WordErrorRate, word_error_rate
from gpunn.train.plots import new_figure

STRIDE = 3  # of the first convolution


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the utterances, the weights, the shuffling and the dropout",
        low=0)  # fmt: skip
    device: str = device_setting()
    folder: str | None = setting(None, "a folder with Speech Commands",
        unset="the digits that ship with captcha")  # fmt: skip
    words: tuple[str, ...] = setting(data.SPOKEN_DIGITS, "the words of the folder to tell apart")
    clips: int = setting(80, "clips of each word: variations of the one, or files of the folder",
        low=1)  # fmt: skip
    longest: int = setting(6, "words of an utterance, at most; 1: single words", low=1)
    utterances: int = setting(2000, "utterances to train on", low=1)
    tests: int = setting(480, "utterances to test on; a quarter as many validate", low=4)
    hidden: int = setting(64, "size of the GRU's state, in each direction", low=1)
    dropout: float = setting(0.3, "share of values left out in training", low=0, below=1)
    epochs: int = setting(12, "epochs", low=1)
    batch_size: int = setting(24, "utterances of a training step", low=1)
    learning_rate: float = setting(4e-3, "the peak of the one-cycle schedule", above=0)

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self):
        """What is wrong with two settings together, for `check`."""
        if self.folder is None and self.words != data.SPOKEN_DIGITS:
            yield "words", "other words need a folder with Speech Commands"


# ---- the network ---------------------------------------------------------------------------------


class Recogniser(nn.Module):
    """Spectrograms (B, T, 24) and lengths (B,) -> log-probabilities (B, T / 3, words + 1).

    Behind an utterance's end the blank is certain there: the loss and the reading are then the same
    as without the padding.
    """

    def __init__(self, words: int, hidden: int, dropout: float):
        super().__init__()
        self.lose = nn.Dropout1d(dropout / 2)  # whole bands, as noise hides them
        self.hear = nn.Conv1d(BANDS, 2 * hidden, 5, stride=STRIDE, padding=2)
        self.join = nn.Conv1d(2 * hidden, 2 * hidden, 3, padding=1)
        self.rnn = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, words + 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, lengths):
        ends = (lengths + STRIDE - 1) // STRIDE
        x = F.relu(self.hear(self.lose(x.transpose(1, 2))))
        past = gpunn.arange(x.shape[2], device=x.device) >= ends.unsqueeze(1)  # (B, T / 3)
        x = x.masked_fill(past.unsqueeze(1), 0.0)
        x = self.dropout(F.relu(self.join(x)).transpose(1, 2))
        x, _ = self.rnn(x, lengths=ends)
        log_probs = F.log_softmax(self.head(self.dropout(x)), -1)
        blank = gpunn.arange(log_probs.shape[2], device=x.device) == BLANK
        certain = gpunn.where(blank, 0.0, -1e4)
        return gpunn.where(past.unsqueeze(2), certain, log_probs)


def ctc_loss(log_probs, words):
    """CTC over whole rows: padded frames are blank, padded words count for nothing."""
    batch, steps = log_probs.shape[:2]
    frames = gpunn.full((batch,), steps, dtype="int64", device=words.device)
    counts = (words != BLANK).sum(1)
    return F.ctc_loss(log_probs.transpose(0, 1), words, frames, counts, BLANK, zero_infinity=True)


class GreedyErrorRate(WordErrorRate):
    """The word error rate of the likeliest word of each frame, for the Trainer.

    What is read stays where it is; the errors are counted when the epoch is over.
    """

    def __init__(self):
        super().__init__(pad=BLANK)

    def update(self, prediction, target):
        best = prediction.argmax(2)
        best[:, 1:] *= best[:, 1:] != best[:, :-1]  # a repetition is none: 0, the blank
        super().update(best, target)


def train(run: Run) -> None:
    """The network, on utterances made of training's clips and variations."""
    config = run.config
    known, held = utterances(config, "train"), utterances(config, "validation")
    gpunn.manual_seed(config.seed)
    model = Recogniser(len(config.words), config.hidden, config.dropout).to(run.device)
    loader = data.DataLoader((known.x, known.lengths, known.words), config.batch_size,
        shuffle=True, seed=config.seed, lengths=known.lengths, device=run.device,
        resident=False, transform=data.TrimPadding(multiple=8 * STRIDE))  # fmt: skip
    trainer = Trainer(
        model, ctc_loss, optim.AdamW(model.parameters(), config.learning_rate),
        metrics=[GreedyErrorRate()],
        scheduler=lambda optimizer: optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.epochs * len(loader)),
        gradient_clip_norm=5.0,
        seed=config.seed,
    )  # fmt: skip
    run.fit(trainer, loader, (held.x, held.lengths, held.words), epochs=config.epochs)
    run.save("model", model)
    run.save("sound", {"rate": np.array(known.sounds.rate)})


# ---- measuring -----------------------------------------------------------------------------------


def heard(run: Run, x: np.ndarray, lengths: np.ndarray):
    """The network's log-probabilities (T / 3, utterances, words + 1) and their lengths."""
    words = len(run.config.words)
    model = run.load("model", into=Recogniser(words, run.config.hidden, run.config.dropout))
    parts = []
    for start in range(0, len(x), 64):
        inputs = [gpunn.tensor(a[start : start + 64], device=run.device) for a in (x, lengths)]
        with gpunn.no_grad():
            parts.append(model(*inputs))
    return gpunn.cat(parts).transpose(0, 1), (lengths + STRIDE - 1) // STRIDE


def evaluate(run: Run) -> Outcome:
    """The word error rate on test utterances, over all levels of noise and at each."""
    config, test = run.config, utterances(run.config, "test")
    log_probs, lengths = heard(run, test.x, test.lengths)
    said = test.texts()
    readers = {
        "network": nn.ctc_greedy_decode(log_probs, lengths),
        "templates": matched(config, test),
    }
    total = {name: word_error_rate(read, said) for name, read in readers.items()}
    levels = np.arange(len(said)) // config.longest % len(LEVELS)
    rates = {
        name: {
            level: word_error_rate(*([a for a, at in zip(those, levels, strict=True) if at == k]
                for those in (read, said)))
            for k, level in enumerate(LEVELS) if (levels == k).any()
        }
        for name, read in readers.items()
    }  # fmt: skip
    run.figure("noise", lambda: noise_figure(rates))
    shown = min(range(len(said)), key=lambda n: abs(len(said[n]) - 4) + 10 * (levels[n] != 1))
    run.figure("reading", lambda: reading_figure(config, test, log_probs, lengths, said, shown))
    if run.keeps:
        data.write_wave(run.folder / "sample.wav", test.sample, test.sounds.rate)
    blind = [constant(config)] * len(said)
    notes = ["One voice: this says nothing about other speakers."] if not config.folder else []
    worse = [level for level, rate in rates["network"].items() if rate > rates["templates"][level]]
    if worse:
        notes.append(f"Templates win at {', '.join(map(str, worse))} dB.")
    return Outcome(
        metric="word error rate",
        value=total["network"],
        baselines={"template matching": total["templates"],
            "always the same words": word_error_rate(blind, said)},
        samples=len(said),
        what="utterances",
        higher_is_better=False,
        more={f"at {level} dB": rate for level, rate in rates["network"].items()},
        notes=notes,
    )  # fmt: skip


def noise_figure(rates: dict[str, dict[int, float]]):
    """The word error rate against the level of the voice over the noise."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, style in (("network", "o-"), ("templates", "s--")):
        axes.plot(*zip(*sorted(rates[name].items()), strict=True), style, label=name)
    axes.axvspan(min(LEVELS) - 1, VARIATIONS["train"].level[0][0], color="#f3e3d3",
        label="louder noise than in training")  # fmt: skip
    axes.set(title="Spoken digits in noise: held-out pitch and speed", xlim=(-6, 21),
        xlabel="voice over noise (dB)", ylabel="word error rate", ylim=(0, None))  # fmt: skip
    axes.legend()
    return figure


def reading_figure(config: Config, test: Utterances, log_probs, lengths, said, shown: int):
    """The spectrogram of an utterance, and the probability of each word below it."""
    probabilities = np.exp(log_probs[: int(lengths[shown]), shown].numpy())
    frames = int(test.lengths[shown])
    figure = new_figure(10.0, 5.4)
    above, below = figure.subplots(2, 1, sharex=True)
    above.imshow(test.x[shown, :frames].T, aspect="auto", origin="lower", cmap="magma",
        extent=(0, frames / 100, 0.5, BANDS + 0.5))  # fmt: skip
    text = " ".join(config.words[word - 1] for word in said[shown])
    above.set(title=f"Said: {text}", ylabel="mel band")
    times = (np.arange(len(probabilities)) + 0.5) * STRIDE / 100
    for word in range(1, probabilities.shape[1]):
        if probabilities[:, word].max() > 0.2:
            below.plot(times, probabilities[:, word], lw=2, label=config.words[word - 1])
    below.plot(times, probabilities[:, BLANK], color="#bbbbbb", lw=1, label="blank")
    below.set(title="What the network reads", xlabel="time (s)", ylabel="probability",
        xlim=(0, frames / 100), ylim=(-0.02, 1.05))  # fmt: skip
    below.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def predict(run: Run, path: str):
    """The three likeliest readings of a WAV file, by prefix beam search."""
    samples, rate = data.read_wave(path)
    wanted = int(run.load("sound")["rate"])
    x = features(data.resample(samples, wanted / rate), wanted)
    log_probs, lengths = heard(run, x[None], np.array([len(x)]))
    for rank, found in enumerate(nn.ctc_beam_decode(log_probs, lengths, top=3)[0], 1):
        words = " ".join(run.config.words[label - 1] for label in found.labels)
        yield {"reading": rank, "words": words, "probability": float(np.exp(found.log_probability))}


JOB = Job(
    name="speech",
    title="Connected digits in noise, by CTC",
    use="speech recognition",
    data="a recording of each spoken digit and letter, from the package captcha (BSD-3), varied in "
    "pitch, speed, loudness and noise; or a folder with Speech Commands (CC BY 4.0)",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a WAV file; the run folder has one: sample.wav",
    quick={"utterances": 12, "tests": 12, "clips": 1, "longest": 2, "hidden": 8, "epochs": 1},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "speech", *sys.argv[1:]]))
