"""Norm of all gradients, clipping, gradients of penalties: the teaching version.

    sum_of_squares(x, partials)                        partials[block] = its part of sum of x²
    norm_of_partials(partials, norm)                   norm[0] = sqrt(sum of partials); one block
    clip_by_norm(gradients, norm, max_norm)            g *= min(1, max_norm / (norm[0] + 1e-6))
    clip_by_value(gradients, limit)                    g = min(max(g, -limit), limit)
    penalty_gradient(parameters, gradients, l1, twice_l2)   g += l1 sign(w) + twice_l2 w
"""

import math

from numba import cuda, float64

THREADS = 128  # threads of a block in both stages of the norm; a power of two


@cuda.jit(device=True)
def block_sum(value):
    """The sum of `value` over the threads of the block: a tree in shared memory."""
    shared = cuda.shared.array(THREADS, float64)
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = THREADS // 2
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    return shared[0]


@cuda.jit
def sum_of_squares(x, partials):
    total = 0.0
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        value = float64(x[i])  # the square of a large float32 would be infinite
        total += value * value
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit
def norm_of_partials(partials, norm):
    total = 0.0
    for i in range(cuda.threadIdx.x, partials.size, cuda.blockDim.x):
        total += partials[i]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        norm[0] = math.sqrt(total)


@cuda.jit
def clip_by_norm(gradients, norm, max_norm):
    coefficient = max_norm / (float64(norm[0]) + 1e-6)
    if coefficient >= 1.0:
        return
    for i in range(cuda.grid(1), gradients.size, cuda.gridsize(1)):
        if gradients[i] != 0:  # zeros stay zero even for a NaN norm
            gradients[i] *= coefficient


@cuda.jit
def clip_by_value(gradients, limit):
    for i in range(cuda.grid(1), gradients.size, cuda.gridsize(1)):
        if gradients[i] > limit:
            gradients[i] = limit
        elif gradients[i] < -limit:
            gradients[i] = -limit


@cuda.jit
def penalty_gradient(parameters, gradients, l1, twice_l2):
    for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
        w = parameters[i]
        penalty = w if w == 0 or w != w else math.copysign(l1, w)
        if twice_l2 != 0:  # 0 * inf would be NaN
            penalty += twice_l2 * w
        gradients[i] += penalty
