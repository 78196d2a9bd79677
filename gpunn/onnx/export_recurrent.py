"""Recurrent layers: RNN, LSTM and GRU, one node for each layer and direction; packed rows."""

from __future__ import annotations

import numpy as np

from gpunn.onnx.table import converts

# The order of ONNX's gates in ours: i, f, g, o -> i, o, f, g and r, z, n -> z, r, n.
_GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_KIND = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}


@converts("Recurrent")
def _recurrent(graph, call):
    x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, how, _ = call.arguments
    mode = how["mode"]
    hidden, gates = weight_hh.shape[1], _GATES[mode]
    attributes = {"hidden_size": hidden, "direction": "reverse" if how["reverse"] else "forward"}
    if mode == "rnn_relu":
        attributes["activations"] = ["Relu"]
    if mode == "gru":
        attributes["linear_before_reset"] = 1
    weights = [_reordered(graph, weight, gates, hidden) for weight in (weight_ih, weight_hh)]
    bias = None if bias_ih is None else _biases(graph, bias_ih, bias_hh, gates, hidden)
    ends = None if lengths is None else graph.operand(lengths, np.int32)
    states = [None if s is None else graph.op("Unsqueeze", graph.edge(s), graph.ints(0))
              for s in ((h0, c0) if mode == "lstm" else (h0,))]  # fmt: skip
    made = graph.op(
        _KIND[mode], graph.edge(x), *weights, bias, ends, *states,
        outputs=3 if mode == "lstm" else 2, **attributes,
    )  # fmt: skip
    output = graph.op("Squeeze", made[0], graph.ints(1))
    return (output, *(graph.op("Squeeze", state, graph.ints(0)) for state in made[1:]))


def _reordered(graph, weight, gates, hidden: int) -> str:
    """A weight with its gates in ONNX's order, and an axis in front for the direction."""
    found = graph.folded(weight, "onnx", lambda array: _in_order(array, gates, hidden))
    if found is not None:
        return found
    rows = np.arange(len(gates) * hidden, dtype=np.int64).reshape(len(gates), hidden)[list(gates)]
    edge = graph.op("Gather", graph.edge(weight), graph.constant(rows.reshape(-1)), axis=0)
    return graph.op("Unsqueeze", edge, graph.ints(0))


def _in_order(array, gates, hidden: int):
    blocks = array.reshape(len(gates), hidden, *array.shape[1:])[list(gates)]
    return blocks.reshape(1, *array.shape)


def _biases(graph, first, second, gates, hidden: int) -> str:
    """Both biases side by side."""
    if first.array is not None and second.array is not None:

        def joined(array):
            pair = (_in_order(part, gates, hidden) for part in (array, second.array))
            return np.concatenate(list(pair), axis=1)

        return graph.folded(first, "onnx", joined)
    pair = (_reordered(graph, part, gates, hidden) for part in (first, second))
    return graph.op("Concat", *pair, axis=1)


@converts("FinalState")
def _final_state(graph, call):
    return graph.edge(call.arguments[1])


@converts("PickRows")
def _pick_rows(graph, call):
    x, index = call.arguments
    return graph.op("Gather", graph.edge(x), graph.edge(index), axis=0)


@converts("PlaceRows")
def _place_rows(graph, call):
    x, index, rows, fill = call.arguments
    shape = (rows, *x.shape[1:])
    empty = graph.expand(graph.constant(fill, x.dtype), shape)
    places = graph.op("Unsqueeze", graph.edge(index), graph.ints(-1))
    return graph.op("ScatterND", empty, places, graph.edge(x))
