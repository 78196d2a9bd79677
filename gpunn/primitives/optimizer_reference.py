"""The weight updates in NumPy: the reference, and the hot path on the CPU.

A formula takes a dozen passes over its arrays. So an arena is walked through in blocks that stay in
the second-level cache for all of them, with operations in place and scratch memory that is kept.
The formulas are those of `gpunn.primitives.optimizer`; `hyper` has the slots of its `HYPER`.
"""

from __future__ import annotations

import functools
import math
import threading

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.samples import accumulator_dtype

BLOCK = 32768


class _Scratch(threading.local):
    """Four blocks of each accumulator dtype, kept for each thread."""

    def __init__(self):
        self.blocks = {}

    def get(self, dtype):
        if dtype not in self.blocks:
            self.blocks[dtype] = np.empty((4, BLOCK), dtype)
        return self.blocks[dtype]


_scratch = _Scratch()


def _in_blocks(rule, parameters, gradients, *states, weight_decay=0.0, maximize=False):
    """Call ``rule(w, g, *states, t)`` for each block; it changes w and the states, and may use t.

    g is the gradient with its sign and weight decay, and must not be changed.
    """
    accumulator = accumulator_dtype(parameters.dtype)
    narrow = parameters.dtype != accumulator
    scratch = _scratch.get(accumulator)
    with quiet():
        for start in range(0, parameters.size, BLOCK):
            block = slice(start, start + BLOCK)
            stored = w = parameters[block]
            g = gradients[block]
            t, own, wide, _ = scratch[:, : w.size]
            if narrow:
                np.copyto(wide, w)
                np.copyto(own, g)
                w, g = wide, own
            if maximize:
                g = np.negative(g, out=own)
            if weight_decay:
                np.multiply(w, weight_decay, out=t)
                g = np.add(g, t, out=own)
            rule(w, g, *(state[block] for state in states), t)
            if narrow:
                stored[...] = w


def unless_skipped(update):
    """The same with one more argument, `skip`: nothing is done where it is given and not 0."""
    count = update.__code__.co_argcount

    @functools.wraps(update)
    def wrapped(*args):
        skip = args[count] if len(args) > count else None
        if skip is None or not skip[0]:
            update(*args[:count])

    return wrapped


@unless_skipped
def advance_step(hyper, rule):
    if rule == "sgd":
        _, _, dampening, _, step, _ = hyper.tolist()
        hyper[4:] = step + 1, 1.0 if step == 0 else 1 - dampening
    elif rule == "adam":
        _, beta1, beta2, _, _, step, _, _ = hyper.tolist()
        step += 1
        hyper[5:] = step, 1 - beta1**step, math.sqrt(1 - beta2**step)
    elif rule == "adagrad":
        lr, lr_decay, _, _, step, _ = hyper.tolist()
        hyper[4:] = step + 1, lr / (1 + step * lr_decay)
    else:  # in the others nothing follows from the step, and it is the last slot
        hyper[-1] += 1


@unless_skipped
def sgd_update(parameters, gradients, momentum_buffer, hyper, nesterov, maximize):
    lr, momentum, _, weight_decay, _, gradient_scale = hyper.tolist()

    def plain(w, g, t):
        np.multiply(g, lr, out=t)
        np.subtract(w, t, out=w)

    def with_momentum(w, g, buffer, t):
        np.multiply(buffer, momentum, out=buffer)
        np.multiply(g, gradient_scale, out=t)
        np.add(buffer, t, out=buffer)
        if nesterov:
            np.multiply(buffer, momentum, out=t)
            np.add(t, g, out=t)
            np.multiply(t, lr, out=t)
        else:
            np.multiply(buffer, lr, out=t)
        np.subtract(w, t, out=w)

    states = () if momentum_buffer is None else (momentum_buffer,)
    _in_blocks(
        with_momentum if states else plain, parameters, gradients, *states,
        weight_decay=weight_decay, maximize=maximize,
    )  # fmt: skip


def _running_mean(mean, value, factor, t):
    """mean = factor mean + (1 - factor) value"""
    np.multiply(mean, factor, out=mean)
    np.multiply(value, 1 - factor, out=t)
    np.add(mean, t, out=mean)


