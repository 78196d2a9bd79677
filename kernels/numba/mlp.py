"""Training of a multilayer perceptron, the teaching version: one block makes all steps.

    mlp_train_<dtype>(x, labels, wanted, order, parameters, first, second, hyper, integers, reals,
                      scratch, gradients, rows, losses, correct, smoothing, max_norm, seed, offset,
                      dropouts, options)

`integers` holds for each layer inputs, outputs, where weight and bias start in `parameters` (-1: no
bias), the number of the activation, the threshold of dropout, which dropout of the step it is (-1:
none), and where in `scratch` its memory starts: X (batch, inputs), then Z and dZ (batch, outputs)
each. `reals` holds its alpha and the scale of dropout. Threads share out the numbers of a stage,
and all wait for each other behind it. The formulas stand in kernels/cuda/mlp_train.cu.
"""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
from numba import cuda, float32, float64

MOMENTUM, ADAM, NESTEROV, DECOUPLED, MSE, CLIP = 1, 2, 4, 8, 16, 32  # bits of `options`
INPUTS, OUTPUTS, WEIGHT, BIAS, ACTIVATION, THRESHOLD, DROPOUT, PLACE = range(8)


def _neighbour(stem):
    """The module of another file of this folder."""
    name = f"gpunn_numba_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_activation = _neighbour("activation")
philox = _neighbour("random").philox


def _by_number(functions):
    """function(number, x, alpha) that calls the one of that number."""

    def either(number, function, others):
        @cuda.jit(device=True)
        def choose(chosen, x, alpha):
            if chosen == number:
                return function(x, alpha)
            return others(chosen, x, alpha)

        return choose

    first = functions[0]

    @cuda.jit(device=True)
    def made(chosen, x, alpha):
        return first(x, alpha)

    for number, function in enumerate(functions[1:], start=1):
        made = either(number, function, made)
    return made


