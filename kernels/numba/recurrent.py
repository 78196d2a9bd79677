"""Recurrent networks over a batch of sequences, forward and backward: the teaching version.

    recurrent_forward_<real>(gates, weight, bias, h0, c0, lengths, state, cell, output, h_n, c_n,
                             activated, inner, mode, reverse)
    recurrent_backward_<real>(grad_output, grad_h_n, grad_c_n, output, activated, inner, weight, h0,
                              c0, lengths, grad_h, grad_c, grad_gates, grad_hidden, grad_h0,
                              grad_c0, mode, reverse)

The formulas are those of ``kernels/cuda/recurrent.cuh``; the modes 0 to 3 are rnn_tanh, rnn_relu,
lstm and gru. An array without elements in its first axis stands for one that is not given.

A block walks through a sequence (and through others behind it), a thread has units u, u + threads,
… of it. Forward a thread multiplies the state by the rows of W_hh for its units; the state is held
twice in memory, as it was before the step and as it will be, so that one barrier of the block a
step is enough. Backward it multiplies the gradients of the gates, which the block has just written,
by its columns of W_hh. W_hh is read at every step: from the chip's second-level cache, which is
the limit.
"""

import math

import numpy as np
from numba import cuda, float32, float64

LSTM, GRU = 2, 3


