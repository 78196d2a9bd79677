"""Connectionist temporal classification: a loss for labels whose places in time are not known.

The probability of a target is the sum over all ways to spread its labels over the steps, with
repetitions and with blanks between. Source: Graves, Fernandez, Gomez, Schmidhuber: Connectionist
Temporal Classification, 2006; the recursions stand in ``kernels/cuda/ctc.cu``.

``extents`` of the implementations is an int64 array (3, B): steps, labels, and where the labels of
a sequence begin in the flat targets.
"""

from __future__ import annotations

import operator

import numpy as np

from gpunn.device import arrays
from gpunn.primitives import ctc_implementation as implementation
from gpunn.primitives.call import CPU
from gpunn.primitives.indices import CHECK_EVERYWHERE, host_integers
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    FLOAT32,
    FLOAT64,
    FLOATING,
    INTEGERS,
    Accumulator,
    Sample,
    accumulator_dtype,
)

# ---- specification -------------------------------------------------------------------------------


@primitive(family="ctc", cuda="ctc.cu", numba="ctc.py")
def ctc_forward(
    call, log_probs, targets, input_lengths, target_lengths, *, blank: int = 0, out=None,
    log_alpha=None,
):  # fmt: skip
    """The loss of each sequence: ``-log`` of the sum of the probabilities of all alignments.

    Parameters
    ----------
    log_probs : array (T, B, C) of log-probabilities; float16, bfloat16, float32 or float64
    targets : int32 or int64 labels from 0 to C - 1 without `blank`, padded (B, S) or, one sequence
        after the other, of one dimension
    input_lengths, target_lengths : B integers each, in a list or an array, from 0 to T and to S.
        Given in an array on the GPU of `log_probs` they are used there, and nothing waits; what is
        out of range, and any label out of range on a GPU, makes the loss NaN.
    blank : the class that stands for no label
    out : array (B,), float32 (float64 for float64), to write the losses to
    log_alpha : array (B, T, 2 L + 1) like `out`, to write what the backward needs to; L is the
        largest target length, but at most T

    Returns
    -------
    losses (B,), +inf where a target is too long for its input, and log_alpha

    Raises
    ------
    TypeError, ValueError : dtypes, shapes, lengths or labels that do not suit, with the numbers
    """
    problem = _problem(call, log_probs, targets, input_lengths, target_lengths, blank)
    log_probs, targets, extents, labels, blank = problem
    steps, batch, _ = log_probs.shape
    wide = accumulator_dtype(log_probs.dtype)
    out = call.output("out", out, shape=(batch,), dtype=wide)
    shape = (batch, steps, 2 * labels + 1)
    log_alpha = call.output("log_alpha", log_alpha, shape=shape, dtype=wide)
    call.run(log_probs, targets, extents, blank, out, log_alpha)
    return out, log_alpha


@primitive(family="ctc", cuda="ctc.cu", numba="ctc.py")
def ctc_backward(
    call, grad_loss, log_probs, targets, input_lengths, target_lengths, neg_log_likelihood,
    log_alpha, *, blank: int = 0, zero_infinity: bool = False, out=None,
):  # fmt: skip
    """The gradient by the log-probabilities, as one through a log-softmax before them.

    ``out = grad_loss (exp(log_probs) - share of the alignments that are at that class)``, which is
    0 summed over the classes of a step, and 0 beyond the input's length. Without a log-softmax the
    true derivative lacks the first term; this is PyTorch's convention.

    Parameters
    ----------
    grad_loss : array (B,) of the dtype of the losses
    neg_log_likelihood, log_alpha : what `ctc_forward` returned
    zero_infinity : no gradient where the loss is +inf, which otherwise gives NaN
    out : array like `log_probs` to write; may not be `log_probs` itself

    The other arguments and the errors are those of `ctc_forward`.
    """
    problem = _problem(call, log_probs, targets, input_lengths, target_lengths, blank)
    log_probs, targets, extents, labels, blank = problem
    steps, batch, _ = log_probs.shape
    wide = (accumulator_dtype(log_probs.dtype),)
    grad_loss = call.array("grad_loss", grad_loss, dtypes=wide, shape=(batch,))
    loss = call.array("neg_log_likelihood", neg_log_likelihood, dtypes=wide, shape=(batch,))
    shape = (batch, steps, 2 * labels + 1)
    log_alpha = call.array("log_alpha", log_alpha, dtypes=wide, shape=shape)
    out = call.output("out", out, shape=log_probs.shape, dtype=log_probs.dtype)
    options = (blank, bool(zero_infinity))
    call.run(grad_loss, log_probs, targets, extents, loss, log_alpha, *options, out)
    return out


