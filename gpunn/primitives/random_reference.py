"""Philox4x32-10 and the normal quantile in NumPy: the reference of the random primitives.

Why the results are the same bit for bit: integers are, and all floating arithmetic is made of
+ - * / in float32 (float64 for float64), each rounded by itself to nearest even as IEEE 754
defines it. The GPU's compilers would fuse a * b + c into one rounding; the kernels use the
instructions that they may not fuse. The libraries' log, sin and cos differ between devices, which
rules out Box-Muller and the usual inverse. So the normal quantile is our own, without a branch:
with t = 2 min(P, 1 - P) and x = 1 - t,

    w = -log(t (2 - t)) >= 0,        Phi^-1(P) = sign * x * N(w) / D(w)

because x^2 = 1 - exp(-w), and the quantile divided by x is a smooth function of w from the middle
to the tail. N / D is the best rational function for it in the relative error (degrees 6/5 for
float32: 1e-8; 14/13 for float64: 2e-16; fitted in 45 digits by Lawson's reweighted least squares),
and all its coefficients are positive, so that nothing cancels. The logarithm splits its argument
into 2^e m, m in [sqrt(1/2), sqrt(2)), and takes -log m = 2 artanh g, g = (1 - m) / (1 + m), by its
series. The relative error of z is below 5e-7 in float32 and 2e-15 in float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# ---- Philox --------------------------------------------------------------------------------------

# Blocks in one pass: enough that NumPy's cost of a call does not count, few enough that the arrays
# stay in the second-level cache.
_PASS = 1 << 14

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, added to the key each round


def _round_keys(seed: int, rounds: int = 10) -> np.ndarray:
    """The keys of all rounds, (rounds, 2, 1), in the order of the state's rows (see below)."""
    first, second = seed & 0xFFFFFFFF, seed >> 32
    keys = []
    for number in range(rounds):
        pair = (
            (first + number * _WEYL[0]) & 0xFFFFFFFF,
            (second + number * _WEYL[1]) & 0xFFFFFFFF,
        )
        keys.append(pair[::-1] if number % 2 == 0 else pair)
    return np.array(keys, np.uint64)[:, :, None]


def philox_words(first_block: int, blocks: int, seed: int, offset: int) -> np.ndarray:
    """The words of counters (first_block … first_block + blocks - 1, offset): (blocks, 4) uint32.

    One round maps the counter (c0, c1, c2, c3) under the key (k0, k1) to
    (hi(B c2) ^ c1 ^ k0, lo(B c2), hi(A c0) ^ c3 ^ k1, lo(A c0)). `state` holds c0 and c2 in two
    rows, `low` c1 and c3 in the lower halves of the last products. A round leaves the new c2 where
    c0 was and the reverse, so the rows are in their order again after two.
    """
    block = np.arange(blocks, dtype=np.uint64)
    block += np.uint64(first_block)
    state, low, product = np.empty((3, 2, blocks), np.uint64)
    np.bitwise_and(block, _LOW, out=state[0])
    np.right_shift(block, _SHIFT, out=low[0])
    state[1], low[1] = offset & 0xFFFFFFFF, offset >> 32
    multipliers = (_MULTIPLIERS, _MULTIPLIERS[::-1])
    for number, key in enumerate(_round_keys(seed)):
        np.multiply(state, multipliers[number % 2], out=product)
        np.right_shift(product, _SHIFT, out=state)
        np.bitwise_and(low, _LOW, out=low)
        np.bitwise_xor(state, low[::-1], out=state)
        np.bitwise_xor(state, key, out=state)
        low, product = product, low
    words = np.empty((blocks, 4), np.uint32)
    # The assignments keep the lower 32 bits of each product.
    words[:, 0], words[:, 1], words[:, 2], words[:, 3] = state[0], low[0], state[1], low[1]
    return words


def words_in_passes(
    size: int, seed: int, offset: int, first_block: int = 0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, words of the elements start … stop - 1) over all elements of an array."""
    for start in range(0, size, 4 * _PASS):
        stop = min(start + 4 * _PASS, size)
        block = (first_block + start // 4) % (1 << 64)
        words = philox_words(block, -(-(stop - start) // 4), seed, offset)
        yield start, stop, words.reshape(-1)[: stop - start]


def draws_in_passes(
    size: int, seed: int, offset: int, real: np.dtype
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, b): the words for float32, their 53-bit extensions for float64."""
    if real == np.float32:
        yield from words_in_passes(size, seed, offset)
        return
    behind = words_in_passes(size, seed, offset, first_block=1 << 63)
    for (start, stop, words), (_, _, more) in zip(
        words_in_passes(size, seed, offset), behind, strict=True
    ):
        bits = words.astype(np.uint64)
        bits <<= np.uint64(21)
        bits |= more >> np.uint32(11)
        yield start, stop, bits


# ---- the normal quantile -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Precision:
    """What the quantile needs to know of float32 or float64. The kernels hold the same numbers."""

    real: np.dtype
    integer: np.dtype  # the signed integer of the same size
    half: int  # half the number of values that b can take
    mantissa: int  # bits of the mantissa
    root: int  # the bits of sqrt(1/2)
    artanh: tuple[float, ...]  # 2 artanh(g) / g in powers of g^2
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]


