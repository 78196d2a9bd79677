"""Softmax and log-softmax over the last axis, forward and backward.

An array of shape (..., C) is a set of rows of C columns; each row is normalised by itself.

==============  =============================================  ==========================
name            forward                                        backward
==============  =============================================  ==========================
softmax         y = exp(x - max x) / sum exp(x - max x)        y (g - sum(g y))
log_softmax     y = x - max x - log sum exp(x - max x)         g - exp(y) sum(g)
==============  =============================================  ==========================

An element of -inf (a mask) has probability 0. A row of -inf alone, or one with +inf or NaN, becomes
NaN, as in PyTorch. 16-bit types are computed in float32 and rounded once.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.rows import MAX_GRID, row_grid, row_group
from gpunn.primitives.samples import FLOAT32, FLOATING, Sample, accumulator_dtype

# ---- specification -------------------------------------------------------------------------------


def _require_columns(call, name, array) -> None:
    if array.shape[-1] < 1:
        problem = f"has shape {array.shape} with an empty last axis"
        call.require(False, name, problem, "give a column or more")


def _forward(call, x, out):
    x = call.array("x", x, dtypes=FLOATING, min_ndim=1)
    _require_columns(call, "x", x)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(x, out)
    return out


def _backward(call, grad_output, y, out):
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=1)
    y = call.array("y", y, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, y=y)
    call.same_dtype(grad_output=grad_output, y=y)
    _require_columns(call, "y", y)
    out = call.output("out", out, shape=y.shape, dtype=y.dtype)
    call.run(grad_output, y, out)
    return out


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def softmax_forward(call, x, *, out=None):
    """Softmax over the last axis: ``out = exp(x - max(x)) / sum(exp(x - max(x)))``.

    Parameters
    ----------
    x : array (..., C) with C >= 1; float16, bfloat16, float32 or float64
    out : array of the shape and dtype of `x` to write; may be `x` itself

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, no axis or an empty last one, an `out`
        that does not fit
    """
    return _forward(call, x, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def softmax_backward(call, grad_output, y, *, out=None):
    """The gradient through softmax: ``out = y * (grad_output - sum(grad_output * y))``.

    Parameters
    ----------
    grad_output, y : arrays (..., C) of one shape and one floating dtype; `y` is what
        `softmax_forward` returned
    out : array like `y` to write; may be `grad_output` or `y` itself
    """
    return _backward(call, grad_output, y, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def log_softmax_forward(call, x, *, out=None):
    """Log-softmax over the last axis: ``out = x - max(x) - log(sum(exp(x - max(x))))``.

    Arguments and errors are those of `softmax_forward`.
    """
    return _forward(call, x, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def log_softmax_backward(call, grad_output, y, *, out=None):
    """The gradient through log-softmax: ``out = grad_output - exp(y) * sum(grad_output)``.

    Arguments and errors are those of `softmax_backward`; `y` is what `log_softmax_forward`
    returned.
    """
    return _backward(call, grad_output, y, out)


# ---- reference -----------------------------------------------------------------------------------

# Elements that the reference works on at a time, so that its temporaries stay in the CPU's cache.
_CHUNK = 1 << 16

# NumPy reduces rows of so few columns faster down the columns of a transposed copy.
_FEW_COLUMNS = 32


def _compute_softmax(x, out, axis):
    np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
    np.exp(out, out=out)
    np.divide(out, np.add.reduce(out, axis=axis, keepdims=True), out=out)


def _compute_log_softmax(x, out, axis):
    np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
    np.subtract(out, np.log(np.add.reduce(np.exp(out), axis=axis, keepdims=True)), out=out)


def _compute_softmax_backward(grad_output, y, out, axis):
    work = grad_output * y
    np.subtract(grad_output, np.add.reduce(work, axis=axis, keepdims=True), out=work)
    np.multiply(work, y, out=out)


def _compute_log_softmax_backward(grad_output, y, out, axis):
    work = np.exp(y)
    np.multiply(work, np.add.reduce(grad_output, axis=axis, keepdims=True), out=work)
    np.subtract(grad_output, work, out=out)


def _reference(compute):
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
        with np.errstate(all="ignore"):
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


softmax_forward.reference(_reference(_compute_softmax))
softmax_backward.reference(_reference(_compute_softmax_backward))
log_softmax_forward.reference(_reference(_compute_log_softmax))
log_softmax_backward.reference(_reference(_compute_log_softmax_backward))


# ---- launch --------------------------------------------------------------------------------------

# Threads of a block in the kernels that hold a row in registers, at most.
_REGISTER_THREADS = 256

# Packs of 16 bytes that a thread holds: a small and a large size, by bytes of an element. A forward
# thread holds them widened to the accumulator, a backward one holds two arrays.
_FORWARD_PACKS = {2: (1, 4), 4: (2, 8), 8: (2, 4)}
_BACKWARD_PACKS = {2: (1, 2), 4: (2, 4), 8: (2, 4)}

# Below this many elements a part of a row is not worth a block of its own.
_PART_BYTES = 1 << 14


def _held(cols: int, itemsize: int, packs: tuple[int, int]) -> tuple[int, int] | None:
    """(packs a thread, threads a row) if the row fits the registers of one group, else None."""
    width = 16 // itemsize
    small, large = packs
    threads = row_group(cols, itemsize, small * width)
    if threads <= 32:
        return small, threads
    threads = max(32, row_group(cols, itemsize, large * width))
    return (large, threads) if threads <= _REGISTER_THREADS else None


def _parts(rows: int, row_bytes: int, multiprocessors: int) -> int:
    """Blocks that share one long row: 1 where the rows alone occupy the chip, else some."""
    if 2 * rows >= multiprocessors:
        return 1
    return max(1, min(4 * multiprocessors // rows, -(-row_bytes // _PART_BYTES)))


def _long_block(launch, cols: int, itemsize: int, arrays: int) -> tuple[int, int, int]:
    """(threads, packs kept of each array, bytes of shared memory) of the kernels for long rows."""
    packs = -(-cols // (16 // itemsize)) + 1  # one more for a row that starts inside a pack
    room = (launch.shared_limit - 1024) // (16 * arrays)  # 1024: for the reduction
    kept = min(packs, room)
    shared = 16 * arrays * kept
    few = shared <= 72 * 1024 or itemsize == 8  # 3 blocks of 512 fit, or 1 of 1024
    return (512 if few else 1024), kept, shared


def _launch_forward(log: bool):
    name = "true" if log else "false"

    def run(launch, x, out):
        if x.size == 0:
            return
        cols = x.shape[-1]
        rows, real = x.size // cols, launch.ctype(x.dtype)
        vector = np.bool_(launch.aligned(16, x, out))
        held = _held(cols, x.itemsize, _FORWARD_PACKS[x.itemsize])
        if held:
            packs, threads = held
            grid, block = row_grid(rows, threads)
            args = (x, out, np.int64(rows), np.int32(cols), np.int32(threads), vector)
            launch(f"softmax_forward<{real}, {packs}, {name}>", grid, block, args)
            return
        parts = _parts(rows, cols * x.itemsize, launch.multiprocessors)
        if parts == 1:
            threads, kept, shared = _long_block(launch, cols, x.itemsize, 1)
            args = (x, out, np.int64(rows), np.int64(cols), np.int64(kept), vector)
            grid = (min(rows, MAX_GRID),)
            launch(f"softmax_forward_long<{real}, {name}>", grid, (threads,), args, shared)
            return
        partial = launch.empty((rows, parts, 2), accumulator_dtype(x.dtype))
        sizes = (np.int64(cols), np.int32(parts), vector)
        grid, block = (rows * parts,), (256,)
        launch(f"softmax_forward_part<{real}>", grid, block, (x, partial, *sizes))
        launch(f"softmax_forward_finish<{real}, {name}>", grid, block, (x, partial, out, *sizes))

    return run


def _launch_backward(log: bool):
    name = "true" if log else "false"

    def run(launch, grad_output, y, out):
        if y.size == 0:
            return
        cols = y.shape[-1]
        rows, real = y.size // cols, launch.ctype(y.dtype)
        vector = np.bool_(launch.aligned(16, grad_output, y, out))
        held = _held(cols, y.itemsize, _BACKWARD_PACKS[y.itemsize])
        if held:
            packs, threads = held
            grid, block = row_grid(rows, threads)
            args = (grad_output, y, out, np.int64(rows), np.int32(cols), np.int32(threads), vector)
            launch(f"softmax_backward<{real}, {packs}, {name}>", grid, block, args)
            return
        parts = _parts(rows, 2 * cols * y.itemsize, launch.multiprocessors)
        if parts == 1:
            threads, kept, shared = _long_block(launch, cols, y.itemsize, 1 if log else 2)
            args = (grad_output, y, out, np.int64(rows), np.int64(cols), np.int64(kept), vector)
            grid = (min(rows, MAX_GRID),)
            launch(f"softmax_backward_long<{real}, {name}>", grid, (threads,), args, shared)
            return
        partial = launch.empty((rows, parts), accumulator_dtype(y.dtype))
        sizes = (np.int64(cols), np.int32(parts), vector)
        grid, block, inputs = (rows * parts,), (256,), (grad_output, y, partial)
        launch(f"softmax_backward_part<{real}, {name}>", grid, block, (*inputs, *sizes))
        launch(f"softmax_backward_finish<{real}, {name}>", grid, block, (*inputs, out, *sizes))

    return run


softmax_forward.cuda(_launch_forward(log=False))
softmax_backward.cuda(_launch_backward(log=False))
log_softmax_forward.cuda(_launch_forward(log=True))
log_softmax_backward.cuda(_launch_backward(log=True))


def _launch_numba(name: str):
    """Launch code of a Numba kernel: one block a row, with a thread for about 8 columns."""

    def run(launch, *arrays):
        if arrays[0].size == 0:
            return
        cols = arrays[0].shape[-1]
        flat = tuple(array.reshape(-1, cols) for array in arrays)
        grid = (min(len(flat[0]), 65535),)
        threads = min(max(row_group(cols, 16, 8), 4), 256)
        launch(f"{name}_{arrays[0].dtype.name}", grid, (threads,), flat)

    return run


softmax_forward.numba(_launch_numba("softmax_forward"))
softmax_backward.numba(_launch_numba("softmax_backward"))
log_softmax_forward.numba(_launch_numba("log_softmax_forward"))
log_softmax_backward.numba(_launch_numba("log_softmax_backward"))


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@softmax_forward.cost
@log_softmax_forward.cost
def _(x, out):
    return Cost(flops=5 * x.size, read=x.nbytes, written=out.nbytes)


@softmax_backward.cost
@log_softmax_backward.cost
def _(grad_output, y, out):
    return Cost(flops=4 * y.size, read=grad_output.nbytes + y.nbytes, written=out.nbytes)


def _masked(rng, shape, share: float):
    """Normal numbers, a share of them -inf; column 0 of every row is not."""
    x = rng.normal(size=shape)
    x[..., 1:][rng.random(x[..., 1:].shape) < share] = -np.inf
    return x


def _rows(rng):
    """(name, x, dtypes, numba): rows for every kernel, and values at the edge."""
    one = (FLOAT32,)
    yield "one element", rng.normal(size=(1, 1)), FLOATING, True
    yield "no rows", np.zeros((0, 4)), one, True
    yield "a single row without a batch axis", rng.normal(size=(7,)), one, True
    yield "8x10", 3 * rng.normal(size=(8, 10)), FLOATING, True
    yield "2x3x64", rng.normal(size=(2, 3, 64)), one, True
    yield "odd 3x257", 3 * rng.normal(size=(3, 257)), FLOATING, True
    yield "strided view", rng.normal(size=(5, 22))[:, ::2], one, True
    yield "transposed view", rng.normal(size=(9, 6)).T, one, True
    yield "masked", _masked(rng, (4, 40), 0.5), FLOATING, True
    yield "masked 2x1500", _masked(rng, (2, 1500), 0.9), FLOATING, False
    yield "large", np.array([[6e4, 5.9e4, -6e4, 0.0], [-6e4, -6e4, -6e4, -5.99e4]]), FLOATING, True
    # One block a row on a chip of few multiprocessors, several blocks a row on a large one.
    first_half = rng.normal(size=(3, 17001))
    first_half[:, :9000] = -np.inf
    yield "3x17001, the first half masked", first_half, FLOATING, False
    yield "1x20000", rng.normal(size=(1, 20000)), FLOATING, False
    yield "2x61000", rng.normal(size=(2, 61000)), one, False
    yield "one block a row, 70x16400", rng.normal(size=(70, 16400)), FLOATING, False


@softmax_forward.samples
@log_softmax_forward.samples
def _(rng):
    for name, x, dtypes, numba in _rows(rng):
        yield Sample(name, (x,), dtypes=dtypes, numba=numba)
    edge = np.full((5, 6), 0.5)
    edge[0] = -np.inf  # NaN
    edge[1, 2], edge[2, 3], edge[3, 4] = np.inf, np.nan, -np.inf
    yield Sample("rows that become NaN", (edge,), dtypes=FLOATING)


def _backward_samples(log: bool):
    def samples(rng):
        for name, x, dtypes, numba in _rows(rng):
            grad = rng.normal(size=x.shape)
            y = np.empty(x.shape)
            (_compute_log_softmax if log else _compute_softmax)(x, y, -1)
            if not x.flags.c_contiguous:  # keep what the sample is about
                y = _laid_out_as(y, x)
            yield Sample(name, (grad, y), dtypes=dtypes, numba=numba)
        broken = np.array([[0.5, np.nan, 1.0], [0.5, 1.0, -2.0]])
        y = np.full((2, 3), -1.0 if log else 1 / 3)
        yield Sample("not a number", (broken, y), dtypes=FLOATING)

    return samples


def _laid_out_as(y, x):
    view = np.empty_like(x, subok=False) if x.T.flags.c_contiguous else np.zeros((5, 22))[:, ::2]
    view[...] = y
    return view


softmax_backward.samples(_backward_samples(log=False))
log_softmax_backward.samples(_backward_samples(log=True))


@softmax_forward.inputs
@log_softmax_forward.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {}


@softmax_backward.inputs
def _(rng, shape):
    y = rng.random(shape, dtype=np.float32)
    y /= y.sum(axis=-1, keepdims=True)
    return (rng.standard_normal(shape, dtype=np.float32), y), {}


@log_softmax_backward.inputs
def _(rng, shape):
    y = rng.standard_normal(shape, dtype=np.float32)
    _compute_log_softmax(y, y, -1)
    return (rng.standard_normal(shape, dtype=np.float32), y), {}


for _made in (softmax_forward, softmax_backward, log_softmax_forward, log_softmax_backward):
    _made.bench_shapes = ((65536, 1024), (4096, 16384), (256, 262144))
