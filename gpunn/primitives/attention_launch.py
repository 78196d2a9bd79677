"""Attention: which kernel runs, and the launches.

The rule (`choose`), by what the arrays are:

==================  ================================================================================
attention_wgmma.cu  forward on sm_90a: 16-bit types, D up to 128, no mask, no dropout, no array that
                    repeats itself by strides of 0, at least 64 rows of a table
attention_mma.cu    other 16-bit types from sm_80 on
attention.cu        everything else: float32, float64, older GPUs; attention_backward.cu
==================  ================================================================================

The kernels for tensor cores work on padded copies where rows of heads are no whole runs of 16 bytes
(D or a stride no multiple of 8, arrays not aligned).

Where there are fewer blocks than multiprocessors, as when decoding (few queries, many keys), the
forward cuts the keys into parts, which a second kernel joins.
"""

from __future__ import annotations

import re

import numpy as np

from gpunn.primitives import attention_wgmma
from gpunn.primitives.attention_problem import BOOL, Problem, mask_strides, strides_of
from gpunn.primitives.random_counter import numba_arguments
from gpunn.primitives.samples import accumulator_dtype

# `struct Attention` of kernels/cuda/attention.cuh.
STRUCT = np.dtype(
    [
        *((name, np.int64, 3) for name in
          ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")),
        ("mask", np.int64, 4), ("seed", np.uint64), ("random_offset", np.uint64),
        ("scale", np.float64), ("keep_scale", np.float64),
        *((name, np.int32) for name in
          ("queries", "keys", "heads", "kv_heads", "group", "dim", "causal", "causal_offset",
           "window", "mask_kind")),
        ("threshold", np.uint32),
    ],
    align=True,
)  # fmt: skip

THREADS, TILE, DEPTH = 256, 64, 32  # as in attention_simt.cuh
MMA_THREADS, MMA_ROWS = 128, 64  # as in attention_mma.cuh


def structure(p: Problem, q, k, **arrays) -> np.void:
    """The problem as the kernels take it; `arrays` are those whose strides they need."""
    made = np.zeros((), STRUCT)
    for name, array in {"q": q, "k": k, **arrays}.items():
        made[name] = strides_of(array)
    if p.mask is not None:
        made["mask"] = mask_strides(p.mask)
        made["mask_kind"] = 1 if p.mask.dtype == BOOL else 2
    made["seed"], made["random_offset"], made["scale"] = p.seed, p.offset, p.scale
    made["queries"], made["keys"] = q.shape[1], k.shape[1]
    made["heads"], made["kv_heads"], made["dim"] = q.shape[2], k.shape[2], q.shape[3]
    made["group"] = q.shape[2] // k.shape[2]
    made["causal"], made["causal_offset"], made["window"] = p.causal, p.causal_offset, p.window
    made["threshold"], made["keep_scale"] = p.threshold, p.keep_scale
    return made[()]


def rows_aligned(launch, width: int, *arrays) -> bool:
    """Whether every row of a head, of `width` elements or whole multiples, starts aligned."""
    return all(
        launch.aligned(width * array.itemsize, array)
        and array.shape[3] % width == 0
        and all(step % width == 0 for step in strides_of(array))
        for array in arrays
    )


def choose(launch, dtype) -> str:
    """"mma" or "simt"; the rule at the top of this file."""
    capable = int(re.match(r"sm_(\d+)", launch.arch)[1]) >= 80
    return "mma" if dtype.itemsize == 2 and capable else "simt"


def _copy_rows(launch, source, target) -> None:
    """Copy rows of 16-bit heads into longer ones, zeros behind, or into shorter ones."""
    made = np.zeros((), STRUCT)
    made["q"], made["out"] = strides_of(source), strides_of(target)
    _, positions, heads, to = target.shape
    size = target.size
    launch.sibling("attention.cu")(
        "attention_pad",
        grid=(min(-(-size // THREADS), 1 << 20),),
        block=(THREADS,),
        args=(
            source, target, made[()], *map(np.int32, (positions, heads, source.shape[3], to)),
            np.int64(size),
        ),
    )  # fmt: skip


class _Aligned:
    """Stands in for arrays whose rows the kernels for tensor cores cannot take."""

    def __init__(self, launch, *arrays):
        self.launch = launch
        self.needed = not rows_aligned(launch, 8, *arrays)
        self.outputs = []

    def _empty(self, array):
        return self.launch.empty((*array.shape[:3], -(-array.shape[3] // 8) * 8), array.dtype)

    def input(self, array):
        """The array, or a padded copy."""
        if not self.needed or array.size == 0:
            return array
        copy = self._empty(array)
        _copy_rows(self.launch, array, copy)
        return copy

    def output(self, array):
        """The array, or what `finish` copies into it."""
        if not self.needed or array.size == 0:
            return array
        self.outputs.append((self._empty(array), array))
        return self.outputs[-1][0]

    def finish(self) -> None:
        """Copy the outputs to where they belong."""
        for made, array in self.outputs:
            _copy_rows(self.launch, made, array)


def key_parts(launch, p: Problem, blocks: int, keys: int, tile: int) -> int:
    """Into how many parts the forward cuts the keys: enough blocks for two waves, long parts."""
    if blocks >= launch.multiprocessors:
        return 1
    longest = min(keys, p.window) if p.causal else keys
    return max(1, min(2 * launch.multiprocessors // blocks, longest // (4 * tile)))


# ---- forward -------------------------------------------------------------------------------------


def forward(launch, q, k, v, out, log_sum_exp, p: Problem) -> None:
    """Arguments as of ``Call.run`` in `attention.attention_forward`."""
    if q.size == 0:
        return
    if choose(launch, q.dtype) == "mma":
        made = _Aligned(launch, q, k, v, out)
        inputs = tuple(map(made.input, (q, k, v)))
        run = _wgmma_forward if attention_wgmma.takes(launch, *inputs, p) else _mma_forward
        run(launch, *inputs, made.output(out), log_sum_exp, p)
        made.finish()
    else:
        _simt_forward(launch, q, k, v, out, log_sum_exp, p)


def _wgmma_forward(launch, q, k, v, out, log_sum_exp, p: Problem) -> None:
    made, parts = structure(p, q, k, v=v, out=out), attention_wgmma.parts(launch, p, q, k)
    partial, logs = _parts_of(launch, parts, q) if parts > 1 else (None, log_sum_exp)
    attention_wgmma.forward(launch, (q, k, v), out, logs, partial, p, made.copy(), parts)
    if parts > 1:
        _combine(launch, partial, logs, out, log_sum_exp, made)


def head_dim(dim: int) -> int:
    """The size that a head has in the kernels for tensor cores."""
    return 64 if dim <= 64 else 128 if dim <= 128 else 256


def _mma_forward(launch, q, k, v, out, log_sum_exp, p: Problem) -> None:
    made, dim = structure(p, q, k, v=v, out=out), head_dim(q.shape[3])
    keys, tiles = 32 if dim > 128 else 64, -(-q.shape[1] * int(made["group"]) // MMA_ROWS)
    blocks = q.shape[0] * k.shape[2] * tiles
    parts = key_parts(launch, p, blocks, k.shape[1], keys)
    partial, logs = _parts_of(launch, parts, q) if parts > 1 else (None, log_sum_exp)
    launch.sibling("attention_mma.cu")(
        f"attention_forward_mma<{launch.ctype(q.dtype)}, {dim}>",
        grid=(blocks * parts,),
        block=(MMA_THREADS,),
        args=(
            q, k, v, p.mask, p.q_lengths, p.kv_lengths, p.causal_offsets, p.counter, out, logs,
            partial, made, np.int32(tiles), np.int32(parts),
        ),
        shared=2 * dim * (MMA_ROWS + 2 * 2 * keys),
    )  # fmt: skip
    if parts > 1:
        _combine(launch, partial, logs, out, log_sum_exp, made)


def _parts_of(launch, parts: int, q):
    """Scratch of the parts: their weighted means and their normalisers."""
    real = accumulator_dtype(q.dtype)
    batch, queries, heads, dim = q.shape
    partial = launch.empty((parts, batch, heads, queries, dim), real)
    return partial, launch.empty((parts, batch, heads, queries), real)


def _combine(launch, partial, part_logs, out, log_sum_exp, made) -> None:
    """Join the parts."""
    size = part_logs[0].size
    launch.sibling("attention.cu")(
        f"attention_combine<{launch.ctype(out.dtype)}>",
        grid=(-(-size * 32 // THREADS),),
        block=(THREADS,),
        args=(
            partial, part_logs, out, log_sum_exp, made, np.int64(size), np.int32(len(part_logs))
        ),
    )  # fmt: skip


def _simt_tiles(q, k, rows: int, real):
    """(groups of columns, tiles, shared bytes) of a kernel whose blocks own TILE of `rows`."""
    groups = -(-q.shape[3] // (8 // real.itemsize * TILE))
    lanes = 16 // real.itemsize
    shared = (2 * TILE * (DEPTH + lanes) + TILE * (TILE + lanes)) * real.itemsize
    return groups, -(-rows // TILE), shared


def _simt_forward(launch, q, k, v, out, log_sum_exp, p: Problem) -> None:
    real = accumulator_dtype(q.dtype)
    made = structure(p, q, k, v=v, out=out)
    tables = q.shape[0] * k.shape[2]
    groups, tiles, shared = _simt_tiles(q, k, q.shape[1] * int(made["group"]), real)
    blocks = tables * groups * tiles
    parts = key_parts(launch, p, blocks, k.shape[1], TILE)
    partial, logs = _parts_of(launch, parts, q) if parts > 1 else (None, log_sum_exp)
    vector = rows_aligned(launch, 16 // real.itemsize, q, k, v, out)
    launch.sibling("attention.cu")(
        f"attention_forward<{launch.ctype(q.dtype)}>",
        grid=(blocks * parts,),
        block=(THREADS,),
        args=(
            q, k, v, p.mask, p.q_lengths, p.kv_lengths, p.causal_offsets, p.counter, out, logs,
            partial, made, *map(np.int32, (tiles, groups, parts)), np.bool_(vector),
        ),
        shared=shared,
    )  # fmt: skip
    if parts > 1:
        _combine(launch, partial, logs, out, log_sum_exp, made)


# ---- backward ------------------------------------------------------------------------------------


def backward(launch, grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p) -> None:
    """Arguments as of ``Call.run`` in `attention.attention_backward`."""
    if k.size == 0 and q.size == 0:
        return
    delta = _delta(launch, grad_out, out, structure(p, q, k, out=out, grad_out=grad_out))
    outputs = (grad_q, grad_k, grad_v)
    aligned = None
    if choose(launch, q.dtype) == "mma":
        aligned = _Aligned(launch, grad_out, q, k, v, *outputs)
        grad_out, q, k, v = map(aligned.input, (grad_out, q, k, v))
        outputs = grad_q, grad_k, grad_v = tuple(map(aligned.output, outputs))
    made = structure(
        p, q, k, v=v, grad_out=grad_out, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v
    )  # fmt: skip
    inputs = (
        grad_out, q, k, v, log_sum_exp, delta, p.mask, p.q_lengths, p.kv_lengths, p.causal_offsets,
        p.counter,
    )  # fmt: skip
    (_simt_backward if aligned is None else _mma_backward)(launch, inputs, *outputs, made)
    if aligned is not None:
        aligned.finish()


def _mma_backward(launch, inputs, grad_q, grad_k, grad_v, made) -> None:
    _, q, k, *_ = inputs
    dim, tables, ctype = head_dim(q.shape[3]), q.shape[0] * k.shape[2], launch.ctype(q.dtype)
    others, stages = 32, 1 if dim > 128 else 2
    panels, info = 2 * MMA_ROWS * dim * 2, 32 * others  # bytes that stay, and of RowInfo
    changing = 2 * others * dim * 2
    launch = launch.sibling("attention_mma_backward.cu")
    tiles, groups = -(-k.shape[1] // MMA_ROWS), -(-dim // 128)
    launch(
        f"attention_grad_kv_mma<{ctype}, {dim}>",
        grid=(tables * groups * tiles,),
        block=(MMA_THREADS,),
        args=(*inputs, grad_k, grad_v, made, np.int32(tiles), np.int32(groups)),
        shared=panels + stages * (changing + info),
    )
    tiles = -(-q.shape[1] * int(made["group"]) // MMA_ROWS)
    launch(
        f"attention_grad_q_mma<{ctype}, {dim}>",
        grid=(tables * tiles,),
        block=(MMA_THREADS,),
        args=(*inputs, grad_q, made, np.int32(tiles)),
        shared=panels + stages * changing,
    )


def _delta(launch, grad_out, out, made):
    """The dot product of each row of grad_out and out: (B, H, Tq)."""
    batch, queries, heads, dim = out.shape
    delta = launch.empty((batch, heads, queries), accumulator_dtype(out.dtype))
    width = 16 // out.itemsize
    vector = rows_aligned(launch, width, grad_out, out)
    lanes = min(32, 1 << (-(-dim // (width if vector else 2)) - 1).bit_length())
    if delta.size:
        launch.sibling("attention.cu")(
            f"attention_delta<{launch.ctype(out.dtype)}>",
            grid=(-(-delta.size * lanes // THREADS),),
            block=(THREADS,),
            args=(
                grad_out, out, delta, made, np.int64(delta.size), np.int32(lanes), np.bool_(vector)
            ),
        )  # fmt: skip
    return delta


def _simt_backward(launch, inputs, grad_q, grad_k, grad_v, made) -> None:
    grad_out, q, k, v, *_ = inputs
    real = accumulator_dtype(q.dtype)
    tables, ctype = q.shape[0] * k.shape[2], launch.ctype(q.dtype)
    vector = rows_aligned(launch, 16 // real.itemsize, *inputs[:4], grad_q, grad_k, grad_v)
    launch = launch.sibling("attention_backward.cu")
    for name, rows, outputs in (
        ("attention_grad_kv", k.shape[1], (grad_k, grad_v)),
        ("attention_grad_q", q.shape[1] * int(made["group"]), (grad_q,)),
    ):
        groups, tiles, shared = _simt_tiles(q, k, rows, real)
        launch(
            f"{name}<{ctype}>",
            grid=(tables * groups * tiles,),
            block=(THREADS,),
            args=(*inputs, *outputs, made, np.int32(tiles), np.int32(groups), np.bool_(vector)),
            shared=shared,
        )


# ---- Numba ---------------------------------------------------------------------------------------


def _numba_block(q) -> tuple[int]:
    """Threads of a block: a thread has 8 columns at most; few for the simulator's small heads."""
    return (4 if q.shape[3] <= 8 else 32,)


def _numba_options(launch, q, k, p: Problem):
    """What all three kernels take of the problem: arrays (empty for None), integers, numbers."""
    batch, queries, heads, _ = q.shape
    none = launch.empty((1,), np.int32)
    arrays = [none if a is None else a for a in (p.q_lengths, p.kv_lengths, p.causal_offsets)]
    mask, kind = launch.empty((1, 1, 1, 1), np.bool_), 0
    if p.mask is not None:
        kind = 1 if p.mask.dtype == BOOL else 2
        mask = p.mask.reshape((1,) * (4 - p.mask.ndim) + p.mask.shape)
    given = [a is not None for a in (p.q_lengths, p.kv_lengths, p.causal_offsets)]
    integers = (*given, p.causal, p.causal_offset, p.window, kind, p.threshold)
    real = accumulator_dtype(q.dtype).type
    return (
        mask, *arrays, *map(np.int32, integers),
        *numba_arguments(launch, p.seed, p.offset, p.counter), real(p.scale), real(p.keep_scale),
    )  # fmt: skip


def numba_forward(launch, q, k, v, out, log_sum_exp, p: Problem) -> None:
    """Launch of the Numba kernel."""
    if q.size == 0:
        return
    batch, queries, heads, _ = q.shape
    if log_sum_exp is None:
        log_sum_exp = launch.empty((batch, heads, queries), accumulator_dtype(q.dtype))
    launch(
        f"attention_forward_{q.dtype.name}", (batch * heads * queries,), _numba_block(q),
        (q, k, v, out, log_sum_exp, *_numba_options(launch, q, k, p)),
    )  # fmt: skip


def numba_backward(
    launch, grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p: Problem
) -> None:
    """Launches of the Numba kernels."""
    options = _numba_options(launch, q, k, p)
    batch, queries, heads, _ = q.shape
    inputs, name = (grad_out, q, k, v, out, log_sum_exp), q.dtype.name
    if q.size:
        launch(
            f"attention_grad_q_{name}", (batch * heads * queries,), _numba_block(q),
            (*inputs, grad_q, *options),
        )  # fmt: skip
    if k.size:
        launch(
            f"attention_grad_kv_{name}", (batch * k.shape[2] * k.shape[1],), _numba_block(q),
            (*inputs, grad_k, grad_v, *options),
        )  # fmt: skip
