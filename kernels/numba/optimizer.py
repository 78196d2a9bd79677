"""Weight updates over a flat arena: each thread two elements at a time, in a grid-stride loop.

    advance_step_<rule>(hyper, skip, has_skip)      count the step; one thread
    sgd_update, adam_update, rmsprop_update, adagrad_update, lion_update
        (parameters, gradients, state ..., hyper, switches ..., skip, has_skip)

Where skip[0] is not 0 nothing is done, if there is a skip.

`hyper` is a float64 array; its slots have the numbers below. The gradient is first negated
(maximize) and then given the coupled weight decay. A state that a switch turns off is not touched.

The limit is memory: parameter, gradient and states are read once, parameter and states written
once, 28 bytes a parameter for Adam in float32. So a thread asks for all that two elements need
before it computes; where no second one is left, it takes the first one twice, and stores the same
number twice. Hyperparameters are converted to the arena's dtype once: beside a float64 all that
follows would be computed in float64, at a fraction of the speed.
"""

import math

from numba import cuda

# SGD: lr, momentum, dampening, weight_decay, step, gradient_scale
# Adam: lr, beta1, beta2, eps, weight_decay, step, bias_correction1, bias_correction2_sqrt
# RMSprop: lr, alpha, eps, weight_decay, momentum, step
# Adagrad: lr, lr_decay, weight_decay, eps, step, decayed_lr
# Lion: lr, beta1, beta2, weight_decay, step


@cuda.jit
def advance_step_sgd(hyper, skip, has_skip):
    if has_skip and skip[0] != 0:
        return
    hyper[4] += 1.0
    # the first step starts the buffer with the gradient itself, undamped
    hyper[5] = 1.0 if hyper[4] == 1.0 else 1.0 - hyper[2]


@cuda.jit
def advance_step_adam(hyper, skip, has_skip):
    if has_skip and skip[0] != 0:
        return
    hyper[5] += 1.0
    hyper[6] = 1.0 - hyper[1] ** hyper[5]
    hyper[7] = math.sqrt(1.0 - hyper[2] ** hyper[5])


@cuda.jit
def advance_step_rmsprop(hyper, skip, has_skip):
    if has_skip and skip[0] != 0:
        return
    hyper[5] += 1.0


@cuda.jit
def advance_step_adagrad(hyper, skip, has_skip):
    if has_skip and skip[0] != 0:
        return
    hyper[4] += 1.0
    hyper[5] = hyper[0] / (1.0 + (hyper[4] - 1.0) * hyper[1])


@cuda.jit
def advance_step_lion(hyper, skip, has_skip):
    if has_skip and skip[0] != 0:
        return
    hyper[4] += 1.0


@cuda.jit(device=True)
def effective_gradient(gradient, parameter, weight_decay, decays, maximize):
    if maximize:
        gradient = -gradient
    # without the condition an infinite parameter would make 0 * inf = NaN where there is no decay
    return gradient + weight_decay * parameter if decays else gradient


@cuda.jit(device=True)
def sgd(w, g, b, constants, decays, has_momentum, nesterov, maximize):
    lr, momentum, weight_decay, scale = constants
    g = effective_gradient(g, w, weight_decay, decays, maximize)
    if has_momentum:
        b = momentum * b + scale * g
        g = g + momentum * b if nesterov else b
    return w - lr * g, b


