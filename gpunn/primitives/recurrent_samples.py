"""Recurrent networks: parity samples, costs and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.recurrent_plan import GATES
from gpunn.primitives.registry import Cost, intercepting
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FLOATING, Sample

# h is rounded to 16 bits at each step and goes through the weights again: a few roundings, not one.
_TOLERANCE = {FLOAT32: 3e-6, FLOAT64: 3e-13, FLOAT16: 2e-3, BFLOAT16: 1.6e-2}
_LOW = (FLOAT16, BFLOAT16)


def _layer(rng, mode: str, steps: int, batch: int, hidden: int, states: bool = True):
    """(gates, weight_hh, bias_hh, h0, c0) of usual sizes."""
    columns, scale = GATES[mode] * hidden, hidden**-0.5
    gates = rng.normal(size=(steps, batch, columns))
    weight = rng.uniform(-scale, scale, size=(columns, hidden))
    if not states:
        return gates, weight, None, None, None
    bias, h0, c0 = rng.normal(size=columns), *rng.normal(size=(2, batch, hidden)) / 2
    return gates, weight, bias, h0, c0 if mode == "lstm" else None


def _reference(recurrent_forward, *args, **kwargs):
    """What the NumPy reference returns, whatever else is chosen to run or to take notes."""
    with intercepting(lambda call, run_args: call.primitive._reference(*run_args)):
        return recurrent_forward(*args, **kwargs)


def _cases(rng):
    """(name, mode, layer, lengths, reverse, further arguments of Sample).

    On an H200 the first ones run in one block and those of 60 and 150 units in clusters of 8; 264
    units in 16 bits do not fit the registers; 5 steps of more units than a cluster takes are made
    by a grid, and a single step by a product and the kernel of the cell.
    """
    every, alone = {"dtypes": FLOATING}, {"numba": False}
    three, two = np.array([3, 0, 4], np.int64), np.array([2, 3], np.int32)
    yield "4x3x5", "lstm", _layer(rng, "lstm", 4, 3, 5), three, False, every
    yield "3x2x6 reverse", "gru", _layer(rng, "gru", 3, 2, 6), two, True, every
    yield "2x9x3", "rnn_relu", _layer(rng, "rnn_relu", 2, 9, 3), None, True, {"unaligned": True}
    yield "3x2x4 from nothing", "rnn_tanh", _layer(rng, "rnn_tanh", 3, 2, 4, False), None, False, {}
    yield "no steps", "lstm", _layer(rng, "lstm", 0, 2, 3), None, False, {}
    yield "no sequences", "gru", _layer(rng, "gru", 2, 0, 3), None, False, {}
    for mode in ("lstm", "gru"):
        yield "1x3x8", mode, _layer(rng, mode, 1, 3, 8), None, False, every
    one = (FLOAT32,)
    for dtypes, hidden, mode in ((one, 60, "lstm"), (_LOW, 150, "lstm"), (one, 68, "gru")):
        layer, more = _layer(rng, mode, 3, 2, hidden), {"dtypes": dtypes, **alone}
        yield f"3x2x{hidden}", mode, layer, two, hidden == 68, more
    for dtypes, hidden in ((_LOW, 520), (one, 264)):
        layer, more = _layer(rng, "lstm", 5, 1, hidden), {"dtypes": dtypes, **alone}
        yield f"5x1x{hidden}", "lstm", layer, None, False, more
    layer = _layer(rng, "rnn_tanh", 2, 2, 264)
    yield "2x2x264", "rnn_tanh", layer, None, False, {"dtypes": _LOW, **alone}
    edge = _layer(rng, "lstm", 3, 3, 4)
    edge[0][1, 0, 0], edge[0][0, 1, 5], edge[0][2, 2, :] = np.nan, np.inf, -np.inf
    yield "at the edge", "lstm", edge, None, False, every


def forward_samples(rng):
    """Every mode in both directions, with sequences that end early, for every kernel."""
    for name, mode, layer, lengths, reverse, more in _cases(rng):
        kwargs = {"mode": mode, "reverse": reverse}
        if name == "3x2x4 from nothing":
            kwargs["keep"] = False
        yield Sample(f"{mode} {name}", (*layer, lengths), kwargs, tolerance=_TOLERANCE, **more)


def backward_samples(recurrent_forward):
    """The same layers with what `recurrent_forward` made of them, and gradients."""

    def samples(rng):
        for name, mode, layer, lengths, reverse, more in _cases(rng):
            kwargs = {"mode": mode, "reverse": reverse}
            made = _reference(recurrent_forward, *layer, lengths, **kwargs)
            output, h_n, c_n, activated, inner = made
            grad_output, grad_h_n = rng.normal(size=output.shape), rng.normal(size=h_n.shape)
            grad_c_n = None if c_n is None else rng.normal(size=c_n.shape)
            if layer[3] is None:  # from nothing to nothing
                grad_h_n = grad_c_n = None
            if name == "no steps":
                grad_output = None
            _, weight, _, h0, c0 = layer
            args = (
                grad_output, grad_h_n, grad_c_n, output, activated, inner, weight, h0, c0, lengths
            )  # fmt: skip
            yield Sample(f"{mode} {name}", args, kwargs, tolerance=_TOLERANCE, **more)

    return samples


# ---- cost ----------------------------------------------------------------------------------------


def _bytes(*arrays) -> int:
    return sum(0 if array is None else array.nbytes for array in arrays)


def forward_cost(gates, weight_hh, work) -> Cost:
    """The products, about 10 operations for each gate, and each array once."""
    steps, batch, columns = gates.shape
    return Cost(
        flops=steps * batch * (2 * weight_hh.size + 10 * columns),
        read=_bytes(gates, weight_hh, work.bias_hh, work.h0, work.c0, work.lengths),
        written=_bytes(work.output, work.h_n, work.c_n, work.activated, work.inner),
    )


def backward_cost(output, weight_hh, work) -> Cost:
    """The same; `output` is read where no gates are kept, and by gru."""
    steps, batch, columns = work.grad_gates.shape
    made = (work.grad_gates, work.grad_hidden, work.grad_h0, work.grad_c0)
    states = output if work.mode != "lstm" else None
    given = (work.grad_output, work.grad_h_n, work.grad_c_n, work.activated, work.inner, states)
    return Cost(
        flops=steps * batch * (2 * weight_hh.size + 10 * columns),
        read=_bytes(*given, weight_hh, work.h0, work.c0, work.lengths),
        written=_bytes(*made),
    )


# ---- benchmark inputs ----------------------------------------------------------------------------

# (steps, batch, hidden) of an LSTM. The first, which tests go through in full, is small; the third
# is a sequence model's, the last a language model's.
BENCH_SHAPES = (
    (28, 128, 64), (50, 64, 128), (128, 64, 512), (100, 1, 256), (128, 32, 512), (35, 20, 650),
    (64, 256, 256), (64, 16, 1024),
)  # fmt: skip

# Columns of the input that the gates are made of; see `forward_inputs`.
INPUTS = 8


def forward_inputs(rng, shape):
    """An LSTM's inputs. The gates are products, as in a layer, of `INPUTS` columns which are their
    first ones, so that a library which takes a layer's input can be given the same work.
    """
    steps, batch, hidden = shape
    scale = np.float32(hidden**-0.5)
    x = rng.standard_normal((steps, batch, min(INPUTS, 4 * hidden)), np.float32)
    weight = rng.standard_normal((4 * hidden, x.shape[-1]), np.float32) / 4
    weight[: x.shape[-1]] = np.eye(x.shape[-1])
    weight_hh = (2 * rng.random((4 * hidden, hidden), np.float32) - 1) * scale
    bias = (2 * rng.random(4 * hidden, np.float32) - 1) * scale
    states = rng.standard_normal((2, batch, hidden), np.float32) / 2
    return (x @ weight.T, weight_hh, bias, states[0], states[1]), {"mode": "lstm"}


def backward_inputs(recurrent_forward):
    """What an LSTM leaves for its way back, and gradients."""

    def inputs(rng, shape):
        (gates, weight, bias, h0, c0), kwargs = forward_inputs(rng, shape)
        made = _reference(recurrent_forward, gates, weight, bias, h0, c0, **kwargs)
        output, h_n, _, activated, inner = made
        grads = (rng.standard_normal(array.shape, np.float32) for array in (output, h_n, h_n))
        return (*grads, output, activated, inner, weight, h0, c0), kwargs

    return inputs
