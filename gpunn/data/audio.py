"""Sound: WAV files, changes of pitch and speed, and the log-mel spectrogram that speech recognisers
listen to."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np

from gpunn.io.atomic import atomic_path

_MEL = 2595.0  # O'Shaughnessy's formula for the mel scale, as HTK has it


def read_wave(path: str | os.PathLike[str], mono: bool = True) -> tuple[np.ndarray, int]:
    """The sound of a WAV file of whole numbers (PCM) of 8, 16, 24 or 32 bits.

    Parameters
    ----------
    path : the file
    mono : give the mean of its channels

    Returns
    -------
    samples : float32 (length,), or (length, channels) without `mono`; full scale is -1 to 1
    rate : samples a second

    FileNotFoundError; ValueError, saying what came, for a file of another kind (compressed,
    floating, or before Python 3.12 in the "extensible" form), one that ends too soon, and one
    without samples.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            promised, data = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends within its header"
        raise ValueError(
            f"{path} cannot be read as a WAV file of whole numbers: {reason}. Convert it with: "
            "ffmpeg -i IN -c:a pcm_s16le -bitexact OUT.wav"
        ) from None
    if width not in (1, 2, 3, 4) or rate < 1:
        raise ValueError(
            f"{path}: {8 * width} bits at {rate} samples a second; expected 8, 16, 24 or 32 bits"
        )
    found = len(data) // (channels * width)
    if found < promised:
        raise ValueError(
            f"{path} ends too soon: its header promises {promised} samples, {found} are there; "
            "copy it again"
        )
    if found == 0:
        raise ValueError(f"{path} holds no samples")
    samples = _scaled(data, width).reshape(found, channels)
    return (samples.mean(1, dtype=np.float32) if mono else _squeezed(samples)), rate


def _squeezed(samples: np.ndarray) -> np.ndarray:
    return samples[:, 0] if samples.shape[1] == 1 else samples


def _scaled(data: bytes, width: int) -> np.ndarray:
    """Little-endian whole numbers of `width` bytes as float32, full scale at -1 and 1."""
    if width == 1:  # alone without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # to the upper three bytes of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    values = np.frombuffer(data, f"<i{width}")
    return (values / 2.0 ** (8 * width - 1)).astype(np.float32)


