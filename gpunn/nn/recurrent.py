"""Recurrent layers: RNN, LSTM and GRU over sequences, and their cells for single steps.

Formulas stand in `gpunn.primitives.recurrent`. Parameters have PyTorch's names, shapes and order of
gates, so that weights load both ways.
"""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.autocast import is_autocast_enabled
from gpunn.autograd.creation import empty
from gpunn.autograd.functions.activation import dropout
from gpunn.autograd.functions.recurrent import pick_rows, place_rows, recurrent
from gpunn.autograd.functions.shape import cat, reshape, stack, transpose, unsqueeze
from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import to_numpy
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter
from gpunn.nn.utils.rnn import PackedSequence, check_lengths, packed_rows
from gpunn.primitives.indices import CHECK_EVERYWHERE
from gpunn.primitives.recurrent_plan import GATES
from gpunn.primitives.samples import INTEGERS


def _check_sizes(name: str, **sizes: Any) -> None:
    for argument, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: {argument} is {size!r}; expected an integer of 1 or more")


def _mode_of(name: str, nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(
            f"{name}: nonlinearity {nonlinearity!r} is not known; use 'tanh' or 'relu'"
        )
    return f"rnn_{nonlinearity}"


def _check_input(
    name: str, input: Tensor, dims: tuple[int, ...], size: int, weight: Tensor
) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input is {type(input).__name__}; expected a Tensor")
    if input.ndim not in dims or input.shape[-1] != size:
        raise ValueError(
            f"{name}: input has shape {input.shape}; expected {' or '.join(map(str, dims))} "
            f"dimensions, the last of size {size} (input_size)"
        )
    if input.dtype != weight.dtype and not is_autocast_enabled():
        raise TypeError(
            f"{name}: input has dtype {input.dtype} and the weights {weight.dtype}; they must be "
            f"equal. Convert the input with .to({weight.dtype.name!r}), or the model."
        )


def _check_state(
    name: str, argument: str, state: Any, shape: tuple[int, ...], dtype: DTypeLike
) -> None:
    if not isinstance(state, Tensor):
        raise TypeError(f"{name}: {argument} is {type(state).__name__}; expected a Tensor")
    if state.shape != shape:
        raise ValueError(f"{name}: {argument} has shape {state.shape}; expected {shape}")
    if state.dtype != dtype and not is_autocast_enabled():
        raise TypeError(
            f"{name}: {argument} has dtype {state.dtype} and the input {dtype}; they must be equal"
        )


def _states(name: str, hx: Any, mode: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """(h0, c0) from what a user gave as initial state, checked; None for zeros."""
    if hx is None:
        return None, None
    if mode != "lstm":
        if isinstance(hx, (tuple, list)):
            raise TypeError(f"{name}: hx is a {type(hx).__name__}; expected a Tensor, h_0 alone")
        _check_state(name, "hx", hx, shape, dtype)
        return hx, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        came = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"{name}: hx is {came}; expected two Tensors, (h_0, c_0)")
    for argument, state in zip(("h_0", "c_0"), hx, strict=True):
        _check_state(name, argument, state, shape, dtype)
    return hx[0], hx[1]


def _placed(lengths: Any, batch: int, input: Tensor) -> bool:
    """Whether these are lengths on the input's GPU, which are taken as they are."""
    if input.device.type == "cpu" or CHECK_EVERYWHERE or not isinstance(lengths, Tensor):
        return False
    fits = lengths.shape == (batch,) and lengths.dtype in INTEGERS
    return fits and lengths.device == input.device


class _Recurrent(Module):
    """Base of RNN, LSTM and GRU."""

    def __init__(
        self, mode: Any, input_size: int, hidden_size: int, num_layers: int, bias: bool,
        batch_first: bool, dropout: float, bidirectional: bool, device: DeviceLike,
        dtype: DTypeLike,
    ):  # fmt: skip
        super().__init__()
        name = type(self).__name__
        _check_sizes(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"{name}: dropout is {dropout!r}; expected a probability from 0 to 1")
        if dropout and num_layers == 1:
            warnings.warn(
                f"{name}: dropout of {dropout} acts between layers, and there is one layer only",
                UserWarning,
                stacklevel=3,
            )
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional = float(dropout), bidirectional
        directions, rows = 2 if bidirectional else 1, GATES[mode] * hidden_size
        self._names: list[list[str]] = []  # of the parameters, by layer and direction
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else directions * hidden_size
            for suffix in ("", "_reverse")[:directions]:
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, inputs),
                    "weight_hh": (rows, hidden_size),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                names = [f"{kind}_l{layer}{suffix}" for kind in shapes]
                for made, shape in zip(names, shapes.values(), strict=True):
                    setattr(self, made, Parameter(empty(*shape, device=device, dtype=dtype)))
                self._names.append(names)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values from gpunn's generator, uniform in ±1/sqrt(hidden_size)."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction, in the order of their names."""
        return [[self._parameters[name] for name in names] for names in self._names]

    def flatten_parameters(self) -> None:
        """Nothing to do here; exists for code written for PyTorch."""

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, input: Tensor, hx: Any = None, lengths: Any = None) -> Any:
        """Run over a batch of sequences.

        Parameters
        ----------
        input : (T, B, input_size), (B, T, input_size) with `batch_first`, or one sequence
            (T, input_size); or a `PackedSequence`
        hx : the initial states of all layers and directions, (num_layers * directions, B,
            hidden_size), without B for one sequence; for LSTM the pair (h_0, c_0); None for zeros
        lengths : B whole numbers from 1 to T, where the sequences of a padded batch end (beyond
            PyTorch): a list, an array or a tensor. On the input's GPU they are not looked at and
            nothing waits: less than 0 counts as 0 there, more than T as T
            (``GPUNN_CHECK_INDICES=1`` looks). Past its length a sequence's output is 0, and it ends
            in the state of its last step; what stands there in the input must be finite

        Returns
        -------
        (output, h_n), for LSTM (output, (h_n, c_n)) : output (T, B, directions * hidden_size), in
            the layout of the input, the directions side by side; a `PackedSequence` if the input
            was one. h_n and c_n, as `hx`, are the states at the end of each sequence, for the
            second direction those at its beginning.
        """
        name = type(self).__name__
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(f"{name}: lengths come with a PackedSequence; leave them out")
            return self._forward_packed(input, hx)
        _check_input(name, input, (2, 3), self.input_size, self.all_weights[0][0])
        one = input.ndim == 2
        if one:
            steps, batch = input.shape[0], 1
            sequence = unsqueeze(input, 1)
        else:
            sequence = transpose(input, 0, 1) if self.batch_first else input
            steps, batch = sequence.shape[:2]
        if steps == 0:
            raise ValueError(
                f"{name}: input has shape {input.shape}, sequences without a step; give one or more"
            )
        shape = (len(self._names), *(() if one else (batch,)), self.hidden_size)
        states = _states(name, hx, self.mode, shape, input.dtype)
        if one:
            states = tuple(None if s is None else unsqueeze(s, 1) for s in states)
        if lengths is not None:
            lengths = [lengths] if one and np.ndim(lengths) == 0 else lengths
            if not _placed(lengths, batch, input):
                lengths = check_lengths(name, lengths, steps, batch)
        output, *ends = self._run(sequence, states, lengths)
        if one:
            output, *ends = (None if t is None else t[:, 0] for t in (output, *ends))
        elif self.batch_first:
            output = transpose(output, 0, 1)
        return output, (tuple(ends) if self.mode == "lstm" else ends[0])

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> Any:
        name = type(self).__name__
        _check_input(name, packed.data, (2,), self.input_size, self.all_weights[0][0])
        lengths = packed.sorted_lengths
        steps, batch = len(packed.batch_sizes), len(lengths)
        shape = (len(self._names), batch, self.hidden_size)
        states = _states(name, hx, self.mode, shape, packed.data.dtype)
        order, back = packed.sorted_indices, packed.unsorted_indices
        if order is not None:
            states = tuple(None if s is None else s[:, to_numpy(order._array)] for s in states)
        rows, _ = packed_rows(lengths)
        padded = reshape(
            place_rows(packed.data, rows, steps * batch), steps, batch, self.input_size
        )
        output, *ends = self._run(padded, states, lengths)
        output = pick_rows(reshape(output, steps * batch, output.shape[-1]), rows)
        if back is not None:
            ends = [None if t is None else t[:, to_numpy(back._array)] for t in ends]
        return packed._replace(data=output), (tuple(ends) if self.mode == "lstm" else ends[0])

    def _run(self, sequence: Tensor, states: Any, lengths: Any) -> Any:
        """(output, h_n, c_n or None) of a batch (T, B, I) with checked arguments."""
        if lengths is not None:
            whole = type(lengths) is np.ndarray and (lengths == len(sequence)).all()
            lengths = None if whole else sequence._xp.asarray(raw_array(lengths))
        directions, ends = 2 if self.bidirectional else 1, []
        for layer in range(self.num_layers):
            if layer:
                sequence = dropout(sequence, self.dropout, self.training)
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                weights = self._weights(place)
                h0, c0 = (None if state is None else state[place] for state in states)
                output, *end = recurrent(
                    sequence,
                    weights[0],
                    weights[1],
                    weights[2],
                    weights[3],
                    h0,
                    c0,
                    lengths,
                    mode=self.mode,
                    reverse=direction == 1,
                )
                outputs.append(output)
                ends.append(end)
            sequence = outputs[0] if directions == 1 else cat(outputs, -1)
        h_n, c_n = zip(*ends, strict=True)
        return sequence, _stacked(h_n), None if c_n[0] is None else _stacked(c_n)

    def _weights(self, place: int) -> tuple[Any, ...]:
        found = [self._parameters[name] for name in self._names[place]]
        return (*found, None, None)[:4]

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (("num_layers", 1), ("bias", True), ("batch_first", False),
                            ("dropout", 0.0), ("bidirectional", False)):  # fmt: skip
            value = getattr(self, name)
            text += "" if value == usual else f", {name}={value}"
        return text