def _problem(call, log_probs, targets, input_lengths, target_lengths, blank):
    """(log_probs, flat targets, extents, most labels of a sequence, blank), checked."""
    log_probs = call.array("log_probs", log_probs, dtypes=FLOATING, ndim=3)
    targets = call.array("targets", targets, dtypes=INTEGERS)
    steps, batch, classes = log_probs.shape
    blank = operator.index(blank)
    call.require(0 <= blank < classes, "blank", f"is {blank}", f"expected 0 to {classes - 1}")
    if targets.ndim != 1 and (targets.ndim != 2 or len(targets) != batch):
        call.refuse("targets", targets, f"({batch}, S), or one dimension with all labels in a row")
    inputs, inputs_known = _lengths(call, "input_lengths", input_lengths, batch)
    labels, labels_known = _lengths(call, "target_lengths", target_lengths, batch)
    if inputs_known:
        _check_lengths(call, "input_lengths", inputs, steps, "the steps of log_probs")
    longest = targets.shape[-1]
    if labels_known:
        _check_lengths(call, "target_lengths", labels, longest, "the labels in targets")
        if targets.ndim == 1 and labels.sum() != longest:
            call.require(
                False, "target_lengths", f"adds up to {labels.sum()}",
                f"targets has {longest} labels",
            )  # fmt: skip
        longest = int(labels.max(initial=0))
    if inputs_known and labels_known:
        extents = arrays.to_device(_extents(np, inputs, labels, targets), call.device)
    else:
        inputs, labels = (arrays.to_device(length, call.device) for length in (inputs, labels))
        extents = _extents(call.xp, inputs, labels, targets)
    if call.device is CPU or CHECK_EVERYWHERE:
        _check_labels(call, targets, arrays.to_numpy(extents), classes, blank)
    # More labels than steps have no alignment: their states need no room.
    return log_probs, targets.reshape(-1), extents, min(longest, steps), blank


def _lengths(call, name: str, value, batch: int):
    """(lengths as int64, whether they were looked at)."""
    if call.device is not CPU and not CHECK_EVERYWHERE and arrays.is_array(value):
        array = arrays.as_array(value)
        if arrays.device_of(array) is call.device:
            array = call.array(name, array, dtypes=INTEGERS, shape=(batch,))
            return array.astype(np.int64, copy=False), False
    lengths = host_integers(call, name, value)
    if lengths.shape != (batch,):
        call.refuse(name, lengths, f"{batch} integers, one for each sequence of log_probs")
    return lengths, True


def _check_lengths(call, name: str, lengths, most: int, of: str) -> None:
    wrong = (lengths < 0) | (lengths > most)
    if wrong.any():
        place = int(wrong.argmax())
        call.require(
            False, name, f"has {lengths[place]} for sequence {place}",
            f"expected 0 to {most}, {of}",
        )  # fmt: skip


def _extents(xp, inputs, labels, targets):
    extents = xp.empty((3, len(inputs)), np.int64)
    extents[0], extents[1] = inputs, labels
    if targets.ndim == 2:
        extents[2] = xp.arange(len(inputs)) * targets.shape[1]
    else:
        extents[2] = xp.cumsum(labels) - labels
    return extents


def _check_labels(call, targets, extents, classes: int, blank: int) -> None:
    flat = arrays.to_numpy(targets).reshape(-1)
    for sequence, (labels, start) in enumerate(zip(*extents[1:].tolist(), strict=True)):
        own = flat[start : start + labels]
        wrong = (own < 0) | (own >= classes) | (own == blank)
        if wrong.any():
            place = int(wrong.argmax())
            call.require(
                False, "targets", f"has {own[place]} at label {place} of sequence {sequence}",
                f"expected 0 to {classes - 1} without the blank {blank}, for {classes} classes",
            )  # fmt: skip


# ---- implementations -----------------------------------------------------------------------------

ctc_forward.reference(implementation.forward_reference)
ctc_forward.cuda(implementation.forward_cuda)
ctc_forward.numba(implementation.forward_numba)
ctc_backward.reference(implementation.backward_reference)
ctc_backward.cuda(implementation.backward_cuda)
ctc_backward.numba(implementation.backward_numba)

# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@ctc_forward.cost
def _(log_probs, targets, extents, blank, out, log_alpha):
    # Of each row of classes only those in the target are read.
    read = min(log_probs.nbytes, log_alpha.size * log_probs.itemsize)
    read += targets.nbytes + extents.nbytes
    return Cost(9 * log_alpha.size, read, log_alpha.nbytes + out.nbytes)


