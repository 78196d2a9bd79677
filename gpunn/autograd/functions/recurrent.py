"""Recurrent layers, and what packs sequences of several lengths.

A node of the tape has one result; a recurrent layer has a result for each step and final states. So
`Recurrent` gives the steps, and `FinalState` hangs a state on to it: its gradient reaches the
recurrent node before that node's turn and is kept there until then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.autocast import lowered
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.primitives.matmul import matmul
from gpunn.primitives.matmul_backward import bias_gradient, linear_weight_gradient
from gpunn.primitives.recurrent import recurrent_backward, recurrent_forward
from gpunn.primitives.recurrent_plan import GATES


class Recurrent(Function):
    """One recurrent layer in one direction: the output of every step

    The inputs of all steps are multiplied at once, and so are the gradients of the weights. The
    activated gates take the memory of the gates, and their gradients take it again, where the graph
    is not kept.
    """

    def forward(
        self,
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0,
        c0,
        lengths,
        how: dict[str, Any],
        states: list[Any],
    ):
        steps, batch, inputs = x.shape
        gates = matmul(
            x.reshape(steps * batch, inputs), weight_ih, transpose_b=True, bias=bias_ih
        ).reshape(steps, batch, len(weight_ih))
        keep = any(self.needs)
        in_place = gates if keep and GATES[how["mode"]] > 1 else None
        output, h_n, c_n, activated, inner = recurrent_forward(
            gates, weight_hh, bias_hh, h0, c0, lengths, **how, keep=keep, activated=in_place
        )
        states += (h_n, c_n)
        self.how = how
        self.save(x, weight_ih, weight_hh, h0, c0, lengths, output, activated, inner)
        return output

    def backward(self, grad):
        saved, owned = self.take_saved()
        x, weight_ih, weight_hh, h0, c0, lengths, output, activated, inner = saved
        ahead, self.ahead = self.ahead, None
        grad_h_n = grad_c_n = None
        if ahead is not None:
            grad_h_n, grad_c_n = ahead.grads
            grad = None if grad is ahead.nothing else grad
        grad_gates, grad_hidden, grad_h0, grad_c0 = recurrent_backward(
            grad, grad_h_n, grad_c_n, output, activated, inner, weight_hh, h0, c0, lengths,
            **self.how, grad_gates=activated if owned else None,
        )  # fmt: skip
        rows = grad_gates.reshape(-1, grad_gates.shape[-1])
        need_x, need_ih, need_hh, need_bias_ih, need_bias_hh = self.needs[:5]
        grad_x = grad_ih = grad_hh = grad_bias_ih = grad_bias_hh = None
        if need_x:
            grad_x = matmul(rows, weight_ih).reshape(x.shape)
        if need_ih:
            inputs = x.reshape(-1, x.shape[-1])
            if need_bias_ih:
                grad_ih, grad_bias_ih = linear_weight_gradient(
                    rows, inputs, out=self.slot(1), bias_gradient=self.slot(3)
                )
            else:
                grad_ih = matmul(rows, inputs, transpose_a=True, out=self.slot(1))
        elif need_bias_ih:
            grad_bias_ih = bias_gradient(rows, out=self.slot(3))
        if need_bias_hh:
            if grad_hidden is None and grad_bias_ih is not None:
                grad_bias_hh = grad_bias_ih  # the two biases are only ever added
            else:
                hidden_rows = rows if grad_hidden is None else grad_hidden.reshape(rows.shape)
                grad_bias_hh = bias_gradient(hidden_rows, out=self.slot(4))
        if need_hh:
            grad_hidden = grad_gates if grad_hidden is None else grad_hidden
            grad_hh = self._to_recurrent_weight(grad_hidden, output, h0, lengths)
        return grad_x, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh, grad_h0, grad_c0

    def _to_recurrent_weight(self, grad, output, h0, lengths):
        """The sum over all steps of the gradient's outer product with the state before the step."""
        reverse = self.how["reverse"]
        later, earlier = (grad[:-1], output[1:]) if reverse else (grad[1:], output[:-1])
        columns, hidden = grad.shape[-1], output.shape[-1]
        total = matmul(
            later.reshape(-1, columns), earlier.reshape(-1, hidden), transpose_a=True,
            out=self.slot(2),
        )  # fmt: skip
        if h0 is None:
            return total
        # Past a sequence's length the output is 0, so that its first step has added nothing yet.
        if not reverse:
            first = grad[0]
        elif lengths is None:
            first = grad[-1]
        else:
            last = (lengths - 1).clip(0, len(grad) - 1)  # the kernels take any lengths
            first = grad[last, array_xp(grad).arange(len(lengths))]
        return matmul(first, h0, transpose_a=True, residual=total, out=total)