def write_wave(path: str | os.PathLike[str], samples: np.ndarray, rate: int) -> None:
    """Write sound as a WAV file of 16 bits, whole or not at all.

    `samples` are floating, (length,) or (length, channels), full scale from -1 to 1; what is louder
    is cut off. ValueError for other shapes, for NaN and for infinity.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or samples.dtype.kind != "f" or not samples.size:
        raise ValueError(
            f"write_wave: samples are {samples.dtype} of shape {samples.shape}; expected floating "
            "(length,) or (length, channels)"
        )
    if not np.isfinite(samples).all():
        raise ValueError("write_wave: samples hold NaN or infinity")
    whole = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(whole.tobytes())


def resample(samples: np.ndarray, factor: float) -> np.ndarray:
    """The same sound in ``round(factor · length)`` samples, by its Fourier transform.

    Played at the old rate it is `factor` times as long, and so much lower; at `factor` times the
    rate it sounds as before, without what half the new rate cannot hold. The sound is taken to
    repeat, so that a jump from its end to its beginning rings. float32 (length,) in and out.
    ValueError for a factor of 0 or less, or other shapes.
    """
    samples = _one_row("resample", samples, factor)
    count = max(1, round(len(samples) * factor))
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def time_stretch(samples: np.ndarray, factor: float, size: int = 256) -> np.ndarray:
    """The sound in `factor` times the time and at the same pitch, by overlapping pieces (WSOLA).

    The result is put together of pieces of `size` samples, each of which overlaps the next by half.
    A piece is taken from where its time stands in the sound, or up to half a piece before or after:
    there, where it is most like what followed the piece before it. So a piece should be longer than
    two periods of the voice: 256 samples are 32 ms at 8000 a second. Source: Verhelst, Roelands, An
    overlap-add technique based on waveform similarity (WSOLA), ICASSP 1993.

    float32 ``(round(factor · length),)``. ValueError as of `resample`, and for an odd `size`.
    """
    samples = _one_row("time_stretch", samples, factor)
    if size < 2 or size % 2:
        raise ValueError(f"time_stretch: size is {size}; expected an even number of 2 or more")
    hop, count = size // 2, max(1, round(len(samples) * factor))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    padded = np.pad(samples.astype(np.float64), 2 * size)
    energy = np.cumsum(np.pad(padded**2, (1, 0)))
    offsets = np.arange(-hop, hop + 1)
    out = np.zeros(count + 2 * size)
    begin = 2 * size - hop  # of the first piece, whose middle is the first sample
    for place in range(0, count + hop, hop):
        if place:
            follows = padded[begin + hop : begin + hop + size]
            about = 2 * size - hop + min(round(place / factor), len(samples)) + offsets
            alike = np.correlate(padded[about[0] : about[-1] + size], follows, "valid")
            alike /= np.sqrt(energy[about + size] - energy[about] + 1e-12)
            # Of equals, as in silence, the one at its own time.
            begin = int(about[(alike - 1e-9 * abs(offsets)).argmax()])
        out[place : place + size] += padded[begin : begin + size] * window
    return out[hop : hop + count].astype(np.float32)


def trim_silence(
    samples: np.ndarray, rate: int, below: float = 30.0, window: float = 0.02
) -> np.ndarray:
    """What lies between the first and the last moment that is less than `below` dB under the
    loudest; the power of a moment is the mean over `window` seconds around it. A view."""
    samples = _one_row("trim_silence", samples)
    size = max(1, round(window * rate))
    sums = np.cumsum(np.pad(samples.astype(np.float64) ** 2, (size - size // 2, size // 2)))
    power = sums[size:] - sums[:-size]
    said = np.flatnonzero(power > power.max() * 10 ** (-below / 10))
    return samples[said[0] : said[-1] + 1] if len(said) else samples


def _one_row(name: str, samples: np.ndarray, factor: float = 1.0) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or not samples.size or samples.dtype.kind != "f":
        raise ValueError(
            f"{name}: samples are {samples.dtype} of shape {samples.shape}; expected floating "
            "(length,)"
        )
    if not 0 < factor < np.inf:
        raise ValueError(f"{name}: factor is {factor}; expected more than 0")
    return samples


def mel_filters(mels: int, rate: int, size: int, low: float, high: float) -> np.ndarray:
    """Weights (mels, size // 2 + 1) of the frequencies of a Fourier transform of `size` samples.

    The bands overlap by half: on the scale ``2595 log10(1 + f / 700)`` of mel their corners stand
    at equal distances from `low` to `high`, in Hz; each is a triangle over frequency, 1 at its
    middle and 0 from its neighbours' middles on. ValueError where a band is so narrow that it holds
    no frequency of the transform.
    """
    if mels < 1 or not 0 <= low < high <= rate / 2:
        raise ValueError(
            f"mel_filters: {mels} bands from {low:g} to {high:g} Hz; expected one or more, within "
            f"0 to {rate / 2:g} Hz, half the rate"
        )
    ends = _MEL * np.log10(1 + np.array([low, high]) / 700)
    corners = 700 * (10 ** (np.linspace(ends[0], ends[1], mels + 2) / _MEL) - 1)
    frequency = np.arange(size // 2 + 1) * (rate / size)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequency - left) / (middle - left), (right - frequency) / (right - middle)
    weights = np.maximum(0, np.minimum(rising, falling))
    empty = np.flatnonzero(weights.sum(1) == 0)
    if len(empty):
        raise ValueError(
            f"mel_filters: band {empty[0]} of {mels} holds none of the frequencies, which are "
            f"{rate / size:.3g} Hz apart; take fewer bands or a longer window"
        )
    return weights


def log_mel_spectrogram(
    samples: np.ndarray,
    rate: int,
    mels: int = 40,
    window: float = 0.025,
    hop: float = 0.010,
    low: float = 20.0,
    high: float | None = None,
    floor: float = 1e-8,
) -> np.ndarray:
    """How loud each band of frequencies is over time: ``log(max(floor, M · |FFT(w x)|² / Σw²))``.

    Parameters
    ----------
    samples : sound (length,), full scale from -1 to 1
    rate : samples a second
    mels : bands; the matrix M is that of `mel_filters`
    window, hop : length of a frame, and from one frame to the next, in seconds. w is a (periodic)
        Hann window; the transform is as long as the next power of two.
    low, high : where the bands begin and end, in Hz; None: at half the rate
    floor : what is quieter counts as this

    Returns
    -------
    float32 (frames, mels). Frames lie wholly within the sound: ``1 + (length - window) // hop`` of
    them; a sound shorter than a window is filled with silence to one.

    ValueError for shapes and numbers that do not fit.
    """
    samples = _one_row("log_mel_spectrogram", samples)
    length, step = round(window * rate), round(hop * rate)
    if length < 2 or step < 1 or not floor > 0:
        raise ValueError(
            f"log_mel_spectrogram: at {rate} samples a second window={window:g} and hop={hop:g} "
            f"are {length} and {step} samples, and floor is {floor:g}; expected two samples, one, "
            "and more than 0"
        )
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    size = 1 << (length - 1).bit_length()
    weights = mel_filters(mels, rate, size, low, rate / 2 if high is None else high)
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::step]
    spectrum = np.fft.rfft(frames * shape.astype(np.float32), size)
    power = (spectrum.real**2 + spectrum.imag**2) / (shape**2).sum()
    return np.log(np.maximum(power @ weights.T, floor)).astype(np.float32)
