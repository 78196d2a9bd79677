"""Embedding: the NumPy reference and the launches. The specification is in `embedding`.

The arguments are those of ``Call.run`` there: a table or gradients of two dimensions, indices of
one, and for the backward the padding (-1 for none) and two switches.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.rows import WARP
from gpunn.primitives.samples import accumulator_dtype

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)

# ---- reference -----------------------------------------------------------------------------------

# Up to so many rows of one number are added in rounds, one of each number a round.
_ROUNDS = 8
# Rows, and elements, that are added one by one sooner than they are sorted.
_FEW, _SMALL = 256, 1 << 13
_TREE = 128  # rows that are added one after the other, in a longer sum
_COLUMNS = 128  # that a thread adds


def forward_reference(weight, indices, out):
    if out.size:
        np.take(weight, indices, axis=0, out=out, mode="clip")  # they were checked; "raise" copies


def backward_reference(grad_output, indices, padding, by_frequency, accumulate, out):
    if not accumulate:
        out[...] = 0
    compiled = loops("embedding", out.dtype, grad_output.size)
    if compiled and not by_frequency:
        _add_rows(compiled, grad_output, indices, padding, out)
        return
    if padding >= 0:
        kept = np.flatnonzero(indices != padding)
    if padding >= 0 and kept.size < indices.size:
        grad_output, indices = grad_output[kept], indices[kept]
    if indices.size == 0 or out.size == 0:
        return
    few = indices.size <= _FEW and grad_output.size <= _SMALL
    if few and out.itemsize >= 4 and not by_frequency:
        with quiet():
            np.add.at(out, indices, grad_output)
        return
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    # The frequent first: who takes part in a round is then a slice.
    by_count = np.argsort(-counts, kind="stable")
    starts, counts = starts[by_count], counts[by_count]
    with quiet():
        sums = _sums(grad_output, order, starts, counts, accumulator_dtype(out.dtype))
        if by_frequency:
            sums /= counts[:, None].astype(sums.dtype)
        rows = ordered[starts]
        if accumulate:
            sums += out[rows]
        out[rows] = sums


def _add_rows(compiled, grad, indices, padding, out) -> None:
    """The sums by a compiled loop that need not sort; each thread has some of the columns."""

    def work(begin: int) -> None:
        end = min(begin + _COLUMNS, out.shape[1])
        compiled.add_rows(grad, indices, padding, _TREE, begin, end, out)

    for_each(work, range(0, out.shape[1], _COLUMNS))


def _sums(grad, order, starts, counts, dtype) -> np.ndarray:
    """Sums of the runs of `grad[order]`, the longest first."""
    many = int(np.searchsorted(-counts, -_ROUNDS, side="left"))  # those longer than _ROUNDS
    sums = np.empty((len(starts), grad.shape[1]), dtype)
    for place in range(many):
        rows = grad[order[starts[place] : starts[place] + counts[place]]]
        sums[place] = _sum_of_rows(rows.astype(dtype, copy=False))
    sums[many:] = grad[order[starts[many:]]]
    for number in range(1, _ROUNDS + 1):
        end = int(np.searchsorted(-counts, -number, side="left"))
        if end <= many:
            break
        sums[many:end] += grad[order[starts[many:end] + number]]
    return sums


def _sum_of_rows(rows) -> np.ndarray:
    """The sum over the first axis, of short sums: float32 stays exact to its last digits."""
    while len(rows) > _TREE:
        whole = len(rows) // _TREE
        parts = np.add.reduce(rows[: whole * _TREE].reshape(whole, _TREE, -1), axis=1)
        rest = rows[whole * _TREE :]
        rows = parts if not len(rest) else np.concatenate([parts, rest])
    return np.add.reduce(rows, axis=0)


# ---- launch --------------------------------------------------------------------------------------

# As in embedding.cu.
_BLOCK, _AHEAD, _TILE, _BIN_BITS, _CHUNK = 256, 4, 1024, 9, 32

# Tiles that each sum the counts of all before them; more leave it to a launch of its own.
_FEW_TILES = 32

_WORDS = ((16, "uint4"), (4, "unsigned int"), (2, "unsigned short"))


def _word(launch, row_bytes: int, *arrays) -> tuple[int, str]:
    """(bytes, C++ type) of the widest word that divides a row and its addresses."""
    for size, name in _WORDS[:-1]:
        if row_bytes % size == 0 and launch.aligned(size, *arrays):
            return size, name
    return _WORDS[-1]


def _blocks(words: int) -> tuple[int]:
    return (-(-words // (_BLOCK * _AHEAD)),)


def forward_cuda(launch, weight, indices, out):
    if out.size == 0:
        return
    row_bytes = out.shape[1] * out.itemsize
    size, word = _word(launch, row_bytes, weight, out)
    words = out.nbytes // size
    launch(
        f"embedding_forward<{word}>",
        grid=_blocks(words),
        block=(_BLOCK,),
        args=(
            weight, indices, np.bool_(indices.dtype == INT64), out, launch.int64(words),
            launch.int32(row_bytes // size), launch.int64(len(weight)),
        ),
    )  # fmt: skip


def backward_cuda(launch, grad_output, indices, padding, by_frequency, accumulate, out):
    if out.size and not accumulate:
        size, word = _word(launch, out.nbytes, out)
        words = out.nbytes // size
        args = (out, launch.int64(words))
        launch(f"embedding_clear<{word}>", _blocks(words), (_BLOCK,), args)
    if out.size == 0 or indices.size == 0:
        return
    keys, places = _sort(launch, indices, len(out), padding)
    _reduce(launch, grad_output, keys, places, by_frequency, accumulate, out)


def _sort(launch, indices, rows: int, padding: int):
    """(sorted indices, where each stood); what does not count has the largest key."""
    count, bits = indices.size, max(1, int(rows).bit_length())
    passes = -(-bits // _BIN_BITS)
    each = -(-bits // passes)
    tiles, bins = -(-count // _TILE), 1 << each
    keys = places = None
    counts = launch.empty((bins * tiles,), INT32) if tiles > 1 else None
    scanned = tiles > _FEW_TILES
    for number in range(passes):
        source = None if number else indices
        wide = np.bool_(indices.dtype == INT64)
        digits = (
            launch.int32(rows), launch.int64(padding), launch.int32(number * each),
            launch.int32(bins),
        )  # fmt: skip
        size = launch.int32(count)
        if counts is not None:
            args = (source, wide, keys, *digits, counts, size)
            launch("sort_count", (tiles,), (_BLOCK,), args)
        if scanned:
            launch("sort_scan", (1,), (1024,), (counts, launch.int32(bins * tiles)))
        after = launch.empty((count,), INT32), launch.empty((count,), INT32)
        args = (source, wide, keys, places, *digits, counts, np.bool_(scanned), *after, size)
        launch("sort_scatter", (tiles,), (_BLOCK,), args)
        keys, places = after
    return keys, places


def _reduce(launch, grad_output, keys, places, by_frequency, accumulate, out):
    """Sum runs of equal keys, a chunk of entries at a time, until one chunk is left."""
    columns, real = out.shape[1], launch.ctype(out.dtype)
    wide = accumulator_dtype(out.dtype)
    vector = columns * out.itemsize % 16 == 0 and launch.aligned(16, grad_output, out)
    width = 16 // out.itemsize if vector else 1
    packs = columns // width
    across = min(_BLOCK, -(-packs // WARP) * WARP)
    if packs < WARP:
        across = 1 << (packs - 1).bit_length()
    down = _BLOCK // across
    columns_of_blocks = min(-(-packs // across), 65535)
    values, entries, factors = grad_output, keys.size, None
    rows = launch.int32(len(out))
    if by_frequency:
        factors = launch.empty((len(out),), wide)
        args = (keys, factors, launch.int32(entries), rows)
        launch(f"embedding_factor<{launch.ctype(wide)}>", (-(-entries // _BLOCK),), (_BLOCK,), args)
    fixed = (factors, rows, launch.int32(columns), np.bool_(accumulate))
    while True:
        chunks = -(-entries // _CHUNK)
        partial = partial_keys = None
        if chunks > 1:
            partial = launch.empty((2 * chunks, columns), wide)
            partial_keys = launch.empty((2 * chunks,), INT32)
        name = f"embedding_reduce<{launch.ctype(values.dtype)}, {real}, {width}>"
        args = (
            values, keys, places, launch.int32(entries), out, partial, partial_keys, *fixed,
        )  # fmt: skip
        launch(name, (-(-chunks // down), columns_of_blocks), (across, down), args)
        if chunks == 1:
            return
        values, keys, places, entries = partial, partial_keys, None, 2 * chunks


# ---- Numba ---------------------------------------------------------------------------------------

_THREADS = 128


def _numba_grid(size: int) -> tuple[int]:
    return (min(-(-size // _THREADS), 65535),)


def forward_numba(launch, weight, indices, out):
    if out.size:
        launch("embedding_forward", _numba_grid(out.size), (_THREADS,), (weight, indices, out))


def backward_numba(launch, grad_output, indices, padding, by_frequency, accumulate, out):
    if out.size and not accumulate:
        launch("embedding_clear", _numba_grid(out.size), (_THREADS,), (out,))
    if out.size and indices.size:
        one = out.dtype.type(1)
        args = (grad_output, indices, np.int64(padding), np.bool_(by_frequency), one, out)
        threads = min(_THREADS, max(1, out.shape[1]))
        launch("embedding_backward", (min(indices.size, 65535),), (threads,), args)
