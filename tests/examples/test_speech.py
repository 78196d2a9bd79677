"""The speech example: what is held out, the loss on padding, template matching, a folder."""

import dataclasses
import sys

import numpy as np
import pytest

import gpunn
from gpunn import data, nn
from gpunn.nn import functional as F
from gpunn.train import find_job, run_job
from gpunn.train.run import Run

JOB = find_job("speech")
SPEECH = sys.modules[JOB.train.__module__]
SOUNDS = sys.modules[SPEECH.utterances.__module__]
TEMPLATES = sys.modules[SPEECH.matched.__module__]


def test_no_value_is_in_two_parts():
    def apart(ranges, others):
        return all(a[1] <= b[0] or b[1] <= a[0] for a in ranges for b in others)

    parts = list(SOUNDS.VARIATIONS.values())
    for number, one in enumerate(parts):
        for other in parts[number + 1 :]:
            assert apart(one.pitch, other.pitch) and apart(one.speed, other.speed)
            assert not set(one.babble) & set(other.babble)


def test_noise_is_as_loud_as_said():
    sounds = SOUNDS.Sounds(
        [[np.sin(np.arange(4000.0))]], [np.random.default_rng(0).normal(size=9000)], 8000,
        SOUNDS.Variation((), (), ((10, 10),), ""),
    )  # fmt: skip
    config = JOB.configure(longest=1)
    rng = np.random.default_rng(1)
    powers = []
    for number in range(40):
        samples, words = SOUNDS.utterance(sounds, config, rng, number)
        assert words.tolist() == [0]
        said = abs(np.convolve(samples, np.exp(-1j * np.arange(400)), "valid")).argmax()
        powers.append((samples[said : said + 400].var(), samples[:700].var()))
    voice, noise = np.array(powers).T
    ratio = 10 * np.log10((voice - noise) / noise)
    assert ratio.mean() == pytest.approx(10, abs=1.5) and np.ptp(ratio) > 5  # loudness varies


def test_the_loss_on_padding_is_that_of_each_utterance_alone():
    gpunn.manual_seed(0)
    model = SPEECH.Recogniser(4, 6, 0.0)
    x = np.random.default_rng(0).normal(size=(2, 40, 24)).astype(np.float32)
    x[1, 23:] = 0
    lengths, words = np.array([40, 23]), np.array([[1, 2, 2], [4, 0, 0]])
    together = model(gpunn.tensor(x), gpunn.tensor(lengths))
    losses = []
    for row, (n, said) in enumerate(zip(lengths, ([1, 2, 2], [4]), strict=True)):
        alone = model(gpunn.tensor(x[row : row + 1, :n]), gpunn.tensor([n]))
        steps = -(-n // 3)
        np.testing.assert_allclose(
            together[row, :steps].detach().numpy(), alone[0].detach().numpy(), rtol=2e-5, atol=1e-6
        )
        losses.append(F.ctc_loss(alone[0], gpunn.tensor([said]), [steps], [len(said)]).item())
        assert nn.ctc_greedy_decode(together.transpose(0, 1))[row] == nn.ctc_greedy_decode(
            alone.transpose(0, 1))[0]  # fmt: skip
    loss = SPEECH.ctc_loss(together, gpunn.tensor(words))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    loss.backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters())


def test_the_error_rate_of_the_likeliest_path():
    """Repetitions are one, but for a blank between them."""
    paths, said = [[1, 1, 0, 1, 2, 2], [0, 2, 2, 0, 0, 0]], [[1, 1, 2], [1, 0, 0]]
    metric = SPEECH.GreedyErrorRate()
    metric.update(np.eye(3)[paths], np.array(said))
    assert metric.compute() == pytest.approx(1 / 4)


