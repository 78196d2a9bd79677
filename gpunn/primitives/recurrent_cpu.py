"""Recurrent networks on the CPU: a product and a few passes over contiguous arrays a step.

A larger batch is cut into pieces that go through all their steps side by side, a thread each. The
sequences are worked on from the longest to the shortest, so that those which are still running are
always the first rows, and rows that have ended cost nothing. A step's arrays are small and stay in
the cache. The logistic function is made as ``(1 + tanh(x / 2)) / 2``, which one vectorised pass
over all gates computes; halving is exact. What an LSTM does between that and its product is left to
compiled loops where there are some: in NumPy it is ten passes, which cost as much as they compute.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import blas_on_one_thread, for_each
from gpunn.primitives.samples import accumulator_dtype

# The axis of the batch in what an implementation is given.
_STEPS = ("output", "activated", "inner", "grad_output", "grad_gates", "grad_hidden")
_ROWS = ("h0", "c0", "lengths", "h_n", "c_n", "grad_h_n", "grad_c_n", "grad_h0", "grad_c0")
_AXIS = dict.fromkeys(_STEPS, 1) | dict.fromkeys(_ROWS, 0)

# A piece has this many sequences at least, and a step of it this many values of h: fewer, and the
# threads wait for each other at the interpreter. Beyond the most pieces they would as well.
_PIECE_ROWS, _PIECE_VALUES, _MOST_PIECES = 32, 4096, 4

# Multiply-adds of one step's product from which several threads share it. They meet at every step,
# which costs more than a small product, and very much more where others use the cores too.
_SHARED_PRODUCT = 1 << 24


def forward(gates, weight_hh, work) -> None:
    """The reference of `recurrent_forward`."""
    weight = _Forward.prepared(weight_hh, work)
    order = _order(work.lengths)
    if order is None:
        _in_pieces(_Forward, gates, weight, work)
        return
    results = ("output", "h_n", "c_n", "activated", "inner")
    made = _sorted(work, order, results)
    _in_pieces(_Forward, np.take(gates, order, 1), weight, made)
    _put_back(work, made, order, results)


def backward(output, weight_hh, work) -> None:
    """The reference of `recurrent_backward`."""
    weight = weight_hh.astype(accumulator_dtype(weight_hh.dtype), copy=False)
    order = _order(work.lengths)
    if order is None:
        _in_pieces(_Backward, output, weight, work)
        return
    results = ("grad_gates", "grad_hidden", "grad_h0", "grad_c0")
    made = _sorted(work, order, results)
    _in_pieces(_Backward, np.take(output, order, 1), weight, made)
    _put_back(work, made, order, results)


# ---- the batch, sorted and cut -------------------------------------------------------------------


def _order(lengths):
    """The sequences from the longest to the shortest; None if they are in that order already."""
    if lengths is None or (lengths[1:] <= lengths[:-1]).all():
        return None
    return np.argsort(-lengths, kind="stable")


def _each(work, change):
    """`work` with ``change(name, array, axis of the batch)`` for every array that has one."""
    named = ((name, getattr(work, name, None), axis) for name, axis in _AXIS.items())
    return work._replace(
        **{name: change(name, array, axis) for name, array, axis in named if array is not None}
    )


def _sorted(work, order, results):
    """`work` in another order of the sequences, with new arrays for the results."""
    return _each(
        work,
        lambda name, array, axis: (
            np.empty_like(array) if name in results else np.take(array, order, axis)
        ),
    )


def _put_back(work, made, order, results) -> None:
    """Copy the results in `made` into those of `work`, in the order that it has."""
    back = np.argsort(order)
    for name in results:
        target = getattr(work, name)
        if target is not None:
            np.take(getattr(made, name), back, _AXIS[name], out=target)


def _in_pieces(kind, first, weight, work) -> None:
    """Run on pieces of the batch side by side; which ones depends on the sizes alone."""
    batch, hidden = first.shape[1], min(weight.shape)
    count = max(2, min(batch * hidden // _PIECE_VALUES, _MOST_PIECES))
    count = min(count, batch // _PIECE_ROWS)
    if count > 1:

        def run(some: slice) -> None:
            piece = _each(work, lambda name, array, axis: array[(slice(None),) * axis + (some,)])
            kind(first[:, some], weight, piece).run()

        ends = [batch * part // count for part in range(count + 1)]
        for_each(run, list(map(slice, ends, ends[1:])))
    elif batch * weight.size < _SHARED_PRODUCT:
        with blas_on_one_thread():
            kind(first, weight, work).run()
    else:
        kind(first, weight, work).run()


def _running(lengths, steps: int, batch: int) -> list[int]:
    """How many sequences run at each step; `lengths` falls."""
    if lengths is None:
        return [batch] * steps
    return (batch - np.searchsorted(np.sort(lengths), np.arange(steps), side="right")).tolist()


def _half(mode: str, hidden: int, dtype):
    """(factor, summand) of each column that make the logistic function from tanh."""
    if mode not in ("lstm", "gru"):
        return ()
    factor = np.full((4 if mode == "lstm" else 2) * hidden, 0.5, dtype)
    summand = factor.copy()
    if mode == "lstm":
        factor[2 * hidden : 3 * hidden], summand[2 * hidden : 3 * hidden] = 1, 0
    return factor, summand


def _loops(mode: str, gates):
    """Compiled loops for the steps of a larger LSTM; the results have the same bits."""
    return loops("recurrent", gates.dtype, gates.size) if mode == "lstm" else None


class _Forward:
    """One run over sequences that are sorted by length, the longest first."""

    def __init__(self, gates, weight, work):
        self.gates, self.weight, self.work = gates, weight, work
        self.dtype = dtype = weight.dtype
        self.low = gates.dtype != dtype
        self.steps, self.batch, columns = gates.shape
        self.hidden = len(weight)
        self.bias = None if work.bias_hh is None else work.bias_hh.astype(dtype, copy=False)
        half = _half(work.mode, self.hidden, dtype)
        if work.mode == "lstm" and self.bias is not None:
            self.bias = self.bias * half[0]
        self.loops = _loops(work.mode, gates)
        if self.loops:  # which add the bias
            none = self.bias is None
            self.row = np.zeros_like(half[0]) if none else self.bias, half[0]
            self.bias = None
        # Whole arrays: adding a row to each row takes NumPy twice as long.
        self.half = [np.tile(row, (self.batch, 1)) for row in half]
        self.product = np.empty((self.batch, columns), dtype)
        self.gate = np.empty((self.batch, columns), dtype)
        self.spare = np.empty((self.batch, self.hidden), dtype)
        self.h = self._state(work.h0)
        self.c = self._state(work.c0) if work.mode == "lstm" else None

    @staticmethod
    def prepared(weight_hh, work):
        """W_hh^T as the steps multiply with it: halved where tanh wants the half.

        It lies in memory as it is read, which makes products of few rows faster by a half.
        """
        dtype, steps = accumulator_dtype(weight_hh.dtype), len(work.output)
        if work.mode == "lstm":
            factor = _half(work.mode, weight_hh.shape[1], dtype)[0]
            return np.multiply(weight_hh.T, factor, dtype=dtype, order="C")
        weight = weight_hh.astype(dtype, copy=False).T
        return weight if steps < 4 else np.ascontiguousarray(weight)

    def _state(self, initial):
        if initial is None:
            return np.zeros((self.batch, self.hidden), self.dtype)
        return initial.astype(self.dtype)

    def run(self) -> None:
        work = self.work
        running = _running(work.lengths, self.steps, self.batch)
        step = {"lstm": self._lstm, "gru": self._gru}.get(work.mode, self._rnn)
        order = range(self.steps - 1, -1, -1) if work.reverse else range(self.steps)
        with quiet():
            for t in order:
                rows = running[t]
                h, product = self.h[:rows], self.product[:rows]
                np.dot(h, self.weight, out=product)
                if self.bias is not None:
                    np.add(product, self.bias, out=product)
                step(t, rows, product, h)
                output = work.output[t]
                output[:rows] = h
                if self.low:
                    h[...] = output[:rows]
                if rows < self.batch:
                    self._past(t, rows)
            work.h_n[...] = self.h
            if work.c_n is not None:
                work.c_n[...] = self.c

    def _past(self, t: int, rows: int) -> None:
        work = self.work
        work.output[t, rows:] = 0
        if work.activated is not None:
            work.activated[t, rows:] = 0
            work.inner[t, rows:] = 0 if self.c is None else self.c[rows:]

    def _kept(self, t: int, rows: int):
        """Where the activated gates of a step are made: in place if they are kept as they are."""
        activated = self.work.activated
        if activated is None or self.low:
            return self.gate[:rows]
        return activated[t, :rows]

    def _rnn(self, t, rows, product, h):
        np.add(product, self.gates[t, :rows], out=h)
        if self.work.mode == "rnn_tanh":
            np.tanh(h, out=h)
        else:
            np.maximum(h, 0, out=h)

    def _lstm(self, t, rows, product, h):
        gate, c, spare = self._kept(t, rows), self.c[:rows], self.spare[:rows]
        if self.loops:
            copy = spare if self.work.inner is None else self.work.inner[t, :rows]
            self.loops.lstm_gates(self.gates[t, :rows], product, *self.row, gate)
            np.tanh(gate, out=gate)
            self.loops.lstm_state(gate, c, copy)
            np.tanh(copy, out=spare)
            self.loops.lstm_output(gate, spare, h)
            return
        hidden, (factor, summand) = self.hidden, (half[:rows] for half in self.half)
        np.multiply(self.gates[t, :rows], factor, out=gate, dtype=self.dtype)
        np.add(gate, product, out=gate)
        np.tanh(gate, out=gate)
        np.multiply(gate, factor, out=gate)
        np.add(gate, summand, out=gate)
        np.multiply(gate[:, hidden : 2 * hidden], c, out=c)
        np.multiply(gate[:, :hidden], gate[:, 2 * hidden : 3 * hidden], out=spare)
        np.add(c, spare, out=c)
        np.tanh(c, out=spare)
        np.multiply(gate[:, 3 * hidden :], spare, out=h)
        self._keep(t, rows, gate, c)

    def _gru(self, t, rows, product, h):
        hidden, factor = self.hidden, self.half[0][:rows]
        gate, spare, gates = self._kept(t, rows), self.spare[:rows], self.gates[t, :rows]
        both, n = gate[:, : 2 * hidden], gate[:, 2 * hidden :]
        inner = product[:, 2 * hidden :]
        np.add(gates[:, : 2 * hidden], product[:, : 2 * hidden], out=both)
        np.multiply(both, factor, out=both)
        np.tanh(both, out=both)
        np.multiply(both, factor, out=both)
        np.add(both, factor, out=both)
        np.multiply(gate[:, :hidden], inner, out=spare)
        np.add(spare, gates[:, 2 * hidden :], out=n)
        np.tanh(n, out=n)
        np.subtract(h, n, out=h)  # h' = n + z (h - n)
        np.multiply(h, gate[:, hidden : 2 * hidden], out=h)
        np.add(h, n, out=h)
        self._keep(t, rows, gate, inner)

    def _keep(self, t, rows, gate, inner):
        work = self.work
        if work.activated is not None:
            work.inner[t, :rows] = inner
            if self.low:
                work.activated[t, :rows] = gate


class _Backward:
    """One run back over sequences that are sorted by length, the longest first."""

    def __init__(self, output, weight, work):
        self.output, self.weight, self.work = output, weight, work
        self.dtype = dtype = weight.dtype
        self.low = output.dtype != dtype
        self.steps, self.batch, self.hidden = output.shape
        self.grad_h, self.grad_c = self._rows(work.grad_h_n), self._rows(work.grad_c_n)
        self.h0, self.c0 = self._rows(work.h0), self._rows(work.c0)
        self.running = _running(work.lengths, self.steps, self.batch)
        self.grad, self.way, self.slope = np.empty((3, self.batch, len(weight)), dtype)
        self.spare = np.empty((2, self.batch, self.hidden), dtype)
        self.loops = _loops(work.mode, work.grad_gates)
        if work.mode == "lstm":
            # The derivative of each gate's value y is (a - y) y + b: a, b = 1, 0 for the logistic
            # function, 0, 1 for tanh.
            self.offset = np.zeros((2, self.batch, 4, self.hidden), dtype)
            self.offset[0], self.offset[:, :, 2] = 1, [[[0]], [[1]]]
            self.offset = self.offset.reshape(2, self.batch, -1)

    def _rows(self, given):
        """A copy in the accumulator's dtype, zeros for None."""
        if given is None:
            return np.zeros((self.batch, self.hidden), self.dtype)
        return given.astype(self.dtype)

    def run(self) -> None:
        work = self.work
        step = {"lstm": self._lstm, "gru": self._gru}.get(work.mode, self._rnn)
        order = range(self.steps) if work.reverse else range(self.steps - 1, -1, -1)
        with quiet():
            for t in order:
                rows = self.running[t]
                grad_h, grad_gates = self.grad_h[:rows], work.grad_gates[t]
                if work.grad_output is not None:
                    np.add(grad_h, work.grad_output[t, :rows], out=grad_h, dtype=self.dtype)
                grad = self.grad[:rows] if self.low else grad_gates[:rows]
                step(t, rows, grad, grad_h)
                grad_gates[rows:] = 0
                if work.grad_hidden is not None:
                    work.grad_hidden[t, rows:] = 0
            work.grad_h0[...] = self.grad_h
            if work.grad_c0 is not None:
                work.grad_c0[...] = self.grad_c

    def _wide(self, array, t: int, rows: int):
        return array[t, :rows].astype(self.dtype, copy=False)

    def _before(self, t: int, rows: int, states, initial):
        """The states before step t, from those after each step and the initial ones."""
        if not self.work.reverse:
            return self._wide(states, t - 1, rows) if t else initial[:rows]
        if t + 1 == self.steps:
            return initial[:rows]
        later = self.running[t + 1]
        if later == rows:
            return self._wide(states, t + 1, rows)
        before = initial[:rows].copy()  # some sequences begin here
        before[:later] = states[t + 1, :later]
        return before

    def _through_weight(self, given, t: int, rows: int, grad, out) -> None:
        """Keep a step's gradients in `given`, and multiply what was kept with W_hh."""
        if self.low:
            given[t, :rows] = grad
            grad = self._wide(given, t, rows)
        np.dot(grad, self.weight, out=out)

    def _rnn(self, t, rows, grad, grad_h):
        y = self._wide(self.output, t, rows)
        if self.work.mode == "rnn_tanh":
            np.multiply(y, y, out=grad)
            np.subtract(1, grad, out=grad)
            np.multiply(grad, grad_h, out=grad)
        else:
            np.copyto(grad, grad_h)
            np.copyto(grad, 0, where=y <= 0)
        self._through_weight(self.work.grad_gates, t, rows, grad, grad_h)

    def _lstm(self, t, rows, grad, grad_h):
        hidden, work = self.hidden, self.work
        gate = self._wide(work.activated, t, rows)
        grad_c, (one, two) = self.grad_c[:rows], self.spare[:, :rows]
        if self.loops:
            np.tanh(work.inner[t, :rows], out=one)
            self.loops.lstm_backward(gate, one, self._cell_before(t, rows), grad_h, grad_c, grad)
            self._through_weight(work.grad_gates, t, rows, grad, grad_h)
            return
        way, slope = self.way[:rows], self.slope[:rows]
        to_i, to_f, to_g, to_o = (way[:, at : at + hidden] for at in range(0, 4 * hidden, hidden))
        i, f, g, o = (gate[:, at : at + hidden] for at in range(0, 4 * hidden, hidden))
        # The gradients by the activated gates …
        np.tanh(self._wide(work.inner, t, rows), out=one)
        np.multiply(grad_h, one, out=to_o)
        np.multiply(one, one, out=one)
        np.subtract(1, one, out=one)
        np.multiply(grad_h, o, out=two)
        np.multiply(one, two, out=two)
        np.add(grad_c, two, out=grad_c)
        np.multiply(grad_c, g, out=to_i)
        np.multiply(grad_c, self._cell_before(t, rows), out=to_f)
        np.multiply(grad_c, i, out=to_g)
        np.multiply(grad_c, f, out=grad_c)
        # … and through their activation. `grad` may be `gate`.
        np.subtract(self.offset[0, :rows], gate, out=slope)
        np.multiply(slope, gate, out=slope)
        np.add(slope, self.offset[1, :rows], out=slope)
        np.multiply(slope, way, out=grad)
        self._through_weight(work.grad_gates, t, rows, grad, grad_h)

    def _cell_before(self, t: int, rows: int):
        """c before step t: past a sequence's length the state stays, so no cases are needed."""
        at = t + 1 if self.work.reverse else t - 1
        return self._wide(self.work.inner, at, rows) if 0 <= at < self.steps else self.c0[:rows]

    def _gru(self, t, rows, grad, grad_h):
        work, hidden = self.work, self.hidden
        gate = self._wide(work.activated, t, rows)
        r, z, n = (gate[:, at * hidden : (at + 1) * hidden] for at in range(3))
        to_both, to_n = grad[:, : 2 * hidden], grad[:, 2 * hidden :]
        slope, (one, two) = self.slope[:rows, : 2 * hidden], self.spare[:, :rows]
        through = self.grad[:rows] if self.low else work.grad_hidden[t, :rows]
        both = gate[:, : 2 * hidden]
        np.multiply(both, both, out=slope)
        np.subtract(both, slope, out=slope)
        np.subtract(self._before(t, rows, self.output, self.h0), n, out=one)
        np.multiply(one, grad_h, out=one)
        np.multiply(slope[:, hidden:], one, out=slope[:, hidden:])
        np.multiply(grad_h, z, out=one)  # what goes past the gates
        np.subtract(grad_h, one, out=grad_h)
        np.multiply(n, n, out=two)
        np.subtract(1, two, out=two)
        np.multiply(two, grad_h, out=two)  # to n before its tanh
        through_n = np.multiply(two, r, out=grad_h)
        np.copyto(to_n, two)
        np.multiply(two, self._wide(work.inner, t, rows), out=two)
        np.multiply(slope[:, :hidden], two, out=slope[:, :hidden])
        np.copyto(to_both, slope)
        if self.low:
            work.grad_gates[t, :rows] = grad
        through[:, : 2 * hidden] = slope
        through[:, 2 * hidden :] = through_n
        self._through_weight(work.grad_hidden, t, rows, through, two)
        np.add(one, two, out=grad_h)
