"""Connectionist temporal classification, the teaching version; the formulas stand in ctc.cu.

    ctc_forward(log_probs, targets, extents, blank, zero, never, loss, alpha)
    ctc_backward(log_probs, targets, extents, blank, zero, never, beta)
    ctc_gradient(grad, log_probs, targets, extents, loss, alpha, beta, blank, zero, never,
                 zero_infinity, out)

log_probs and out are (steps, batch, classes), alpha and beta (batch, steps, states), extents
(3, batch): steps, labels, and where the labels begin; zero and never are 0 and -inf in the dtype,
because a literal would be a float64 and all that follows from it, too.

The recursions: a block for each sequence and a thread for each state, with the row before in global
memory and a barrier a step; the latency of the steps is the limit. The gradient: a block for each
row of classes and a thread for each class, which looks through all states for its own, in order:
the same bits each time. What is not valid, a length or a label out of range, makes NaN.
"""

import math

from numba import cuda


@cuda.jit(device=True)
def class_of(targets, start, state, blank):
    return targets[start + state // 2] if state % 2 == 1 else blank


@cuda.jit(device=True)
def skips(targets, start, state):
    """Whether a path may come to this state from the one before the last."""
    if state % 2 == 0 or state < 3:
        return False
    return targets[start + state // 2] != targets[start + state // 2 - 1]


@cuda.jit(device=True)
def log_sum(a, b, c, zero, never):
    top = max(a, max(b, c))
    if top == never:
        top = zero
    total = math.exp(a - top) + math.exp(b - top) + math.exp(c - top)
    return never if total == zero else top + math.log(total)


@cuda.jit(device=True)
def known_lengths(log_probs, targets, extents, b):
    steps, labels, start = extents[0, b], extents[1, b], extents[2, b]
    known = 0 <= steps <= log_probs.shape[0]
    return known and labels >= 0 and start >= 0 and start + labels <= targets.size


@cuda.jit(device=True)
def known_labels(log_probs, targets, extents, b, blank):
    """Whether all labels are classes and not the blank, of a sequence with `known_lengths`."""
    known = True
    for k in range(extents[2, b], extents[2, b] + extents[1, b]):
        known = known and 0 <= targets[k] < log_probs.shape[2] and targets[k] != blank
    return known


@cuda.jit
def ctc_forward(log_probs, targets, extents, blank, zero, never, loss, alpha):
    b = cuda.blockIdx.x
    steps, labels, start = extents[0, b], extents[1, b], extents[2, b]
    states, last = alpha.shape[2], 2 * labels
    fits = last < states
    known = known_lengths(log_probs, targets, extents, b)
    if known and fits:
        known = known_labels(log_probs, targets, extents, b, blank)
    if not fits or not known:
        steps = 0
    for t in range(alpha.shape[1]):
        for s in range(cuda.threadIdx.x, states, cuda.blockDim.x):
            value = never
            if t < steps and s <= last:
                y = log_probs[t, b, class_of(targets, start, s, blank)]
                if t > 0:
                    one, two = never, never
                    if s > 0:
                        one = alpha[b, t - 1, s - 1]
                    if skips(targets, start, s):
                        two = alpha[b, t - 1, s - 2]
                    value = y + log_sum(alpha[b, t - 1, s], one, two, zero, never)
                elif s < 2:
                    value = y
            alpha[b, t, s] = value
        cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        result = -never
        if fits and steps == 0 and labels == 0:
            result = zero
        if steps > 0:
            before = never
            if labels > 0:
                before = alpha[b, steps - 1, last - 1]
            result = -log_sum(alpha[b, steps - 1, last], before, never, zero, never)
        if not known:
            result = never - never
        loss[b] = result


@cuda.jit
def ctc_backward(log_probs, targets, extents, blank, zero, never, beta):
    b = cuda.blockIdx.x
    steps, labels, start = extents[0, b], extents[1, b], extents[2, b]
    last = 2 * labels
    known = known_lengths(log_probs, targets, extents, b) and last < beta.shape[2]
    if known and known_labels(log_probs, targets, extents, b, blank):
        for t in range(steps - 1, -1, -1):
            for s in range(cuda.threadIdx.x, last + 1, cuda.blockDim.x):
                value = never
                if t == steps - 1:
                    if s + 1 >= last:
                        value = zero
                else:
                    y = log_probs[t + 1, b, class_of(targets, start, s, blank)]
                    stay, one, two = beta[b, t + 1, s] + y, never, never
                    if s + 1 <= last:
                        y = log_probs[t + 1, b, class_of(targets, start, s + 1, blank)]
                        one = beta[b, t + 1, s + 1] + y
                    if s + 2 <= last and skips(targets, start, s + 2):
                        y = log_probs[t + 1, b, class_of(targets, start, s + 2, blank)]
                        two = beta[b, t + 1, s + 2] + y
                    value = log_sum(stay, one, two, zero, never)
                beta[b, t, s] = value
            cuda.syncthreads()


@cuda.jit
def ctc_gradient(
    grad, log_probs, targets, extents, loss, alpha, beta, blank, zero, never, zero_infinity, out
):
    steps, batch, classes = out.shape
    for row in range(cuda.blockIdx.x, steps * batch, cuda.gridDim.x):
        t, b = row // batch, row % batch
        labels, start, infinite = extents[1, b], extents[2, b], loss[b] == -never
        known = known_lengths(log_probs, targets, extents, b)
        for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
            value = never - never
            if (known and t >= extents[0, b]) or (infinite and zero_infinity):
                value = zero
            elif loss[b] < -never:  # else it is infinite, or NaN: nothing may be read then
                share, whole = zero, zero
                for s in range(2 * labels + 1):
                    part = math.exp(alpha[b, t, s] + beta[b, t, s] + loss[b])
                    whole += part
                    if class_of(targets, start, s, blank) == c:
                        share += part
                value = grad[b] * (math.exp(log_probs[t, b, c]) - share / whole)
            out[t, b, c] = value