@cuda.jit
def sgd_update(
    parameters, gradients, buffer, hyper, has_momentum, nesterov, maximize, skip, has_skip
):
    """b = momentum b + scale g;  w -= lr b, or lr (g + momentum b) with nesterov"""
    if has_skip and skip[0] != 0:
        return
    real = parameters.dtype.type
    constants = real(hyper[0]), real(hyper[1]), real(hyper[3]), real(hyper[5])
    decays, n, step = hyper[3] != 0, parameters.size, cuda.gridsize(1)
    b0 = b1 = real(0)
    for i in range(cuda.grid(1), n, 2 * step):
        j = i + step if i + step < n else i
        w0, w1, g0, g1 = parameters[i], parameters[j], gradients[i], gradients[j]
        if has_momentum:
            b0, b1 = buffer[i], buffer[j]
        w0, b0 = sgd(w0, g0, b0, constants, decays, has_momentum, nesterov, maximize)
        w1, b1 = sgd(w1, g1, b1, constants, decays, has_momentum, nesterov, maximize)
        parameters[i], parameters[j] = w0, w1
        if has_momentum:
            buffer[i], buffer[j] = b0, b1


@cuda.jit(device=True)
def adam(w, g, m, v, top, constants, decays, amsgrad, maximize):
    beta1, rest1, beta2, rest2, eps, step_size, correction2, decay, weight_decay = constants
    g = effective_gradient(g, w, weight_decay, decays, maximize)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    second = v
    if amsgrad:
        top = second = top if top > v or top != top else v  # written so that NaN stays
    return decay * w - step_size * (m / (math.sqrt(second) * correction2 + eps)), m, v, top


@cuda.jit
def adam_update(
    parameters, gradients, mean, square, largest, hyper, amsgrad, decoupled, maximize, skip,
    has_skip,
):  # fmt: skip
    """m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²;  w -= lr' m / (sqrt(v') + eps)"""
    if has_skip and skip[0] != 0:
        return
    real = parameters.dtype.type
    coupled = 0.0 if decoupled else hyper[4]
    decay = 1.0 - hyper[0] * hyper[4] if decoupled else 1.0
    constants = (
        real(hyper[1]), real(1.0 - hyper[1]), real(hyper[2]), real(1.0 - hyper[2]), real(hyper[3]),
        real(hyper[0]) / real(hyper[6]), real(1) / real(hyper[7]), real(decay), real(coupled),
    )  # fmt: skip
    decays, n, step = coupled != 0, parameters.size, cuda.gridsize(1)
    t0 = t1 = real(0)
    for i in range(cuda.grid(1), n, 2 * step):
        j = i + step if i + step < n else i
        w0, w1, g0, g1 = parameters[i], parameters[j], gradients[i], gradients[j]
        m0, m1, v0, v1 = mean[i], mean[j], square[i], square[j]
        if amsgrad:
            t0, t1 = largest[i], largest[j]
        w0, m0, v0, t0 = adam(w0, g0, m0, v0, t0, constants, decays, amsgrad, maximize)
        w1, m1, v1, t1 = adam(w1, g1, m1, v1, t1, constants, decays, amsgrad, maximize)
        parameters[i], parameters[j] = w0, w1
        mean[i], mean[j] = m0, m1
        square[i], square[j] = v0, v1
        if amsgrad:
            largest[i], largest[j] = t0, t1


@cuda.jit(device=True)
def rmsprop(w, g, v, b, a, constants, decays, has_momentum, centered, maximize):
    lr, alpha, rest, eps, weight_decay, momentum, zero = constants
    g = effective_gradient(g, w, weight_decay, decays, maximize)
    v = alpha * v + rest * (g * g)
    variance = v
    if centered:
        a = alpha * a + rest * g
        variance = v - a * a
        if variance < zero:  # rounding may leave a negative difference
            variance = zero
    u = g / (math.sqrt(variance) + eps)
    if has_momentum:
        u = b = momentum * b + u
    return w - lr * u, v, b, a


