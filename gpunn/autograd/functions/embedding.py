"""Rows of a table by their numbers, sums over bags of them, and rotary position embedding."""

from __future__ import annotations

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.dtypes import wide
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.arithmetic import where
from gpunn.autograd.functions.common import array_xp, cast, joined
from gpunn.autograd.functions.indexing import getitem
from gpunn.autograd.functions.reduction import max as largest
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.primitives.embedding import embedding_backward, embedding_forward
from gpunn.primitives.rotary import rotary_forward
from gpunn.primitives.samples import INTEGERS, accumulator_dtype


class Embedding(Function):
    """Rows of a table; the gradients of a row that was read several times add up

    Where the table has a gradient already, as with weights that another layer shares, only the rows
    that were read are added to it.
    """

    def forward(self, weight, indices, padding_idx, scale_grad_by_freq):
        self.save(indices)
        self.options = {
            "num_embeddings": len(weight),
            "padding_idx": padding_idx,
            "scale_grad_by_freq": scale_grad_by_freq,
        }
        return embedding_forward(weight, indices)

    def backward(self, grad):
        (indices,) = self.saved
        leaf, before = self.edges[0], None
        if isinstance(leaf, Tensor):
            for late in self.walk.late.values():
                late.deliver_to(leaf)
            before = leaf.grad
        if before is not None and before.dtype == grad.dtype and before.is_contiguous():
            total = before._array
            embedding_backward(grad, indices, accumulate=True, out=total, **self.options)
            before._cell[0] += 1
            return None
        return embedding_backward(grad, indices, out=self.slot(0), **self.options)


class SegmentSum(Function):
    """Sums of rows by the number of their group; rows of a group beyond the last count nothing"""

    def forward(self, rows, groups, number):
        self.groups = groups
        total = embedding_backward(rows, groups, num_embeddings=number + 1, padding_idx=number)
        return total[:number]

    def backward(self, grad):
        xp = array_xp(grad)
        return embedding_forward(joined([grad, xp.zeros_like(grad[:1])], 0), self.groups)


class Rotary(Function):
    """Pairs of columns turned by an angle; the gradient is turned back"""

    def forward(self, x, cos, sin, positions, options):
        self.save(cos, sin, positions)
        self.options = options
        return rotary_forward(x, cos, sin, positions, **options)

    def backward(self, grad):
        options = {**self.options, "inverse": not self.options["inverse"]}
        return rotary_forward(grad, *self.saved, **options)


# ---- public functions ----------------------------------------------------------------------------


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of `weight` (V, D) by the integers `input`, of any shape: (\\*input.shape, D).

    Parameters
    ----------
    padding_idx : this row gets no gradient; negative counts from V
    max_norm : rows that are read and whose norm of order `norm_type` is larger are first scaled
        down to it, in place and without a gradient of that
    scale_grad_by_freq : divide the gradient of a row by how often it was read here
    sparse : True is refused; gradients are dense, and only rows that were read are ever added to
        one that is there already

    Raises TypeError for an `input` that holds no integers and ValueError for one outside the table
    (on a GPU such a row is NaN; GPUNN_CHECK_INDICES=1 makes it an error there).
    """
    check_sparse("embedding", sparse)
    indices = _integers("embedding", input)
    check_devices("embedding", weight, indices)
    padding_idx = normal_padding("embedding", padding_idx, weight.shape[0])
    if max_norm is not None:
        _renormalize(weight, indices._array, float(max_norm), float(norm_type))
    return Embedding.apply(weight, indices, padding_idx, bool(scale_grad_by_freq))


def check_sparse(name: str, sparse: bool) -> None:
    """Raise the error for sparse gradients."""
    if sparse:
        raise NotImplementedError(
            f"{name}: sparse=True is not available: gradients here are dense, because an optimizer "
            "updates all parameters of a model in one launch. Leave sparse=False."
        )


def normal_padding(name: str, padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from the front; ValueError if there is no such row."""
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise ValueError(
            f"{name}: padding_idx is {padding_idx}; expected {-rows} to {rows - 1} for a table of "
            f"{rows} rows"
        )
    return padding_idx % rows


def _integers(name: str, input: Tensor) -> Tensor:
    if input.dtype in INTEGERS:
        return input
    if input.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: input has dtype {input.dtype} (shape {input.shape}); expected integers. "
            "Convert it with .long()."
        )
    return wrap(input._array.astype(np.int64))


