"""CTC: the NumPy reference and the launches. The specification is in `ctc`.

forward    log_probs, targets, extents, blank, out, log_alpha
backward   grad_loss, log_probs, targets, extents, loss, log_alpha, blank, zero_infinity, out
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.errors import UnsupportedError
from gpunn.primitives.rows import WARP
from gpunn.primitives.samples import accumulator_dtype

INT64 = np.dtype(np.int64)

# ---- reference -----------------------------------------------------------------------------------


class _Lattice:
    """The states of all sequences: their classes, which exist, and where a path may skip a blank.

    Vectorised over sequences and states; recursions are loops over time alone.
    """

    def __init__(self, log_probs, targets, extents, blank, states):
        steps, batch, _ = log_probs.shape
        self.steps, labels, starts = extents
        self.fits = 2 * labels < states
        self.labels = np.where(self.fits, labels, 0)
        places = np.arange(states // 2)
        inside = places < self.labels[:, None]
        self.classes = np.full((batch, states), blank)
        if inside.any():
            found = targets[np.where(inside, starts[:, None] + places, 0)]
            self.classes[:, 1::2] = np.where(inside, found, blank)
        self.exists = np.arange(states) <= 2 * self.labels[:, None]
        wide = accumulator_dtype(log_probs.dtype)
        # From two states before: 0 where a path may come from there, else -inf.
        self.skips = np.full((batch, states), -np.inf, wide)
        odd = self.classes[:, 1::2]
        self.skips[:, 3::2][inside[:, 1:] & (odd[:, 1:] != odd[:, :-1])] = 0
        self.logs = np.take_along_axis(log_probs, self.classes[None], axis=2).astype(wide)
        self.logs[:, ~self.exists] = -np.inf


class _LogSum:
    """log(exp(a) + exp(b) + exp(c)) of arrays of one shape, in memory that is used again.

    The largest is taken out first; where all are -inf the smallest finite number is, which leaves
    exp(-inf) and gives -inf. NaN passes by the maximum and comes with the sum.
    """

    def __init__(self, shape, dtype):
        self.top, self.total, self.part = (np.empty(shape, dtype) for _ in range(3))
        self.lowest = np.finfo(dtype).min

    def __call__(self, a, b, c) -> np.ndarray:
        top, total, part = self.top, self.total, self.part
        np.fmax(np.fmax(a, b, out=top), c, out=top)
        np.fmax(top, self.lowest, out=top)
        np.exp(np.subtract(a, top, out=total), out=total)
        for term in (b, c):
            total += np.exp(np.subtract(term, top, out=part), out=part)
        np.log(total, out=total)
        total += top
        return total


def forward_reference(log_probs, targets, extents, blank, out, log_alpha):
    with quiet():
        _forward(log_probs, targets, extents, blank, out, log_alpha)


def _forward(log_probs, targets, extents, blank, out, log_alpha):
    batch, steps, states = log_alpha.shape
    lattice = _Lattice(log_probs, targets, extents, blank, states)
    row = np.full((batch, states + 2), -np.inf, out.dtype)  # two states before the first
    log_sum, skipped = _LogSum((batch, states), out.dtype), np.empty((batch, states), out.dtype)
    for t in range(steps):
        if t == 0:
            row[:, 2:4] = lattice.logs[0, :, :2]
        else:
            np.add(row[:, :-2], lattice.skips, out=skipped)
            np.add(log_sum(row[:, 2:], row[:, 1:-1], skipped), lattice.logs[t], out=row[:, 2:])
        log_alpha[:, t] = row[:, 2:]
    beyond = (np.arange(steps) >= lattice.steps[:, None]) | ~lattice.fits[:, None]
    log_alpha[beyond] = -np.inf
    if steps:
        all_ = np.arange(batch)
        last = log_alpha[all_, np.maximum(lattice.steps, 1) - 1]
        end = 2 * lattice.labels
        before = np.where(end > 0, last[all_, end - 1], -np.inf).astype(out.dtype)
        nothing = np.full_like(before, -np.inf)
        out[...] = -_LogSum(batch, out.dtype)(last[all_, end], before, nothing)
    empty = lattice.steps == 0
    out[empty] = np.where(lattice.labels[empty] == 0, 0, np.inf)
    out[~lattice.fits] = np.inf


def backward_reference(
    grad_loss, log_probs, targets, extents, loss, log_alpha, blank, zero_infinity, out
):
    with quiet():
        batch, steps, states = log_alpha.shape
        lattice = _Lattice(log_probs, targets, extents, blank, states)
        work = out if out.dtype == loss.dtype else np.empty(out.shape, loss.dtype)
        np.exp(log_probs.astype(loss.dtype, copy=False), out=work)
        share = _shares(lattice, log_alpha, loss)
        all_ = np.arange(batch)
        work[:, :, blank] -= share[:, :, ::2].sum(axis=2)
        for state in range(1, states, 2):  # sequences differ, so no element is met twice
            some = np.flatnonzero(lattice.exists[:, state])
            work[:, all_[some], lattice.classes[some, state]] -= share[:, some, state]
        work *= grad_loss[:, None]
        work[:, ~(loss < np.inf)] = np.nan
        if zero_infinity:
            work[:, loss == np.inf] = 0
        work[np.arange(steps)[:, None] >= lattice.steps] = 0
        if work is not out:
            out[...] = work


def _shares(lattice, log_alpha, loss) -> np.ndarray:
    """(steps, batch, states): the part of all alignments that is in a state at a step.

    Divided by their sum, which is 1 but for rounding: see ctc.cu.
    """
    batch, steps, states = log_alpha.shape
    end = 2 * lattice.labels[:, None]
    places = np.arange(states)
    ends = np.where((places == end) | (places == end - 1), 0, -np.inf).astype(loss.dtype)
    skips = np.full_like(lattice.skips, -np.inf)  # to two states later
    skips[:, :-2] = lattice.skips[:, 2:]
    share = np.empty((steps, batch, states), loss.dtype)
    row = np.full((batch, states + 2), -np.inf, loss.dtype)  # two states after the last
    log_sum, skipped = _LogSum((batch, states), loss.dtype), np.empty((batch, states), loss.dtype)
    for t in range(steps - 1, -1, -1):
        np.add(row[:, 2:], skips, out=skipped)
        beta = log_sum(row[:, :-2], row[:, 1:-1], skipped)
        begins = lattice.steps == t + 1  # sequences whose last step this is
        if begins.any():
            beta[begins] = ends[begins]
        np.add(beta, log_alpha[:, t], out=share[t])
        np.add(beta, lattice.logs[t], out=row[:, :-2])
    share += loss[:, None]
    np.exp(share, out=share)
    share /= share.sum(axis=2, keepdims=True)
    return share


# ---- launch --------------------------------------------------------------------------------------


def _shapes(launch, log_probs, log_alpha, blank, targets) -> tuple:
    steps, batch, classes = log_probs.shape
    sizes = (steps, batch, classes, log_alpha.shape[2], blank)
    return (*map(launch.int32, sizes), launch.int64(targets.size))


def _block_and_shared(launch, log_alpha) -> tuple[tuple[int], int]:
    """Threads for the states of a sequence, and the bytes for two rows of them and the labels."""
    states = log_alpha.shape[2]
    shared = 2 * (states + 2) * log_alpha.itemsize + 4 * (states // 2)
    if shared > launch.shared_limit - 256:
        raise UnsupportedError(
            f"ctc: targets of {states // 2} labels need {shared} bytes of shared memory in "
            f"{log_alpha.dtype}; this GPU has {launch.shared_limit}. Split the targets or use "
            "the CPU."
        )
    largest = 512 if log_alpha.itemsize == 8 else 1024  # as in ctc.cu
    return (min(largest, -(-states // WARP) * WARP),), shared


def forward_cuda(launch, log_probs, targets, extents, blank, out, log_alpha):
    if out.size == 0:
        return
    block, shared = _block_and_shared(launch, log_alpha)
    wide = np.bool_(targets.dtype == INT64)
    args = (log_probs, targets, wide, extents, out, log_alpha)
    sizes = _shapes(launch, log_probs, log_alpha, blank, targets)
    kernel = f"ctc_forward<{launch.ctype(log_probs.dtype)}>"
    launch(kernel, (out.size,), block, (*args, *sizes), shared)


def backward_cuda(
    launch, grad_loss, log_probs, targets, extents, loss, log_alpha, blank, zero_infinity, out
):
    if out.size == 0:
        return
    block, shared = _block_and_shared(launch, log_alpha)
    batch, steps, states = log_alpha.shape
    share = launch.empty(log_alpha.shape, log_alpha.dtype)
    chain = launch.empty((batch, max(1, states // 2)), np.int32)
    wide, real = np.bool_(targets.dtype == INT64), launch.ctype(log_probs.dtype)
    sizes = _shapes(launch, log_probs, log_alpha, blank, targets)
    args = (log_probs, targets, wide, extents, loss, log_alpha, share, chain)
    launch(f"ctc_shares<{real}>", (batch,), block, (*args, *sizes), shared)
    vector = np.bool_(launch.aligned(16, log_probs, out))
    args = (grad_loss, log_probs, targets, wide, extents, loss, share, chain, out)
    work = max(out.shape[2] * out.itemsize // 16, states // 2)
    threads = min(256, max(1, -(-work // WARP)) * WARP)
    options = (np.bool_(zero_infinity), vector)
    launch(f"ctc_gradient<{real}>", (steps * batch,), (threads,), (*args, *sizes, *options))


def _numba_block(log_alpha) -> tuple[int]:
    return (min(256, log_alpha.shape[2]),)


def _ends(out) -> tuple:
    """0 and -inf, the log of 0, in the dtype."""
    return out.dtype.type(0), out.dtype.type(-np.inf)


def forward_numba(launch, log_probs, targets, extents, blank, out, log_alpha):
    if out.size:
        args = (log_probs, targets, extents, np.int64(blank), *_ends(out), out, log_alpha)
        launch("ctc_forward", (out.size,), _numba_block(log_alpha), args)


def backward_numba(
    launch, grad_loss, log_probs, targets, extents, loss, log_alpha, blank, zero_infinity, out
):
    if out.size == 0:
        return
    beta = launch.empty(log_alpha.shape, log_alpha.dtype)
    args = (log_probs, targets, extents, np.int64(blank), *_ends(out), beta)
    launch("ctc_backward", (loss.size,), _numba_block(log_alpha), args)
    args = (
        grad_loss, log_probs, targets, extents, loss, log_alpha, beta, np.int64(blank),
        *_ends(out), np.bool_(zero_infinity), out,
    )  # fmt: skip
    steps, batch, _ = out.shape
    launch("ctc_gradient", (min(steps * batch, 65535),), (min(128, out.shape[2]),), args)
