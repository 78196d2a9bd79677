"""Cross-entropy: its NumPy reference and the launches of its kernels; the specification is in
`cross_entropy`. All take the arguments of ``Call.run`` there:

    logits, target, weight, kept, ignore_index, smoothing, reduction, and then
    forward    out, normalizer, total_weight
    backward   grad, normalizer, total_weight, out

`weight` is in the accumulator's dtype or None; `kept`, on the CPU only, says which rows are not
ignored (None: all of them).
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.rows import WARP, row_group
from gpunn.primitives.samples import FLOAT32, FLOAT64, accumulator_dtype

# ---- reference -----------------------------------------------------------------------------------

# Logits worked on at a time: what is computed in between stays in the cache.
_CHUNK = 1 << 16

# Up to so many classes they go to the outer axis, where NumPy reduces several rows at once.
_FEW_CLASSES = 64

_LOWEST = {dtype: np.finfo(dtype).min for dtype in (FLOAT32, FLOAT64)}


def _blocks(rows: int, classes: int):
    step = max(1, _CHUNK // classes)
    return (slice(start, start + step) for start in range(0, rows, step))


def _centred(x):
    """(largest of each row, x - largest, log of the sum of its exponentials) of a block of rows."""
    lowest = _LOWEST[x.dtype]  # stands for -inf, so that a row of -inf alone has L = -inf
    if x.shape[1] <= _FEW_CLASSES:
        z = x.T.copy()
        largest = z.max(axis=0, initial=lowest)
        z -= largest
        return largest, z.T, np.log(np.exp(z).sum(axis=0))
    largest = x.max(axis=1, initial=lowest)
    z = x - largest[:, None]
    return largest, z, np.log(np.exp(z).sum(axis=1))


def _shares(target, weight, smoothing, classes, accumulator):
    """weight_c q_c of a block of probabilities; of labels only the part from smoothing."""
    if target.ndim == 1:
        uniform = accumulator.type(smoothing / classes)
        return np.full(classes, uniform) if weight is None else uniform * weight
    shares = target.astype(accumulator, copy=False)
    if smoothing:
        shares = shares * accumulator.type(1 - smoothing) + accumulator.type(smoothing / classes)
    return shares if weight is None else shares * weight


def _dense_loss(z, log_sum, shares):
    """sum over c of shares_c (log_sum - z_c) of each row."""
    dot = (z * shares).sum(axis=1)
    if np.isnan(dot).any():  # perhaps from 0 * -inf
        dot = np.where(shares == 0, 0, z * shares).sum(axis=1)
    return shares.sum(axis=-1) * log_sum - dot


def forward_reference(
    logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer, total_weight
):
    rows, classes = logits.shape
    accumulator, labels = accumulator_dtype(logits.dtype), target.ndim == 1
    total, weights = 0.0, 0.0
    with np.errstate(all="ignore"):
        for block in _blocks(rows, classes):
            x, t = logits[block].astype(accumulator, copy=False), target[block]
            largest, z, log_sum = _centred(x)
            np.add(largest, log_sum, out=normalizer[block])
            loss, own = 0.0, None
            if smoothing or not labels:
                loss = _dense_loss(z, log_sum, _shares(t, weight, smoothing, classes, accumulator))
            if labels:
                at = t if kept is None else np.where(kept[block], t, 0)
                far = log_sum - z[np.arange(len(at)), at]
                own = None if weight is None else weight[at]
                part = far if own is None else far * own
                loss = part if not smoothing else loss + accumulator.type(1 - smoothing) * part
                if kept is not None:
                    ignored = ~kept[block]
                    loss[ignored] = normalizer[block][ignored] = 0
                    own = kept[block] if own is None else np.where(ignored, 0, own)
            weights += len(loss) if own is None else float(own.sum())
            if reduction == "none":
                out[block] = loss
            else:
                total += float(loss.sum())
        if reduction != "none":
            out[...] = total if reduction == "sum" else np.float64(total) / weights
        total_weight[...] = weights


def backward_reference(
    logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    rows, classes = logits.shape
    accumulator, labels = accumulator_dtype(logits.dtype), target.ndim == 1
    with np.errstate(all="ignore"):
        scale = grad.astype(accumulator, copy=False)
        if reduction == "mean":
            scale = scale / total_weight
        for block in _blocks(rows, classes):
            x, t = logits[block].astype(accumulator, copy=False), target[block]
            direct = out.dtype == accumulator
            place = out[block] if direct else np.empty(x.shape, accumulator)
            factor = scale if scale.ndim == 0 else scale[block, None]
            own = accumulator.type(1 - smoothing)
            if labels:
                at = t if kept is None else np.where(kept[block], t, 0)
                own = own if weight is None else own * weight[at]
            np.subtract(x, normalizer[block, None], out=place)
            np.exp(place, out=place)
            if smoothing or not labels:
                shares = _shares(t, weight, smoothing, classes, accumulator)
                total = shares.sum(axis=-1) + own if labels else shares.sum(axis=-1)
                place *= total[:, None] if total.ndim else total
                place -= shares
            elif weight is not None:
                factor = factor * own[:, None]  # also of the label's 1
                own = 1
            if labels:
                place[np.arange(len(at)), at] -= own
            place *= factor
            if kept is not None:
                place[~kept[block]] = 0
            if not direct:
                out[block] = place


# ---- launch --------------------------------------------------------------------------------------

# A warp takes rows up to so many bytes, a block of up to MAX_THREADS those beyond.
_WARP_ROW_BYTES = 8192
_SMALL_BLOCK, _MAX_THREADS = 256, 512
_FINISH_BLOCK = 256


def row_launch(launch, rows: int, classes: int, itemsize: int) -> tuple[int, int, int]:
    """(threads that share a row, threads of a block, blocks)."""
    pack = 16 // itemsize
    if classes * itemsize <= _WARP_ROW_BYTES:
        threads = min(WARP, row_group(classes, itemsize, 4 * pack))
        block = _SMALL_BLOCK
    else:
        block = threads = min(_MAX_THREADS, max(128, row_group(classes, itemsize, 16 * pack)))
    blocks = max(1, -(-rows * threads // block))
    if threads <= WARP and blocks <= 4:
        blocks = 1  # saves the second launch
    return threads, block, min(blocks, launch.multiprocessors * (2048 // block))


def _kernel(direction: str, launch, logits, target, smoothing) -> str:
    types = f"{launch.ctype(logits.dtype)}, {launch.ctype(target.dtype)}"
    dense = str(target.ndim == 2 or smoothing > 0).lower()
    return f"cross_entropy_{direction}<{types}, {dense}>"


def _scalars(launch, logits, target, out, ignore_index, smoothing, reduction, threads) -> tuple:
    """The last arguments of both kernels."""
    probabilities = target if target.ndim == 2 else None
    return (
        np.int64(logits.shape[0]), np.int32(logits.shape[1]), np.int64(ignore_index),
        accumulator_dtype(logits.dtype).type(smoothing), np.bool_(reduction == "mean"),
        np.int32(threads), np.bool_(launch.aligned(16, logits, probabilities, out)),
    )  # fmt: skip


def forward_cuda(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight,
):  # fmt: skip
    accumulator = accumulator_dtype(logits.dtype)
    threads, block, blocks = row_launch(launch, *logits.shape, logits.itemsize)
    row_loss, result = (out, None) if reduction == "none" else (None, out)
    partial = launch.empty((blocks, 2), accumulator) if blocks > 1 else None
    args = (logits, target, weight, row_loss, result, normalizer, total_weight, partial)
    args += _scalars(launch, logits, target, None, ignore_index, smoothing, reduction, threads)
    launch(_kernel("forward", launch, logits, target, smoothing), (blocks,), (block,), args)
    if blocks > 1:
        args = (partial, np.int32(blocks), np.bool_(reduction == "mean"), result, total_weight)
        name = f"cross_entropy_finish<{launch.ctype(accumulator)}>"
        launch(name, (1,), (_FINISH_BLOCK,), args)


def backward_cuda(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    if logits.size == 0:
        return
    threads, block, blocks = row_launch(launch, *logits.shape, logits.itemsize)
    scalar, by_row = (None, grad) if reduction == "none" else (grad, None)
    args = (scalar, by_row, logits, target, normalizer, total_weight, weight, out)
    args += _scalars(launch, logits, target, out, ignore_index, smoothing, reduction, threads)
    launch(_kernel("backward", launch, logits, target, smoothing), (blocks,), (block,), args)


_NUMBA_BLOCK = 64  # as in kernels/numba/cross_entropy.py


def _numba_weight(launch, weight, dtype):
    """Weights for the Numba kernels: an empty array stands for None."""
    return launch.empty((0,), dtype) if weight is None else weight


def _numba_kernel(direction: str, target) -> str:
    return f"cross_entropy_{direction}_{'labels' if target.ndim == 1 else 'probabilities'}"


def forward_numba(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight,
):  # fmt: skip
    rows, dtype = logits.shape[0], logits.dtype
    losses = out if reduction == "none" else launch.empty((rows,), dtype)
    own = launch.empty((rows,), dtype)
    weight = _numba_weight(launch, weight, dtype)
    options = (np.int64(ignore_index), dtype.type(smoothing))
    if rows:
        blocks = (min(-(-rows // _NUMBA_BLOCK), 1024),)
        args = (logits, target, weight, *options, losses, own, normalizer)
        launch(_numba_kernel("forward", target), blocks, (_NUMBA_BLOCK,), args)
    result = launch.empty((1,), dtype) if reduction == "none" else out.reshape(1)
    args = (losses, own, result, total_weight.reshape(1), np.bool_(reduction == "mean"))
    launch("cross_entropy_finish", (1,), (_NUMBA_BLOCK,), args)


def backward_numba(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    rows = logits.shape[0]
    if rows == 0:
        return
    blocks = (min(-(-rows // _NUMBA_BLOCK), 1024),)
    weight = _numba_weight(launch, weight, logits.dtype)
    options = (np.int64(ignore_index), logits.dtype.type(smoothing), np.bool_(reduction == "mean"))
    args = (grad.reshape(-1), logits, target, normalizer, total_weight.reshape(1), weight, *options)
    launch(_numba_kernel("backward", target), blocks, (_NUMBA_BLOCK,), (*args, out))
