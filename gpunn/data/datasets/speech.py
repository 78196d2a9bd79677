"""Spoken words: the clips that ship with captcha, and the Speech Commands folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gpunn.data.audio import read_wave
from gpunn.data.datasets.packaged import package_file
from gpunn.text import known

SPOKEN_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOISE = "_background_noise_"
PARTS = ("train", "validation", "test")
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_LARGEST = 2**27 - 1  # MAX_NUM_WAVS_PER_CLASS of the dataset's authors


def load_spoken_characters(characters: str = "0123456789") -> tuple[dict[str, np.ndarray], int]:
    """A real recording of each spoken digit, or letter (A to Z): one clip of each.

    Returns
    -------
    clips : character -> float32 (samples,), full scale from -1 to 1: 0.2 to 0.8 seconds
    rate : 8000 samples a second

    ImportError, saying what to install, without captcha (which is not imported); ValueError for a
    character that there is no clip of. Source: the default voice of Hsiaoming Yang's package
    captcha (BSD-3), 8 bits.
    """
    if not characters:
        raise ValueError("there are no characters; give some of 0 to 9 and A to Z")
    clips, rates = {}, set()
    for character in characters:
        if not re.fullmatch("[0-9A-Z]", character):
            raise ValueError(f"there is no clip of {character!r}; there are 0 to 9 and A to Z")
        path = package_file("captcha", f"data/{character}/default.wav")
        clips[character], rate = read_wave(path)
        rates.add(rate)
    if len(rates) != 1:
        raise ValueError(f"the clips of captcha have the rates {sorted(rates)}; expected one")
    return clips, rates.pop()


@dataclass(frozen=True)
class SpeechCommands:
    """The clips of a Speech Commands folder; sound is read when it is asked for.

    Attributes
    ----------
    words : the words that were chosen, whose numbers are the labels
    files : part ("train", "validation", "test") -> the clips' files, sorted
    labels : part -> int64 array of the word of each
    noises : the long recordings of noise
    """

    words: tuple[str, ...]
    files: dict[str, list[Path]]
    labels: dict[str, np.ndarray]
    noises: list[Path]

    def clips(self, part: str) -> Iterator[tuple[np.ndarray, int]]:
        """The sound (samples,) of each clip of a part, and its word. ValueError as of `read_wave`,
        and for a clip at another rate than the first."""
        for path, label in zip(self.files[part], self.labels[part].tolist(), strict=True):
            yield self.read(path), label

    def noise(self) -> list[np.ndarray]:
        """The sound (samples,) of each recording of noise."""
        return [self.read(path) for path in self.noises]

    def read(self, path: Path) -> np.ndarray:
        """The sound (samples,) of one of the files. ValueError as of `clips`."""
        samples, found = read_wave(path)
        if found != self.rate:
            raise ValueError(f"{path} has {found} samples a second, other clips {self.rate}")
        return samples

    @cached_property
    def rate(self) -> int:
        """Samples a second, of the first clip: 16000 in the official dataset."""
        return read_wave(next(files[0] for files in self.files.values() if files))[1]


def load_speech_commands(
    folder: str | os.PathLike[str], words: Sequence[str] | None = SPOKEN_DIGITS
) -> SpeechCommands:
    """Your own copy of Speech Commands (v0.01 and v0.02), or any folder in its format.

    Parameters
    ----------
    folder : it has a folder for each word, with clips of one second, ``_background_noise_`` with
        long ones, and ``validation_list.txt`` and ``testing_list.txt``, which name clips as
        ``word/file.wav``; all that they do not name is for training
    words : which of the words to take, in the order of their labels; None: all, sorted

    Without a list its part is found as the dataset's authors made it: by a hash of the file's name
    up to ``_nohash_``, which is the speaker, 10 % of the speakers each validate and test.

    Raises FileNotFoundError for a folder, or a word's, that is not there, and ValueError for a
    folder without words, words without clips, and lines of the lists that name no clip.

    Source: P. Warden, Speech Commands: a dataset for limited-vocabulary speech recognition, 2018
    (CC BY 4.0): 105,829 clips of 35 words by 2,618 speakers, 16,000 samples a second, 16 bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    there = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] not in "_.")
    if not there:
        raise ValueError(f"{folder} has no folders of words; expected such as {folder / 'one'}")
    chosen = tuple(there if words is None else words)
    for word in chosen:
        if word not in there:
            raise FileNotFoundError(f"{folder} has no folder {word!r}{known(word, there)}")
    if len(set(chosen)) < len(chosen) or not chosen:
        raise ValueError(f"words: expected different ones, got {', '.join(chosen) or 'none'}")
    listed = {part: _listed(folder, part) for part in _LISTS}
    files: dict[str, list[Path]] = {part: [] for part in PARTS}
    labels: dict[str, list[int]] = {part: [] for part in PARTS}
    for label, word in enumerate(chosen):
        clips = sorted((folder / word).glob("*.wav"))
        if not clips:
            raise ValueError(f"{folder / word} holds no .wav files")
        for path in clips:
            part = _part(path, listed)
            files[part].append(path)
            labels[part].append(label)
    noises = sorted((folder / NOISE).glob("*.wav"))
    return SpeechCommands(
        chosen, files, {part: np.array(found, np.int64) for part, found in labels.items()}, noises
    )


def _listed(folder: Path, part: str) -> set[str] | None:
    """The clips that a list names, or None without the list."""
    path = folder / _LISTS[part]
    if not path.is_file():
        return None
    names = set()
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        word, _, file = name.partition("/")
        # A copy may hold some of the words only; of those that it holds, all clips must be there.
        missing = (folder / word).is_dir() and not (folder / name).is_file()
        if not file.endswith(".wav") or missing:
            raise ValueError(f"{path}, line {number}: {name!r} names no clip of {folder}")
        names.add(name)
    return names


def _part(path: Path, listed: dict[str, set[str] | None]) -> str:
    name = f"{path.parent.name}/{path.name}"
    for part, names in listed.items():
        if names is not None and name in names:
            return part
    share = speaker_share(path.name)
    by_hash = "validation" if share < 10.0 else "test" if share < 20.0 else "train"
    return by_hash if by_hash == "train" or listed[by_hash] is None else "train"


def speaker_share(file: str) -> float:
    """Where in 0 to 100 the dataset's authors place the speaker of a clip: below 10 validates,
    below 20 tests. The same function as ``which_set`` of their README."""
    speaker = re.sub(r"_nohash_.*$", "", Path(file).name)
    digest = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    return (digest % (_LARGEST + 1)) * (100.0 / _LARGEST)
