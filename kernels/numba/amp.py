"""The loss scale of float16 training: the teaching version.

    unscale_gradients(gradients, scale, found)            g *= 1 / scale[0]; found[0] = 1 if some g
                                                          is infinite or NaN
    update_loss_scale(state, growth, backoff, interval)   one thread; state: scale, growth tracker,
                                                          found, steps skipped

All threads that find something write the same number to one place, so it does not matter which
comes last.
"""

import math

from numba import cuda


@cuda.jit
def unscale_gradients(gradients, scale, found):
    real = gradients.dtype.type
    factor = real(1) / real(scale[0])
    for i in range(cuda.grid(1), gradients.size, cuda.gridsize(1)):
        value = gradients[i]
        if math.isinf(value) or math.isnan(value):
            found[0] = 1
        gradients[i] = value * factor


@cuda.jit
def update_loss_scale(state, growth, backoff, interval):
    zero, one = state.dtype.type(0), state.dtype.type(1)
    if cuda.grid(1) == 0:
        if state[2] != zero:
            state[0] *= backoff
            state[1] = zero
            state[3] += one
        elif state[1] + one >= interval:
            larger = state[0] * growth
            if not math.isinf(larger):
                state[0] = larger
            state[1] = zero
        else:
            state[1] += one
        state[2] = zero
