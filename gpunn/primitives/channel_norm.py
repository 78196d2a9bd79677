"""Batch, group and instance norm: what the three are to the kernels, and the launches.

The specifications are in `batch_norm` and `group_norm`. All take the arguments of ``Call.run``:

    forward    x, residual, weight, bias, out, mean, spread, running, batches, problem
    backward   grad, x, residual, weight, bias, mean, spread, grad_z, out, dweight, dbias, problem

where what is not there is None, and `running` is a pair. `mean` and `spread` (the reciprocal
deviation) are made by a forward that computes statistics; else they are those given, and `spread`
is a variance.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from gpunn.primitives.rows import row_grid, row_group
from gpunn.primitives.samples import accumulator_dtype

# The activations that the kernels compute along.
FUSED = ("identity", "relu", "leaky_relu", "silu", "hard_swish")

# Their numbers in the kernels; the first is x, or alpha x below zero.
_NUMBER = {"silu": 1, "hard_swish": 2}
_SLOPE = {"identity": 1.0, "relu": 0.0}


class Problem(NamedTuple):
    """x as (outer, length, channels) if `columns`, else as (outer, channels, length)."""

    outer: int
    channels: int
    length: int
    columns: bool
    groups: int  # of channels, each of every `outer` a set of its own; 0: a channel is a set
    computed: bool  # the statistics are those of x
    eps: float
    activation: str
    alpha: float
    momentum: float | None = 0.0  # None: the average of all batches

    @property
    def group(self) -> int:
        """Channels of a set."""
        return self.channels // self.groups if self.groups else 1

    @property
    def sets(self) -> int:
        """How many means and deviations there are."""
        return self.outer * self.groups if self.groups else self.channels

    @property
    def count(self) -> int:
        """Values of a set."""
        return self.length * (self.group if self.groups else self.outer)

    def view(self, array):
        """An array of x's size in the three dimensions that it has in memory."""
        if array is None:
            return None
        tail = (self.length, self.channels) if self.columns else (self.channels, self.length)
        return array.reshape(self.outer, *tail)


def _activation(problem: Problem) -> tuple[int, float]:
    """(number, alpha) for the kernels."""
    name = problem.activation
    return _NUMBER.get(name, 0), _SLOPE.get(name, problem.alpha)


# ---- how the work is cut up ----------------------------------------------------------------------

_BLOCK = 256
_PART_BYTES = 1 << 13  # less of a row or of a tile of columns is not worth a block of its own
_BLOCKS_EACH = 4  # blocks for each multiprocessor, where there is work enough for them


class _Plan(NamedTuple):
    name: str  # "columns" or "rows"
    sizes: tuple  # the kernels' arguments for the shape
    shares: tuple  # and for how it is cut up
    grid: tuple
    block: tuple
    parts: int
    state: tuple  # (step of o, step of c, step of a part) of the states of (o, c)