def _running_mean_square(mean, value, factor, t):
    """mean = factor mean + (1 - factor) value²"""
    np.multiply(mean, factor, out=mean)
    np.square(value, out=t)  # twice as fast as value * value
    np.multiply(t, 1 - factor, out=t)
    np.add(mean, t, out=mean)


@unless_skipped
def adam_update(
    parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, decoupled, maximize
):
    lr, beta1, beta2, eps, weight_decay, _, correction1, correction2 = hyper.tolist()
    # sqrt(v) / c + eps = (sqrt(v) + eps c) / c: one pass less.
    eps, step_size = eps * correction2, lr * correction2 / correction1
    decay = 1 - lr * weight_decay if decoupled else 1.0

    def rule(w, g, m, v, *rest):
        t = rest[-1]
        _running_mean(m, g, beta1, t)
        _running_mean_square(v, g, beta2, t)
        if len(rest) == 2:
            v = np.maximum(rest[0], v, out=rest[0])
        np.sqrt(v, out=t)
        np.add(t, eps, out=t)
        np.divide(m, t, out=t)
        np.multiply(t, step_size, out=t)
        if decay != 1:
            np.multiply(w, decay, out=w)
        np.subtract(w, t, out=w)

    states = (exp_avg, exp_avg_sq) + (() if max_exp_avg_sq is None else (max_exp_avg_sq,))
    coupled = 0.0 if decoupled else weight_decay
    _in_blocks(rule, parameters, gradients, *states, weight_decay=coupled, maximize=maximize)


@unless_skipped
def rmsprop_update(parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper, maximize):
    lr, alpha, eps, weight_decay, momentum, _ = hyper.tolist()

    def rule(w, g, v, *rest):
        *rest, t = rest
        _running_mean_square(v, g, alpha, t)
        if grad_avg is None:
            np.sqrt(v, out=t)
        else:
            _running_mean(rest[-1], g, alpha, t)
            np.multiply(rest[-1], rest[-1], out=t)
            np.subtract(v, t, out=t)
            np.maximum(t, 0, out=t)  # rounding may leave a negative difference
            np.sqrt(t, out=t)
        np.add(t, eps, out=t)
        np.divide(g, t, out=t)
        if momentum_buffer is not None:
            np.multiply(rest[0], momentum, out=rest[0])
            np.add(rest[0], t, out=rest[0])
            np.multiply(rest[0], lr, out=t)
        else:
            np.multiply(t, lr, out=t)
        np.subtract(w, t, out=w)

    states = [state for state in (square_avg, momentum_buffer, grad_avg) if state is not None]
    _in_blocks(rule, parameters, gradients, *states, weight_decay=weight_decay, maximize=maximize)


@unless_skipped
def adagrad_update(parameters, gradients, state_sum, hyper, maximize):
    _, _, weight_decay, eps, _, decayed_lr = hyper.tolist()

    def rule(w, g, total, t):
        np.square(g, out=t)
        np.add(total, t, out=total)
        np.sqrt(total, out=t)
        np.add(t, eps, out=t)
        np.divide(g, t, out=t)
        np.multiply(t, decayed_lr, out=t)
        np.subtract(w, t, out=w)

    _in_blocks(
        rule, parameters, gradients, state_sum, weight_decay=weight_decay, maximize=maximize
    )


@unless_skipped
def lion_update(parameters, gradients, exp_avg, hyper, maximize):
    lr, beta1, beta2, weight_decay, _ = hyper.tolist()
    decay = 1 - lr * weight_decay
    spare = _scratch.get(accumulator_dtype(parameters.dtype))[3]
    ratio = beta1 / (1 - beta1)  # only the sign of beta1 m + (1 - beta1) g is wanted

    def rule(w, g, m, t):
        np.multiply(m, ratio, out=t)
        np.add(t, g, out=t)
        signs = np.sign(t, out=spare[: t.size])  # in place it is eight times slower
        np.multiply(signs, lr, out=t)
        if decay != 1:
            np.multiply(w, decay, out=w)
        np.subtract(w, t, out=w)
        _running_mean(m, g, beta2, t)

    _in_blocks(rule, parameters, gradients, exp_avg, maximize=maximize)