def best_by_trying(reader, x):
    """The words of the least cost, word by word over all places where one could begin and end."""
    frames = reader._cut(x[None, ::2])[0]
    level = x[::2].mean(1)
    silence = frames[np.argsort(level)[: max(1, len(frames) // 8)]].mean(0)
    pieces = np.split(reader.frames, reader.last[:-1] + 1)

    def word_cost(piece, start, end):
        cost = np.full(len(piece), np.inf)
        for t in range(start, end):
            before = [cost, np.r_[np.inf, cost[:-1]], np.r_[np.inf, np.inf, cost[:-2]]]
            cost = np.min(before, 0) if t > start else np.r_[0.0, np.full(len(piece) - 1, np.inf)]
            cost = cost + ((frames[t] - piece) ** 2).sum(1)
        return cost[-1]

    best = {0: (0.0, [])}
    for end in range(1, len(frames) + 1):
        options = []
        for start in range(end):
            cost, words = best[start]
            options.append((cost + ((frames[start:end] - silence) ** 2).sum(), words))
            for piece, word in zip(pieces, reader.words, strict=True):
                whole = cost + reader.penalty + word_cost(piece, start, end)
                options.append((whole, [*words, int(word) + 1]))
        best[end] = min(options, key=lambda option: option[0])
    return best[len(frames)][1]


def test_template_matching_finds_the_least_cost():
    rng = np.random.default_rng(0)
    clips = [[rng.normal(size=(size, 3)) for size in sizes] for sizes in ((16, 12), (20,), (14,))]
    reader = TEMPLATES.Templates(clips, depth=9.0, penalty=5.0)
    x = np.zeros((3, 56, 3))
    for row, said in enumerate(([0, 1], [2], [1, 2, 0])):
        spoken = np.concatenate([clips[word][0] for word in said])
        x[row, 2 : 2 + len(spoken)] = spoken
        x[row] += rng.normal(size=(56, 3)) * 0.2
    lengths = np.array([40, 24, 56])
    found = reader.read(x, lengths)
    assert found == [best_by_trying(reader, one[:n]) for one, n in zip(x, lengths, strict=True)]
    assert found == [[1, 2], [3], [2, 3, 1]]


def test_a_folder_of_speech_commands(tmp_path):
    """Two words that are two tones; then a file of another rate is read."""
    for number, word in enumerate(("up", "down")):
        (tmp_path / "words" / word).mkdir(parents=True)
        for speaker in range(6):
            wave = np.sin(np.arange(1600) * (0.2 + 0.5 * number) * (1 + speaker / 50))
            sound = np.concatenate([np.zeros(400), 0.3 * wave, np.zeros(300)])
            name = f"{speaker}_nohash_0.wav"
            data.write_wave(tmp_path / "words" / word / name, sound.astype(np.float32), 4000)
        silent = np.zeros(2000, np.float32)  # nothing to learn from, as some official clips
        data.write_wave(tmp_path / "words" / word / "0_nohash_1.wav", silent, 4000)
    for file, speaker in (("validation", 4), ("testing", 5)):
        lines = [f"{word}/{speaker}_nohash_0.wav" for word in ("up", "down")]
        (tmp_path / "words" / f"{file}_list.txt").write_text("\n".join(lines))
    config = JOB.configure(**JOB.quick, device="cpu", folder=str(tmp_path / "words"),
        words=("up", "down"))  # fmt: skip
    result = run_job(JOB, config, tmp_path / "run", verbose=False)
    sounds, _ = SOUNDS.sounds_of(dataclasses.replace(config, clips=9), "train")
    assert [len(clips) for clips in sounds.clips] == [4, 4]
    assert result.outcome.samples == 12 and "One voice" not in str(result.outcome.notes)
    again = Run(JOB, config, result.folder, verbose=False)
    samples, _ = data.read_wave(result.folder / "sample.wav")
    data.write_wave(tmp_path / "a.wav", data.resample(samples, 2.5), 10000)
    rows = [list(JOB.predict(again, str(path)))
            for path in (result.folder / "sample.wav", tmp_path / "a.wav")]  # fmt: skip
    assert [row["reading"] for row in rows[0]] == [1, 2, 3]
    for one, other in zip(*rows, strict=True):
        assert one["words"] == other["words"]
        assert one["probability"] == pytest.approx(other["probability"], rel=0.02)