class _Ahead:
    """What final states have brought to a `Recurrent` before its turn.

    grads : the gradients of h and c after the last step, or None
    nothing : the zeros that stand for the gradient of the output where nobody else gives one
    """

    def __init__(self, nothing):
        self.grads: list[Any] = [None, None]
        self.nothing = nothing


class FinalState(Function):
    """The final h (index 0) or c (1) of the layer whose output is given with it"""

    def forward(self, output, state, index):
        self.shape, self.index = output.shape, index
        return state

    def backward(self, grad):
        layer, xp = self.edges[0], array_xp(grad)
        if layer.ahead is None:
            layer.ahead = _Ahead(xp.broadcast_to(xp.zeros((), grad.dtype), self.shape))
        layer.ahead.grads[self.index] = grad
        # The layer has its turn only if some gradient comes to it on the usual way.
        return layer.ahead.nothing if layer.grad is None else None


def recurrent(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    lengths=None,
    *,
    mode: str,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One recurrent layer in one direction; formulas in `gpunn.primitives.recurrent`.

    Parameters
    ----------
    input : (T, B, I), weight_ih : (G*H, I), weight_hh : (G*H, H), all of one floating dtype
    bias_ih, bias_hh : (G*H,) or None
    h0, c0 : (B, H), the states before the first step, or None for zeros; c0 for lstm alone
    lengths : array (B,) of integers from 1 to T on the input's device, or None
    mode : "rnn_tanh", "rnn_relu", "lstm" or "gru"
    reverse : walk each sequence from its last step to its first

    Returns (output (T, B, H), h_n (B, H), c_n (B, H) or None); past a sequence's length its output
    is 0 and its state stays.
    """
    tensors = (input, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    if state.low is not None:
        tensors = lowered(*tensors)
    check_devices("recurrent", *(tensor for tensor in tensors if tensor is not None))
    states: list[Any] = []
    how = {"mode": mode, "reverse": reverse}
    output = Recurrent.apply(*tensors, lengths, how, states)
    h_n = FinalState.apply(output, states[0], 0)
    return output, h_n, None if states[1] is None else FinalState.apply(output, states[1], 1)


# ---- packing -------------------------------------------------------------------------------------


class PickRows(Function):
    """Rows of x (rows, …) by their indices, no row twice"""

    def forward(self, x, index):
        self.index, self.shape = index, x.shape
        return x[index]

    def backward(self, grad):
        out = array_xp(grad).zeros(self.shape, grad.dtype)
        out[self.index] = grad
        return out


class PlaceRows(Function):
    """An array of `rows` rows: those of x where `index` says, no place twice, else `fill`"""

    def forward(self, x, index, rows, fill):
        self.index = index
        out = array_xp(x).full((rows, *x.shape[1:]), fill, x.dtype)
        out[index] = x
        return out

    def backward(self, grad):
        return grad[self.index]


def pick_rows(input: Tensor, index: np.ndarray) -> Tensor:
    """The rows of `input` (rows, …) at `index`, a CPU array of distinct integers."""
    return PickRows.apply(input, input._xp.asarray(index))


def place_rows(input: Tensor, index: np.ndarray, rows: int, fill: float = 0.0) -> Tensor:
    """A tensor of `rows` rows: row i of `input` at ``index[i]``, all others `fill`."""
    return PlaceRows.apply(input, input._xp.asarray(index), rows, fill)
