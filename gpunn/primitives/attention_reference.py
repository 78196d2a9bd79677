"""Attention in NumPy: the reference, and what runs on the CPU.

One tile of scores at a time: some heads of a sequence, some of its queries, the keys that these may
see. So memory stays bounded for any length, a tile stays in the CPU's cache, keys that no query of
the tile sees cost nothing, and every product is one call of BLAS for each head of keys. Sequences
and heads are shared out to threads. 16-bit numbers are widened a sequence at a time and results
rounded once.
"""

from __future__ import annotations

import copy

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.random_counter import origin
from gpunn.primitives.random_reference import keep_flags, philox_words
from gpunn.primitives.samples import accumulator_dtype

# Scores of a tile. Two or three arrays of so many are at work at a time.
_TILE = 1 << 17

# Multiplications of one product that are worth a piece of their own, and of a whole call that are
# worth threads.
_PIECE, _THREADS = 1 << 24, 1 << 22

# Dropout keeps the flags of a whole call for the way back if they are no more than this.
_FLAGS = 1 << 25


class _Tiles:
    """Walks over the tiles of one call and knows which scores count."""

    def __init__(self, q, k, p):
        self.p = p
        self.batch, self.tq, self.heads, self.dim = q.shape
        self.tk, self.kv_heads = k.shape[1:3]
        self.group = self.heads // self.kv_heads
        self.real = accumulator_dtype(q.dtype)
        self.before, self.all_heads = 0, self.heads
        self.mask = p.mask
        if p.mask is not None:
            full = (self.batch, self.heads, self.tq, self.tk)
            self.mask = np.broadcast_to(p.mask, full)
        self.flags, self.origin = None, origin(p.seed, p.offset, p.counter)
        size = self.batch * self.heads * self.tq * self.row_words
        if 0 < p.threshold < 1 << 24 and size <= _FLAGS:
            flags = keep_flags.take(size, *self.origin, np.uint32(p.threshold))
            self.flags = flags.reshape(self.batch, self.heads, self.tq, self.row_words)

    def each(self, work) -> None:
        """Call ``work(tiles, b, query heads, heads of keys)`` for pieces that make up the call.

        The last two are slices, and `tiles` is this of their heads alone.
        """
        if 0 in (self.batch, self.kv_heads):
            return
        size = self.group * self.tq * self.dim * min(self.tk, max(self.p.window, 64))
        step = min(self.kv_heads, max(1, _PIECE // max(1, size)))
        starts = range(0, self.kv_heads, step)
        pieces = [(b, first) for b in range(self.batch) for first in starts]

        def take(piece) -> None:
            b, first = piece
            part, keys = copy.copy(self), slice(first, min(first + step, self.kv_heads))
            heads = slice(keys.start * self.group, keys.stop * self.group)
            part.kv_heads, part.heads = keys.stop - first, heads.stop - heads.start
            part.before = heads.start
            part.mask = None if self.mask is None else self.mask[:, heads]
            part.flags = None if self.flags is None else self.flags[:, heads]
            work(part, b, heads, keys)

        if size * self.kv_heads * self.batch < _THREADS:
            with quiet():
                for piece in pieces:
                    take(piece)
        else:
            for_each(take, pieces)

    @property
    def row_words(self) -> int:
        """Random words of a row of scores: whole blocks of four."""
        return -(-self.tk // 4) * 4

    def queries_of(self, b: int) -> int:
        """How many queries of sequence b count."""
        return self.tq if self.p.q_lengths is None else int(self.p.q_lengths[b])

    def of(self, b: int):
        """(first query, end, first key, end) of each tile of sequence b with something to see."""
        p, queries = self.p, self.queries_of(b)
        keys = self.tk if p.kv_lengths is None else int(p.kv_lengths[b])
        width = min(keys, self.tk)
        if p.causal:  # a tile is as wide as its window and its own triangle
            width = min(width, p.window + 64)
        step = max(1, min(queries, max(16, _TILE // max(1, self.heads * width))))
        if p.causal:  # not too wide, or half of it is hidden
            step = min(step, max(64, self.tk // 8))
        for start in range(0, queries, step):
            end = min(start + step, queries)
            first, last = 0, keys
            if p.causal:
                shift = self.shift(b)
                first = max(0, start + shift - p.window + 1)
                last = min(keys, end + shift)
            if first < last:
                yield start, end, first, last

    def shift(self, b: int) -> int:
        """What is added to a query's number to get the last key that it may see."""
        p = self.p
        offset = p.causal_offset if p.causal_offsets is None else int(p.causal_offsets[b])
        return p.shift_of(offset, self.tq, self.tk)

    def rows(self, array, b: int, start: int, end: int, factor=None):
        """Queries of (B, T, H, D) as (heads of keys, rows, D), a copy, times a factor."""
        some = array[b, start:end].reshape(end - start, self.kv_heads, self.group, -1)
        made = np.empty((self.kv_heads, self.group, end - start, array.shape[3]), self.real)
        if factor is None:
            made[...] = some.transpose(1, 2, 0, 3)
        else:
            np.multiply(some.transpose(1, 2, 0, 3), self.real.type(factor), out=made)
        return made.reshape(self.kv_heads, -1, array.shape[3])

    def put_rows(self, out, rows, b: int, start: int, end: int) -> None:
        """The reverse of `rows`."""
        some = rows.reshape(self.kv_heads, self.group, end - start, -1).transpose(2, 0, 1, 3)
        out[b, start:end].reshape(end - start, self.kv_heads, self.group, -1)[...] = some

    def keys(self, array, b: int):
        """Keys or values of sequence b as (heads, T, D) in the accumulator's type."""
        return array[b].astype(self.real, copy=False).transpose(1, 0, 2)

    def heads_of(self, rows, n: int):
        """Scores (heads of keys, rows, keys) as (heads, n queries, keys)."""
        return rows.reshape(self.heads, n, -1)

    def hide(self, scores, b: int, start: int, end: int, first: int, last: int) -> None:
        """-inf where a score of (heads, queries, keys) is not to be seen; adds the mask."""
        p = self.p
        if self.mask is not None:
            mask = self.mask[b, :, start:end, first:last]
            if mask.dtype == np.bool_:
                np.copyto(scores, -np.inf, where=~mask)
            else:
                scores += mask.astype(self.real, copy=False)
        if not p.causal:
            return
        shift = self.shift(b)
        queries = np.arange(start, end)[:, None] + shift
        seen_by_all = min(last, start + shift + 1)  # keys before it come before every query
        if seen_by_all < last:
            at = max(first, seen_by_all)
            np.copyto(scores[:, :, at - first :], -np.inf, where=np.arange(at, last) > queries)
        kept_by_all = max(first, end - 1 + shift - p.window + 1)
        if kept_by_all > first:
            at = min(last, kept_by_all)
            gone = np.arange(first, at) <= queries - p.window
            np.copyto(scores[:, :, : at - first], -np.inf, where=gone)

    def drop(self, weights, b: int, start: int, end: int, first: int, last: int) -> None:
        """Zero the weights that dropout drops."""
        p = self.p
        if p.threshold == 0:
            return
        if p.threshold >= 1 << 24:
            weights[...] = 0
            return
        if self.flags is not None:
            keep = self.flags[b, :, start:end, first:last]
        else:
            least, row = np.uint32(p.threshold << 8), self.row_words
            keep = np.empty((self.heads, end - start, row), np.bool_)
            for head in range(self.heads):
                line = (b * self.all_heads + self.before + head) * self.tq + start
                block = line * (row // 4)
                words = philox_words(block, (end - start) * (row // 4), *self.origin)
                np.greater_equal(words.reshape(end - start, row), least, out=keep[head])
            keep = keep[:, :, first:last]
        np.copyto(weights, 0, where=~keep)


def forward(q, k, v, out, log_sum_exp, p):
    """Arguments as of ``Call.run`` in `attention.attention_forward`."""
    out[...] = 0
    if log_sum_exp is not None:
        log_sum_exp[...] = -np.inf

    def work(tiles, b, heads, key_heads) -> None:
        some_q, some_out = q[:, :, heads], out[:, :, heads]
        keys, values = tiles.keys(k[:, :, key_heads], b), tiles.keys(v[:, :, key_heads], b)
        for start, end, first, last in tiles.of(b):
            place = (b, start, end, first, last)
            rows = tiles.rows(some_q, b, start, end, p.scale)
            scores = np.matmul(rows, keys[:, first:last].transpose(0, 2, 1))
            by_head = tiles.heads_of(scores, end - start)
            tiles.hide(by_head, *place)
            top = scores.max(axis=2, keepdims=True)
            top[top == -np.inf] = 0  # of a row that sees nothing: exp(-inf - 0) is 0
            scores -= top
            np.exp(scores, out=scores)
            total = scores.sum(axis=2, keepdims=True)
            tiles.drop(by_head, *place)
            made = np.matmul(scores, values[:, first:last])
            share = np.divide(p.keep_scale, total, dtype=tiles.real)
            share[total == 0] = 0
            made *= share
            tiles.put_rows(some_out, made, b, start, end)
            if log_sum_exp is not None:
                top += np.log(total)
                log_sum_exp[b, heads, start:end] = top.reshape(tiles.heads, -1)

    _Tiles(q, k, p).each(work)


def backward(grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p):
    """Arguments as of ``Call.run`` in `attention.attention_backward`."""
    grad_q[...] = 0

    def work(tiles, b, heads, key_heads) -> None:
        some_q, some_out, some_grad = q[:, :, heads], out[:, :, heads], grad_out[:, :, heads]
        keys, values = tiles.keys(k[:, :, key_heads], b), tiles.keys(v[:, :, key_heads], b)
        sum_k, sum_v = np.zeros((2, tiles.kv_heads, tiles.tk, tiles.dim), tiles.real)
        for start, end, first, last in tiles.of(b):
            place = (b, start, end, first, last)
            rows = tiles.rows(some_q, b, start, end, p.scale)
            grads = tiles.rows(some_grad, b, start, end, p.keep_scale)
            delta = (grads * tiles.rows(some_out, b, start, end)).sum(axis=2, keepdims=True)
            weights = np.matmul(rows, keys[:, first:last].transpose(0, 2, 1))
            by_head = tiles.heads_of(weights, end - start)
            tiles.hide(by_head, *place)
            norm = log_sum_exp[b, heads, start:end].reshape(tiles.kv_heads, -1, 1).copy()
            norm[norm == -np.inf] = 0
            weights -= norm
            np.exp(weights, out=weights)
            slopes = np.matmul(grads, values[:, first:last].transpose(0, 2, 1))
            tiles.drop(tiles.heads_of(slopes, end - start), *place)
            if p.threshold:  # delta holds keep_scale once already
                delta /= p.keep_scale or 1
            slopes -= delta
            slopes *= weights
            tiles.drop(by_head, *place)
            sum_v[:, first:last] += np.matmul(weights.transpose(0, 2, 1), grads)
            sum_k[:, first:last] += np.matmul(slopes.transpose(0, 2, 1), rows)
            made = np.matmul(slopes, keys[:, first:last])
            made *= tiles.real.type(p.scale)
            tiles.put_rows(grad_q[:, :, heads], made, b, start, end)
        grad_k[b, :, key_heads] = sum_k.transpose(1, 0, 2)
        grad_v[b, :, key_heads] = sum_v.transpose(1, 0, 2)

    _Tiles(q, k, p).each(work)
