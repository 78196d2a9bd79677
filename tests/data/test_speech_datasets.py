"""Spoken words: the clips of captcha, and small folders in the format of Speech Commands."""

import hashlib

import numpy as np
import pytest

from gpunn.data import (
    SPOKEN_DIGITS,
    SpeechCommands,
    load_speech_commands,
    load_spoken_characters,
    write_wave,
)
from gpunn.data.datasets.speech import speaker_share

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """Two words with four clips each, their sound constant, one noise."""
    for number, word in enumerate(("two", "one")):
        (tmp_path / word).mkdir()
        for clip in range(4):
            sound = np.full(160, (10 * number + clip) / 100, np.float32)
            write_wave(tmp_path / word / f"{clip}abc_nohash_0.wav", sound, 16000)
    (tmp_path / "_background_noise_").mkdir()
    write_wave(tmp_path / "_background_noise_" / "hum.wav", np.full(900, 0.5, np.float32), 16000)
    (tmp_path / "README.md").write_text("not a word\n")
    (tmp_path / "validation_list.txt").write_text("one/1abc_nohash_0.wav\nbird/9_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("two/2abc_nohash_0.wav\none/3abc_nohash_0.wav\n")
    return tmp_path


def test_spoken_characters():
    clips, rate = load_spoken_characters()
    assert list(clips) == list("0123456789") and rate == 8000
    assert [len(clip) for clip in clips.values()] == [
        2747, 1974, 1947, 2280, 2287, 2630, 2383, 2745, 1807, 2341,
    ]  # fmt: skip
    assert all(clip.dtype == np.float32 and 0.4 < abs(clip).max() < 1 for clip in clips.values())
    with pytest.raises(ValueError, match="no clip of 'a'; there are 0 to 9 and A to Z"):
        load_spoken_characters("Aa")


def test_official_lists_split_the_folder(folder):
    commands = load_speech_commands(folder, ("one", "two"))
    assert isinstance(commands, SpeechCommands) and commands.rate == 16000
    names = {part: [f.name[0] for f in files] for part, files in commands.files.items()}
    assert names == {"train": list("020") + ["1", "3"], "validation": ["1"], "test": ["3", "2"]}
    assert commands.labels["train"].tolist() == [0, 0, 1, 1, 1]
    assert commands.labels["test"].tolist() == [0, 1]
    heard = [(float(sound[0]), label) for sound, label in commands.clips("test")]
    assert heard == [(pytest.approx(0.13, abs=1e-4), 0), (pytest.approx(0.02, abs=1e-4), 1)]
    (noise,) = commands.noise()
    assert noise.shape == (900,) and noise[0] == 0.5
    assert load_speech_commands(folder, None).words == ("one", "two")


def test_without_lists_the_hash_decides(folder):
    (folder / "validation_list.txt").unlink()
    (folder / "testing_list.txt").unlink()
    commands = load_speech_commands(folder, None)
    for part, files in commands.files.items():
        for path in files:  # the rule as the dataset's README states it
            hashed = hashlib.sha1(path.name.split("_nohash_")[0].encode()).hexdigest()
            share = (int(hashed, 16) % 2**27) * (100.0 / (2**27 - 1))
            assert share == speaker_share(path.name) == speaker_share("x/" + path.name)
            expected = "validation" if share < 10 else "test" if share < 20 else "train"
            assert part == expected
    assert sum(map(len, commands.files.values())) == 8
    shares = [speaker_share(f"{number:x}_nohash_1.wav") for number in range(2000)]
    assert np.mean(np.array(shares) < 10) == pytest.approx(0.1, abs=0.02)


def test_what_does_not_fit_is_named(folder):
    with pytest.raises(FileNotFoundError, match="no folder 'zero'"):
        load_speech_commands(folder)
    assert SPOKEN_DIGITS[7] == "seven"
    with pytest.raises(ValueError, match="expected different ones, got one, one"):
        load_speech_commands(folder, ("one", "one"))
    write_wave(folder / "two" / "0abc_nohash_0.wav", np.zeros(9, np.float32), 8000)
    with pytest.raises(ValueError, match="0abc_nohash_0.wav has 8000 samples a second, other"):
        list(load_speech_commands(folder, None).clips("train"))
    (folder / "testing_list.txt").write_text("one/3abc_nohash_0.wav\n\none/8_nohash_0.wav\n")
    with pytest.raises(ValueError, match=r"testing_list.txt, line 3: 'one/8_nohash_0.wav' na"):
        load_speech_commands(folder, None)
    (folder / "testing_list.txt").unlink()
    (folder / "three").mkdir()
    with pytest.raises(ValueError, match=r"three holds no \.wav files"):
        load_speech_commands(folder, None)
    with pytest.raises(ValueError, match="has no folders of words"):
        load_speech_commands(folder / "three")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_speech_commands(folder / "four")
