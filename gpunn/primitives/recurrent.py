"""Recurrent networks over whole sequences: Elman's, LSTM and GRU, forward and backward.

The products with the inputs do not depend on the state, so they are made before for all steps by
one matrix product: ``gates (T, B, G*H) = x W_ih^T + b_ih``. What is left for each step is the
product of the state with ``W_hh (G*H, H)`` and the cell. With ``p = h W_hh^T + b_hh`` of the state
h before the step, s the logistic function and a gate's H columns named by its index:

==========  ===  ==================  =====================================================
mode        G    gates in order      step
==========  ===  ==================  =====================================================
rnn_tanh    1                        h' = tanh(x + p)
rnn_relu    1                        h' = max(x + p, 0)
lstm        4    i, f, g, o          i, f, o = s(x + p); g = tanh(x_g + p_g)
                                     c' = f c + i g;  h' = o tanh(c')
gru         3    r, z, n             r, z = s(x + p); n = tanh(x_n + r p_n)
                                     h' = (1 - z) n + z h
==========  ===  ==================  =====================================================

These are PyTorch's formulas and orders (Hochreiter and Schmidhuber 1997 with the forget gate of
Gers et al. 2000; Cho et al. 2014 with the reset after the product). Sequences of a batch may end
early: past its length a sequence's output is 0 and its state stays. With `reverse` each is walked
from its own last step to step 0.

16-bit types: h is rounded after each step, and the next step multiplies what was rounded, as it
stands in `output`; products are summed, gates computed and c carried on in float32. On the way
back the gradients of h and c are carried in float32 and the product with W_hh reads the rounded
gradients of the gates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpunn.primitives import matmul_checks, recurrent_cpu, recurrent_launch
from gpunn.primitives import recurrent_samples as samples
from gpunn.primitives.call import CPU
from gpunn.primitives.recurrent_plan import GATES
from gpunn.primitives.registry import primitive
from gpunn.primitives.samples import FLOATING, INTEGERS

_SOURCES = {
    "family": "recurrent", "cuda": "recurrent.cu", "numba": "recurrent.py",
    "siblings": (
        "recurrent_grid.cu", matmul_checks.SOURCES["cuda"], *matmul_checks.SOURCES["siblings"]
    ),
}  # fmt: skip


class Forward(NamedTuple):
    """What `recurrent_forward` hands to its implementations beside `gates` and `weight_hh`.

    An implementation writes all of `output`, `h_n` and, where they are not None, `c_n`,
    `activated` and `inner`. `activated` may be `gates` itself.
    """

    bias_hh: Any  # (G*H,) or None
    h0: Any  # (B, H) or None: zeros
    c0: Any  # (B, H) or None: zeros; None unless lstm
    lengths: Any  # (B,) int32 or int64, or None
    mode: str
    reverse: bool
    output: Any  # (T, B, H)
    h_n: Any  # (B, H)
    c_n: Any  # (B, H) for lstm, else None
    activated: Any  # (T, B, G*H) for lstm and gru where it is kept, else None
    inner: Any  # (T, B, H) where `activated` is


class Backward(NamedTuple):
    """What `recurrent_backward` hands to its implementations beside `output` and `weight_hh`.

    An implementation writes all of `grad_gates`, `grad_h0` and, where they are not None,
    `grad_hidden` and `grad_c0`. `grad_gates` may be `activated` itself.
    """

    grad_output: Any  # (T, B, H) or None: zeros
    grad_h_n: Any  # (B, H) or None: zeros
    grad_c_n: Any  # (B, H) or None: zeros; None unless lstm
    activated: Any  # (T, B, G*H) for lstm and gru, else None
    inner: Any  # (T, B, H) for lstm and gru, else None
    h0: Any
    c0: Any
    lengths: Any
    mode: str
    reverse: bool
    grad_gates: Any  # (T, B, G*H)
    grad_hidden: Any  # (T, B, 3*H) for gru, else None
    grad_h0: Any  # (B, H)
    grad_c0: Any  # (B, H) for lstm, else None


# ---- specification -------------------------------------------------------------------------------


@primitive(**_SOURCES)
def recurrent_forward(
    call,
    gates,
    weight_hh,
    bias_hh=None,
    h0=None,
    c0=None,
    lengths=None,
    *,
    mode: str,
    reverse: bool = False,
    keep: bool = True,
    output=None,
    activated=None,
):
    """A recurrent layer over a batch of sequences, in one direction.

    Parameters
    ----------
    gates : array (T, B, G*H), what the inputs contribute to the gates of each step, ``x W_ih^T +
        b_ih``; float16, bfloat16, float32 or float64. T and B may be 0, H may not
    weight_hh : array (G*H, H) of the same dtype
    bias_hh : array (G*H,) of the same dtype, or None
    h0, c0 : arrays (B, H) of the same dtype, the states before the first step, or None for zeros;
        c0 for lstm alone
    lengths : array (B,) of int32 or int64, the steps of each sequence from 0 to T, or None for T.
        Values outside are refused on the CPU; elsewhere they count as the nearest one inside
    mode : "rnn_tanh", "rnn_relu", "lstm" or "gru"; formulas in this module's docstring
    reverse : walk each sequence from its last step to step 0
    keep : whether `activated` and `inner`, which `recurrent_backward` needs, are made
    output : array (T, B, H) of the same dtype to write
    activated : with `keep`, for lstm and gru: array (T, B, G*H) of the same dtype to write; may be
        `gates` itself

    Returns
    -------
    ``(output, h_n, c_n, activated, inner)``
        output : (T, B, H), h after each step, 0 past a sequence's length
        h_n, c_n : (B, H), the states after the last step of each sequence; c_n None unless lstm
        activated : (T, B, G*H), the gates after their activation, 0 past a sequence's length; None
            for the rnn modes, whose output tells, and without `keep`
        inner : (T, B, H) where `activated` is: for lstm c after each step, past a sequence's length
            the state that stays there (c_n, or with `reverse` c0, which is still to be used); for
            gru ``p_n = h W_hn^T + b_hn``, 0 past a sequence's length

    Raises
    ------
    TypeError : a dtype that is not floating, or not the same for all; lengths that are no integers
    ValueError : an unknown mode, shapes that do not fit, lengths outside 0 to T, c0 without lstm
    """
    call.choice("mode", mode, GATES)
    given, gates = gates, call.array("gates", gates, dtypes=FLOATING, ndim=3)
    dtype, (steps, batch, columns) = gates.dtype, gates.shape
    count = GATES[mode]
    call.require(
        columns >= count and columns % count == 0, "gates",
        f"has shape {gates.shape}", f"mode {mode!r} has {count} gates, so the last size must be "
        f"{count} times the hidden size",
    )  # fmt: skip
    hidden = columns // count
    weight_hh = call.array("weight_hh", weight_hh, dtypes=(dtype,), shape=(columns, hidden))
    if bias_hh is not None:
        bias_hh = call.array("bias_hh", bias_hh, dtypes=(dtype,), shape=(columns,))
    h0, c0, lengths = _checked_states(call, h0, c0, lengths, mode, dtype, (steps, batch, hidden))
    output = call.output("output", output, shape=(steps, batch, hidden), dtype=dtype)
    h_n = call.empty((batch, hidden), dtype)
    c_n = call.empty((batch, hidden), dtype) if mode == "lstm" else None
    inner = None
    if keep and count > 1:
        in_place = activated is given
        activated = call.output("activated", activated, shape=gates.shape, dtype=dtype)
        gates = activated if in_place else gates
        inner = call.empty((steps, batch, hidden), dtype)
    else:
        activated = None
    call.run(
        gates,
        weight_hh,
        Forward(bias_hh, h0, c0, lengths, mode, bool(reverse), output, h_n, c_n, activated, inner),
    )
    return output, h_n, c_n, activated, inner


@primitive(**_SOURCES)
def recurrent_backward(
    call,
    grad_output,
    grad_h_n,
    grad_c_n,
    output,
    activated,
    inner,
    weight_hh,
    h0=None,
    c0=None,
    lengths=None,
    *,
    mode: str,
    reverse: bool = False,
    grad_gates=None,
):
    """The gradients through `recurrent_forward`, from the last step of each sequence to its first.

    Those of the weights and biases are products over all steps at once and are left to the caller:
    with ``grad_hidden`` standing for `grad_gates` in the modes that return None for it, the one of
    W_hh is the sum over all steps of ``grad_hidden^T h``, h the state before the step, and the one
    of b_hh the sum of the rows of grad_hidden.

    Parameters
    ----------
    grad_output : array (T, B, H), or None for zeros; what stands past a sequence's length is not
        looked at
    grad_h_n, grad_c_n : arrays (B, H), or None for zeros; grad_c_n for lstm alone
    output, activated, inner : what `recurrent_forward` returned
    weight_hh, h0, c0, lengths, mode, reverse : what it was given
    grad_gates : array (T, B, G*H) to write; may be `activated` itself

    Returns
    -------
    ``(grad_gates, grad_hidden, grad_h0, grad_c0)``
        grad_gates : (T, B, G*H), the gradient by `gates`, 0 past a sequence's length
        grad_hidden : for gru (T, B, 3*H), the gradient by ``p = h W_hh^T + b_hh``: as grad_gates,
            the columns of n times r; else None: the two are the same
        grad_h0, grad_c0 : (B, H), the gradients by the initial states; grad_c0 None unless lstm

    Raises
    ------
    TypeError, ValueError : as `recurrent_forward`, and for arrays of another shape or dtype
    """
    call.choice("mode", mode, GATES)
    output = call.array("output", output, dtypes=FLOATING, ndim=3)
    dtype, (steps, batch, hidden) = output.dtype, output.shape
    call.require(hidden >= 1, "output", f"has shape {output.shape}", "give one column or more")
    count = GATES[mode]
    shape = (steps, batch, count * hidden)
    weight_hh = call.array("weight_hh", weight_hh, dtypes=(dtype,), shape=(count * hidden, hidden))
    h0, c0, lengths = _checked_states(call, h0, c0, lengths, mode, dtype, output.shape)
    if count > 1:
        in_place = grad_gates is activated
        activated = call.array("activated", activated, dtypes=(dtype,), shape=shape)
        inner = call.array("inner", inner, dtypes=(dtype,), shape=output.shape)
    else:
        activated, inner, in_place = None, None, False
    if grad_output is not None:
        grad_output = call.array("grad_output", grad_output, dtypes=(dtype,), shape=output.shape)
    if grad_h_n is not None:
        grad_h_n = call.array("grad_h_n", grad_h_n, dtypes=(dtype,), shape=(batch, hidden))
    if grad_c_n is not None:
        _require_lstm(call, "grad_c_n", mode)
        grad_c_n = call.array("grad_c_n", grad_c_n, dtypes=(dtype,), shape=(batch, hidden))
    grad_gates = call.output("grad_gates", grad_gates, shape=shape, dtype=dtype)
    activated = grad_gates if in_place else activated
    grad_hidden = call.empty(shape, dtype) if mode == "gru" else None
    grad_h0 = call.empty((batch, hidden), dtype)
    grad_c0 = call.empty((batch, hidden), dtype) if mode == "lstm" else None
    call.run(
        output,
        weight_hh,
        Backward(
            grad_output, grad_h_n, grad_c_n, activated, inner, h0, c0, lengths, mode,
            bool(reverse), grad_gates, grad_hidden, grad_h0, grad_c0,
        ),
    )  # fmt: skip
    return grad_gates, grad_hidden, grad_h0, grad_c0


def _checked_states(call, h0, c0, lengths, mode: str, dtype, shape):
    steps, batch, hidden = shape
    if h0 is not None:
        h0 = call.array("h0", h0, dtypes=(dtype,), shape=(batch, hidden))
    if c0 is not None:
        _require_lstm(call, "c0", mode)
        c0 = call.array("c0", c0, dtypes=(dtype,), shape=(batch, hidden))
    if lengths is not None:
        lengths = call.array("lengths", lengths, dtypes=INTEGERS, shape=(batch,))
        if call.device is CPU and batch:
            low, high = int(lengths.min()), int(lengths.max())
            if low < 0 or high > steps:
                problem = f"goes from {low} to {high} for sequences of {steps} steps"
                call.require(False, "lengths", problem, f"give lengths from 0 to {steps}")
    return h0, c0, lengths


def _require_lstm(call, name: str, mode: str) -> None:
    call.require(mode == "lstm", name, f"is given for mode {mode!r}", "only lstm has a cell state")


# ---- implementations -----------------------------------------------------------------------------

recurrent_forward.reference(recurrent_cpu.forward)
recurrent_backward.reference(recurrent_cpu.backward)
recurrent_forward.cuda(recurrent_launch.forward)
recurrent_backward.cuda(recurrent_launch.backward)
recurrent_forward.numba(recurrent_launch.forward_numba)
recurrent_backward.numba(recurrent_launch.backward_numba)

# ---- cost, samples, benchmark inputs -------------------------------------------------------------

recurrent_forward.cost(samples.forward_cost)
recurrent_backward.cost(samples.backward_cost)
recurrent_forward.samples(samples.forward_samples)
recurrent_backward.samples(samples.backward_samples(recurrent_forward))
recurrent_forward.inputs(samples.forward_inputs)
recurrent_backward.inputs(samples.backward_inputs(recurrent_forward))
recurrent_forward.bench_shapes = recurrent_backward.bench_shapes = samples.BENCH_SHAPES