_SINGLE = _Precision(
    real=np.dtype(np.float32),
    integer=np.dtype(np.int32),
    half=1 << 31,
    mantissa=23,
    root=0x3F3504F3,
    artanh=tuple(2 / (2 * k + 1) for k in range(4)),
    numerator=(
        1.25331414, 0.447422057, 0.0909955576, 0.0125217028, 0.00113786408, 5.93234145e-05,
        1.91215833e-07,
    ),
    denominator=(
        1.0, 0.0951914936, 0.0346521288, 0.00231108675, 0.000248439435, 3.73882995e-06,
    ),
)  # fmt: skip
_DOUBLE = _Precision(
    real=np.dtype(np.float64),
    integer=np.dtype(np.int64),
    half=1 << 52,
    mantissa=52,
    root=0x3FE6A09E667F3BCD,
    artanh=tuple(2 / (2 * k + 1) for k in range(10)),
    numerator=(
        1.2533141373155006, 0.63877970561179054, 0.19217785242659166, 0.042690193838295358,
        0.007178990369924752, 0.00095522836974797542, 0.0001019858464871777,
        8.7569920705936494e-06, 6.0826180739714274e-07, 3.4613338941603662e-08,
        1.6095750634235958e-09, 5.0584866753717997e-11, 1.7504548238496434e-12,
        1.3743351609089755e-14, 1.0061442076674791e-17,
    ),
    denominator=(
        1.0, 0.24787307706271727, 0.075410684602502762, 0.013723964447873448,
        0.0019499224593928855, 0.00025473804985444372, 2.1011317575274098e-05,
        1.8985817957889168e-06, 9.8945339204727138e-08, 6.1882117981591238e-09,
        1.908730327534698e-10, 7.6895357009168876e-12, 1.3828353193838616e-13,
        3.9585970883079853e-16,
    ),
)  # fmt: skip


def _horner(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    value = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        value += coefficient
        value *= x
    value += coefficients[0]
    return value


def standard_normal(draws: np.ndarray) -> np.ndarray:
    """The standard normal quantile of (draws + 1/2) / 2^32 (uint32 draws) or / 2^53 (uint64).

    Nearly all work is done in place: the time is that of about 50 passes over the cache.
    """
    made = _SINGLE if draws.dtype == np.uint32 else _DOUBLE
    signed = (draws - draws.dtype.type(made.half)).view(made.integer)
    x = signed.astype(made.real)
    x += 0.5
    x *= 1 / made.half
    # The number of draws between this one and the nearer end of the range, which gives the
    # probability of the tail to full relative precision.
    rank = signed >> (8 * made.integer.itemsize - 1)
    rank ^= signed
    rank ^= made.half - 1
    t = rank.astype(made.real)
    t += 0.5
    t *= 1 / made.half
    w = _minus_log(t * (2 - t), made)
    z = _horner(made.numerator, w)
    z /= _horner(made.denominator, w)
    z *= x
    return z


def _minus_log(y: np.ndarray, made: _Precision) -> np.ndarray:
    """-log(y) for y in (0, 1]; overwrites y."""
    bits = y.view(made.integer)
    bits -= made.root
    exponent = (bits >> made.mantissa).astype(made.real)
    bits &= (1 << made.mantissa) - 1
    bits += made.root  # y is now m in [sqrt(1/2), sqrt(2))
    g = 1 - y
    y += 1
    g /= y
    result = _horner(made.artanh, g * g)
    result *= g
    exponent *= -math.log(2)
    result += exponent
    return result


# ---- the mask of dropout -------------------------------------------------------------------------


class _KeepFlags:
    """The flags of recent dropouts, a byte an element.

    The backward pass asks for the flags that its forward pass has drawn, once, and drawing them in
    NumPy takes thirty times as long as keeping them. Flags that are never asked for again (a
    forward pass alone) go when newer ones need the room.
    """

    def __init__(self, capacity: int = 64 << 20):
        self.capacity, self.held = capacity, 0
        self.flags: dict[tuple, np.ndarray] = {}
        self.lock = threading.Lock()

    def take(self, size: int, seed: int, offset: int, threshold: np.uint32) -> np.ndarray:
        """Element i is kept iff flag i; the same for the same arguments."""
        key = (size, seed, offset, int(threshold))
        with self.lock:
            found = self.flags.pop(key, None)
            if found is not None:
                self.held -= size
                return found
        flags = np.empty(size, np.bool_)
        least = threshold << np.uint32(8)  # word >> 8 >= threshold in one comparison
        for start, stop, words in words_in_passes(size, seed, offset):
            np.greater_equal(words, least, out=flags[start:stop])
        with self.lock:
            if size <= self.capacity and key not in self.flags:
                self.held += size
                self.flags[key] = flags
            while self.held > self.capacity:
                self.held -= self.flags.pop(next(iter(self.flags))).size
        return flags


keep_flags = _KeepFlags()
