"""Cross-entropy of softmax(logits) with labels or probabilities, forward and backward.

With x a row of C logits and L = log(sum over c of exp(x_c)), the row's loss is

    loss = sum over c of weight_c q_c (L - x_c)

where the target q is 1 at the row's label and else 0, or a row of probabilities. Label smoothing
replaces q_c by ``q_c (1 - label_smoothing) + label_smoothing / C`` (Szegedy et al., Rethinking the
Inception architecture, 2016). `reduction` is

"none"   the rows' losses
"sum"    their sum
"mean"   their sum divided by `total_weight`, which is for labels the sum of the weights of the
         labels that are not `ignore_index`, and for probabilities the number of rows

as in PyTorch, also in that the mean over nothing is NaN. A class without any share in the target
adds nothing, also where its logit is -inf (a masked class; PyTorch gives NaN for 0 times inf).
"""

from __future__ import annotations

import operator

import numpy as np

from gpunn.device.arrays import CPU
from gpunn.primitives import cross_entropy_implementation as implementation
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    INTEGERS,
    Accumulator,
    Sample,
    accumulator_dtype,
)  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")

# ---- specification -------------------------------------------------------------------------------


@primitive(family="cross_entropy", cuda="cross_entropy.cu", numba="cross_entropy.py")
def cross_entropy_forward(
    call, logits, target, *, weight=None, ignore_index: int = -100, label_smoothing: float = 0.0,
    reduction: str = "mean", out=None, log_normalizer=None, total_weight=None,
):  # fmt: skip
    """Cross-entropy in one pass over each row. Returns (loss, log_normalizer, total_weight).

    Parameters
    ----------
    logits : (rows, classes), float16, bfloat16, float32 or float64; computed in float32 (float64
        for float64). Any number of rows, at least one class.
    target : (rows,) labels, int32 or int64; or (rows, classes) probabilities in the logits' dtype,
        which are not checked to be positive or to sum to one
    weight : (classes,) in the logits' dtype or float32 (float64 for float64); not checked for sign
    ignore_index : rows with this label count nothing, any integer; for probabilities it must be
        negative, since they know no label to ignore
    label_smoothing : from 0 to 1
    reduction : "mean", "sum" or "none"
    out, log_normalizer, total_weight : arrays to write

    Returns
    -------
    loss : () in float32 (float64 for float64 logits), or (rows,) in the logits' dtype for "none"
    log_normalizer : (rows,) L in float32 (float64), for the backward call; 0 for ignored rows
    total_weight : () in float32 (float64); see the module's docstring. It stays on the device.

    Raises
    ------
    TypeError, ValueError : shapes or dtypes that do not fit. On the CPU also a label that is
        neither in 0 … classes - 1 nor `ignore_index`. On a GPU, where looking would mean to wait,
        such a row reads nothing and its loss, L and gradient become NaN.
    """
    accumulator, options = _checked(
        call, logits, target, weight, ignore_index, label_smoothing, reduction
    )
    logits = options[0]
    rows, none = logits.shape[0], reduction == "none"
    out = call.output(
        "out", out, shape=(rows,) if none else (), dtype=logits.dtype if none else accumulator
    )
    log_normalizer = call.output("log_normalizer", log_normalizer, shape=(rows,), dtype=accumulator)
    total_weight = call.output("total_weight", total_weight, shape=(), dtype=accumulator)
    call.run(*options, out, log_normalizer, total_weight)
    return out, log_normalizer, total_weight


@primitive(family="cross_entropy", cuda="cross_entropy.cu", numba="cross_entropy.py")
def cross_entropy_backward(
    call, grad_output, logits, target, log_normalizer, total_weight, *, weight=None,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean", out=None,
):  # fmt: skip
    """The gradient with respect to the logits: ``scale (S softmax(x) - weight q)``, S its sum.

    Parameters
    ----------
    grad_output : the gradient of the loss, in its shape and dtype: () in float32 (float64 for
        float64 logits), or (rows,) in the logits' dtype for "none". It is read on its device.
    log_normalizer, total_weight : what the forward call returned
    out : array like `logits` to write; may be `logits` itself, and must not overlap `target`
    logits, target, weight, ignore_index, label_smoothing, reduction : as in the forward call

    scale is `grad_output`, divided by `total_weight` for "mean". Ignored rows have gradient 0.
    """
    accumulator, options = _checked(
        call, logits, target, weight, ignore_index, label_smoothing, reduction
    )
    logits = options[0]
    rows, none = logits.shape[:1], reduction == "none"
    grad_output = call.array(
        "grad_output", grad_output, dtypes=(logits.dtype if none else accumulator,),
        shape=rows if none else (),
    )  # fmt: skip
    log_normalizer = call.array("log_normalizer", log_normalizer, dtypes=(accumulator,), shape=rows)
    total_weight = call.array("total_weight", total_weight, dtypes=(accumulator,), shape=())
    out = call.output("out", out, shape=logits.shape, dtype=logits.dtype)
    call.run(*options, grad_output, log_normalizer, total_weight, out)
    return out


