"""Softmax and log-softmax: their NumPy reference and the launches of their kernels.

The specification is in `softmax`. All take the arguments of ``Call.run`` there:

    forward    x, out
    backward   grad_output, y, out
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.rows import numba_rows, row_plan
from gpunn.primitives.samples import FLOAT32, accumulator_dtype

# ---- reference -----------------------------------------------------------------------------------

# Elements that the reference works on at a time, so that its temporaries stay in the CPU's cache.
_CHUNK = 1 << 16

# NumPy reduces rows of so few columns faster down the columns of a transposed copy.
_FEW_COLUMNS = 32


def compute_softmax(x, out, axis):
    np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
    np.exp(out, out=out)
    np.divide(out, np.add.reduce(out, axis=axis, keepdims=True), out=out)


def compute_log_softmax(x, out, axis):
    np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
    np.subtract(out, np.log(np.add.reduce(np.exp(out), axis=axis, keepdims=True)), out=out)


def compute_softmax_backward(grad_output, y, out, axis):
    work = grad_output * y
    np.subtract(grad_output, np.add.reduce(work, axis=axis, keepdims=True), out=work)
    np.multiply(work, y, out=out)


def compute_log_softmax_backward(grad_output, y, out, axis):
    work = np.exp(y)
    np.multiply(work, np.add.reduce(grad_output, axis=axis, keepdims=True), out=work)
    np.subtract(grad_output, work, out=out)


def reference(compute):
    """A NumPy implementation: `compute` on chunks of rows, 16-bit ones widened to float32."""

    def run_chunk(inputs, out):
        dtype = out.dtype if out.itemsize >= 4 else FLOAT32
        if out.shape[-1] <= _FEW_COLUMNS and out.ndim == 2:
            work = [array.T.astype(dtype, order="C") for array in inputs]
            compute(*work, work[0], 0)
            out[...] = work[0].T
        elif out.dtype == dtype:
            compute(*inputs, out, -1)
        else:
            work = [array.astype(dtype) for array in inputs]
            compute(*work, work[0], -1)
            out[...] = work[0]

    def run(*arrays):
        *inputs, out = arrays
        with quiet():
            if 0 < out.size <= _CHUNK:
                run_chunk(inputs, out)
                return
            columns = out.shape[-1]
            *inputs, out = [array.reshape(-1, columns) for array in arrays]
            step = max(1, _CHUNK // columns)
            for start in range(0, len(out), step):
                some = slice(start, start + step)
                run_chunk([array[some] for array in inputs], out[some])

    return run


# ---- launch --------------------------------------------------------------------------------------

# Packs of 16 bytes that a thread holds in registers: a small and a large number, by bytes of an
# element. A forward thread holds them widened to the accumulator, a backward one holds two arrays.
_FORWARD_PACKS = {2: (1, 4), 4: (2, 8), 8: (2, 4)}
_BACKWARD_PACKS = {2: (1, 2), 4: (2, 4), 8: (2, 4)}

# Threads of the largest block of the kernels that hold a row in shared memory.
_LARGEST_BLOCK = {2: 1024, 4: 1024, 8: 512}


def forward_cuda(log: bool):
    """The launches of softmax's or log-softmax's forward kernels."""
    name = "true" if log else "false"

    def run(launch, x, out):
        if x.size == 0:
            return
        cols, size = x.shape[-1], x.itemsize
        rows, real = x.size // cols, launch.ctype(x.dtype)
        vector = np.bool_(launch.aligned(16, x, out))
        plan = row_plan(
            launch, rows, cols, size, registers=_FORWARD_PACKS[size], parts=True,
            largest_block=_LARGEST_BLOCK[size],
        )  # fmt: skip
        grid, block = (plan.grid,), (plan.block,)
        if plan.packs:
            args = (x, out, np.int64(rows), np.int32(cols), np.int32(plan.threads), vector)
            launch(f"softmax_forward<{real}, {plan.packs}, {name}>", grid, block, args)
        elif not plan.parts:
            args = (x, out, np.int64(rows), np.int32(cols), np.int32(plan.kept), vector)
            kernel = f"softmax_forward_held<{real}, {name}, {plan.cluster}>"
            launch(kernel, grid, block, args, plan.shared)
        else:
            partial = launch.empty((rows, plan.parts, 2), accumulator_dtype(x.dtype))
            sizes = (np.int64(cols), np.int32(plan.parts), vector)
            launch(f"softmax_forward_part<{real}>", grid, block, (x, partial, *sizes))
            args = (x, partial, out, *sizes)
            launch(f"softmax_forward_finish<{real}, {name}>", grid, block, args)

    return run


def backward_cuda(log: bool):
    """The launches of softmax's or log-softmax's backward kernels."""
    name = "true" if log else "false"

    def run(launch, grad_output, y, out):
        if y.size == 0:
            return
        cols, size = y.shape[-1], y.itemsize
        rows, real = y.size // cols, launch.ctype(y.dtype)
        vector = np.bool_(launch.aligned(16, grad_output, y, out))
        plan = row_plan(
            launch, rows, cols, size, arrays=1 if log else 2, registers=_BACKWARD_PACKS[size],
            parts=True, largest_block=_LARGEST_BLOCK[size],
        )  # fmt: skip
        grid, block = (plan.grid,), (plan.block,)
        arrays = (grad_output, y, out)
        if plan.packs:
            args = (*arrays, np.int64(rows), np.int32(cols), np.int32(plan.threads), vector)
            launch(f"softmax_backward<{real}, {plan.packs}, {name}>", grid, block, args)
        elif not plan.parts:
            args = (*arrays, np.int64(rows), np.int32(cols), np.int32(plan.kept), vector)
            kernel = f"softmax_backward_held<{real}, {name}, {plan.cluster}>"
            launch(kernel, grid, block, args, plan.shared)
        else:
            partial = launch.empty((rows, plan.parts), accumulator_dtype(y.dtype))
            sizes = (np.int64(cols), np.int32(plan.parts), vector)
            inputs = (grad_output, y, partial)
            launch(f"softmax_backward_part<{real}, {name}>", grid, block, (*inputs, *sizes))
            args = (*inputs, out, *sizes)
            launch(f"softmax_backward_finish<{real}, {name}>", grid, block, args)

    return run


def numba(name: str):
    """Launch code of a Numba kernel: a thread for about 8 columns, several short rows a block."""

    def run(launch, *arrays):
        if arrays[0].size == 0:
            return
        cols = arrays[0].shape[-1]
        flat = tuple(array.reshape(-1, cols) for array in arrays)
        launch(f"{name}_{arrays[0].dtype.name}", *numba_rows(len(flat[0]), cols), flat)

    return run
