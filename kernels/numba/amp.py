"""The loss scale of float16 training: the teaching version.

    unscale_gradients(gradients, scale, found)            g *= 1 / scale[0]; found[0] = 1 if some g
                                                          is infinite or NaN
    update_loss_scale(state, growth, backoff, interval)   one thread; state: scale, growth tracker,
                                                          found, steps skipped

All threads that find something write the same number to one place, so it does not matter which
comes last.
"""

import math

from numba import cuda, float64


@cuda.jit
def unscale_gradients(gradients, scale, found):
    factor = gradients.dtype.type(1.0 / float64(scale[0]))
    for i in range(cuda.grid(1), gradients.size, cuda.gridsize(1)):
        value = gradients[i]
        if math.isinf(value) or math.isnan(value):
            found[0] = 1.0
        gradients[i] = value * factor


@cuda.jit
def update_loss_scale(state, growth, backoff, interval):
    if cuda.grid(1) == 0:
        if state[2] != 0:
            state[0] *= backoff
            state[1] = 0.0
            state[3] += 1.0
        elif state[1] + 1.0 >= interval:
            larger = state[0] * growth
            if not math.isinf(larger):
                state[0] = larger
            state[1] = 0.0
        else:
            state[1] += 1.0
        state[2] = 0.0
