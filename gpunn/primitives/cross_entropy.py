"""Cross-entropy of softmax(logits) with labels or probabilities: forward, backward, both at once.

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
from gpunn.primitives import cross_entropy_samples as samples
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, INTEGERS, Accumulator, Sample, accumulator_dtype

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
    outputs = _outputs(call, options[0], accumulator, reduction, out, log_normalizer, total_weight)
    call.run(*options, *outputs)
    return outputs


@primitive(family="cross_entropy", cuda="cross_entropy.cu", numba="cross_entropy.py")
def cross_entropy_forward_backward(
    call, logits, target, *, weight=None, ignore_index: int = -100, label_smoothing: float = 0.0,
    reduction: str = "mean", out=None, log_normalizer=None, total_weight=None, gradient=None,
):  # fmt: skip
    """Cross-entropy and its gradient, each logit read once.

    Returns (loss, log_normalizer, total_weight, gradient): what `cross_entropy_forward` returns,
    and what `cross_entropy_backward` returns for a gradient of the loss of 1 (for "none": of 1 for
    each row). Together they move two logits' worth of memory a logit, where the two calls move
    three. A gradient of the loss that is not 1 is to be multiplied in afterwards; where that
    matters for the rounding (float16 with its loss scaled up), use the two calls.

    Parameters
    ----------
    gradient : array like `logits` to write; may be `logits` itself, which it then replaces, and
        must not overlap `target`

    The other arguments, the results and the errors are those of `cross_entropy_forward`.
    """
    accumulator, options = _checked(
        call, logits, target, weight, ignore_index, label_smoothing, reduction
    )
    logits = options[0]
    outputs = _outputs(call, logits, accumulator, reduction, out, log_normalizer, total_weight)
    gradient = call.output("gradient", gradient, shape=logits.shape, dtype=logits.dtype)
    call.run(*options, *outputs, gradient)
    return *outputs, gradient


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


def _outputs(call, logits, accumulator, reduction, out, log_normalizer, total_weight) -> tuple:
    """What the forward pass writes: loss, log_normalizer, total_weight."""
    rows, none = logits.shape[:1], reduction == "none"
    return (
        call.output(
            "out", out, shape=rows if none else (), dtype=logits.dtype if none else accumulator
        ),
        call.output("log_normalizer", log_normalizer, shape=rows, dtype=accumulator),
        call.output("total_weight", total_weight, shape=(), dtype=accumulator),
    )


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
# With a gradient to write, the last argument, forward's make both.
cross_entropy_forward_backward.reference(implementation.forward_reference)
cross_entropy_forward_backward.cuda(implementation.forward_cuda)
cross_entropy_forward_backward.numba(implementation.forward_backward_numba)
cross_entropy_backward.reference(implementation.backward_reference)
cross_entropy_backward.cuda(implementation.backward_cuda)
cross_entropy_backward.numba(implementation.backward_numba)

# ---- cost, benchmark inputs ----------------------------------------------------------------------


@cross_entropy_forward.cost
@cross_entropy_forward_backward.cost
def _(
    logits, target, weight, kept, ignore_index, smoothing, reduction, out, normalizer,
    total_weight, gradient=None,
):  # fmt: skip
    read = logits.nbytes + target.nbytes + (0 if weight is None else weight.nbytes)
    written = out.nbytes + normalizer.nbytes + total_weight.nbytes
    operations = 4 if target.ndim == 1 else 7
    if gradient is not None:
        written, operations = written + gradient.nbytes, operations + 4
    return Cost(operations * logits.size, read, written)


@cross_entropy_backward.cost
def _(
    logits, target, weight, kept, ignore_index, smoothing, reduction, grad, normalizer,
    total_weight, out,
):  # fmt: skip
    arrays = (logits, target, weight, grad, normalizer, total_weight)
    read = sum(array.nbytes for array in arrays if array is not None)
    return Cost((4 if target.ndim == 1 else 6) * logits.size, read, out.nbytes)


cross_entropy_forward.inputs(samples.forward_inputs)
cross_entropy_forward_backward.inputs(samples.forward_inputs)
cross_entropy_backward.inputs(samples.backward_inputs)
for _made in (cross_entropy_forward, cross_entropy_forward_backward, cross_entropy_backward):
    _made.bench_shapes = samples.BENCH_SHAPES

# ---- samples -------------------------------------------------------------------------------------


@cross_entropy_forward.samples
@cross_entropy_forward_backward.samples
def _(rng):
    for number, (name, logits, target, options, dtypes, numba) in enumerate(samples.cases(rng)):
        for reduction in samples.reductions(number):
            kwargs = {**options, "reduction": reduction}
            yield Sample(f"{name}, {reduction}", (logits, target), kwargs, dtypes, numba=numba)
    args = rng.normal(size=(5, 50)), rng.integers(0, 50, 5)
    yield Sample("unaligned", args, {}, FLOATING, unaligned=True)


@cross_entropy_backward.samples
def _(rng):
    for number, (name, logits, target, options, dtypes, numba) in enumerate(samples.cases(rng)):
        for reduction in samples.reductions(number):
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