def _checked(call, logits, target, weight, ignore_index, label_smoothing, reduction):
    """(accumulator's dtype, the checked arguments that both directions share, in run's order)."""
    call.choice("reduction", reduction, REDUCTIONS)
    smoothing = call.number("label_smoothing", label_smoothing, 0.0, 1.0)
    logits = call.array("logits", logits, dtypes=FLOATING, ndim=2)
    rows, classes = logits.shape
    call.require(classes > 0, "logits", "have no classes", "give them at least one column")
    call.require(classes <= 2**30, "logits", f"have {classes} classes", "give at most 2^30")
    accumulator = accumulator_dtype(logits.dtype)
    ignore_index = _ignore_index(call, ignore_index)
    target = call.array("target", target)
    kept = None
    if target.dtype in INTEGERS and target.ndim == 1:
        if target.shape[0] != rows:
            call.refuse("target", target, f"a label for each of the {rows} rows of logits")
        if call.device is CPU:
            kept = _kept(call, target, classes, ignore_index)
    elif target.shape != logits.shape or target.dtype not in FLOATING:
        _refuse_target(call, target, logits)
    else:
        call.same_dtype(logits=logits, target=target)
        call.require(
            ignore_index < 0, "ignore_index", f"is {ignore_index} but target holds probabilities",
            "leave it out, or give integer labels",
        )  # fmt: skip
    if weight is not None:
        weight = call.array("weight", weight, dtypes=_weight_dtypes(logits.dtype), shape=(classes,))
        weight = weight.astype(accumulator, copy=False)
    return accumulator, (logits, target, weight, kept, ignore_index, smoothing, reduction)


def _refuse_target(call, target, logits) -> None:
    rows, remedy, error = logits.shape[0], "", ValueError
    if target.shape == logits.shape:
        remedy = f"Convert probabilities with target.astype({logits.dtype.name!r})."
        error = TypeError
    elif target.size == rows:
        remedy = f"Convert labels with target.astype('int64').reshape({rows})."
        error = ValueError if target.dtype in INTEGERS else TypeError
    expected = (
        f"int32 or int64 labels of shape ({rows},), or {logits.dtype} probabilities of shape "
        f"{logits.shape}"
    )
    call.refuse("target", target, expected, remedy, error)


def _weight_dtypes(dtype) -> tuple:
    accumulator = accumulator_dtype(dtype)
    return (accumulator,) if dtype == accumulator else (dtype, accumulator)


def _ignore_index(call, value) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{call.primitive.name}: ignore_index is {value!r}; expected an integer."
        ) from None
    call.require(
        -(2**63) <= index < 2**63, "ignore_index", f"is {index}", "give one that fits into int64"
    )
    return index


def _kept(call, target, classes: int, ignore_index: int) -> np.ndarray | None:
    """Which rows count, None for all; raises for a label out of range. On the CPU only."""
    # Seen as unsigned, a negative label is larger than any number of classes.
    inside = target.view(f"u{target.itemsize}") < classes
    if not 0 <= ignore_index < classes and inside.all():
        return None
    kept = target != ignore_index
    wrong = kept & ~inside
    if wrong.any():
        row = int(wrong.argmax())
        call.require(
            False, "target", f"has label {target[row]} in row {row}",
            f"expected 0 to {classes - 1} for logits of {classes} classes, or ignore_index "
            f"({ignore_index})",
        )  # fmt: skip
    return kept


# ---- implementations -----------------------------------------------------------------------------

