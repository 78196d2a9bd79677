"""Attention in NumPy for many short sequences: several of them at a time.

`attention_reference` takes the sequences of a batch one by one, with a score of NumPy calls each.
Where all scores of a sequence are few, that is most of the time; here as many sequences as fill a
tile go through the same calls together. Each row's arithmetic is that of the other file, whose
place this one takes. It is a file of its own because it is no part of what a GPU runs: measurements
made there stay valid.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import attention_reference as plain
from gpunn.primitives.attention import attention_backward, attention_forward
from gpunn.primitives.cpu_threads import for_each


class Short:
    """Pieces of the batch, and what is the same for all of them.

    Parameters
    ----------
    tiles : the `_Tiles` of the call
    size : scores that a piece may have
    """

    def __init__(self, tiles, size: int):
        self.tiles, self.p = tiles, tiles.p
        self.many = size // max(1, tiles.heads * tiles.tq * tiles.tk)

    @property
    def fits(self) -> bool:
        """Whether there are several sequences to a piece."""
        tiles, p = self.tiles, self.p
        simple = p.q_lengths is None and min(tiles.tq, tiles.tk, tiles.kv_heads) > 0
        known = p.threshold in (0, 1 << 24) or tiles.flags is not None
        return simple and known and self.many > 1 and tiles.batch > 1

    def each(self, work) -> None:
        """Call ``work(piece)`` for slices that make up the batch; if it is much, on threads."""
        tiles, many = self.tiles, self.many
        pieces = [slice(n, min(n + many, tiles.batch)) for n in range(0, tiles.batch, many)]
        if tiles.batch * tiles.heads * tiles.tq * tiles.tk * tiles.dim < plain._THREADS:
            with quiet():
                for piece in pieces:
                    work(piece)
        else:
            for_each(work, pieces)

    def rows(self, array, piece, factor=None):
        """Queries of (B, T, H, D) as (batch, heads of keys, rows, D), a copy, times a factor."""
        tiles = self.tiles
        some = array[piece]
        some = some.reshape(len(some), tiles.tq, tiles.kv_heads, tiles.group, -1)
        made = np.empty(
            (len(some), tiles.kv_heads, tiles.group, tiles.tq, array.shape[3]), tiles.real
        )
        if factor is None:
            made[...] = some.transpose(0, 2, 3, 1, 4)
        else:
            np.multiply(some.transpose(0, 2, 3, 1, 4), tiles.real.type(factor), out=made)
        return made.reshape(len(some), tiles.kv_heads, -1, array.shape[3])

    def put_rows(self, out, rows, piece) -> None:
        """The reverse of `rows`."""
        tiles = self.tiles
        made = rows.reshape(len(rows), tiles.kv_heads, tiles.group, tiles.tq, -1)
        some = out[piece]
        some[...] = made.transpose(0, 3, 1, 2, 4).reshape(some.shape)

    def keys(self, array, piece):
        """Keys or values as (batch, heads, T, D), zeros where they are not to be read."""
        made = array[piece].astype(self.tiles.real, copy=False)
        if self.p.kv_lengths is not None:
            there = np.arange(self.tiles.tk) < self.p.kv_lengths[piece, None]
            made = np.where(there[:, :, None, None], made, self.tiles.real.type(0))
        return made.transpose(0, 2, 1, 3)

    def by_head(self, rows):
        """Scores (batch, heads of keys, rows, keys) as (batch, heads, queries, keys)."""
        return rows.reshape(len(rows), self.tiles.heads, self.tiles.tq, -1)

    def hide(self, scores, piece) -> None:
        """-inf where a score of (batch, heads, queries, keys) is not to be seen; adds the mask."""
        tiles, p = self.tiles, self.p
        if tiles.mask is not None:
            mask = tiles.mask[piece]
            if mask.dtype == np.bool_:
                np.copyto(scores, -np.inf, where=~mask)
            else:
                scores += mask.astype(tiles.real, copy=False)
        places = np.arange(tiles.tk)
        if p.kv_lengths is not None:
            there = places < p.kv_lengths[piece, None]
            np.copyto(scores, -np.inf, where=~there[:, None, None])
        if p.causal:
            shifts = [tiles.shift(b) for b in range(piece.start, piece.stop)]
            if p.causal_offsets is None:
                shifts = shifts[:1]
            last = np.array(shifts)[:, None, None, None] + np.arange(tiles.tq)[:, None]
            np.copyto(scores, -np.inf, where=(places > last) | (places <= last - p.window))

    def drop(self, weights, piece) -> None:
        """Zero the weights that dropout drops."""
        tiles, p = self.tiles, self.p
        if p.threshold >= 1 << 24:
            weights[...] = 0
        elif p.threshold:
            np.copyto(weights, 0, where=~tiles.flags[piece, :, :, : tiles.tk])


def _several(q, k, p) -> Short | None:
    """How to take several sequences at a time, where that can be done."""
    batch, tq, heads, _ = q.shape
    if batch < 2 or 2 * heads * tq * k.shape[1] > plain._TILE:
        return None  # before a look at the dropout of all
    short = Short(plain._Tiles(q, k, p), plain._TILE)
    return short if short.fits else None


@attention_forward.reference
def _(q, k, v, out, log_sum_exp, p):
    short = _several(q, k, p)
    if short is None:
        plain.forward(q, k, v, out, log_sum_exp, p)
        return
    out[...] = 0
    if log_sum_exp is not None:
        log_sum_exp[...] = -np.inf
    _forward(short, q, k, v, out, log_sum_exp)


@attention_backward.reference
def _(grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p):
    short = _several(q, k, p)
    if short is None:
        plain.backward(grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p)
        return
    grad_q[...] = 0
    _backward(short, grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v)


def _forward(short: Short, q, k, v, out, log_sum_exp) -> None:
    """As `attention_reference.forward`."""
    p, real = short.p, short.tiles.real

    def work(piece) -> None:
        keys, values = short.keys(k, piece), short.keys(v, piece)
        scores = np.matmul(short.rows(q, piece, p.scale), keys.swapaxes(2, 3))
        by_head = short.by_head(scores)
        short.hide(by_head, piece)
        top = scores.max(axis=3, keepdims=True)
        top[top == -np.inf] = 0  # of a row that sees nothing: exp(-inf - 0) is 0
        scores -= top
        np.exp(scores, out=scores)
        total = scores.sum(axis=3, keepdims=True)
        short.drop(by_head, piece)
        made = np.matmul(scores, values)
        share = np.divide(p.keep_scale, total, dtype=real)
        share[total == 0] = 0
        made *= share
        short.put_rows(out, made, piece)
        if log_sum_exp is not None:
            top += np.log(total)
            some = log_sum_exp[piece]
            some[...] = top.reshape(some.shape)

    short.each(work)


def _backward(short: Short, grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v) -> None:
    """As `attention_reference.backward`."""
    p, real = short.p, short.tiles.real

    def work(piece) -> None:
        keys, values = short.keys(k, piece), short.keys(v, piece)
        rows = short.rows(q, piece, p.scale)
        grads = short.rows(grad_out, piece, p.keep_scale)
        delta = (grads * short.rows(out, piece)).sum(axis=3, keepdims=True)
        weights = np.matmul(rows, keys.swapaxes(2, 3))
        by_head = short.by_head(weights)
        short.hide(by_head, piece)
        norm = log_sum_exp[piece].reshape(*rows.shape[:3], 1).copy()
        norm[norm == -np.inf] = 0
        weights -= norm
        np.exp(weights, out=weights)
        slopes = np.matmul(grads, values.swapaxes(2, 3))
        short.drop(short.by_head(slopes), piece)
        if p.threshold:  # delta holds keep_scale once already
            delta /= p.keep_scale or 1
        slopes -= delta
        slopes *= weights
        short.drop(by_head, piece)
        grad_v[piece] = np.matmul(weights.swapaxes(2, 3), grads).transpose(0, 2, 1, 3)
        grad_k[piece] = np.matmul(slopes.swapaxes(2, 3), rows).transpose(0, 2, 1, 3)
        made = np.matmul(slopes, keys)
        made *= real.type(p.scale)
        short.put_rows(grad_q, made, piece)

    short.each(work)