def _stacked(states: tuple[Tensor, ...]) -> Tensor:
    return unsqueeze(states[0], 0) if len(states) == 1 else stack(states)


class RNN(_Recurrent):
    """Elman's network: ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or relu for tanh

    Parameters
    ----------
    input_size, hidden_size, num_layers : sizes; a layer's output is the next one's input
    nonlinearity : "tanh" or "relu"
    bias : whether there are b_ih and b_hh
    batch_first : input and output are (B, T, …) instead of (T, B, …)
    dropout : applied in training to the output of each layer but the last
    bidirectional : a second network walks each sequence from its end; outputs stand side by side

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, …_l0_reverse, …_l1 … : uniform in
        ±1/sqrt(hidden_size) at first, as in PyTorch

    Source: Elman, Cognitive Science 14 (1990) 179.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        mode = _mode_of("RNN", nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype,
        )  # fmt: skip


class LSTM(_Recurrent):
    """Long short-term memory: gates decide what a cell state forgets, takes in and shows

    Parameters and attributes are those of `RNN`, the rows of a weight being the gates i, f, g, o.
    `proj_size`, with which PyTorch multiplies h by one more matrix, is not offered: only 0 is
    taken.

    Source: Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735; Gers et al., Neural
    Computation 12 (2000) 2451.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        proj_size: int = 0, device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        if proj_size != 0:
            raise ValueError(
                f"LSTM: proj_size is {proj_size!r}; expected 0. Put a Linear({hidden_size}, "
                f"{proj_size}) behind the layer; it then acts on the output, not inside the loop."
            )
        self.proj_size = 0
        super().__init__(
            "lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, device, dtype,
        )  # fmt: skip


