"""Batch norm by the values of several ranks: NumPy reference and launches.

The arguments of ``Call.run``; what is not there is None, `running` is a pair:

    moments    x, moments, problem
    forward    x, moments, residual, weight, bias, out, mean, variance, count, running, batches,
               problem
    sums       grad, x, residual, weight, bias, mean, variance, count, grad_z, means, dweight,
               dbias, problem
    backward   grad, x, mean, variance, means, weight, bias, out, problem
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import channel_norm_reference, norm_compiled
from gpunn.primitives.channel_norm import (
    _flags,
    _flat,
    _layout,
    _members,
    _numba_block,
    _numba_grid,
    _numba_tail,
    _plan,
    _tail,
    _team,
)
from gpunn.primitives.samples import accumulator_dtype

# ---- NumPy ---------------------------------------------------------------------------------------


def moments_reference(x, moments, problem):
    moments[...] = 0
    if x.size == 0:
        return
    x = problem.view(x)
    columns = norm_compiled.columns(problem, x)
    with quiet():
        if columns:
            mean, variance = columns.statistics(x)
        else:
            dtype = accumulator_dtype(x.dtype)
            mean, variance = channel_norm_reference._statistics(problem, x, dtype)
        moments[:, 0] = problem.count
        moments[:, 1] = mean
        moments[:, 2] = variance * problem.count


def _merged(moments):
    """(count, mean, sum of squares) of each channel over all ranks."""
    counts, means, squares = (moments[..., k] for k in range(3))
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count, mean, (squares + counts * (means - mean) ** 2).sum(0)


def _merge(moments, mean, variance, count, running, batches, problem):
    """Write the statistics, and move the running ones; in the dtype of `moments`."""
    total, middle, squares = _merged(moments)
    known = (total > 1) / (total > 1)  # 1, or NaN
    squares = squares * known
    middle = middle + (squares - squares)  # NaN where a value is not finite
    count[...], mean[...], variance[...] = total, middle, squares / total
    if running[0] is not None:
        factor = problem.momentum
        if factor is None:
            factor = 1.0 / (batches + 1)
        for kept, new in zip(running, (middle, squares / (total - 1)), strict=True):
            kept[...] = (1 - factor) * kept.astype(moments.dtype) + factor * new


def forward_reference(
    x, moments, residual, weight, bias, out, mean, variance, count, running, batches, problem
):  # fmt: skip
    with quiet():
        _merge(moments.astype(np.float64), mean, variance, count, running, batches, problem)
    if batches is not None:
        batches[...] += 1
    if x.size:
        channel_norm_reference.forward_reference(
            x, residual, weight, bias, out, mean, variance, running, None, problem
        )


def sums_reference(
    grad, x, residual, weight, bias, mean, variance, count, grad_z, means, dweight, dbias, problem
):  # fmt: skip
    dtype = accumulator_dtype(x.dtype)
    first, second = np.zeros((2, problem.channels))
    with quiet():
        if x.size:
            arrays = (problem.view(array) for array in (grad, x, residual, grad_z))
            known = channel_norm_reference._coefficients(
                problem, weight, bias, mean, variance, dtype
            )  # fmt: skip
            first, second = _sums(problem, *arrays, known, dtype)
        for target, total in ((dweight, second), (dbias, first)):
            if target is not None:
                target[...] = total
        share = (1 if weight is None else weight.astype(np.float64)) / count.astype(np.float64)
        means[:, 0], means[:, 1] = first * share, second * share


def _sums(problem, grad, x, residual, grad_z, known, dtype):
    """The sums of d and of d h of each channel, in float64; writes d to `grad_z` if it is there."""
    middle, reciprocal, scale, shift = known
    plain = problem.activation in ("identity", "relu")
    columns = norm_compiled.columns(problem, x) if plain else None
    if columns:
        first, second = columns.backward_sums(grad, x, residual, middle, scale, shift, grad_z)
        return first.sum(0), second.sum(0) * reciprocal[0]
    first, second = np.zeros((2, problem.outer, problem.channels))
    for piece in channel_norm_reference._pieces(problem):
        difference = piece.of(x, dtype) - piece.spread(middle)
        d = channel_norm_reference._through_activation(
            problem, piece, piece.of(grad, dtype), difference, residual, scale, shift, dtype
        )
        piece.add(first, d)
        difference *= d
        piece.add(second, difference)
        if grad_z is not None:
            piece.place(grad_z)[...] = d
    return first.sum(0), second.sum(0) * reciprocal[0]


def backward_reference(grad, x, mean, variance, means, weight, bias, out, problem):
    if x.size == 0:
        return
    dtype = accumulator_dtype(x.dtype)
    plain = problem.activation in ("identity", "relu")
    grad, x, out = (problem.view(array) for array in (grad, x, out))
    columns = norm_compiled.columns(problem, x) if plain else None
    with quiet():
        known = channel_norm_reference._coefficients(problem, weight, bias, mean, variance, dtype)
        # That divides sums by the values there are here, and multiplies by a weight: both are done.
        sums = (means.astype(np.float64) * problem.count).T
        own = problem._replace(computed=True)
        channel_norm_reference._apply_backward(
            own, columns, grad, x, out, None, sums[:1], sums[1:], known, dtype
        )


# ---- CUDA ----------------------------------------------------------------------------------------


def moments_cuda(launch, x, moments, problem):
    states, members = moments, 0
    if x.size:
        plan = _plan(problem, x.itemsize, launch.multiprocessors)
        alone = problem.columns and plan.parts == 1  # then the states are the moments
        if not alone:
            states = launch.empty((problem.outer * problem.channels * plan.parts, 3), moments.dtype)
        vector = launch.aligned(16, x)
        if problem.columns:
            vector = vector and problem.channels % min(16 // x.itemsize, 4) == 0
        sizes = plan.sizes if problem.columns else plan.sizes[:2]
        launch.sibling("channel_norm.cu")(
            f"channel_moments_{plan.name}<{launch.ctype(x.dtype)}>", plan.grid, plan.block,
            (x, states, *sizes, *plan.shares, np.bool_(vector)),
        )  # fmt: skip
        if alone:
            return
        sets, members, where, _ = _members(problem, plan, True)
    else:
        sets, where = problem.channels, (1,) * 6
    threads, grid, block = _team(sets, members)
    args = (states, moments, *map(launch.int64, (sets, members, *where)), launch.int32(threads))
    launch(f"sync_moments<{launch.ctype(moments.dtype)}>", grid, block, args)


def forward_cuda(
    launch, x, moments, residual, weight, bias, out, mean, variance, count, running, batches,
    problem,
):  # fmt: skip
    accumulator = mean.dtype
    momentum = accumulator.type(-1 if problem.momentum is None else problem.momentum)
    wide = np.bool_(running[0] is not None and running[0].dtype != x.dtype)
    ranks, channels = map(launch.int64, moments.shape[:2])
    threads, grid, block = _team(problem.channels, len(moments))
    args = (moments, mean, variance, count, *running, batches, ranks, channels)
    launch(
        f"sync_statistics<{launch.ctype(x.dtype)}>", grid, block,
        (*args, momentum, launch.int32(threads), wide),
    )  # fmt: skip
    if x.size == 0:
        if batches is not None:
            launch("sync_count", (1,), (1,), (batches,))
        return
    plan = _plan(problem, x.itemsize, launch.multiprocessors)
    flags = _flags(launch, problem, x, (residual, out), weight, bias, mean)
    args = (x, residual, mean, variance, weight, bias, out, batches, *plan.sizes)
    launch.sibling("channel_norm.cu")(
        f"channel_apply_{plan.name}<{launch.ctype(x.dtype)}>", plan.grid, plan.block,
        (*args, *_tail(launch, problem, plan, accumulator, flags)),
    )  # fmt: skip


def sums_cuda(
    launch, grad, x, residual, weight, bias, mean, variance, count, grad_z, means, dweight, dbias,
    problem,
):  # fmt: skip
    real, accumulator = launch.ctype(x.dtype), mean.dtype
    flags = _flags(launch, problem, x, (grad, residual, grad_z), weight, bias, mean)
    if x.size:
        plan = _plan(problem, x.itemsize, launch.multiprocessors)
        sums = launch.empty((problem.outer * problem.channels * plan.parts, 2), accumulator)
        args = (grad, x, residual, mean, variance, weight, bias, grad_z, sums, *plan.sizes)
        launch.sibling("channel_norm_backward.cu")(
            f"channel_sums_{plan.name}<{real}>", plan.grid, plan.block,
            (*args, *_tail(launch, problem, plan, accumulator, flags)),
        )  # fmt: skip
        sets, members, where, _ = _members(problem, plan, True)
    else:
        sums, sets, members, where = means, problem.channels, 0, (1,) * 6
    threads, grid, block = _team(sets, members)
    args = (sums, weight, count, means, dweight, dbias)
    args = (*args, *map(launch.int64, (sets, members, *where)), launch.int32(threads))
    launch(f"sync_totals<{real}>", grid, block, (*args, np.bool_(flags & 1)))


def backward_cuda(launch, grad, x, mean, variance, means, weight, bias, out, problem):
    if x.size == 0:
        return
    plan = _plan(problem, x.itemsize, launch.multiprocessors)
    flags = _flags(launch, problem, x, (grad, out), weight, bias, mean)
    args = (grad, x, mean, variance, weight, bias, means, out, *plan.sizes)
    launch.sibling("channel_norm_backward.cu")(
        f"channel_backward_{plan.name}<{launch.ctype(x.dtype)}>", plan.grid, plan.block,
        (*args, *_tail(launch, problem, plan, mean.dtype, flags)),
    )  # fmt: skip


# ---- Numba: the kernels of channel_norm.py; what is of C numbers goes by array arithmetic --------


def moments_numba(launch, x, moments, problem):
    if x.size == 0:
        moments[...] = 0
        return
    dtype = x.dtype
    mean, reciprocal, variance = (launch.empty((problem.channels,), dtype) for _ in range(3))
    args = (x.reshape(-1), *_layout(problem), mean, reciprocal, variance, np.int64(0), np.int64(1))
    blocks = (min(problem.channels, 65535),)
    launch(
        f"channel_statistics_{dtype.name}", blocks, _numba_block(problem.count),
        (*args, dtype.type(problem.eps)),
    )  # fmt: skip
    moments[:, 0] = problem.count
    moments[:, 1] = mean
    moments[:, 2] = variance * problem.count


def forward_numba(
    launch, x, moments, residual, weight, bias, out, mean, variance, count, running, batches,
    problem,
):  # fmt: skip
    with quiet():
        _merge(moments, mean, variance, count, running, batches, problem)
    if batches is not None:
        launch("count_up", (1,), (1,), (batches.reshape(-1),))
    if x.size == 0:
        return
    block = _numba_block(x.size)
    values, more, target, weight, bias = _flat(launch, x.dtype, x, residual, out, weight, bias)
    args = (values, *_layout(problem), more, target, mean, variance, weight, bias)
    args = (*args, *_numba_tail(problem, x.dtype))
    launch(f"channel_apply_{x.dtype.name}", _numba_grid(x.size, block), block, args)


def sums_numba(
    launch, grad, x, residual, weight, bias, mean, variance, count, grad_z, means, dweight, dbias,
    problem,
):  # fmt: skip
    means[...] = 0
    if x.size:
        arrays = _flat(launch, x.dtype, grad, x, residual, grad_z, weight, bias)
        values, known = arrays[:2], (mean, variance, *arrays[4:])
        sums = launch.empty((problem.outer, problem.channels, 2), x.dtype)
        blocks = (min(problem.outer * problem.channels, 65535),)
        args = (*values, *_layout(problem), *arrays[2:4], sums, *known)
        launch(
            f"channel_sums_{x.dtype.name}", blocks, _numba_block(problem.length),
            (*args, *_numba_tail(problem, x.dtype)),
        )  # fmt: skip
        means += sums.sum(0)
    for target, column in ((dbias, 0), (dweight, 1)):
        if target is not None:
            target[...] = means[:, column]
    with quiet():
        means *= ((1 if weight is None else weight) / count)[:, None]


def backward_numba(launch, grad, x, mean, variance, means, weight, bias, out, problem):
    if x.size == 0:
        return
    block = _numba_block(x.size)
    grad, values, target, weight, bias = _flat(launch, x.dtype, grad, x, out, weight, bias)
    args = (grad, values, *_layout(problem), target, mean, variance, weight, bias, means)
    args = (*args, *_numba_tail(problem, x.dtype))
    launch(f"channel_backward_{x.dtype.name}", _numba_grid(x.size, block), block, args)
