"""Layer norm and RMS norm: their NumPy reference and the launches of their kernels.

The specification is in `layer_norm`. All take the arguments of ``Call.run`` there:

    forward    x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred
    backward   grad_output, x, mean, reciprocal, weight, grad_residual, out, dweight, dbias

where what is not there is None. Backward without a mean is that of RMS norm.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import norm_compiled
from gpunn.primitives.rows import numba_rows, row_plan
from gpunn.primitives.samples import accumulator_dtype

# Columns that a 16-bit input beside a float32 residual may have: what threads hold in registers.
MIXED_COLUMNS = 8192

# ---- reference -----------------------------------------------------------------------------------

# Elements that the reference works on at a time, so that its temporaries stay in the CPU's cache.
_CHUNK = 1 << 15


def _chunks(rows: int, cols: int):
    step = max(1, _CHUNK // cols)
    return (slice(start, start + step) for start in range(0, rows, step))


def _wide(array, dtype):
    return None if array is None else array.astype(dtype, copy=False)


def forward_reference(x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred):
    cols, dtype = x.shape[-1], accumulator_dtype(x.dtype)
    x, residual, out, summed = (
        None if array is None else array.reshape(-1, cols) for array in (x, residual, out, summed)
    )
    mean, reciprocal = (None if a is None else a.reshape(-1) for a in (mean, reciprocal))
    outputs = out, summed, mean, reciprocal
    if norm_compiled.rows_forward(x, residual, weight, bias, *outputs, eps, centred):
        return
    weight, bias = _wide(weight, dtype), _wide(bias, dtype)
    share = np.full(cols, 1 / cols, dtype)
    with quiet():
        for some in _chunks(len(x), cols):
            value = x[some]
            if residual is not None:
                summed[some] = value.astype(dtype, copy=False) + residual[some].astype(
                    dtype, copy=False
                )
                value = summed[some]
            value = value.astype(dtype, copy=False)
            work = out[some] if out.dtype == dtype else np.empty_like(value)
            if centred:
                middle = value @ share
                value = np.subtract(value, middle[:, None], out=work)
                if mean is not None:
                    mean[some] = middle
            scale = 1 / np.sqrt(np.einsum("ij,ij->i", value, value) / cols + dtype.type(eps))
            if reciprocal is not None:
                reciprocal[some] = scale
            np.multiply(value, scale[:, None], out=work)
            if weight is not None:
                work *= weight
            if bias is not None:
                work += bias
            if out.dtype != dtype:
                out[some] = work


def backward_reference(
    grad_output, x, mean, reciprocal, weight, grad_residual, out, dweight, dbias
):
    cols, dtype = x.shape[-1], accumulator_dtype(x.dtype)
    grad, x, out = (array.reshape(-1, cols) for array in (grad_output, x, out))
    extra = None if grad_residual is None else grad_residual.reshape(-1, cols)
    mean, reciprocal = None if mean is None else mean.reshape(-1), reciprocal.reshape(-1)
    statistics, outputs = (mean, reciprocal), (out, dweight, dbias)
    if norm_compiled.rows_backward(grad, x, *statistics, weight, extra, *outputs):
        return
    weight = np.ones(cols, dtype) if weight is None else _wide(weight, dtype)
    share = weight / dtype.type(cols)
    mean, reciprocal = None if mean is None else mean[:, None], reciprocal[:, None]
    sums = np.zeros((2, cols), dtype)
    ones = np.ones(max(1, _CHUNK // cols), dtype)
    work, other = np.empty((2, max(1, _CHUNK // cols), cols), dtype)
    with quiet():
        for some in _chunks(len(x), cols):
            g, value = grad[some].astype(dtype, copy=False), x[some].astype(dtype, copy=False)
            count, scale = len(g), reciprocal[some]
            h, t = work[:count], other[:count]
            if mean is None:
                np.multiply(value, scale, out=h)
            else:
                np.subtract(value, mean[some], out=h)
                h *= scale
            np.multiply(g, h, out=t)
            means = t @ share
            if dweight is not None:
                sums[0] += ones[:count] @ t
            if dbias is not None:
                sums[1] += ones[:count] @ g
            np.multiply(g, weight, out=t)
            if mean is not None:
                t -= (g @ share)[:, None]
            h *= means[:, None]
            t -= h
            if extra is None and out.dtype == dtype:
                np.multiply(t, scale, out=out[some])
                continue
            t *= scale
            if extra is not None:
                t += extra[some].astype(dtype, copy=False)
            out[some] = t
    for target, total in ((dweight, sums[0]), (dbias, sums[1])):
        if target is not None:
            target[...] = total


# ---- launch --------------------------------------------------------------------------------------

# Packs of 16 bytes that a thread holds in registers: a small and a large number, by bytes of an
# element. Backward holds two or three arrays, the weights and the sums of two gradients.
_FORWARD_PACKS = {2: (1, 4), 4: (2, 8), 8: (2, 4)}
_BACKWARD_PACKS = {2: (1, 4), 4: (1, 4), 8: (1, 2)}

# Threads of the largest block of the kernels that hold a row in shared memory.
_LARGEST_BLOCK = {2: 1024, 4: 1024, 8: 512}

# Threads of the persistent grid of row_norm_backward on a multiprocessor, by packs a thread: as
# many as its registers leave room for. Each block leaves sums behind: more would only write more.
_RESIDENT = {1: 1024, 2: 512, 4: 512}

_RUN_BLOCKS = 2  # of row_norm_column_sums on a multiprocessor


def forward_cuda(launch, x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred):
    if x.size == 0:
        return
    cols, dtype = x.shape[-1], out.dtype
    size, rows, real = dtype.itemsize, x.size // cols, launch.ctype(dtype)
    vector = launch.aligned(16, residual, weight, bias, out, summed)
    vector = np.bool_(vector and launch.aligned(16 // size * x.itemsize, x))
    wide = np.bool_(any(w is not None and w.dtype != dtype for w in (weight, bias)))
    plan = row_plan(
        launch, rows, cols, size, registers=_FORWARD_PACKS[size],
        largest_block=_LARGEST_BLOCK[size],
    )  # fmt: skip
    kernel = f"row_norm_forward<{real}, {plan.packs}, {launch.ctype(x.dtype)}>"
    each = plan.threads
    if not plan.packs:
        kernel, each = f"row_norm_forward_held<{real}, {plan.cluster}>", plan.kept
    arrays = (x, residual, weight, bias, out, summed, mean, reciprocal)
    sizes = (launch.int64(rows), launch.int32(cols), accumulator_dtype(x.dtype).type(eps))
    flags = (vector, wide, np.bool_(centred))
    args = (*arrays, *sizes, launch.int32(each), *flags)
    launch(kernel, (plan.grid,), (plan.block,), args, plan.shared)


def backward_cuda(
    launch, grad_output, x, mean, reciprocal, weight, grad_residual, out, dweight, dbias
):
    cols, size = x.shape[-1], x.itemsize
    rows, real = x.size // cols, launch.ctype(x.dtype)
    wanted = dweight is not None or dbias is not None
    wide = np.bool_(weight is not None and weight.dtype != x.dtype)
    aligned = launch.aligned(16, grad_output, x, weight, grad_residual, out)
    whole = np.bool_(aligned and cols % (16 // size) == 0)  # columns of a thread stay the same
    plan = row_plan(
        launch, rows, cols, size, arrays=2, registers=_BACKWARD_PACKS[size],
        largest_block=_LARGEST_BLOCK[size],
    )  # fmt: skip
    inputs = (grad_output, x, mean, reciprocal)
    sizes = (launch.int64(rows), launch.int32(cols))
    blocks, partial = 0, None
    if plan.packs:
        resident = 256 if size == 2 and plan.packs == 4 else _RESIDENT[plan.packs]
        blocks = min(plan.grid, max(1, launch.multiprocessors * resident // plan.block))
        if wanted:
            partial = launch.empty((blocks, 2, cols), accumulator_dtype(x.dtype))
        args = (*inputs, weight, grad_residual, out, partial, *sizes)
        flags = (launch.int32(plan.threads), whole, wide)
        kernel = f"row_norm_backward<{real}, {plan.packs}>"
        launch(kernel, (blocks,), (plan.block,), (*args, *flags))
    else:
        if wanted:  # before `out` is written, which may be one of the inputs
            tiles = -(-cols // (32 * (16 // size)))
            runs = max(1, min(_RUN_BLOCKS * launch.multiprocessors // tiles, -(-rows // 32)))
            each = max(1, -(-rows // runs))
            blocks = max(1, -(-rows // each))
            partial = launch.empty((blocks, 2, cols), accumulator_dtype(x.dtype))
            args = (*inputs, partial, launch.int64(rows), launch.int64(cols), launch.int64(each))
            launch(f"row_norm_column_sums<{real}>", (tiles, blocks), (256,), (*args, whole))
        args = (*inputs, weight, grad_residual, out, *sizes)
        flags = (launch.int32(plan.kept), np.bool_(aligned), wide)
        kernel = f"row_norm_backward_held<{real}, {plan.cluster}>"
        launch(kernel, (plan.grid,), (plan.block,), (*args, *flags), plan.shared)
    if wanted:
        args = (partial, dweight, dbias, launch.int32(blocks), launch.int64(cols), wide)
        warps = min(32, 1 << (blocks - 1).bit_length())
        launch(f"row_norm_sums<{real}>", (-(-cols // 32), 2), (32 * warps,), args)


def _or_nothing(launch, array, dtype):
    return launch.empty((0,), dtype) if array is None else array


def forward_numba(launch, x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred):
    if x.size == 0:
        return
    cols, dtype = x.shape[-1], x.dtype
    rows = [
        launch.empty((0, 0), dtype) if array is None else array.reshape(-1, cols)
        for array in (x, residual, out, summed)
    ]
    vectors = [_or_nothing(launch, a, dtype) for a in (weight, bias)]
    vectors += [
        launch.empty((0,), dtype) if a is None else a.reshape(-1) for a in (mean, reciprocal)
    ]
    args = (*rows, *vectors, dtype.type(eps), dtype.type(1 / cols), np.bool_(centred))
    launch(f"row_norm_forward_{dtype.name}", *numba_rows(len(rows[0]), cols), args)


def backward_numba(
    launch, grad_output, x, mean, reciprocal, weight, grad_residual, out, dweight, dbias
):
    cols, dtype = x.shape[-1], x.dtype
    grad, x, out = (array.reshape(-1, cols) for array in (grad_output, x, out))
    reciprocal = reciprocal.reshape(-1)
    mean = launch.empty((0,), dtype) if mean is None else mean.reshape(-1)
    if dweight is not None or dbias is not None:  # before `out`, which may be one of the inputs
        sums = [_or_nothing(launch, a, dtype) for a in (dweight, dbias)]
        args = (grad, x, mean, reciprocal, *sums)
        launch(f"row_norm_sums_{dtype.name}", (-(-cols // 32),), (32, 8), args)
    if x.size:
        extra = grad_residual
        extra = launch.empty((0, 0), dtype) if extra is None else extra.reshape(-1, cols)
        weight = _or_nothing(launch, weight, dtype)
        args = (grad, x, mean, reciprocal, weight, extra, out, dtype.type(1 / cols))
        launch(f"row_norm_backward_{dtype.name}", *numba_rows(len(x), cols), args)
