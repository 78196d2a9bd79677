"""Cross-entropy: its NumPy reference and the launches of its kernels; the specification is in
`cross_entropy`. All take the arguments of ``Call.run`` there:

    logits, target, weight, kept, ignore_index, smoothing, reduction, and then
    forward            out, normalizer, total_weight
    forward_backward   out, normalizer, total_weight, gradient
    backward           grad, normalizer, total_weight, out

`weight` is in the accumulator's dtype or None; `kept`, on the CPU only, says which rows are not
ignored (None: all of them).
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.rows import WARP, numba_rows, row_plan
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


def _label_loss(far, log_sum, own, keep):
    """keep own (L - x) at the labels; a share of 0 is 0 where x is -inf, and NaN travels."""
    if own is None and keep == 1:
        return far
    share = keep if own is None else keep * own
    return share * np.where(share == 0, log_sum, far)


def forward_reference(
    logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight, gradient=None,
):  # fmt: skip
    centres = None if gradient is None else np.empty((2, logits.shape[0]), normalizer.dtype)
    _losses(
        logits, target, weight, kept, smoothing, reduction, out, normalizer, total_weight, centres
    )
    if gradient is not None:
        with quiet():
            scale = 1 / total_weight if reduction == "mean" else np.ones_like(total_weight)
        _slopes(logits, target, weight, kept, smoothing, scale, centres, gradient)


def _losses(
    logits, target, weight, kept, smoothing, reduction, out, normalizer, total_weight, centres
):
    """The forward pass; `centres`, if wanted, receives the two terms that L is the sum of."""
    rows, classes = logits.shape
    accumulator, labels = accumulator_dtype(logits.dtype), target.ndim == 1
    total, weights = 0.0, 0.0
    with quiet():
        for block in _blocks(rows, classes):
            x, t = logits[block].astype(accumulator, copy=False), target[block]
            largest, z, log_sum = _centred(x)
            np.add(largest, log_sum, out=normalizer[block])
            if centres is not None:
                centres[0, block], centres[1, block] = largest, log_sum
            loss, own = 0.0, None
            if smoothing or not labels:
                loss = _dense_loss(z, log_sum, _shares(t, weight, smoothing, classes, accumulator))
            if labels:
                at = t if kept is None else np.where(kept[block], t, 0)
                far = log_sum - z[np.arange(len(at)), at]
                own = None if weight is None else weight[at]
                part = _label_loss(far, log_sum, own, accumulator.type(1 - smoothing))
                loss = part if not smoothing else loss + part
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
    with quiet():
        scale = grad.astype(normalizer.dtype, copy=False)
        if reduction == "mean":
            scale = scale / total_weight
    _slopes(logits, target, weight, kept, smoothing, scale, normalizer[None], out)


def _slopes(logits, target, weight, kept, smoothing, scale, centres, out):
    """scale (S exp(x - centres) - a): `scale` of all rows or of each; the sum of `centres` is L."""
    rows, classes = logits.shape
    accumulator, labels = accumulator_dtype(logits.dtype), target.ndim == 1
    with quiet():
        for block in _blocks(rows, classes):
            x, t = logits[block].astype(accumulator, copy=False), target[block]
            direct = out.dtype == accumulator
            place = out[block] if direct else np.empty(x.shape, accumulator)
            factor = scale if scale.ndim == 0 else scale[block, None]
            own = accumulator.type(1 - smoothing)
            if labels:
                at = t if kept is None else np.where(kept[block], t, 0)
                own = own if weight is None else own * weight[at]
            np.subtract(x, centres[0, block, None], out=place)
            for centre in centres[1:]:
                place -= centre[block, None]
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

# Threads of the largest block, and threads of a multiprocessor that the registers allow.
_MAX_THREADS, _RESIDENT = 512, 1024
_SUM_BLOCK = 256  # of the kernels that only sum

# Up to so many labels every block sums the weights of all of them, which is quicker than a launch.
_FEW_LABELS = 1024


def _row_plan(launch, logits, **what):
    rows, classes = logits.shape
    return row_plan(
        launch, rows, classes, logits.itemsize, largest_block=_MAX_THREADS, resident=_RESIDENT,
        **what,
    )  # fmt: skip


def _kind(target, smoothing) -> str:
    """The template argument that says what the target is."""
    if target.ndim == 2:
        return "PROBABILITIES"
    return "SMOOTHED_LABELS" if smoothing > 0 else "LABELS"


def _wide(target) -> np.bool_:
    """Whether labels are of 8 bytes and not of 4."""
    return np.bool_(target.itemsize == 8)


def _scalars(logits, ignore_index, smoothing, reduction, plan) -> tuple:
    """The last arguments of both kernels, but for two."""
    return (
        np.int64(logits.shape[0]), np.int32(logits.shape[1]), np.int64(ignore_index),
        accumulator_dtype(logits.dtype).type(smoothing), np.bool_(reduction == "mean"),
        np.int32(plan.threads),
    )  # fmt: skip


def _aligned(launch, logits, target, out) -> np.bool_:
    return np.bool_(launch.aligned(16, logits, target if target.ndim == 2 else None, out))


def forward_cuda(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight, gradient=None,
):  # fmt: skip
    accumulator, kind = accumulator_dtype(logits.dtype), _kind(target, smoothing)
    arrays = 0 if gradient is None else 2 if target.ndim == 2 else 1
    plan = _row_plan(launch, logits, arrays=arrays)
    blocks = plan.grid
    if plan.threads <= WARP and blocks <= 4:
        blocks = 1  # saves the launch that adds the blocks' sums
    weights = None
    if gradient is not None and reduction == "mean" and target.ndim == 1:
        weights = _sum_weights(launch, logits, target, weight, ignore_index)
    row_loss, result = (out, None) if reduction == "none" else (None, out)
    partial = launch.empty((blocks, 2), accumulator) if blocks > 1 else None
    args = (
        logits, target, _wide(target), weight, row_loss, result, normalizer, total_weight, partial,
        gradient, weights, np.int32(0 if weights is None else weights.size),
        *_scalars(logits, ignore_index, smoothing, reduction, plan), np.int32(plan.kept),
        _aligned(launch, logits, target, gradient),
    )  # fmt: skip
    name = f"cross_entropy_forward<{launch.ctype(logits.dtype)}, {kind}, {plan.cluster}>"
    launch(name, (blocks,), (plan.block,), args, plan.shared)
    if blocks > 1:
        args = (partial, np.int32(blocks), np.bool_(reduction == "mean"), result, total_weight)
        name = f"cross_entropy_finish<{launch.ctype(accumulator)}>"
        launch(name, (1,), (_SUM_BLOCK,), args)


def _sum_weights(launch, logits, target, weight, ignore_index):
    """The labels' weights in partial sums, one a block; None if the main kernel is to sum them."""
    (rows, classes), accumulator = logits.shape, accumulator_dtype(logits.dtype)
    if rows <= _FEW_LABELS:
        return None
    blocks = min(-(-rows // (4 * _SUM_BLOCK)), 2 * launch.multiprocessors)
    sums = launch.empty((blocks,), accumulator)
    args = (target, _wide(target), weight, sums)
    args += (np.int64(rows), np.int32(classes), np.int64(ignore_index))
    name = f"cross_entropy_weights<{launch.ctype(accumulator)}>"
    launch(name, (blocks,), (_SUM_BLOCK,), args)
    return sums


def backward_cuda(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    if logits.size == 0:
        return
    plan = _row_plan(launch, logits, arrays=0, meet=False)
    parts, grid = plan.cluster, plan.grid
    if target.ndim == 2:  # the threads of a row meet, to sum its shares
        parts, grid = 1, max(1, grid // parts)
    scalar, by_row = (None, grad) if reduction == "none" else (grad, None)
    args = (
        scalar, by_row, logits, target, _wide(target), normalizer, total_weight, weight, out,
        *_scalars(logits, ignore_index, smoothing, reduction, plan), np.int32(parts),
        _aligned(launch, logits, target, out),
    )  # fmt: skip
    name = f"cross_entropy_backward<{launch.ctype(logits.dtype)}, {_kind(target, smoothing)}>"
    launch(name, (grid,), (plan.block,), args)


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
        args = (logits, target, weight, *options, losses, own, normalizer)
        launch(_numba_kernel("forward", target), *numba_rows(*logits.shape), args)
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
    weight = _numba_weight(launch, weight, logits.dtype)
    options = (np.int64(ignore_index), logits.dtype.type(smoothing), np.bool_(reduction == "mean"))
    args = (grad.reshape(-1), logits, target, normalizer, total_weight.reshape(1), weight, *options)
    launch(_numba_kernel("backward", target), *numba_rows(*logits.shape), (*args, out))


def forward_backward_numba(
    launch, logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight, gradient,
):  # fmt: skip
    rows, dtype = logits.shape[0], logits.dtype
    losses = out if reduction == "none" else launch.empty((rows,), dtype)
    own = launch.empty((rows,), dtype)
    result = launch.empty((1,), dtype) if reduction == "none" else out.reshape(1)
    total, mean = total_weight.reshape(1), np.bool_(reduction == "mean")
    weight = _numba_weight(launch, weight, dtype)
    options = (np.int64(ignore_index), dtype.type(smoothing))
    blocks = (max(1, min(-(-rows // _NUMBA_BLOCK), 1024)),)
    if target.ndim == 1:
        args = (target, weight, np.int64(logits.shape[1]), np.int64(ignore_index), own)
    else:
        args = (own,)
    launch(_numba_kernel("weights", target), blocks, (_NUMBA_BLOCK,), args)
    finish = (own, result, total, mean)  # adds the weights, which the gradient of the mean needs
    launch("cross_entropy_finish", (1,), (_NUMBA_BLOCK,), (own, *finish))
    args = (logits, target, weight, *options, mean, total, losses, normalizer, gradient)
    if rows:
        launch(_numba_kernel("forward_backward", target), *numba_rows(*logits.shape), args)
    launch("cross_entropy_finish", (1,), (_NUMBA_BLOCK,), (losses, *finish))
