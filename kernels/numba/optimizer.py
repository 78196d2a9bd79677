"""Weight updates over a flat arena, the teaching version: one thread an element, grid-stride loops.

    advance_step_<rule>(hyper)                      count the step; one thread
    sgd_update, adam_update, rmsprop_update, adagrad_update, lion_update
        (parameters, gradients, state ..., hyper, switches ...)

`hyper` is a float64 array; its slots have the numbers below. The gradient is first negated
(maximize) and then given the coupled weight decay. A state that a switch turns off is not touched.
"""

import math

from numba import cuda

# SGD: lr, momentum, dampening, weight_decay, step, gradient_scale
# Adam: lr, beta1, beta2, eps, weight_decay, step, bias_correction1, bias_correction2_sqrt
# RMSprop: lr, alpha, eps, weight_decay, momentum, step
# Adagrad: lr, lr_decay, weight_decay, eps, step, decayed_lr
# Lion: lr, beta1, beta2, weight_decay, step


@cuda.jit
def advance_step_sgd(hyper):
    hyper[4] += 1.0
    # the first step starts the buffer with the gradient itself, undamped
    hyper[5] = 1.0 if hyper[4] == 1.0 else 1.0 - hyper[2]


@cuda.jit
def advance_step_adam(hyper):
    hyper[5] += 1.0
    hyper[6] = 1.0 - hyper[1] ** hyper[5]
    hyper[7] = math.sqrt(1.0 - hyper[2] ** hyper[5])


@cuda.jit
def advance_step_rmsprop(hyper):
    hyper[5] += 1.0


@cuda.jit
def advance_step_adagrad(hyper):
    hyper[4] += 1.0
    hyper[5] = hyper[0] / (1.0 + (hyper[4] - 1.0) * hyper[1])


@cuda.jit
def advance_step_lion(hyper):
    hyper[4] += 1.0


@cuda.jit(device=True)
def effective_gradient(gradient, parameter, weight_decay, maximize):
    if maximize:
        gradient = -gradient
    # without the condition an infinite parameter would make 0 * inf = NaN where there is no decay
    return gradient + weight_decay * parameter if weight_decay != 0 else gradient


@cuda.jit
def sgd_update(parameters, gradients, buffer, hyper, has_momentum, nesterov, maximize):
    """b = momentum b + scale g;  w -= lr b, or lr (g + momentum b) with nesterov"""
    lr, momentum, weight_decay, scale = hyper[0], hyper[1], hyper[3], hyper[5]
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        g = effective_gradient(gradients[i], parameters[i], weight_decay, maximize)
        if has_momentum:
            b = momentum * buffer[i] + scale * g
            buffer[i] = b
            g = g + momentum * b if nesterov else b
        parameters[i] -= lr * g


@cuda.jit
def adam_update(parameters, gradients, mean, square, largest, hyper, amsgrad, decoupled, maximize):
    """m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²;  w -= lr' m / (sqrt(v') + eps)"""
    lr, beta1, beta2, eps, weight_decay = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    correction1, correction2_sqrt = hyper[6], hyper[7]
    decay = 1.0 - lr * weight_decay if decoupled else 1.0
    if decoupled:
        weight_decay = 0.0
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        g = effective_gradient(gradients[i], parameters[i], weight_decay, maximize)
        m = beta1 * mean[i] + (1.0 - beta1) * g
        v = beta2 * square[i] + (1.0 - beta2) * g * g
        mean[i] = m
        square[i] = v
        if amsgrad:
            # written so that NaN stays
            v = largest[i] if largest[i] > v or largest[i] != largest[i] else v
            largest[i] = v
        step = lr / correction1 * m / (math.sqrt(v) / correction2_sqrt + eps)
        parameters[i] = decay * parameters[i] - step


@cuda.jit
def rmsprop_update(
    parameters, gradients, square, buffer, mean, hyper, has_momentum, centered, maximize
):
    """v = alpha v + (1 - alpha) g²;  u = g / (sqrt(v) + eps);  w -= lr u"""
    lr, alpha, eps, weight_decay, momentum = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        g = effective_gradient(gradients[i], parameters[i], weight_decay, maximize)
        v = alpha * square[i] + (1.0 - alpha) * g * g
        square[i] = v
        if centered:
            a = alpha * mean[i] + (1.0 - alpha) * g
            mean[i] = a
            v -= a * a
            if v < 0:  # rounding may leave a negative difference
                v = 0.0
        u = g / (math.sqrt(v) + eps)
        if has_momentum:
            u = momentum * buffer[i] + u
            buffer[i] = u
        parameters[i] -= lr * u


@cuda.jit
def adagrad_update(parameters, gradients, total, hyper, maximize):
    """s += g²;  w -= lr' g / (sqrt(s) + eps)"""
    weight_decay, eps, decayed_lr = hyper[2], hyper[3], hyper[5]
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        g = effective_gradient(gradients[i], parameters[i], weight_decay, maximize)
        s = total[i] + g * g
        total[i] = s
        parameters[i] -= decayed_lr * g / (math.sqrt(s) + eps)


@cuda.jit
def lion_update(parameters, gradients, mean, hyper, maximize):
    """w = (1 - lr decay) w - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g"""
    lr, beta1, beta2, weight_decay = hyper[0], hyper[1], hyper[2], hyper[3]
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        g = -gradients[i] if maximize else gradients[i]
        mixed = beta1 * mean[i] + (1.0 - beta1) * g
        if mixed > 0:
            mixed = 1.0
        elif mixed < 0:
            mixed = -1.0
        parameters[i] = (1.0 - lr * weight_decay) * parameters[i] - lr * mixed
        mean[i] = beta2 * mean[i] + (1.0 - beta2) * g
