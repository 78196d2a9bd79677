"""What the implementations of attention are given: `Problem`, and the checks that lead to it.

All of them agree on this picture. The queries of the heads that share a head of keys (a *group* of
G = H / Hkv) are the *rows* of one table for every (batch, head of keys): row r is query r // G of
group member r % G. Query i of sequence b sees the keys from `first_key` up to before `end_key`, and
of these the ones that the mask lets through.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.primitives.random_counter import check_counter, check_integer
from gpunn.primitives.samples import FLOATING, INTEGERS

MAX_DIM = 256  # of a head: the kernels keep rows of so many numbers in registers

# Beyond any position, with room to add positions in 32 bits.
UNLIMITED = 1 << 30

BOOL, INT32 = np.dtype(np.bool_), np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class Problem:
    """The options of one attention, checked.

    Attributes
    ----------
    mask : array whose shape broadcasts to (B, H, Tq, Tk), or None
    q_lengths, kv_lengths : int32 arrays (B,), or None for whole sequences
    causal : whether query i sees only the keys up to i + offset
    causal_offset, causal_offsets : that offset, and an int32 array (B,) to add to it, or None
    window : how many keys a causal query sees at most
    scale : the factor of the products of queries and keys
    threshold, seed, offset : dropout zeroes a weight if its word's upper 24 bits are below it
    counter : uint64 array (2,), [seed, offset], to read when a kernel runs, or None
    keep_scale : what the other weights are multiplied by, 1 / (1 - p)
    """

    mask: Any
    q_lengths: Any
    kv_lengths: Any
    causal: bool
    causal_offset: int
    causal_offsets: Any
    window: int
    scale: float
    threshold: int
    keep_scale: float
    seed: int
    offset: int
    counter: Any

    def shift_of(self, offset: int, queries: int, keys: int) -> int:
        """An offset without what changes nothing: the last key of query i is i + shift."""
        window = self.window if self.window < UNLIMITED else 0
        return max(min(offset, keys + window), -queries)

    def pairs(self, q, k) -> float:
        """How many (query, key) pairs of one head are seen, lengths and mask left aside."""
        tq, tk = q.shape[1], k.shape[1]
        if not self.causal:
            return float(tq * tk)
        position = np.arange(tq) + self.shift_of(self.causal_offset, tq, tk)
        end = np.clip(position + 1, 0, tk)
        return float((end - np.clip(position + 1 - self.window, 0, end)).sum())


def mask_strides(mask) -> tuple[int, int, int, int]:
    """Elements of the mask from one batch, head, query and key to the next; 0 where it repeats."""
    steps = [
        stride // mask.itemsize if size > 1 else 0
        for size, stride in zip(mask.shape, mask.strides, strict=True)
    ]
    return (0,) * (4 - len(steps)) + tuple(steps)


def strides_of(array) -> tuple[int, int, int]:
    """Elements from one batch, position and head of a (B, T, H, D) array to the next."""
    return tuple(
        stride // array.itemsize if size > 1 else 0
        for size, stride in zip(array.shape[:3], array.strides[:3], strict=True)
    )


# ---- checks --------------------------------------------------------------------------------------


def heads_array(call, name: str, value):
    """A (B, T, H, D) input; its outer dimensions may lie anyhow, the last one without gaps."""
    value = call.array(name, value, dtypes=FLOATING, ndim=4, strided=True)
    itemsize = value.itemsize
    if any(step % itemsize for step in value.strides) or (
        value.strides[3] != itemsize and value.shape[3] > 1
    ):
        return call.array(name, call.xp.ascontiguousarray(value))
    return value


def heads_output(call, name: str, value, shape, dtype):
    """The array to write a (B, T, H, D) result to: a new one, or one that fits but for strides."""
    if value is None:
        return call.empty(shape, dtype)
    if getattr(getattr(value, "flags", None), "c_contiguous", True):
        return call.output(name, value, shape=shape, dtype=dtype)
    value = call.array(name, value, dtypes=(np.dtype(dtype),), shape=tuple(shape), strided=True)
    gaps = value.strides[3] != value.itemsize and value.shape[3] > 1
    overlaps = any(step == 0 and n > 1 for step, n in zip(value.strides, shape, strict=True))
    if gaps or overlaps or (isinstance(value, np.ndarray) and not value.flags.writeable):
        call.refuse(
            name, value, "a writable array whose last dimension is contiguous",
            "Give a new array and copy the result into the view.",
        )  # fmt: skip
    return value


def check_inputs(call, q, k, v):
    """q, k and v, checked against each other."""
    q, k, v = (heads_array(call, *pair) for pair in (("q", q), ("k", k), ("v", v)))
    call.same_dtype(q=q, k=k, v=v)
    if v.shape != k.shape:
        call.refuse("v", v, f"the shape of k, {k.shape}")
    batch, _, heads, dim = q.shape
    kv_heads = k.shape[2]
    call.require(
        k.shape[0] == batch and k.shape[3] == dim,
        "k",
        f"has shape {k.shape} and q {q.shape}",
        "the batch and the head dimension, the first and the last size, must be equal",
    )
    call.require(
        1 <= dim <= MAX_DIM, "q", f"has heads of dimension {dim}", f"expected 1 to {MAX_DIM}"
    )
    call.require(
        kv_heads > 0 and heads % kv_heads == 0 and heads > 0,
        "q",
        f"has {heads} heads and k {kv_heads}",
        "the heads of q must be a multiple of those of k",
    )
    return q, k, v


def check_options(
    call, q, k, *, mask, causal, causal_offset, window, scale, dropout_p, seed, offset, counter,
    q_lengths, kv_lengths,
) -> Problem:  # fmt: skip
    """The other arguments, checked."""
    causal_offset, causal_offsets = _causal_offset(call, causal, causal_offset, q.shape[0])
    if window is not None:
        window = _integer(call, "window", window, 1)
        call.require(
            causal, "window", f"is {window} and causal is False", "a window goes with causal=True"
        )
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else call.number("scale", scale)
    probability = call.number("dropout_p", dropout_p, 0.0, 1.0)
    return Problem(
        mask=None if mask is None else _mask(call, mask, q, k),
        q_lengths=_lengths(call, "q_lengths", q_lengths, q),
        kv_lengths=_lengths(call, "kv_lengths", kv_lengths, k),
        causal=bool(causal),
        causal_offset=causal_offset,
        causal_offsets=causal_offsets,
        window=UNLIMITED if window is None else min(window, UNLIMITED),
        scale=scale,
        threshold=math.ceil(probability * 2**24),
        keep_scale=1 / (1 - probability) if probability < 1 else 0.0,
        seed=check_integer(call, "seed", seed),
        offset=check_integer(call, "offset", offset),
        counter=check_counter(call, counter),
    )


def _integer(call, name: str, value, low: int, high: int | None = None) -> int:
    text = f"expected an integer from {low}" + ("" if high is None else f" to {high}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{call.primitive.name}: {name} is {value!r:.60}; {text}.") from None
    call.require(low <= number and (high is None or number <= high), name, f"is {number}", text)
    return number


def _causal_offset(call, causal, value, batch: int):
    """(the number, the array or None)"""
    if hasattr(value, "shape") and value.shape != ():
        value = call.array("causal_offset", value, dtypes=INTEGERS, shape=(batch,))
        call.require(
            causal, "causal_offset", "is given and causal is False", "it goes with causal=True"
        )
        return 0, _int32(call, value)
    number = _integer(call, "causal_offset", value, -UNLIMITED, UNLIMITED)
    call.require(
        causal or number == 0, "causal_offset", f"is {number} and causal is False",
        "it goes with causal=True",
    )  # fmt: skip
    return number, None


def _int32(call, value):
    """As int32, without turning a number too large into another one."""
    if value.dtype == INT32:
        return value
    return call.xp.clip(value, -UNLIMITED, UNLIMITED).astype(INT32)


def _lengths(call, name: str, value, array):
    """Lengths as int32; on the CPU their values are looked at."""
    if value is None:
        return None
    batch, longest = array.shape[:2]
    value = call.array(name, value, dtypes=INTEGERS, shape=(batch,))
    if type(value) is np.ndarray and value.size:
        low, high = int(value.min()), int(value.max())
        call.require(
            0 <= low and high <= longest, name, f"holds {low if low < 0 else high}",
            f"expected lengths from 0 to {longest}",
        )  # fmt: skip
    return _int32(call, value)


def _mask(call, mask, q, k):
    mask = call.array("mask", mask, dtypes=(BOOL, q.dtype), strided=True)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    fits = mask.ndim <= 4 and all(
        size in (1, want)
        for size, want in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        call.refuse("mask", mask, f"a shape that broadcasts to (B, H, Tq, Tk) = {full}")
    if any(step % mask.itemsize for step in mask.strides):
        mask = call.xp.ascontiguousarray(mask)
    return mask
