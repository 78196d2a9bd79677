"""Recurrent networks: the launches of their kernels; which they are is said in recurrent_plan."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.matmul_launch import multiply
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.recurrent_plan import MAX_GRID, MODES, THREADS, choose
from gpunn.primitives.samples import accumulator_dtype

CELL_BLOCK = 256

# As COUNT_STRIDE of recurrent_grid.cu: numbers from one team's count to the next one's.
COUNT_STRIDE = 32

# ---- all steps at once ---------------------------------------------------------------------------


def _lengths(lengths) -> tuple:
    return lengths, np.bool_(lengths is not None and lengths.dtype == np.int64)


def forward(launch, gates, weight_hh, work) -> None:
    """Launch what `recurrent_forward` specifies; `launch` is the launcher of recurrent.cu."""
    shape = work.output.shape
    if shape[1] == 0:
        return
    plan = choose(launch, shape, gates.itemsize, work.mode, back=False)
    if plan is None:
        _forward_steps(launch, gates, weight_hh, work)
        return
    arrays = (
        gates, weight_hh, work.bias_hh, work.h0, work.c0, *_lengths(work.lengths), work.output,
        work.h_n, work.c_n, work.activated, work.inner,
    )  # fmt: skip
    _launch(launch, plan, "forward", arrays, shape, gates.dtype, work)


def backward(launch, output, weight_hh, work) -> None:
    """Launch what `recurrent_backward` specifies."""
    if output.shape[1] == 0:
        return
    plan = choose(launch, output.shape, output.itemsize, work.mode, back=True)
    if plan is None:
        _backward_steps(launch, output, weight_hh, work)
        return
    arrays = (
        work.grad_output, work.grad_h_n, work.grad_c_n, output, work.activated, work.inner,
        weight_hh, work.h0, work.c0, *_lengths(work.lengths), work.grad_gates, work.grad_hidden,
        work.grad_h0, work.grad_c0,
    )  # fmt: skip
    _launch(launch, plan, "backward", arrays, output.shape, output.dtype, work)


def _launch(launch, plan, way: str, arrays, shape, dtype, work) -> None:
    steps, batch, hidden = shape
    args = (
        *arrays, np.int32(steps), np.int64(batch), np.int32(hidden), np.int32(plan.units),
        np.int32(plan.tiles), np.int32(MODES.index(work.mode)), np.bool_(work.reverse),
    )  # fmt: skip
    grid, block, real = (plan.members * plan.teams,), (THREADS,), launch.ctype(dtype)
    if not plan.vectors:
        kernel = f"recurrent_sequence_{way}<{real}, {plan.members}>"
        launch(kernel, grid, block, args, plan.shared)
        return
    launch = launch.sibling("recurrent_grid.cu")
    counts = launch.empty((plan.teams * COUNT_STRIDE,), np.dtype(np.uint32))
    vectors = launch.empty((plan.teams * 2 * plan.vectors // dtype.itemsize,), dtype)
    launch("recurrent_clear", (1,), (32,), (counts, np.int32(plan.teams)))
    args = (*args, np.int32(plan.members), vectors, counts)
    launch(f"recurrent_grid_{way}<{real}>", grid, block, args, plan.shared)


# ---- step by step --------------------------------------------------------------------------------


def _cell_grid(elements: int) -> tuple[int]:
    return (min(-(-elements // CELL_BLOCK), MAX_GRID),)


def _forward_steps(launch, gates, weight_hh, work) -> None:
    steps, batch, hidden = work.output.shape
    dtype, products = gates.dtype, launch.sibling("matmul.cu")
    kernel = f"recurrent_cell_forward<{launch.ctype(dtype)}>"
    grid, block = _cell_grid(batch * hidden), (CELL_BLOCK,)
    product = launch.empty((batch, weight_hh.shape[0]), dtype)
    cell = None
    if work.mode == "lstm":
        cell = launch.empty((batch, hidden), accumulator_dtype(dtype))
    before = (work.c0, *_lengths(work.lengths), cell, work.output, work.h_n)
    after = (np.int32(steps), np.int64(batch), np.int64(hidden), np.int32(MODES.index(work.mode)))
    times = range(steps - 1, -1, -1) if work.reverse else range(steps)
    for s, t in enumerate(times or (0,)):  # without steps the states are copied
        h, added = (work.h0 if s == 0 else work.h_n), None
        if h is not None and steps:
            multiply(products, h, weight_hh.T, Finish(product))
            added = product
        c_n = work.c_n if s >= steps - 1 else None
        args = (
            gates, added, work.bias_hh, h, *before, c_n, work.activated, work.inner,
            launch.int64(t), *after, np.bool_(s == 0),
        )  # fmt: skip
        launch(kernel, grid, block, args)


def _backward_steps(launch, output, weight_hh, work) -> None:
    steps, batch, hidden = output.shape
    dtype, products = output.dtype, launch.sibling("matmul.cu")
    kernel = f"recurrent_cell_backward<{launch.ctype(dtype)}>"
    grid, block = _cell_grid(batch * hidden), (CELL_BLOCK,)
    product = launch.empty((batch, hidden), dtype)
    grad_h = launch.empty((batch, hidden), accumulator_dtype(dtype))
    grad_c = None
    if work.mode == "lstm":
        grad_c = launch.empty((batch, hidden), accumulator_dtype(dtype))
    arrays = (
        work.grad_output, product, work.grad_h_n, work.grad_c_n, output, work.activated,
        work.inner, work.h0, work.c0, *_lengths(work.lengths), grad_h, grad_c, work.grad_gates,
        work.grad_hidden, work.grad_h0, work.grad_c0,
    )  # fmt: skip
    numbers = (
        np.int32(steps), np.int64(batch), np.int64(hidden), np.int32(MODES.index(work.mode)),
        np.bool_(work.reverse),
    )  # fmt: skip
    by_hidden = work.grad_gates if work.grad_hidden is None else work.grad_hidden
    times = range(steps) if work.reverse else range(steps - 1, -1, -1)
    for s, t in enumerate((*times, steps if work.reverse else -1)):
        if s > 0:
            multiply(products, by_hidden[times[s - 1]], weight_hh, Finish(product))
        flags = (np.bool_(s == 0), np.bool_(s == steps))
        launch(kernel, grid, block, (*arrays, launch.int64(t), *numbers, *flags))


# ---- Numba ---------------------------------------------------------------------------------------


def _present(launch, ndim: int, *arrays) -> list:
    """The arrays, and empty ones for those that are None, which Numba does not take."""
    real = next(array.dtype for array in arrays if array is not None)
    return [launch.empty((0,) * ndim, real) if a is None else a for a in arrays]


def _present_lengths(launch, lengths):
    return launch.empty((0,), np.dtype(np.int64)) if lengths is None else lengths


def _numba_launch(launch, kernel: str, shape, args) -> None:
    _, batch, hidden = shape
    launch(kernel, (min(batch, 65535),), (min(hidden, 256),), args)


def forward_numba(launch, gates, weight_hh, work) -> None:
    """A block for each sequence."""
    steps, batch, hidden = work.output.shape
    if batch == 0:
        return
    real = gates.dtype
    h0, c0, c_n = _present(launch, 2, work.h0, work.c0, work.c_n, work.h_n)[:3]
    bias = _present(launch, 1, work.bias_hh, gates.reshape(-1)[:0])[0]
    activated, inner = _present(launch, 3, work.activated, work.inner, gates)[:2]
    state, cell = launch.empty((2, batch, hidden), real), launch.empty((batch, hidden), real)
    args = (
        gates, weight_hh, bias, h0, c0, _present_lengths(launch, work.lengths), state, cell,
        work.output, work.h_n, c_n, activated, inner, np.int32(MODES.index(work.mode)),
        np.bool_(work.reverse),
    )  # fmt: skip
    _numba_launch(launch, f"recurrent_forward_{real}", work.output.shape, args)


def backward_numba(launch, output, weight_hh, work) -> None:
    """A block for each sequence."""
    batch, hidden = output.shape[1:]
    if batch == 0:
        return
    real = output.dtype
    two = (work.grad_h_n, work.grad_c_n, work.h0, work.c0, work.grad_c0, work.grad_h0)
    grad_h_n, grad_c_n, h0, c0, grad_c0, _ = _present(launch, 2, *two)
    three = (work.grad_output, work.activated, work.inner, work.grad_hidden, output)
    grad_output, activated, inner, grad_hidden, _ = _present(launch, 3, *three)
    grad_h, grad_c = (launch.empty((batch, hidden), real) for _ in range(2))
    args = (
        grad_output, grad_h_n, grad_c_n, output, activated, inner, weight_hh, h0, c0,
        _present_lengths(launch, work.lengths), grad_h, grad_c, work.grad_gates, grad_hidden,
        work.grad_h0, grad_c0, np.int32(MODES.index(work.mode)), np.bool_(work.reverse),
    )  # fmt: skip
    _numba_launch(launch, f"recurrent_backward_{real}", output.shape, args)
