"""Embedding: rows of a table by their numbers, and the sums of gradients into those rows.

==================  ================================================================
embedding_forward   out[i] = weight[indices[i]]
embedding_backward  out[v] = the sum of grad_output[i] over all i with indices[i] == v
==================  ================================================================

The second is the sum over segments as well: with `indices` that say to which of a number of groups
each row belongs, it sums the groups, and the first is the gradient of that.
"""

from __future__ import annotations

import operator

import numpy as np

from gpunn.primitives import embedding_implementation as implementation
from gpunn.primitives.indices import check_range
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOATING, INTEGERS, Sample

_MOST_ROWS, _MOST_COLUMNS, _MOST_INDICES = 2**30, 2**30, 2**30

# ---- specification -------------------------------------------------------------------------------


@primitive(family="embedding", cuda="embedding.cu", numba="embedding.py")
def embedding_forward(call, weight, indices, *, out=None):
    """Rows of a table: ``out[i] = weight[indices[i]]``.

    Parameters
    ----------
    weight : array (V, D), float16, bfloat16, float32 or float64
    indices : int32 or int64 array of any shape, of numbers from 0 to V - 1. Another number is an
        error on the CPU; on a GPU, where looking would mean waiting, its row is NaN (or an error
        with ``GPUNN_CHECK_INDICES=1``).
    out : array (\\*indices.shape, D) of the dtype of `weight` to write

    Raises
    ------
    TypeError, ValueError : a dtype that does not suit, no table, an index outside of it, 2^30 rows
        or columns or more
    """
    weight = call.array("weight", weight, dtypes=FLOATING, ndim=2)
    indices = call.array("indices", indices, dtypes=INTEGERS)
    rows, columns = weight.shape
    _require_size(call, rows, columns)
    check_range(call, "indices", indices, rows, f"for the {rows} rows of weight")
    out = call.output("out", out, shape=(*indices.shape, columns), dtype=weight.dtype)
    call.run(weight, indices.reshape(-1), out.reshape(-1, columns) if columns else out)
    return out