cross_entropy_forward.reference(implementation.forward_reference)
cross_entropy_forward.cuda(implementation.forward_cuda)
cross_entropy_forward.numba(implementation.forward_numba)
cross_entropy_backward.reference(implementation.backward_reference)
cross_entropy_backward.cuda(implementation.backward_cuda)
cross_entropy_backward.numba(implementation.backward_numba)

# ---- cost, benchmark inputs ----------------------------------------------------------------------


@cross_entropy_forward.cost
def _(
    logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer, total_weight
):
    read = logits.nbytes + target.nbytes + (0 if weight is None else weight.nbytes)
    written = out.nbytes + normalizer.nbytes + total_weight.nbytes
    return Cost((4 if target.ndim == 1 else 7) * logits.size, read, written)


@cross_entropy_backward.cost
def _(
    logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    arrays = (logits, target, weight, grad, normalizer, total_weight)
    read = sum(array.nbytes for array in arrays if array is not None)
    return Cost((4 if target.ndim == 1 else 6) * logits.size, read, out.nbytes)


@cross_entropy_forward.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, np.float32), rng.integers(0, shape[1], shape[0])), {}


@cross_entropy_backward.inputs
def _(rng, shape):
    logits = rng.standard_normal(shape, np.float32)
    target = rng.integers(0, shape[1], shape[0])
    normalizer = np.array([np.log(np.exp(row).sum()) for row in logits], np.float32)
    grad, total_weight = np.array(1, np.float32), np.array(shape[0], np.float32)
    return (grad, logits, target, normalizer, total_weight), {}


cross_entropy_forward.bench_shapes = ((8192, 32768), (65536, 1000), (4096, 128256))
cross_entropy_backward.bench_shapes = cross_entropy_forward.bench_shapes

# ---- samples -------------------------------------------------------------------------------------


def _labels(rng, rows: int, classes: int, ignored: int | None = None, dtype=np.int64):
    """Random labels; every third of them `ignored`, if that is given."""
    labels = rng.integers(0, classes, rows).astype(dtype)
    if ignored is not None:
        labels[::3] = ignored
    return labels


def _probabilities(rng, rows: int, classes: int):
    """Rows that sum to one, but for a few that do not, with some zeros."""
    odds = rng.random((rows, classes)) * (rng.random((rows, classes)) < 0.8)
    odds[::4] *= 2
    return odds / classes


def _cases(rng):
    """(name, logits, target, options, dtypes, whether Numba's simulator is quick enough)."""
    f32, two, every = (FLOAT32,), (FLOAT32, FLOAT64), FLOATING

    def logits(*shape):
        return 3 * rng.normal(size=shape)

    yield "one row of one class", logits(1, 1), np.array([0]), {}, f32, True
    yield "no rows", np.zeros((0, 3)), np.zeros(0, np.int64), {}, f32, True
    yield "no rows, probabilities", np.zeros((0, 3)), np.zeros((0, 3)), {}, f32, True
    yield "7x3", logits(7, 3), _labels(rng, 7, 3, dtype=np.int32), {}, every, True
    yield "5x37 of a view", logits(5, 74)[:, ::2], _labels(rng, 10, 37)[::2], {}, every, True
    weight, smooth = {"weight": rng.uniform(0.2, 3, 13)}, {"label_smoothing": 0.1}
    ignored = {"ignore_index": 4}
    both = _labels(rng, 9, 13, 4)
    yield "weight", logits(9, 13), _labels(rng, 9, 13), weight, every, True
    yield "ignored", logits(9, 13), _labels(rng, 9, 13, -100, np.int32), {}, two, True
    yield "weight, ignored", logits(9, 13), both, weight | ignored, two, True
    yield "smoothing", logits(9, 13), _labels(rng, 9, 13), smooth, every, True
    yield "smoothing, ignored", logits(9, 13), both, smooth | ignored, f32, True
    yield "smoothing, weight", logits(9, 13), both, smooth | ignored | weight, two, True
    yield "smoothing 1", logits(9, 13), _labels(rng, 9, 13), {"label_smoothing": 1.0}, f32, True
    far = {"ignore_index": -(2**40)}
    yield "all ignored", logits(4, 5), np.full(4, -(2**40)), far, f32, True
    yield "probabilities", logits(9, 13), _probabilities(rng, 9, 13), {}, every, True
    mixed = _probabilities(rng, 9, 13)
    yield "probabilities, all", logits(9, 13), mixed, smooth | weight, two, True
    yield from _extremes(rng)
    # Rows of a warp, rows of a block, more rows than groups; odd lengths break the alignment.
    yield "6x1021", logits(6, 1021), _labels(rng, 6, 1021, -100), {}, every, False
    yield "3x4999", logits(3, 4999), _labels(rng, 3, 4999, 7), {"ignore_index": 7}, every, False
    wide = {"label_smoothing": 0.2, "weight": rng.uniform(0.2, 3, 4999)}
    yield "3x4999, all", logits(3, 4999), _labels(rng, 3, 4999), wide, two, False
    yield "3x4100, probabilities", logits(3, 4100), _probabilities(rng, 3, 4100), smooth, two, False
    yield "5000x10", logits(5000, 10), _labels(rng, 5000, 10, -100), {}, f32, False
    yield "50x1200", logits(50, 1200), _labels(rng, 50, 1200), {}, f32, False
    # As in a language model: too large for the host's emulation and fast enough everywhere else.
    yield "8x50257", logits(8, 50257), _labels(rng, 8, 50257), {}, (BFLOAT16, FLOAT32), False