@cuda.jit(device=True)
def keeps(layer, index, seed, offset, step, dropouts):
    """Whether dropout keeps element `index` of a layer's (batch, outputs)."""
    draw = offset + np.uint64(step) * np.uint64(dropouts) + np.uint64(layer[DROPOUT])
    words = philox(np.uint64(index // 4), draw, seed)
    which = index % 4
    word = words[0]
    if which == 1:
        word = words[1]
    elif which == 2:
        word = words[2]
    elif which == 3:
        word = words[3]
    return word >> np.uint64(8) >= np.uint64(layer[THRESHOLD])


def _kernel(number):
    """The kernel for a dtype."""
    functions = _activation._functions(number)
    value_of = _by_number([functions[name] for name in _activation._NAMES])
    slope_of = _by_number([functions[f"{name}_derivative"] for name in _activation._NAMES])
    zero, one, two = number(0), number(1), number(2)

    @cuda.jit(device=True)
    def update(parameters, first, second, i, g, hyper, options):
        """One parameter by its rule; slots as in HYPER of gpunn/primitives/optimizer.py."""
        w = parameters[i]
        if options & ADAM:
            decay = number(hyper[4])
            if options & DECOUPLED:
                w *= number(1.0 - hyper[0] * hyper[4])
            elif decay != zero:
                g += decay * w
            m = number(hyper[1]) * first[i] + number(1.0 - hyper[1]) * g
            v = number(hyper[2]) * second[i] + number(1.0 - hyper[2]) * (g * g)
            first[i] = m
            second[i] = v
            root = number(math.sqrt(v)) / number(hyper[7]) + number(hyper[3])
            w -= number(hyper[0]) / number(hyper[6]) * (m / root)
        else:
            decay = number(hyper[3])
            if decay != zero:
                g += decay * w
            if options & MOMENTUM:
                buffer = number(hyper[1]) * first[i] + number(hyper[5]) * g
                first[i] = buffer
                g = g + number(hyper[1]) * buffer if options & NESTEROV else buffer
            w -= number(hyper[0]) * g
        parameters[i] = w

    @cuda.jit(device=True)
    def row_loss(z, at, outputs, label, smoothing, count, slopes):
        """(loss, hit) of one row of logits, whose slopes are written."""
        largest, best = z[at], 0
        for n in range(1, outputs):
            value = z[at + n]
            if value > z[at + best] or (value != value and z[at + best] == z[at + best]):
                best = n
            if value > largest or value != value:
                largest = value
        total, spread = zero, zero
        for n in range(outputs):
            far = z[at + n] - largest
            total += math.exp(far)
            spread += far
        log_sum = math.log(total)
        known = label >= 0 and label < outputs
        loss = number(math.nan)
        if known:
            loss = log_sum - (z[at + label] - largest)
        if smoothing > zero:
            loss = (one - smoothing) * loss + smoothing * (log_sum - spread / number(outputs))
        for n in range(outputs):
            slope = math.exp(z[at + n] - largest - log_sum) - smoothing / number(outputs)
            if n == label:
                slope -= one - smoothing
            slopes[n] = slope / count if known else loss
        return loss, 1.0 if best == label else 0.0

    @cuda.jit(device=True)
    def forward(layer, real, after, batch, rows, parameters, scratch, step, seed, offset, dropouts):
        """Z of a layer, and X of the layer behind it at `after` (-1: it is the last)."""
        inputs, outputs, place = layer[INPUTS], layer[OUTPUTS], layer[PLACE]
        pre = place + batch * inputs
        for i in range(cuda.threadIdx.x, rows * outputs, cuda.blockDim.x):
            row, n = i // outputs, i % outputs
            z = zero
            for k in range(inputs):
                weight = parameters[layer[WEIGHT] + n * inputs + k]
                z += scratch[place + row * inputs + k] * weight
            if layer[BIAS] >= 0:
                z += parameters[layer[BIAS] + n]
            scratch[pre + i] = z
            if after >= 0:
                out = value_of(layer[ACTIVATION], z, real[0])
                if layer[DROPOUT] >= 0:
                    kept = keeps(layer, i, seed, offset, step, dropouts)
                    out = out * real[1] if kept else zero
                scratch[after + i] = out

    @cuda.jit(device=True)
    def backward(
        layer, below, real, batch, rows, parameters, scratch, step, seed, offset, dropouts
    ):  # fmt: skip
        """dZ of the layer below from dZ of a layer."""
        inputs, outputs = layer[INPUTS], layer[OUTPUTS]
        slope = layer[PLACE] + batch * (inputs + outputs)
        pre = below[PLACE] + batch * below[INPUTS]
        for i in range(cuda.threadIdx.x, rows * inputs, cuda.blockDim.x):
            row, k = i // inputs, i % inputs
            grad = zero
            for n in range(outputs):
                weight = parameters[layer[WEIGHT] + n * inputs + k]
                grad += scratch[slope + row * outputs + n] * weight
            if below[DROPOUT] >= 0:
                kept = keeps(below, i, seed, offset, step, dropouts)
                grad = grad * real[1] if kept else zero
            grad *= slope_of(below[ACTIVATION], scratch[pre + i], real[0])
            scratch[pre + batch * inputs + i] = grad

    @cuda.jit(device=True)
    def weight_gradients(layer, batch, rows, scratch, gradients):
        inputs, outputs, place = layer[INPUTS], layer[OUTPUTS], layer[PLACE]
        slope = place + batch * (inputs + outputs)
        for i in range(cuda.threadIdx.x, outputs * inputs, cuda.blockDim.x):
            n, k = i // inputs, i % inputs
            total = zero
            for row in range(rows):
                total += scratch[slope + row * outputs + n] * scratch[place + row * inputs + k]
            gradients[layer[WEIGHT] + i] = total
        if layer[BIAS] >= 0:
            for n in range(cuda.threadIdx.x, outputs, cuda.blockDim.x):
                total = zero
                for row in range(rows):
                    total += scratch[slope + row * outputs + n]
                gradients[layer[BIAS] + n] = total

    @cuda.jit(device=True)
    def squares(layer, gradients):
        total = 0.0
        for i in range(layer[INPUTS] * layer[OUTPUTS]):
            total += float64(gradients[layer[WEIGHT] + i]) ** 2
        if layer[BIAS] >= 0:
            for n in range(layer[OUTPUTS]):
                total += float64(gradients[layer[BIAS] + n]) ** 2
        return total

    @cuda.jit
    def mlp_train(
        x, labels, wanted, order, parameters, first, second, hyper, integers, reals, scratch,
        gradients, row_results, losses, correct, smoothing, max_norm, seed, offset, dropouts,
        options,
    ):  # fmt: skip
        steps, batch = order.shape
        layers, thread, threads = integers.shape[0], cuda.threadIdx.x, cuda.blockDim.x
        inputs, last = x.shape[1], integers[layers - 1]
        outputs = last[OUTPUTS]
        logits = last[PLACE] + batch * last[INPUTS]
        for step in range(steps):
            rows = 0
            while rows < batch and order[step, rows] != -1:
                rows += 1
            for i in range(thread, rows * inputs, threads):
                sample = order[step, i // inputs]
                exists = sample >= 0 and sample < x.shape[0]
                scratch[i] = x[sample, i % inputs] if exists else number(math.nan)
            cuda.syncthreads()
            for k in range(layers):
                after = integers[k + 1, PLACE] if k + 1 < layers else -1
                forward(
                    integers[k], reals[k], after, batch, rows, parameters, scratch, step, seed,
                    offset, dropouts,
                )  # fmt: skip
                cuda.syncthreads()
            for row in range(thread, rows, threads):
                sample, at = order[step, row], logits + row * outputs
                if not (sample >= 0 and sample < x.shape[0]):
                    sample = 0  # its logits are NaN
                hit, loss = 0.0, zero
                if options & MSE:
                    each = number(rows) * number(outputs)
                    for n in range(outputs):
                        difference = scratch[at + n] - wanted[sample, n]
                        loss += difference * difference
                        scratch[at + batch * outputs + n] = two * difference / each
                else:
                    slopes = scratch[at + batch * outputs :]
                    loss, hit = row_loss(
                        scratch, at, outputs, labels[sample], smoothing, number(rows), slopes
                    )
                row_results[0, row], row_results[1, row] = loss, hit
            cuda.syncthreads()
            if thread == 0:
                loss, hits = 0.0, 0.0
                for row in range(rows):
                    loss += row_results[0, row]
                    hits += row_results[1, row]
                each = outputs if options & MSE else 1
                losses[step] = loss / (rows * each)
                correct[step] = int(hits)
            for k in range(layers - 1, 0, -1):
                backward(
                    integers[k], integers[k - 1], reals[k - 1], batch, rows, parameters, scratch,
                    step, seed, offset, dropouts,
                )  # fmt: skip
                cuda.syncthreads()
            for k in range(layers):
                weight_gradients(integers[k], batch, rows, scratch, gradients)
            cuda.syncthreads()
            coefficient = one
            if options & CLIP:
                total = 0.0
                for k in range(layers):
                    total += squares(integers[k], gradients)
                ratio = max_norm / (float64(number(math.sqrt(total))) + 1e-6)
                if not ratio >= 1.0:
                    coefficient = number(ratio)
            for k in range(layers):
                layer = integers[k]
                weights = layer[INPUTS] * layer[OUTPUTS]
                count = weights + layer[OUTPUTS] if layer[BIAS] >= 0 else weights
                for j in range(thread, count, threads):
                    i = layer[WEIGHT] + j if j < weights else layer[BIAS] + j - weights
                    g = gradients[i]
                    if coefficient != one and g != zero:  # zeros stay zero, also for NaN
                        g *= coefficient
                    update(parameters, first, second, i, g, hyper[step], options)
            cuda.syncthreads()

    return mlp_train


mlp_train_float32, mlp_train_float64 = _kernel(float32), _kernel(float64)
