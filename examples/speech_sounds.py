"""The utterances of the speech example: what they are made of, and how they are held apart."""

from dataclasses import dataclass

import numpy as np

from gpunn import data

BANDS = 24  # so wide that they tell the words apart and not the pitch of the voice
BLANK = 0  # of CTC; word w of the list has the number w + 1
PARTS = ("train", "validation", "test")
LEVELS = (20, 15, 10, 5, 0, -5)  # dB, voice over noise, of the test utterances


@dataclass(frozen=True)
class Variation:
    """Between which values an utterance's numbers are drawn; of several ranges one is drawn first.

    Pitch in semitones, speed as a factor, level in dB of voice over noise.
    """

    pitch: tuple[tuple[float, float], ...]
    speed: tuple[tuple[float, float], ...]
    level: tuple[tuple[float, float], ...]
    babble: str  # the letters that the noise is made of


VARIATIONS = {
    "train": Variation(((-2, 2),), ((0.87, 1.15),), ((0, 25),), "ABCDEFGHIJK"),
    # Of its own kind, so that what is chosen by it is chosen for what training did not hear.
    "validation": Variation(((-2.5, -2), (2, 2.5)), ((0.85, 0.87), (1.15, 1.18)), ((0, 20),),
        "LMNOP"),
    "test": Variation(((-4, -2.5), (2.5, 4)), ((0.75, 0.85), (1.18, 1.3)),
        tuple((level, level) for level in LEVELS), "QRSTUVWXYZ"),
}  # fmt: skip


def spoken(clip: np.ndarray, rate: int, pitch: float, speed: float) -> np.ndarray:
    """A clip at another pitch (in semitones; the voice's colour moves with it) and speed."""
    higher, piece = 2 ** (pitch / 12), 2 * round(0.016 * rate)  # 32 ms
    return data.time_stretch(data.resample(clip, 1 / higher), higher / speed, piece)


def drawn(rng: np.random.Generator, ranges) -> float:
    return float(rng.uniform(*ranges[rng.integers(len(ranges))]))


@dataclass(frozen=True)
class Sounds:
    """What utterances are made of: clips of each word, long noises, samples a second."""

    clips: list[list[np.ndarray]]
    noises: list[np.ndarray]
    rate: int
    how: Variation


def captcha_sounds(config, part: str, rng: np.random.Generator) -> Sounds:
    """Variations of the ten clips; the babble of letters and hiss."""
    how = VARIATIONS[part]
    digits, rate = data.load_spoken_characters("0123456789")
    letters, _ = data.load_spoken_characters(how.babble)
    clips = [
        [spoken(clip, rate, drawn(rng, how.pitch), drawn(rng, how.speed))
            for _ in range(config.clips)]
        for clip in digits.values()
    ]  # fmt: skip
    babble = np.zeros(30 * rate, np.float32)
    for _ in range(600):  # some six voices at a time, as the clips are half silence
        letter = letters[how.babble[rng.integers(len(how.babble))]]
        start = rng.integers(len(babble) - len(letter))
        babble[start : start + len(letter)] += letter * rng.uniform(0.3, 1)
    hiss = rng.standard_normal(12 * rate)
    return Sounds(clips, [babble, hiss.astype(np.float32)], rate, how)


def folder_sounds(config, part: str, rng: np.random.Generator) -> Sounds:
    """Clips of a part of the folder, varied for training alone, and a third of each noise."""
    commands = data.load_speech_commands(config.folder, config.words)
    rate, how = commands.rate, VARIATIONS[part]
    clips = [[] for _ in commands.words]
    order = rng.permutation(len(commands.files[part]))
    for index in order.tolist():
        label = int(commands.labels[part][index])
        if len(clips[label]) < config.clips:
            clip = data.trim_silence(commands.read(commands.files[part][index]), rate)
            if np.ptp(clip) == 0:
                continue  # nothing is said in it
            if part == "train":
                clip = spoken(clip, rate, drawn(rng, how.pitch), drawn(rng, how.speed))
            clips[label].append(clip)
    for word, found in zip(commands.words, clips, strict=True):
        if not found:
            raise ValueError(f"{config.folder} has no clip of {word!r} for the part {part}")
    third = PARTS.index(part)
    noises = [np.array_split(noise, 3)[third] for noise in commands.noise() if len(noise) > rate]
    noises = noises or [rng.standard_normal(12 * rate).astype(np.float32)]
    return Sounds(clips, noises, rate, how)


def utterance(sounds: Sounds, config, rng: np.random.Generator, number: int):
    """Sound of some words in a row, and the words' numbers."""
    rate = sounds.rate
    words = rng.integers(0, len(sounds.clips), 1 + number % config.longest)
    pauses = rng.uniform(-0.12, 0.3, len(words) + 1).clip(0)  # three in ten are none
    pieces = [np.zeros(round((0.1 + pauses[0]) * rate))]
    for word, pause in zip(words.tolist(), pauses[1:], strict=True):
        clip = sounds.clips[word][rng.integers(len(sounds.clips[word]))]
        loudness = 10 ** (rng.uniform(-5, 5) / 20) / clip.std()
        pieces += [clip * loudness, np.zeros(round(pause * rate))]
    voice = np.concatenate([*pieces, np.zeros(round(0.1 * rate))])
    levels = sounds.how.level
    level = rng.uniform(*levels[number // config.longest % len(levels)])
    power = 10 ** (-level / 10)  # that of a word of middling loudness is 1
    noise = sounds.noises[rng.integers(len(sounds.noises))]
    noise = noise[(rng.integers(len(noise)) + np.arange(len(voice))) % len(noise)]
    loud = np.sqrt(power / max(float((noise**2).mean()), 1e-12))
    mixed = (voice + loud * noise) * 10 ** (rng.uniform(-35, -15) / 20)
    return mixed.clip(-1, 1).astype(np.float32), words


def features(samples: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel spectrogram (frames, 24), whatever the loudness of the whole."""
    spectrogram = data.log_mel_spectrogram(samples, rate, BANDS)
    return (spectrogram - spectrogram.mean()) / 3


@dataclass(frozen=True)
class Utterances:
    """Padded features (utterances, frames, 24), lengths, and words, padded with the blank."""

    x: np.ndarray
    lengths: np.ndarray
    words: np.ndarray
    sample: np.ndarray  # the sound of one with as many words as there may be
    sounds: Sounds

    def texts(self) -> list[list[int]]:
        """The words of each utterance."""
        return [row[row != BLANK].tolist() for row in self.words]


def sounds_of(config, part: str) -> tuple[Sounds, np.random.Generator]:
    """What the utterances of a part are made of, and the random numbers to make them by."""
    rng = np.random.default_rng((config.seed, PARTS.index(part)))
    return (folder_sounds if config.folder else captcha_sounds)(config, part, rng), rng


def utterances(config, part: str) -> Utterances:
    """The utterances of "train", "validation" or "test": they follow from the seed."""
    sounds, rng = sounds_of(config, part)
    counts = {"train": config.utterances, "validation": config.tests // 4, "test": config.tests}
    pairs = [utterance(sounds, config, rng, number) for number in range(counts[part])]
    x, lengths = data.pad_sequences([features(samples, sounds.rate) for samples, _ in pairs])
    words, _ = data.pad_sequences([words + 1 for _, words in pairs], config.longest, BLANK)
    sample = pairs[min(config.longest, len(pairs)) - 1][0]
    return Utterances(x, lengths, words, sample, sounds)