class GRU(_Recurrent):
    """Gated recurrent units: a reset gate inside, an update gate between the old state and the new

    Parameters and attributes are those of `RNN`, the rows of a weight being the gates r, z, n.

    Source: Cho et al., EMNLP 2014; the reset gate acts after the product, as in cuDNN.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__(
            "gru", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype,
        )  # fmt: skip


# ---- cells ---------------------------------------------------------------------------------------


class _Cell(Module):
    """Base of the cells: one step of one layer."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: DeviceLike,
        dtype: DTypeLike,
    ):
        super().__init__()
        _check_sizes(type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        rows = GATES[mode] * hidden_size
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(empty(rows, input_size, **place))
        self.weight_hh = Parameter(empty(rows, hidden_size, **place))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(empty(rows, **place)) if bias else None)
        self.bias = bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values from gpunn's generator, uniform in ±1/sqrt(hidden_size)."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step: input (B, input_size) or (input_size,), hx as what is returned or None.

        Returns h' (B, hidden_size), for LSTMCell the pair (h', c').
        """
        name = type(self).__name__
        _check_input(name, input, (1, 2), self.input_size, self.weight_ih)
        shape = (*input.shape[:-1], self.hidden_size)
        states = _states(name, hx, self.mode, shape, input.dtype)
        step = reshape(input, 1, *(input.shape if input.ndim == 2 else (1, self.input_size)))
        if input.ndim == 1:
            states = tuple(None if s is None else unsqueeze(s, 0) for s in states)
        _, *ends = recurrent(
            step, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, *states,
            mode=self.mode,
        )  # fmt: skip
        if input.ndim == 1:
            ends = [None if t is None else t[0] for t in ends]
        return tuple(ends) if self.mode == "lstm" else ends[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_Cell):
    """One step of `RNN`: weight_ih, weight_hh, bias_ih and bias_hh as there"""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        mode = _mode_of("RNNCell", nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(mode, input_size, hidden_size, bias, device, dtype)


class LSTMCell(_Cell):
    """One step of `LSTM`: weight_ih, weight_hh, bias_ih and bias_hh as there"""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__("lstm", input_size, hidden_size, bias, device, dtype)


class GRUCell(_Cell):
    """One step of `GRU`: weight_ih, weight_hh, bias_ih and bias_hh as there"""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__("gru", input_size, hidden_size, bias, device, dtype)
