"""Sound: WAV files of every width, spectrograms against SciPy, pitch and speed of a tone."""

import struct
import wave

import numpy as np
import pytest
from scipy.io import wavfile
from scipy.signal import spectrogram

from gpunn.data import (
    log_mel_spectrogram,
    mel_filters,
    read_wave,
    resample,
    time_stretch,
    trim_silence,
    write_wave,
)

RATE = 8000
NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, 4000)


def tone(frequency: float, length: int = 4000, loud: float = 0.5) -> np.ndarray:
    """A sine at RATE."""
    return (loud * np.sin(2 * np.pi * frequency * np.arange(length) / RATE)).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    """The frequency in which most power lies."""
    spectrum = abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return float(spectrum.argmax() * RATE / (1 << 16))


def written(path, width, channels, data, rate=RATE):
    """A WAV file of these bytes."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.mark.parametrize(("dtype", "width"), [(np.uint8, 1), (np.int16, 2), (np.int32, 4)])
@pytest.mark.parametrize("channels", [1, 2])
def test_read_agrees_with_scipy(tmp_path, dtype, width, channels):
    info = np.iinfo(dtype)
    values = np.random.default_rng(1).integers(info.min, info.max, (50, channels), dtype, True)
    values[:2] = [[info.min], [info.max]]
    path = written(tmp_path / "a.wav", width, channels, values.astype(f"<{dtype().dtype.str[1:]}"))
    rate, other = wavfile.read(path)
    middle, full = (128, 128) if width == 1 else (0, 2.0 ** (8 * width - 1))
    expected = ((other.astype(np.float64) - middle) / full).reshape(50, channels)
    found, found_rate = read_wave(path, mono=False)
    assert found.dtype == np.float32 and rate == found_rate == RATE
    assert found.shape == ((50, 2) if channels == 2 else (50,))
    np.testing.assert_allclose(found.reshape(50, channels), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(read_wave(path)[0], expected.mean(1), atol=1e-7)


def test_read_24_bits(tmp_path):
    values = [0, 1, -1, 2**23 - 1, -(2**23), 123456]
    data = b"".join(value.to_bytes(3, "little", signed=True) for value in values)
    found, _ = read_wave(written(tmp_path / "a.wav", 3, 1, data))
    assert found.tolist() == [value / 2**23 for value in values]


def test_read_refuses_what_is_no_whole_pcm_file(tmp_path):
    path = written(tmp_path / "a.wav", 2, 1, bytes(200))
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    with pytest.raises(ValueError, match=r"a\.wav ends too soon: .* 100 samples, 70 are there"):
        read_wave(path)
    path.write_bytes(whole[:30])
    with pytest.raises(ValueError, match="header.*ffmpeg"):
        read_wave(path)
    path.write_bytes(b"ID3 not a wave file, but long enough for a header, one would think")
    with pytest.raises(ValueError, match="cannot be read as a WAV file"):
        read_wave(path)
    floating = bytearray(whole)
    floating[20:22] = struct.pack("<H", 3)
    path.write_bytes(floating)
    with pytest.raises(ValueError, match="unknown format: 3"):
        read_wave(path)
    with pytest.raises(ValueError, match="holds no samples"):
        read_wave(written(tmp_path / "b.wav", 2, 1, b""))
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.wav"):
        read_wave(tmp_path / "c.wav")


def test_write_and_read_back(tmp_path):
    samples = np.array([0.0, 0.5, -1.0, 2.0, -3.0], np.float32)
    write_wave(tmp_path / "a.wav", samples, RATE)
    found, rate = read_wave(tmp_path / "a.wav")
    assert rate == RATE and found.tolist() == [0.0, 0.5, -1.0, 32767 / 32768, -1.0]
    both = NOISE.reshape(-1, 2).astype(np.float32)
    write_wave(tmp_path / "b.wav", both, 16000)
    found, rate = read_wave(tmp_path / "b.wav", mono=False)
    assert rate == 16000 and abs(found - both).max() <= 0.5 / 32768
    for bad, words in ((np.array([1]), "int64"), (np.array([np.nan]), "NaN")):
        with pytest.raises(ValueError, match=words):
            write_wave(tmp_path / "c.wav", bad, RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_mel_filters_are_triangles():
    weights = mel_filters(8, RATE, 512, 100.0, 3500.0)
    to_mel = 2595 * np.log10(1 + np.array([100.0, 3500.0]) / 700)
    corners = 700 * (10 ** (np.linspace(*to_mel, 10) / 2595) - 1)
    frequency = np.arange(257) * RATE / 512
    for band, row in enumerate(weights):
        expected = np.interp(frequency, corners[band : band + 3], [0.0, 1.0, 0.0])
        np.testing.assert_allclose(row, expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"band 0 of 60 holds none .* 62\.5 Hz apart"):
        mel_filters(60, RATE, 128, 0.0, 4000.0)
    with pytest.raises(ValueError, match="within 0 to 4000 Hz"):
        mel_filters(8, RATE, 256, 0.0, 5000.0)


@pytest.mark.parametrize("window", [0.025, 0.032])
def test_spectrogram_agrees_with_scipy(window):
    found = log_mel_spectrogram(NOISE, RATE, mels=20, window=window, low=50.0, high=3000.0)
    length = round(window * RATE)
    _, _, density = spectrogram(NOISE, RATE, "hann", length, length - 80, 256, detrend=False)
    density[1:-1] /= 2  # SciPy adds the negative frequencies to the positive ones
    expected = np.log(mel_filters(20, RATE, 256, 50.0, 3000.0) @ (density * RATE))
    assert found.dtype == np.float32 and found.shape == (1 + (4000 - length) // 80, 20)
    np.testing.assert_allclose(found, expected.T, rtol=1e-5, atol=1e-5)


def test_spectrogram_of_a_tone_of_silence_and_of_little():
    loud = log_mel_spectrogram(tone(1000.0), RATE)
    centre = 2595 * np.log10(1 + np.array([20.0, 1000.0, 4000.0]) / 700)
    band = (centre[1] - centre[0]) / (centre[2] - centre[0]) * 41 - 1
    assert set(loud.argmax(1)) == {round(band)}
    louder = log_mel_spectrogram(tone(1000.0, loud=1.0), RATE)
    np.testing.assert_allclose((louder - loud)[:, round(band)], np.log(4), atol=1e-4)
    silence = log_mel_spectrogram(np.zeros(100, np.float32), RATE, floor=1e-6)
    assert silence.shape == (1, 40) and np.allclose(silence, np.log(1e-6))
    for wrong, words in (
        (dict(samples=np.zeros((2, 9), np.float32)), r"shape \(2, 9\)"),
        (dict(samples=np.zeros(9, int)), "int64"),
        (dict(hop=0.0), "hop=0 are 200 and 0 samples"),
        (dict(mels=0), "0 bands"),
    ):
        arguments = {"samples": NOISE, "rate": RATE} | wrong
        with pytest.raises(ValueError, match=words):
            log_mel_spectrogram(**arguments)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.31])
def test_resample_and_stretch_a_tone(factor):
    sound = tone(400.0)
    lower = resample(sound, factor)  # ten whole periods stay whole: no ringing
    assert len(lower) == round(4000 * factor) and lower.dtype == np.float32
    expected = 0.5 * np.sin(2 * np.pi * 400 * np.arange(len(lower)) / RATE / factor)
    np.testing.assert_allclose(lower, expected, atol=1e-5)
    longer = time_stretch(sound, factor)
    assert len(longer) == round(4000 * factor) and longer.dtype == np.float32
    assert pitch(longer) == pytest.approx(400.0, abs=0.5)
    assert longer[400:-400].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    assert len(time_stretch(sound[:1], factor)) == 1
    if factor == 1.0:
        noise = NOISE.astype(np.float32)
        np.testing.assert_allclose(time_stretch(noise, 1.0), noise, atol=1e-6)
    with pytest.raises(ValueError, match="factor is 0"):
        resample(sound, 0.0)
    with pytest.raises(ValueError, match="size is 31; expected an even number"):
        time_stretch(sound, factor, size=31)


def test_trim_silence():
    sound = np.concatenate([np.zeros(1000), tone(500.0, 800), np.zeros(700)]).astype(np.float32)
    kept = trim_silence(sound, RATE)
    assert 800 <= len(kept) <= 800 + 160 and kept.base is not None  # half a window at each end
    np.testing.assert_allclose((kept**2).sum(), (sound**2).sum(), rtol=1e-6)
    silence = np.zeros(50, np.float32)
    assert len(trim_silence(silence, RATE)) == 50