def _renormalize(weight: Tensor, indices, max_norm: float, order: float) -> None:
    """Scale the rows of `weight` that `indices` name down to `max_norm`, in place."""
    rows = wide(embedding_forward(weight._array, indices.reshape(-1)))
    xp = array_xp(rows)
    if order == np.inf:
        norms = xp.abs(rows).max(axis=1, keepdims=True)
    else:
        norms = (xp.abs(rows) ** order).sum(axis=1, keepdims=True) ** (1 / order)
    rows = xp.where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows)
    weight._array[indices.reshape(-1)] = rows.astype(weight.dtype)  # equal rows where repeated
    weight._cell[0] += 1


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of rows of `weight` over bags of them: (B, D); an empty bag gives 0.

    Parameters
    ----------
    input : integers (B, L), a bag a row; or (N,) with `offsets`, where each bag begins
    mode : "sum", "mean" or "max"
    per_sample_weights : in the shape of `input`, factors for the rows (mode "sum" alone)
    include_last_offset : `offsets` has one entry more, where the last bag ends: usually N
    padding_idx : entries of this number are no part of their bag

    The other arguments and the errors are those of `embedding`.
    """
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"embedding_bag: mode is {mode!r}; expected 'sum', 'mean' or 'max'")
    indices = _integers("embedding_bag", input)
    groups, number = _bags(indices, offsets, include_last_offset)
    flat = reshape(indices, -1)
    padding_idx = normal_padding("embedding_bag", padding_idx, weight.shape[0])
    if padding_idx is not None:
        groups = array_xp(groups).where(flat._array == padding_idx, number, groups)
    options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    rows = embedding(flat, weight, *options)
    if per_sample_weights is not None:
        if mode != "sum" or per_sample_weights.shape != input.shape:
            raise ValueError(
                f"embedding_bag: per_sample_weights has shape {per_sample_weights.shape} with mode "
                f"{mode!r}; it needs mode 'sum' and the shape of input, {input.shape}"
            )
        rows = rows * reshape(per_sample_weights, -1, 1)
    if mode == "max":
        return _maxima(rows, groups, number)
    if mode == "sum":
        return SegmentSum.apply(rows, groups, number)
    # A sum, or a count, may be too much for 16 bits where the mean is not.
    total = SegmentSum.apply(cast(rows, accumulator_dtype(rows.dtype)), groups, number)
    ones = array_xp(groups).ones((len(groups), 1), np.float64)  # `bincount` would wait for a GPU
    counts = embedding_backward(ones, groups, num_embeddings=number + 1)[:number]
    return cast(total / wrap(counts.clip(1, None).astype(total.dtype)), rows.dtype)


def _bags(indices: Tensor, offsets: Tensor | None, include_last: bool):
    """(the bag of each entry, their number)."""
    array = indices._array
    xp = array_xp(array)
    if indices.ndim == 2 and offsets is None:
        batch, length = array.shape
        return xp.repeat(xp.arange(batch), length), batch
    if indices.ndim != 1 or offsets is None or offsets.ndim != 1:
        given = "no offsets" if offsets is None else f"offsets of shape {offsets.shape}"
        raise ValueError(
            f"embedding_bag: input has shape {indices.shape} with {given}; expected (B, L) without "
            "offsets, or (N,) with offsets of shape (B,)"
        )
    starts = _integers("embedding_bag", offsets)._array
    number = len(starts) - include_last
    if type(starts) is np.ndarray:
        wrong = len(starts) == 0 or starts[0] != 0 or (np.diff(starts) < 0).any()
        if wrong or starts[-1] > len(array):
            raise ValueError(
                f"embedding_bag: offsets is {starts.tolist()!r:.60}; expected numbers from 0 up to "
                f"{len(array)}, the length of input, that do not fall"
            )
    places = xp.arange(len(array))
    # With a last offset, what lies beyond it is in bag `number`, which counts nothing.
    return xp.searchsorted(starts, places, side="right") - 1, number


def _maxima(rows: Tensor, groups, number: int) -> Tensor:
    """The largest of each column in each bag, by bags padded to the longest."""
    xp = array_xp(groups)
    order = xp.argsort(groups, kind="stable")
    counts = xp.bincount(groups, minlength=number + 1)[:number]
    if number == 0 or int(counts.max()) == 0:
        return rows[:0].sum(0, keepdim=True).expand(number, rows.shape[1])
    places = xp.arange(int(counts.max()))[None, :]
    inside = places < counts[:, None]
    starts = xp.cumsum(counts) - counts
    at = order[xp.where(inside, starts[:, None] + places, 0)]
    padded = where(wrap(inside[:, :, None]), getitem(rows, wrap(at)), -np.inf)
    return where(wrap(inside[:, :1]), largest(padded, 1).values, 0.0)


def rotary_embedding(
    input: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    offset: int = 0,
    seq_dim: int = -2,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor:
    """Pairs of columns of `input` (..., D) turned by the angle of their position along `seq_dim`.

    Parameters
    ----------
    cos, sin : tables (positions, R / 2), float32 (float64 for float64); no gradient goes to them
    positions : integers (T,), or (B, T) with one row for each entry of the first dimension; None
        for 0, 1, 2 …
    offset : is added to every position: how many tokens came before, in a cache
    interleaved : pairs are the columns (2 k, 2 k + 1), else (k, R / 2 + k)
    inverse : turn back

    Raises ValueError for positions outside the tables. `nn.RotaryEmbedding` makes the tables.
    """
    tables = (cos, sin) if positions is None else (cos, sin, positions)
    check_devices("rotary_embedding", input, *tables)
    if mode.state.enabled and (cos.requires_grad or sin.requires_grad):
        raise NotImplementedError(
            "rotary_embedding: cos or sin requires a gradient, and none goes there. Pass .detach()."
        )
    options = {
        "axis": seq_dim, "offset": offset, "interleaved": interleaved, "inverse": inverse
    }  # fmt: skip
    return Rotary.apply(input, cos, sin, positions, options)