@ctc_backward.cost
def _(grad_loss, log_probs, targets, extents, loss, log_alpha, blank, zero_infinity, out):
    read = log_probs.nbytes + log_alpha.nbytes + targets.nbytes + extents.nbytes
    read += grad_loss.nbytes + loss.nbytes
    return Cost(11 * log_alpha.size + 3 * log_probs.size, read, out.nbytes)


def log_softmax(x) -> np.ndarray:
    """The log-probabilities of logits."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _cases(rng):
    """(name, log_probs, targets, input_lengths, target_lengths, blank, dtypes, numba)."""

    def logs(*shape):
        return log_softmax(rng.normal(size=shape))

    targets = np.array([[1, 2, 2, 1], [3, 3, 3, 0], [2, 0, 0, 0]])
    yield "padded", logs(9, 3, 5), targets, [9, 7, 5], [4, 3, 1], 0, FLOATING, True
    row = np.array([4, 0, 1, 0, 0], np.int32)
    yield "in a row", logs(8, 2, 5), row, [8, 6], [3, 2], 2, (FLOAT32, FLOAT64), True
    yield "too long, empty", logs(4, 3, 3), np.array([1, 1, 2, 1, 2]), [3, 4, 0], [5, 0, 0], 0, \
        (FLOAT32,), True  # fmt: skip
    yield "an input of no steps", logs(3, 2, 3), np.array([[1], [2]]), [0, 3], [1, 1], 0, \
        (FLOAT32,), True  # fmt: skip
    yield "one step", logs(1, 1, 2), np.array([[0]]), [1], [1], 1, (FLOAT32,), True
    many = rng.integers(1, 40, (2, 33))
    yield "more states than a warp", logs(70, 2, 40), many, [70, 61], [33, 20], 0, FLOATING, False
    long = rng.integers(1, 6, (1, 520))
    yield "more states than a block", logs(521, 1, 6), long, [521], [400], 0, (FLOAT32,), False
    masked = logs(6, 1, 4)
    masked[2, 0, 3] = -np.inf
    yield "a class that cannot be", masked, np.array([[1, 3]]), [6], [2], 0, (FLOAT32,), True


_TOLERANCE = {FLOAT32: 2e-5, FLOAT64: 1e-12}  # errors of many steps add up


@ctc_forward.samples
def _(rng):
    for name, logs, targets, inputs, labels, blank, dtypes, numba in _cases(rng):
        args = (logs, targets, inputs, labels)
        yield Sample(name, args, {"blank": blank}, dtypes, _TOLERANCE, numba)


@ctc_backward.samples
def _(rng):
    for name, logs, targets, inputs, labels, blank, dtypes, numba in _cases(rng):
        loss, alpha = ctc_forward(logs, targets, inputs, labels, blank=blank)
        grad = rng.normal(size=loss.shape)
        args = (Accumulator(grad), logs, targets, inputs, labels, Accumulator(loss))
        args = (*args, Accumulator(alpha))
        for zero in (False, True) if name.startswith("too long") else (True,):
            more = {"blank": blank, "zero_infinity": zero}
            sample = f"{name}, zero_infinity={zero}"
            # A share is exp of a sum that nearly cancels: of numbers near 1000 after 500 steps.
            tolerance = {FLOAT32: 2e-4} if len(logs) > 500 else _TOLERANCE
            yield Sample(sample, args, more, dtypes, tolerance, numba)


def _bench_inputs(rng, shape):
    steps, batch, classes = shape
    logs = rng.standard_normal(shape, dtype=np.float32)
    logs -= np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    labels = max(1, steps // 4)
    targets = rng.integers(1, max(classes, 2), (batch, labels))
    lengths = np.full(batch, steps), np.full(batch, labels)
    return (logs, targets, *lengths), {}


@ctc_forward.inputs
def _(rng, shape):
    return _bench_inputs(rng, shape)


@ctc_backward.inputs
def _(rng, shape):
    args, _ = _bench_inputs(rng, shape)
    loss, alpha = ctc_forward(*args)
    alpha = np.maximum(alpha, -1e8)  # whose exp is 0 as well; peers are compared by differences
    grad = np.full(shape[1], 1 / shape[1], np.float32)
    return (grad, *args, loss, alpha), {}


# (steps, sequences, classes): characters and word pieces of speech, lines of text
ctc_forward.bench_shapes = ctc_backward.bench_shapes = (
    (400, 32, 32), (100, 8, 64), (200, 128, 96), (1000, 16, 32), (250, 64, 1024),
    (500, 16, 5000), (1600, 8, 128), (128, 512, 80),
)  # fmt: skip