def _kernels(real):
    """The two kernels that compute in the type `real`."""
    number = np.dtype(str(real)).type
    zero, half, one = number(0), number(0.5), number(1)

    @cuda.jit(device=True)
    def logistic(x):
        return half + half * math.tanh(half * x)

    @cuda.jit(device=True)
    def product(weight, row, state):
        """A row of W_hh times a state."""
        total = zero
        for k in range(weight.shape[1]):
            total += weight[row, k] * state[k]
        return total

    @cuda.jit(device=True)
    def length_of(lengths, b, steps):
        return min(max(lengths[b], 0), steps) if lengths.shape[0] > 0 else steps

    @cuda.jit
    def forward(
        gates, weight, bias, h0, c0, lengths, state, cell, output, h_n, c_n, activated, inner, mode,
        reverse,
    ):  # fmt: skip
        steps, batch, hidden = output.shape
        count = gates.shape[2] // hidden
        for b in range(cuda.blockIdx.x, batch, cuda.gridDim.x):
            end = length_of(lengths, b, steps)
            for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                state[0, b, u] = h0[b, u] if h0.shape[0] > 0 else zero
                cell[b, u] = c0[b, u] if c0.shape[0] > 0 else zero
            for s in range(steps):
                cuda.syncthreads()
                t = steps - 1 - s if reverse else s
                before, after = state[s % 2, b], state[1 - s % 2, b]
                x, active = gates[t, b], t < end
                for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                    h, c, kept = before[u], cell[b, u], zero
                    first = second = third = fourth = zero
                    if active:
                        first = product(weight, u, before)
                        if count > 1:
                            second = product(weight, hidden + u, before)
                            third = product(weight, 2 * hidden + u, before)
                        if count > 3:
                            fourth = product(weight, 3 * hidden + u, before)
                        if bias.shape[0] > 0:
                            first += bias[u]
                            if count > 1:
                                second += bias[hidden + u]
                                third += bias[2 * hidden + u]
                            if count > 3:
                                fourth += bias[3 * hidden + u]
                        if mode == LSTM:
                            first = logistic(x[u] + first)
                            second = logistic(x[hidden + u] + second)
                            third = math.tanh(x[2 * hidden + u] + third)
                            fourth = logistic(x[3 * hidden + u] + fourth)
                            c = second * c + first * third
                            h = fourth * math.tanh(c)
                        elif mode == GRU:
                            kept = third
                            first = logistic(x[u] + first)
                            second = logistic(x[hidden + u] + second)
                            third = math.tanh(x[2 * hidden + u] + first * kept)
                            h = third + second * (h - third)
                        elif mode == 0:
                            h = math.tanh(x[u] + first)
                        else:
                            h = x[u] + first
                            if h <= zero:  # NaN is not
                                h = zero
                    after[u] = h
                    cell[b, u] = c
                    output[t, b, u] = h if active else zero
                    if activated.shape[0] > 0:
                        activated[t, b, u] = first
                        activated[t, b, hidden + u] = second
                        activated[t, b, 2 * hidden + u] = third
                        if mode == LSTM:
                            activated[t, b, 3 * hidden + u] = fourth
                            kept = c
                        inner[t, b, u] = kept
            for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                h_n[b, u] = state[steps % 2, b, u]
                if mode == LSTM:
                    c_n[b, u] = cell[b, u]

    @cuda.jit
    def backward(
        grad_output, grad_h_n, grad_c_n, output, activated, inner, weight, h0, c0, lengths, grad_h,
        grad_c, grad_gates, grad_hidden, grad_h0, grad_c0, mode, reverse,
    ):  # fmt: skip
        steps, batch, hidden = output.shape
        for b in range(cuda.blockIdx.x, batch, cuda.gridDim.x):
            end = length_of(lengths, b, steps)
            for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                grad_h[b, u] = grad_h_n[b, u] if grad_h_n.shape[0] > 0 else zero
                grad_c[b, u] = grad_c_n[b, u] if grad_c_n.shape[0] > 0 else zero
            for s in range(steps):
                t = s if reverse else steps - 1 - s
                active, there = t < end, grad_gates[t, b]
                by_hidden = grad_hidden[t, b] if mode == GRU else there
                for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                    h, c = grad_h[b, u], grad_c[b, u]
                    first = second = third = fourth = last = zero
                    if active:
                        if grad_output.shape[0] > 0:
                            h += grad_output[t, b, u]
                        is_first = t + 1 == end if reverse else t == 0
                        earlier = t + 1 if reverse else t - 1
                        if mode == LSTM:
                            i, f = activated[t, b, u], activated[t, b, hidden + u]
                            g = activated[t, b, 2 * hidden + u]
                            o = activated[t, b, 3 * hidden + u]
                            before = zero
                            if not is_first:
                                before = inner[earlier, b, u]
                            elif c0.shape[0] > 0:
                                before = c0[b, u]
                            bent = math.tanh(inner[t, b, u])
                            c += h * o * (one - bent * bent)
                            first = c * g * i * (one - i)
                            second = c * before * f * (one - f)
                            third = c * i * (one - g * g)
                            fourth = h * bent * o * (one - o)
                            c *= f
                            h = zero
                        elif mode == GRU:
                            r, z = activated[t, b, u], activated[t, b, hidden + u]
                            n = activated[t, b, 2 * hidden + u]
                            before = zero
                            if not is_first:
                                before = output[earlier, b, u]
                            elif h0.shape[0] > 0:
                                before = h0[b, u]
                            third = h * (one - z) * (one - n * n)
                            second = h * (before - n) * z * (one - z)
                            first = third * inner[t, b, u] * r * (one - r)
                            last = third * r
                            h *= z
                        else:
                            y = output[t, b, u]
                            if mode == 0:
                                first = h * (one - y * y)
                            elif not y <= zero:
                                first = h
                            h = zero
                    grad_h[b, u] = h
                    grad_c[b, u] = c
                    there[u] = first
                    if mode >= LSTM:
                        there[hidden + u] = second
                        there[2 * hidden + u] = third
                    if mode == LSTM:
                        there[3 * hidden + u] = fourth
                    if mode == GRU:
                        by_hidden[u] = first
                        by_hidden[hidden + u] = second
                        by_hidden[2 * hidden + u] = last
                cuda.syncthreads()
                if active:
                    for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                        total = grad_h[b, u]
                        for row in range(weight.shape[0]):
                            total += by_hidden[row] * weight[row, u]
                        grad_h[b, u] = total
            for u in range(cuda.threadIdx.x, hidden, cuda.blockDim.x):
                grad_h0[b, u] = grad_h[b, u]
                if mode == LSTM:
                    grad_c0[b, u] = grad_c[b, u]

    return forward, backward


recurrent_forward_float32, recurrent_backward_float32 = _kernels(float32)
recurrent_forward_float64, recurrent_backward_float64 = _kernels(float64)