def _extremes(rng):
    """Logits where a careless softmax overflows, and where infinity and NaN have a meaning."""
    two = (FLOAT32, FLOAT64)
    large = np.array([[6e4, -6e4, 0], [-6e4, -5.9e4, -6e4], [3e4, 3e4, 3e4], [0, 1e-30, 88]])
    yield "large", large, np.array([0, 1, 2, 1]), {}, FLOATING, True
    inf = np.inf
    masked = np.array([[-inf, 1, 2, -inf], [-inf, -inf, 3, -inf], [1, -inf, 1, 1], [-inf] * 4])
    yield "masked", masked, np.array([1, 2, 1, 0]), {}, two, True
    shares = np.array([[0, 0.5, 0.5, 0], [0, 0, 1, 0], [0.2, 0, 0.4, 0.4], [0, 1, 0, 0]])
    yield "masked, probabilities", masked, shares, {}, two, True
    yield "masked, smoothing", masked, np.array([1, 2, 1, 0]), {"label_smoothing": 0.1}, two, True
    wrong = np.array([[inf, 0, 1], [np.nan, 0, 1], [0, 1, 2], [np.nan, inf, 0]])
    yield "not numbers", wrong, np.array([0, 1, 2, -100]), {}, two, True
    yield "not numbers, probabilities", wrong, np.full((4, 3), 1 / 3), {}, two, True


def _reductions(number: int) -> tuple[str, str]:
    """Mean everywhere, the others in turn: each meets each option in some sample."""
    return ("mean", ("sum", "none")[number % 2])


@cross_entropy_forward.samples
def _(rng):
    for number, (name, logits, target, options, dtypes, numba) in enumerate(_cases(rng)):
        for reduction in _reductions(number):
            kwargs = {**options, "reduction": reduction}
            yield Sample(f"{name}, {reduction}", (logits, target), kwargs, dtypes, numba=numba)
    args = rng.normal(size=(5, 50)), rng.integers(0, 50, 5)
    yield Sample("unaligned", args, {}, FLOATING, unaligned=True)


@cross_entropy_backward.samples
def _(rng):
    for number, (name, logits, target, options, dtypes, numba) in enumerate(_cases(rng)):
        for reduction in _reductions(number):
            kwargs = {**options, "reduction": reduction}
            loss, normalizer, total = cross_entropy_forward(logits, target, **kwargs)
            grad = rng.normal(size=loss.shape)
            grad = grad if reduction == "none" else Accumulator(np.array(grad))
            args = (grad, logits, target, Accumulator(normalizer), Accumulator(total))
            yield Sample(f"{name}, {reduction}", args, kwargs, dtypes, numba=numba)
    logits, target = rng.normal(size=(5, 50)), rng.integers(0, 50, 5)
    loss, normalizer, total = cross_entropy_forward(logits, target)
    args = (Accumulator(loss), logits, target, Accumulator(normalizer), Accumulator(total))
    yield Sample("unaligned", args, {}, FLOATING, unaligned=True)