@primitive(family="embedding", cuda="embedding.cu", numba="embedding.py")
def embedding_backward(
    call,
    grad_output,
    indices,
    *,
    num_embeddings: int,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
    accumulate: bool = False,
    out=None,
):
    """Sums of rows by number: ``out[v] = sum of grad_output[i] where indices[i] == v``.

    16-bit types are summed in float32 and rounded once. The order of a sum depends on the shapes
    and indices alone: the same bits on every run.

    Parameters
    ----------
    grad_output : array (\\*indices.shape, D), float16, bfloat16, float32 or float64
    indices : int32 or int64 array, fewer than 2^30 numbers from 0 to num_embeddings - 1. Another
        number is an error on the CPU and is passed over on a GPU.
    num_embeddings : V, the rows of `out`
    padding_idx : a number whose rows count nothing; negative ones count from V. None for none.
    scale_grad_by_freq : divide each sum by how often its number occurs in `indices`
    accumulate : add to what is in `out`, which then must be given; rows that no index names are not
        touched
    out : array (V, D) of the dtype of `grad_output` to write

    Raises
    ------
    TypeError, ValueError : a dtype or a shape that does not suit, an index out of range,
        `accumulate` without `out`
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=1)
    indices = call.array("indices", indices, dtypes=INTEGERS)
    if grad_output.shape[:-1] != indices.shape:
        expected = f"shape (*{indices.shape}, D), one row for each index"
        call.refuse("grad_output", grad_output, expected)
    rows, columns = operator.index(num_embeddings), grad_output.shape[-1]
    call.require(rows >= 0, "num_embeddings", f"is {rows}", "give the number of rows of the table")
    _require_size(call, rows, columns)
    call.require(
        indices.size < _MOST_INDICES, "indices", f"holds {indices.size} numbers",
        "give fewer than 2^30 and accumulate",
    )  # fmt: skip
    padding = -1 if padding_idx is None else operator.index(padding_idx)
    if padding_idx is not None:
        limits = f"expected {-rows} to {rows - 1}"
        call.require(-rows <= padding < rows, "padding_idx", f"is {padding}", limits)
        padding %= rows
    check_range(call, "indices", indices, rows, f"for num_embeddings = {rows}")
    call.require(
        out is not None or not accumulate, "accumulate", "is True and out is None",
        "give the array to add to",
    )  # fmt: skip
    out = call.output("out", out, shape=(rows, columns), dtype=grad_output.dtype)
    flat = grad_output.reshape(indices.size, columns)
    call.run(flat, indices.reshape(-1), padding, bool(scale_grad_by_freq), bool(accumulate), out)
    return out


def _require_size(call, rows: int, columns: int) -> None:
    call.require(rows < _MOST_ROWS, "weight", f"has {rows} rows", "split it: fewer than 2^30")
    call.require(columns < _MOST_COLUMNS, "weight", f"has {columns} columns", "fewer than 2^30")


# ---- implementations -----------------------------------------------------------------------------

embedding_forward.reference(implementation.forward_reference)
embedding_forward.cuda(implementation.forward_cuda)
embedding_forward.numba(implementation.forward_numba)
embedding_backward.reference(implementation.backward_reference)
embedding_backward.cuda(implementation.backward_cuda)
embedding_backward.numba(implementation.backward_numba)

# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@embedding_forward.cost
def _(weight, indices, out):
    # A row that is asked for again is in a cache; how often that is, nobody has counted.
    return Cost(0, indices.nbytes + min(weight.nbytes, out.nbytes), out.nbytes)


@embedding_backward.cost
def _(grad_output, indices, padding, by_frequency, accumulate, out):
    touched = min(out.nbytes, grad_output.nbytes)
    read = grad_output.nbytes + indices.nbytes + (touched if accumulate else 0)
    return Cost(grad_output.size, read, touched if accumulate else out.nbytes)


_LOW = (FLOAT16, BFLOAT16)


@embedding_forward.samples
def _(rng):
    def table(rows, columns):
        return rng.normal(size=(rows, columns))

    def drawn(rows, *shape, dtype=np.int64):
        return rng.integers(0, rows, shape).astype(dtype)

    odd = (table(7, 5), drawn(7, 3, 4))
    yield Sample("odd rows", odd, dtypes=FLOATING, exact=True)
    yield Sample("rows of packs", (table(50, 64), drawn(50, 40, dtype=np.int32)), exact=True)
    yield Sample("rows of pairs", (table(9, 6), drawn(9, 11)), dtypes=_LOW, exact=True)
    long = (table(4, 5000), drawn(4, 3))
    yield Sample("long rows", long, dtypes=(FLOAT32, FLOAT16), numba=False, exact=True)
    yield Sample("unaligned", (table(9, 8), drawn(9, 5)), dtypes=FLOATING, unaligned=True)
    yield Sample("a single index", (table(3, 8), np.array(2)), exact=True)
    yield Sample("no index", (table(3, 8), np.zeros((0, 2), np.int64)))
    yield Sample("no columns", (np.zeros((3, 0)), drawn(3, 4)))
    strided = (table(12, 9)[:, ::2], drawn(12, 8)[::2])
    yield Sample("strided views", strided, exact=True)
    edge = np.array([[np.nan, np.inf, -0.0], [1e-7, -np.inf, 6e4]])
    yield Sample("at the edge", (edge, np.array([1, 0, 1])), dtypes=FLOATING, exact=True)


@embedding_backward.samples
def _(rng):
    def grads(*shape):
        return rng.normal(size=shape)

    def drawn(rows, *shape, dtype=np.int64):
        return rng.integers(0, rows, shape).astype(dtype)

    def sample(name, indices, columns, rows, dtypes=(FLOAT32,), numba=True, **options):
        args = (grads(*indices.shape, columns), indices)
        kwargs = {"num_embeddings": rows, **options}
        return Sample(name, args, kwargs, dtypes, numba=numba)

    yield sample("odd rows", drawn(5, 3, 4), 3, 5, FLOATING)
    yield sample("rows of packs", drawn(9, 70, dtype=np.int32), 16, 9, FLOATING, numba=False)
    # A number that is everywhere goes through every launch of the tree.
    hot = np.where(rng.random(1200) < 0.9, 3, drawn(6, 1200))
    yield sample("one for almost all", hot, 8, 6, (FLOAT32, FLOAT16), numba=False)
    yield sample("one for all", np.full(1100, 2), 3, 4, numba=False)
    yield sample("two passes of the sort", drawn(1000, 2100), 1, 1000, numba=False)
    yield sample("more than 32 tiles", drawn(90, 33_100, dtype=np.int32), 1, 90, numba=False)
    yield sample("padding", drawn(4, 40), 4, 4, padding_idx=1)
    yield sample("padding from the end", drawn(4, 10), 4, 4, padding_idx=-4)
    yield sample("by frequency", drawn(4, 45), 5, 4, FLOATING, scale_grad_by_freq=True)
    total = grads(6, 4)
    more = {"accumulate": True, "out": total}
    yield sample("added to what is there", drawn(4, 20), 4, 6, FLOATING, **more)
    frequent = {**more, "scale_grad_by_freq": True, "padding_idx": 0}
    yield sample("all options", drawn(4, 90), 4, 6, numba=False, **frequent)
    yield sample("no index", drawn(3, 0), 4, 3)
    yield sample("no columns", drawn(3, 5), 0, 3)
    args = grads(9, 8), drawn(5, 9)
    yield Sample("unaligned", args, {"num_embeddings": 5}, unaligned=True)
    edge = np.array([[np.inf, 1.0], [-np.inf, 2.0], [np.nan, 6e4], [1.0, 6e4]])
    yield Sample("at the edge", (edge, np.array([0, 0, 1, 1])), {"num_embeddings": 3}, FLOATING)


# (rows of the table, columns, indices)
_BENCH_SHAPES = (
    (32768, 768, 8192), (1024, 64, 4096), (4096, 256, 8192), (32768, 256, 65536),
    (50304, 768, 16384), (128256, 1024, 8192), (128256, 4096, 8192), (64, 128, 131072),
)  # fmt: skip


def _bench_indices(rng, rows: int, count: int) -> np.ndarray:
    """Numbers as words of a language are spread: the k-th in proportion to about 1 / k."""
    return np.minimum(rows * rng.random(count) ** 4, rows - 1).astype(np.int64)


@embedding_forward.inputs
def _(rng, shape):
    rows, columns, count = shape
    weight = rng.standard_normal((rows, columns), dtype=np.float32)
    return (weight, _bench_indices(rng, rows, count)), {}


@embedding_backward.inputs
def _(rng, shape):
    rows, columns, count = shape
    grad = rng.standard_normal((count, columns), dtype=np.float32)
    return (grad, _bench_indices(rng, rows, count)), {"num_embeddings": rows}


embedding_forward.bench_shapes = embedding_backward.bench_shapes = _BENCH_SHAPES
