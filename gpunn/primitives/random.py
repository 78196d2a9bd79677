"""Random numbers from a counter: Philox4x32-10, the same bits in NumPy, CUDA and Numba.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011) is a bijection of 128-bit counters under a 64-bit key that passes BigCrush. Nothing is drawn
in sequence: element i of an array depends only on (seed, offset, i),

    word(i) = word i % 4 of philox(counter = (i // 4, offset), key = seed)

with the counter's four 32-bit words (i // 4 low, i // 4 high, offset low, offset high). So any
thread can make any element, a longer array begins with a shorter one, and two offsets never share
a counter. `random_bits` gives the words; the others are functions of b(i), which is
word(i) for float16, bfloat16 and float32, and for float64 the 53 bits of word(i) with 21 more
behind it, the top ones of the word at block 2^63 + i // 4. A float64 draw therefore agrees with the
float32 draw of the same seed to float32's precision.

===========  =====================================================================================
uniform      u = (word >> 8) 2^-24, or b 2^-53 in float64: in [0, 1), never 1; then
             low + (high - low) u
normal       z = Phi^-1((word + 1/2) 2^-32), or (b + 1/2) 2^-53 in float64; then mean + std z.
             |z| reaches 6.34 in float32 and 8.29 in float64 and is never 0.
dropout      keeps element i if u(i) >= p, with the float32 u for every dtype
===========  =====================================================================================

All four also take a `counter`: then the seed and the offset are read in device memory, as a
captured step needs it (`gpunn.primitives.random_counter`), and `advance_counter` moves it on.

The bits are the same everywhere because integers are, and because all floating arithmetic is made
of + - * / that are each rounded by themselves; `gpunn.primitives.random_reference` says how.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import random_launch as launches
from gpunn.primitives.random_counter import UINT64, check_counter, check_integer, origin
from gpunn.primitives.random_launch import UINT32
from gpunn.primitives.random_reference import (
    draws_in_passes,
    keep_flags,
    standard_normal,
    words_in_passes,
)
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

# Operations of one Philox block of four words, and of one normal quantile.
_PHILOX_FLOPS, _QUANTILE_FLOPS = 80, 50


# ---- specification -------------------------------------------------------------------------------


def _finite(call, name: str, value, dtype, low: float | None = None) -> float:
    """`value` as a number that is finite in `dtype`."""
    number = call.number(name, value, low=low)
    call.require(
        abs(number) <= float(np.finfo(dtype).max),
        name,
        f"is {value!r}",
        f"expected a number that is finite in {dtype.name}",
    )
    return number


@primitive(family="random", cuda="random.cu", numba="random.py")
def random_bits(
    call, out, *, seed: int, offset: int = 0, first_block: int = 0, counter=None
):
    """Fill `out` with the 32-bit words of Philox4x32-10: ``out[i] = word(4 first_block + i)``.

    Parameters
    ----------
    out : uint32 array of any shape, contiguous and writable, filled in place
    seed : the key, an integer in [0, 2^64)
    offset : the upper half of the counter, an integer in [0, 2^64)
    first_block : the lower half of the counter for the first four words, an integer in [0, 2^64);
        with it a part of a longer sequence can be made alone
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `out`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs

    Returns
    -------
    out

    Raises
    ------
    TypeError, ValueError : an `out` of another dtype, not contiguous or read-only; a seed, offset
        or first_block that is no integer or out of range; a counter that is no such array
    """
    seed, offset = check_integer(call, "seed", seed), check_integer(call, "offset", offset)
    first_block = check_integer(call, "first_block", first_block)
    out = call.inplace("out", out, dtypes=(UINT32,))
    call.run(out, seed, offset, check_counter(call, counter), first_block)
    return out


@primitive(family="random", cuda="random.cu", numba="random.py")
def random_uniform(
    call, out, *, seed: int, offset: int = 0, low: float = 0.0, high: float = 1.0, counter=None
):
    """Fill `out` with numbers uniform in [low, high): ``out = low + (high - low) u``.

    u has 24 bits, or 53 for float64. The 16-bit types are the float32 result rounded once. The
    rounding of the sum (and that to 16 bits) can give `high` itself; in [0, 1) of float32 and
    float64 nothing is rounded.

    Parameters
    ----------
    out : float16, bfloat16, float32 or float64 array, contiguous and writable, filled in place
    seed, offset : integers in [0, 2^64); one pair gives one sequence, whatever the device
    low, high : finite numbers, low <= high
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `out`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs

    Returns
    -------
    out

    Raises
    ------
    TypeError, ValueError : an `out` that does not fit, a seed or offset out of range, low > high, a
        counter that is no such array
    """
    seed, offset = check_integer(call, "seed", seed), check_integer(call, "offset", offset)
    out = call.inplace("out", out, dtypes=FLOATING)
    dtype = accumulator_dtype(out.dtype)
    low, high = _finite(call, "low", low, dtype), _finite(call, "high", high, dtype)
    call.require(low <= high, "low", f"is {low} and high is {high}", "give low <= high")
    width = _finite(call, "high - low", high - low, dtype)
    counter = check_counter(call, counter)
    call.run(out, seed, offset, counter, dtype.type(low), dtype.type(width))
    return out


@primitive(family="random", cuda="random.cu", numba="random.py")
def random_normal(
    call, out, *, seed: int, offset: int = 0, mean: float = 0.0, std: float = 1.0, counter=None
):
    """Fill `out` with normally distributed numbers: ``out = mean + std z``.

    z is the standard normal quantile of 32 uniform bits, or of 53 for float64 (see the top of this
    file): a monotone function of the word. The 16-bit types are the float32 result rounded once.

    Parameters
    ----------
    out : float16, bfloat16, float32 or float64 array, contiguous and writable, filled in place
    seed, offset : integers in [0, 2^64); one pair gives one sequence, whatever the device
    mean : a finite number
    std : a finite number >= 0
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `out`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs

    Returns
    -------
    out

    Raises
    ------
    TypeError, ValueError : an `out` that does not fit, a seed or offset out of range, std < 0, a
        counter that is no such array
    """
    seed, offset = check_integer(call, "seed", seed), check_integer(call, "offset", offset)
    out = call.inplace("out", out, dtypes=FLOATING)
    dtype = accumulator_dtype(out.dtype)
    mean = _finite(call, "mean", mean, dtype)
    std = _finite(call, "std", std, dtype, low=0.0)
    counter = check_counter(call, counter)
    call.run(out, seed, offset, counter, dtype.type(mean), dtype.type(std))
    return out


@primitive(family="random", cuda="random.cu", numba="random.py")
def dropout(call, x, *, p: float, seed: int, offset: int = 0, counter=None, out=None):
    """Zero elements with probability p: ``out[i] = x[i] / (1 - p)`` if u(i) >= p, else 0.

    u is `random_uniform` in float32 with the same seed and offset, for every dtype of `x`, so the
    mask depends on nothing else. The factor 1 / (1 - p) is rounded once and the product once. The
    backward pass is the same call on the gradient. A dropped element is 0 also where x is NaN or
    infinite (a product with the mask would give NaN). p = 0 copies, p = 1 gives zeros.
    Srivastava et al., "Dropout", JMLR 15 (2014), in the form scaled while training.

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array of any shape
    p : probability of zero, in [0, 1]
    seed, offset : integers in [0, 2^64)
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `x`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs
    out : array of the shape and dtype of `x` to write; may be `x` itself

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, p outside [0, 1], a seed or offset out of
        range, a counter that is no such array, an `out` that does not fit
    """
    p = call.number("p", p, low=0.0, high=1.0)
    seed, offset = check_integer(call, "seed", seed), check_integer(call, "offset", offset)
    x = call.array("x", x, dtypes=FLOATING)
    counter = check_counter(call, counter)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    # u >= p for a multiple u of 2^-24 is a comparison of integers, with no rounding anywhere.
    threshold = np.uint32(math.ceil(p * 2**24))
    scale = accumulator_dtype(x.dtype).type(1 / (1 - p) if p < 1 else 0)
    call.run(x, out, seed, offset, counter, threshold, scale)
    return out


@primitive(family="random", cuda="random.cu", numba="random.py")
def advance_counter(call, counter, *, draws: int):
    """Move a counter on: ``counter[1] += draws``, modulo 2^64.

    The last launch of a captured step that has used the offsets counter[1] + 0, …, draws - 1: the
    next repetition begins behind them.

    Parameters
    ----------
    counter : uint64 array (2,), [seed, offset], changed in place
    draws : an integer in [0, 2^64)

    Returns
    -------
    counter

    Raises
    ------
    TypeError, ValueError : a counter that is no such array or read-only; draws out of range
    """
    draws = check_integer(call, "draws", draws)
    counter = call.inplace("counter", counter, dtypes=(UINT64,), shape=(2,))
    call.run(counter, draws)
    return counter


# ---- NumPy reference -----------------------------------------------------------------------------


@random_bits.reference
def _(out, seed, offset, counter, first_block):
    seed, offset = origin(seed, offset, counter)
    flat = out.reshape(-1)
    for start, stop, words in words_in_passes(out.size, seed, offset, first_block):
        flat[start:stop] = words


@random_uniform.reference
def _(out, seed, offset, counter, low, width):
    seed, offset = origin(seed, offset, counter)
    flat, real = out.reshape(-1), low.dtype
    discard, unit = (8, 2.0**-24) if real == np.float32 else (0, 2.0**-53)
    with np.errstate(over="ignore"):  # in a 16-bit out
        for start, stop, draws in draws_in_passes(out.size, seed, offset, real):
            draws >>= discard
            values = draws.view(f"i{real.itemsize}").astype(real)
            values *= unit
            values *= width
            values += low
            flat[start:stop] = values


@random_normal.reference
def _(out, seed, offset, counter, mean, std):
    seed, offset = origin(seed, offset, counter)
    flat = out.reshape(-1)
    with np.errstate(over="ignore"):  # of the largest mean and std, or of a 16-bit out
        for start, stop, draws in draws_in_passes(out.size, seed, offset, mean.dtype):
            values = standard_normal(draws)
            values *= std
            values += mean
            flat[start:stop] = values


@dropout.reference
def _(x, out, seed, offset, counter, threshold, scale):
    if threshold == 0:
        np.copyto(out, x)
        return
    if threshold == 1 << 24:
        out.fill(0)
        return
    source, target = x.reshape(-1), out.reshape(-1)
    target_bits = target.view(f"i{out.itemsize}")
    keep = keep_flags.take(x.size, *origin(seed, offset, counter), threshold)
    with quiet():
        for start in range(0, x.size, _PIECE):
            piece = slice(start, start + _PIECE)
            target[piece] = source[piece].astype(scale.dtype, copy=False) * scale
            # The product of the bits as an integer with 0 or 1: NaN becomes 0 too, and it is twenty
            # times as fast as an assignment under a mask.
            np.multiply(target_bits[piece], keep[piece], out=target_bits[piece])


_PIECE = 1 << 16  # elements that stay in the second-level cache


@advance_counter.reference
def _(counter, draws):
    with np.errstate(over="ignore"):
        counter[1] += np.uint64(draws)


# ---- launches ------------------------------------------------------------------------------------

random_bits.cuda(launches.random_bits)
random_uniform.cuda(launches.random_uniform)
random_normal.cuda(launches.random_normal)
dropout.cuda(launches.dropout)
advance_counter.cuda(launches.advance_counter)
random_bits.numba(launches.numba_random_bits)
random_uniform.numba(launches.numba_random_uniform)
random_normal.numba(launches.numba_random_normal)
dropout.numba(launches.numba_dropout)
advance_counter.numba(launches.numba_advance_counter)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


def _philox_flops(array) -> float:
    blocks = -(-array.size // 4)
    return _PHILOX_FLOPS * blocks * (2 if array.dtype == np.float64 else 1)


@random_bits.cost
def _(out, seed, offset, counter, first_block):
    return Cost(flops=_philox_flops(out), read=0, written=out.nbytes)


@random_uniform.cost
def _(out, seed, offset, counter, low, width):
    return Cost(flops=_philox_flops(out) + 4 * out.size, read=0, written=out.nbytes)


@random_normal.cost
def _(out, seed, offset, counter, mean, std):
    flops = _philox_flops(out) + _QUANTILE_FLOPS * out.size
    return Cost(flops=flops, read=0, written=out.nbytes)


@dropout.cost
def _(x, out, seed, offset, counter, threshold, scale):
    flops = _PHILOX_FLOPS * -(-x.size // 4) + 3 * x.size
    return Cost(flops=flops, read=x.nbytes, written=out.nbytes)


@advance_counter.cost
def _(counter, draws):
    return Cost(flops=1, read=8, written=8)