@functools.lru_cache(1024)
def _plan(problem: Problem, itemsize: int, multiprocessors: int) -> _Plan:
    outer, channels, length = problem.outer, problem.channels, problem.length
    width, most = 16 // itemsize, _BLOCKS_EACH * multiprocessors
    if problem.columns:
        width, ahead = min(width, 4), 2 if itemsize == 8 else 4  # as WIDTH and AHEAD there
        packs = -(-channels // width)
        across = min(_power_of_two(packs), 32)
        down = min(_power_of_two(-(-length // ahead)), _BLOCK // across)
        tiles = -(-packs // across)
        blocks = -(-outer * tiles * across * down // _BLOCK)
        parts = 1
        if across * down == _BLOCK:
            share = length * min(channels, across * width) * itemsize
            parts = max(1, min(most // max(blocks, 1), share // _PART_BYTES))
        grid, block = row_grid(outer * parts * tiles, across * down, _BLOCK)
        sizes = (np.int64(outer), np.int64(length), np.int64(channels))
        shares = (np.int32(parts), np.int32(across), np.int32(down))
        return _Plan("columns", sizes, shares, grid, block, parts, (parts * channels, 1, channels))
    rows = outer * channels
    threads = min(row_group(length, itemsize, 8 * width), _BLOCK)
    parts = 1
    if threads == _BLOCK:
        parts = max(1, min(most // max(rows, 1), length * itemsize // _PART_BYTES))
    grid, block = row_grid(rows * parts, threads)
    sizes = (np.int64(rows), np.int32(length), np.int64(channels))
    shares = (np.int32(parts), np.int32(threads))
    return _Plan("rows", sizes, shares, grid, block, parts, (channels * parts, parts, 1))


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _members(problem: Problem, plan: _Plan, by_channel: bool) -> tuple[int, int, tuple, tuple]:
    """(sets, members of one, the arguments of `Members`, those that find a member's channel)."""
    of_outer, of_channel, of_part = plan.state
    if by_channel:
        where = (problem.channels, 0, of_channel, plan.parts, of_outer, of_part)
        return problem.channels, problem.outer * plan.parts, where, (1, 0)
    group = problem.group
    where = (problem.groups, of_outer, group * of_channel, plan.parts, of_channel, of_part)
    return problem.sets, group * plan.parts, where, (group, 1)


def _team(sets: int, members: int) -> tuple[int, tuple, tuple]:
    """(threads of a set, grid, block) for the kernels that join states."""
    threads = min(_power_of_two(-(-members // 2)), 256 if sets < 64 else 32)
    return (threads, *row_grid(sets, threads))


def _flags(launch, problem, x, arrays, weight, bias, mean) -> np.int32:
    """The flags of channel_norm.cuh."""
    affine = weight if weight is not None else bias
    wide_weights = affine is not None and affine.dtype != x.dtype
    vector = launch.aligned(16, x, *arrays)
    if problem.columns:
        vector = vector and problem.channels % min(16 // x.itemsize, 4) == 0
    wide_statistics = mean.dtype != x.dtype
    return np.int32(wide_weights + 2 * wide_statistics + 4 * (not problem.computed) + 8 * vector)


# ---- CUDA ----------------------------------------------------------------------------------------


def forward_cuda(launch, x, residual, weight, bias, out, mean, spread, running, batches, problem):
    if x.size == 0:
        return
    real, accumulator = launch.ctype(x.dtype), accumulator_dtype(x.dtype)
    plan = _plan(problem, x.itemsize, launch.multiprocessors)
    flags = _flags(launch, problem, x, (residual, out), weight, bias, mean)
    eps = accumulator.type(problem.eps)
    if problem.computed:
        shape = (problem.outer * problem.channels * plan.parts, 3)
        states = launch.empty(shape, accumulator)
        sizes = plan.sizes if problem.columns else plan.sizes[:2]
        args = (x, states, *sizes, *plan.shares, np.bool_(flags & 8))
        launch(f"channel_moments_{plan.name}<{real}>", plan.grid, plan.block, args)
        momentum = accumulator.type(-1 if problem.momentum is None else problem.momentum)
        wide = np.bool_(running[0] is not None and running[0].dtype != x.dtype)
        own = (None, None) if problem.groups else running
        sets, members, where, _ = _members(problem, plan, not problem.groups)
        threads, grid, block = _team(sets, members)
        args = (states, mean, spread, *own, batches, *map(launch.int64, (sets, members, *where)))
        args = (*args, eps, momentum, launch.int32(threads), wide)
        launch(f"channel_finish<{real}>", grid, block, args)
        if problem.groups and running[0] is not None:
            of_outer, of_channel, of_part = plan.state
            threads, grid, block = _team(problem.channels, problem.outer)
            where = (problem.outer, problem.channels, of_outer, of_channel, plan.parts, of_part)
            args = (states, *running, batches, *map(launch.int64, where))
            args = (*args, momentum, launch.int32(threads), wide)
            launch(f"channel_running<{real}>", grid, block, args)
    tail = _tail(launch, problem, plan, accumulator, flags)
    launch(
        f"channel_apply_{plan.name}<{real}>", plan.grid, plan.block,
        (x, residual, mean, spread, weight, bias, out, batches, *plan.sizes, *tail),
    )  # fmt: skip


def _tail(launch, problem, plan, accumulator, flags) -> tuple:
    """The last arguments of all kernels that know of channels."""
    number, alpha = _activation(problem)
    which = (launch.int64(problem.groups), launch.int64(problem.group), *plan.shares)
    eps, alpha = accumulator.type(problem.eps), accumulator.type(alpha)
    return (*which, eps, launch.int32(number), alpha, flags)


def backward_cuda(
    launch, grad, x, residual, weight, bias, mean, spread, grad_z, out, dweight, dbias, problem
):
    real, accumulator = launch.ctype(x.dtype), accumulator_dtype(x.dtype)
    if x.size == 0:
        for array in (dweight, dbias):
            if array is not None:
                array[...] = 0
        return
    plan = _plan(problem, x.itemsize, launch.multiprocessors)
    arrays = (grad, residual, grad_z, out)
    flags = _flags(launch, problem, x, arrays, weight, bias, mean)
    known, means = (mean, spread, weight, bias), None
    tail = _tail(launch, problem, plan, accumulator, flags)
    wanted = dweight is not None or dbias is not None
    if wanted or problem.computed or grad_z is not None:
        sums = launch.empty((problem.outer * problem.channels * plan.parts, 2), accumulator)
        launch(
            f"channel_sums_{plan.name}<{real}>", plan.grid, plan.block,
            (grad, x, residual, *known, grad_z, sums, *plan.sizes, *tail),
        )  # fmt: skip
        if problem.computed:
            means = launch.empty((problem.sets, 2), accumulator)
        together = not problem.groups  # then a set is a channel
        if wanted or (together and means is not None):
            own = means if together else None
            _totals(launch, problem, plan, x, sums, weight, own, dweight, dbias, flags, True)
        if means is not None and not together:
            _totals(launch, problem, plan, x, sums, weight, means, None, None, flags, False)
    if grad_z is not None:  # the derivative is in it
        grad, problem = grad_z, problem._replace(activation="identity")
        tail = _tail(launch, problem, plan, accumulator, flags)
    launch(
        f"channel_backward_{plan.name}<{real}>", plan.grid, plan.block,
        (grad, x, *known, means, out, *plan.sizes, *tail),
    )  # fmt: skip


def _totals(launch, problem, plan, x, sums, weight, means, dweight, dbias, flags, by_channel):
    accumulator = accumulator_dtype(x.dtype)
    sets, members, where, channel = _members(problem, plan, by_channel)
    threads, grid, block = _team(sets, members)
    numbers = map(launch.int64, (sets, members, *where, *channel))
    share = accumulator.type(1 / problem.count)
    args = (sums, weight, means, dweight, dbias, *numbers, share)
    args = (*args, launch.int32(threads), np.bool_(flags & 1))
    launch(f"channel_totals<{launch.ctype(x.dtype)}>", grid, block, args)


# ---- Numba ---------------------------------------------------------------------------------------

_THREADS = 128  # of a block at most


def _flat(launch, dtype, *arrays):
    """Arrays in one dimension, of size 0 for None."""
    return [launch.empty((0,), dtype) if a is None else a.reshape(-1) for a in arrays]


def _layout(problem: Problem) -> tuple:
    """outer, channels, length, and the steps of the last two in memory."""
    steps = (1, problem.channels) if problem.columns else (problem.length, 1)
    return tuple(map(np.int64, (problem.outer, problem.channels, problem.length, *steps)))


def _numba_tail(problem: Problem, dtype) -> tuple:
    number, alpha = _activation(problem)
    which = (np.int64(problem.groups), np.int64(problem.group), dtype.type(problem.eps))
    return (*which, np.bool_(not problem.computed), np.int64(number), dtype.type(alpha))


def _numba_block(work: int) -> tuple[int]:
    """Threads of a block for `work` elements, about eight each: a power of two."""
    return (max(2, min(_power_of_two(-(-work // 8)), _THREADS)),)


def _numba_grid(size: int, block: tuple[int]) -> tuple[int]:
    return (max(1, min(-(-size // (4 * block[0])), 65535)),)


def forward_numba(launch, x, residual, weight, bias, out, mean, spread, running, batches, problem):
    if x.size == 0:
        return
    dtype, name, block = x.dtype, x.dtype.name, _numba_block(x.size)
    values, more, target = _flat(launch, x.dtype, x, residual, out)
    weight, bias = _flat(launch, x.dtype, weight, bias)
    mean, spread, layout = mean.reshape(-1), spread.reshape(-1), _layout(problem)
    if problem.computed:
        variance = launch.empty((problem.sets,), dtype)
        args = (values, *layout, mean, spread, variance)
        args = (*args, np.int64(problem.groups), np.int64(problem.group), dtype.type(problem.eps))
        blocks = (min(problem.sets, 65535),)
        launch(f"channel_statistics_{name}", blocks, _numba_block(problem.count), args)
        if running[0] is not None:
            momentum = dtype.type(-1 if problem.momentum is None else problem.momentum)
            counted = launch.empty((0,), np.int64) if batches is None else batches.reshape(-1)
            unbiased = dtype.type(problem.count / (problem.count - 1))
            args = (mean, variance, *running, counted, unbiased, momentum)
            launch(f"channel_running_{name}", (-(-problem.channels // 32),), (32,), args)
        if batches is not None:
            launch("count_up", (1,), (1,), (batches.reshape(-1),))
    args = (values, *layout, more, target, mean, spread, weight, bias)
    args = (*args, *_numba_tail(problem, dtype))
    launch(f"channel_apply_{name}", _numba_grid(x.size, block), block, args)


def backward_numba(
    launch, grad, x, residual, weight, bias, mean, spread, grad_z, out, dweight, dbias, problem
):
    dtype, name, block = x.dtype, x.dtype.name, _numba_block(x.size)
    if x.size == 0:
        for array in (dweight, dbias):
            if array is not None:
                array[...] = 0
        return
    grad, values, more, written, target = _flat(launch, x.dtype, grad, x, residual, grad_z, out)
    weight, bias, dweight, dbias = _flat(launch, x.dtype, weight, bias, dweight, dbias)
    known, layout = (mean.reshape(-1), spread.reshape(-1), weight, bias), _layout(problem)
    tail = _numba_tail(problem, dtype)
    sums = launch.empty((problem.outer, problem.channels, 2), dtype)
    blocks = (min(problem.outer * problem.channels, 65535),)
    args = (grad, values, *layout, more, written, sums, *known, *tail)
    launch(f"channel_sums_{name}", blocks, _numba_block(problem.length), args)
    means = launch.empty((problem.sets if problem.computed else 0, 2), dtype)
    args = (sums, weight, means, dweight, dbias, np.int64(problem.groups), np.int64(problem.group))
    most = max(problem.channels, problem.sets)
    launch(
        f"channel_totals_{name}", (-(-most // 32),), (32,), (*args, dtype.type(1 / problem.count))
    )
    if grad_z is not None:
        grad, tail = written, _numba_tail(problem._replace(activation="identity"), dtype)
    args = (grad, values, *layout, target, *known, means, *tail)
    launch(f"channel_backward_{name}", _numba_grid(x.size, block), block, args)