@cuda.jit
def rmsprop_update(
    parameters, gradients, square, buffer, mean, hyper, has_momentum, centered, maximize, skip,
    has_skip,
):  # fmt: skip
    """v = alpha v + (1 - alpha) g²;  u = g / (sqrt(v) + eps);  w -= lr u"""
    if has_skip and skip[0] != 0:
        return
    real = parameters.dtype.type
    zero = real(0)
    constants = (
        real(hyper[0]), real(hyper[1]), real(1.0 - hyper[1]), real(hyper[2]), real(hyper[3]),
        real(hyper[4]), zero,
    )  # fmt: skip
    decays, n, step = hyper[3] != 0, parameters.size, cuda.gridsize(1)
    b0 = b1 = a0 = a1 = zero
    for i in range(cuda.grid(1), n, 2 * step):
        j = i + step if i + step < n else i
        w0, w1, g0, g1 = parameters[i], parameters[j], gradients[i], gradients[j]
        v0, v1 = square[i], square[j]
        if has_momentum:
            b0, b1 = buffer[i], buffer[j]
        if centered:
            a0, a1 = mean[i], mean[j]
        w0, v0, b0, a0 = rmsprop(
            w0, g0, v0, b0, a0, constants, decays, has_momentum, centered, maximize
        )
        w1, v1, b1, a1 = rmsprop(
            w1, g1, v1, b1, a1, constants, decays, has_momentum, centered, maximize
        )
        parameters[i], parameters[j] = w0, w1
        square[i], square[j] = v0, v1
        if has_momentum:
            buffer[i], buffer[j] = b0, b1
        if centered:
            mean[i], mean[j] = a0, a1


@cuda.jit(device=True)
def adagrad(w, g, s, constants, decays, maximize):
    lr, weight_decay, eps = constants
    g = effective_gradient(g, w, weight_decay, decays, maximize)
    s += g * g
    return w - lr * (g / (math.sqrt(s) + eps)), s


@cuda.jit
def adagrad_update(parameters, gradients, total, hyper, maximize, skip, has_skip):
    """s += g²;  w -= lr' g / (sqrt(s) + eps)"""
    if has_skip and skip[0] != 0:
        return
    real = parameters.dtype.type
    constants = real(hyper[5]), real(hyper[2]), real(hyper[3])
    decays, n, step = hyper[2] != 0, parameters.size, cuda.gridsize(1)
    for i in range(cuda.grid(1), n, 2 * step):
        j = i + step if i + step < n else i
        w0, w1, g0, g1 = parameters[i], parameters[j], gradients[i], gradients[j]
        s0, s1 = total[i], total[j]
        w0, s0 = adagrad(w0, g0, s0, constants, decays, maximize)
        w1, s1 = adagrad(w1, g1, s1, constants, decays, maximize)
        parameters[i], parameters[j] = w0, w1
        total[i], total[j] = s0, s1


@cuda.jit(device=True)
def lion(w, g, m, constants, maximize):
    lr, decay, beta1, rest1, beta2, rest2, zero, one = constants
    if maximize:
        g = -g
    mixed = beta1 * m + rest1 * g
    sign = one if mixed > zero else -one if mixed < zero else mixed  # 0 stays 0, NaN NaN
    return decay * w - lr * sign, beta2 * m + rest2 * g


@cuda.jit
def lion_update(parameters, gradients, mean, hyper, maximize, skip, has_skip):
    """w = (1 - lr decay) w - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g"""
    if has_skip and skip[0] != 0:
        return
    real = parameters.dtype.type
    constants = (
        real(hyper[0]), real(1.0 - hyper[0] * hyper[3]), real(hyper[1]), real(1.0 - hyper[1]),
        real(hyper[2]), real(1.0 - hyper[2]), real(0), real(1),
    )  # fmt: skip
    n, step = parameters.size, cuda.gridsize(1)
    for i in range(cuda.grid(1), n, 2 * step):
        j = i + step if i + step < n else i
        w0, w1, g0, g1 = parameters[i], parameters[j], gradients[i], gradients[j]
        m0, m1 = mean[i], mean[j]
        w0, m0 = lion(w0, g0, m0, constants, maximize)
        w1, m1 = lion(w1, g1, m1, constants, maximize)
        parameters[i], parameters[j] = w0, w1
        mean[i], mean[j] = m0, m1
