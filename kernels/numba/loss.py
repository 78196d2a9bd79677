"""Elementwise losses, the teaching version: one thread an element, in a grid-stride loop.

    loss_forward_<name>            out[i] = loss(p[i], t[i])
    loss_forward_reduced_<name>    partial[block] = the block's part of the sum
    loss_finish                    out[0] = the sum of the partial sums / divisor
    loss_backward_<name>           out[i] = grad[i] * slope(p[i], t[i])
    loss_backward_reduced_<name>   out[i] = grad[0] / divisor * slope(p[i], t[i])

slope is the derivative of the loss with respect to p. `delta` belongs to Huber's loss; `weight` and
`positive` belong to binary cross-entropy, repeat along the elements, and are empty where there are
none.
"""

import math

from numba import cuda, float64

BLOCK = 64  # threads of a block that sums


@cuda.jit(device=True)
def mse(p, t, i, delta, weight, positive):
    return (p - t) * (p - t)


@cuda.jit(device=True)
def mse_slope(p, t, i, delta, weight, positive):
    return 2.0 * (p - t)


@cuda.jit(device=True)
def l1(p, t, i, delta, weight, positive):
    return abs(p - t)


@cuda.jit(device=True)
def l1_slope(p, t, i, delta, weight, positive):
    d = p - t
    if d > 0:
        return 1.0
    return -1.0 if d < 0 else d


@cuda.jit(device=True)
def huber(p, t, i, delta, weight, positive):
    d = abs(p - t)
    return delta * (d - 0.5 * delta) if d > delta else 0.5 * d * d


@cuda.jit(device=True)
def huber_slope(p, t, i, delta, weight, positive):
    d = p - t
    if d > delta:
        return delta
    return -delta if d < -delta else d


@cuda.jit(device=True)
def factor(factors, i):
    return factors[i % factors.size] if factors.size > 0 else 1.0


@cuda.jit(device=True)
def binary_cross_entropy(p, t, i, delta, weight, positive):
    # (1 - t) softplus(p) + positive t softplus(-p), where softplus(±p) is a straight line,
    # max(±p, 0), and a bend of at most log(2) at the origin
    no, yes = 1.0 - t, factor(positive, i) * t
    far = no if p > 0 else yes
    line = far * abs(p) if far != 0 else 0.0  # 0 * inf is 0: a certain and right answer
    return factor(weight, i) * (line + (no + yes) * math.log1p(math.exp(-abs(p))))


@cuda.jit(device=True)
def binary_cross_entropy_slope(p, t, i, delta, weight, positive):
    # (1 - t) sigmoid(p) - positive t sigmoid(-p), both sigmoids to full precision
    no, yes = 1.0 - t, factor(positive, i) * t
    e = math.exp(-abs(p))
    large, small = 1.0 / (1.0 + e), e / (1.0 + e)
    slope = no * large - yes * small if p >= 0 else no * small - yes * large
    return factor(weight, i) * slope


@cuda.jit(device=True)
def block_sum(value):
    """The sum of `value` over the block, for every thread: a tree in shared memory."""
    tree = cuda.shared.array(BLOCK, float64)
    me = cuda.threadIdx.x
    tree[me] = value
    width = BLOCK // 2
    while width > 0:
        cuda.syncthreads()
        if me < width:
            tree[me] += tree[me + width]
        width //= 2
    cuda.syncthreads()
    return tree[0]


@cuda.jit
def loss_finish(partial, out, divisor):
    mine = 0.0
    for block in range(cuda.threadIdx.x, partial.size, BLOCK):
        mine += partial[block]
    total = block_sum(mine)
    if cuda.threadIdx.x == 0:
        out[0] = total / divisor


def _forward(loss):
    @cuda.jit
    def loss_forward(p, t, out, delta, weight, positive):
        for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
            out[i] = loss(p[i], t[i], i, delta, weight, positive)

    return loss_forward


def _forward_reduced(loss):
    @cuda.jit
    def loss_forward_reduced(p, t, partial, delta, weight, positive):
        mine = 0.0
        for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
            mine += loss(p[i], t[i], i, delta, weight, positive)
        total = block_sum(mine)
        if cuda.threadIdx.x == 0:
            partial[cuda.blockIdx.x] = total

    return loss_forward_reduced


def _backward(slope):
    @cuda.jit
    def loss_backward(grad, p, t, out, delta, weight, positive):
        for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
            out[i] = grad[i] * slope(p[i], t[i], i, delta, weight, positive)

    return loss_backward


def _backward_reduced(slope):
    @cuda.jit
    def loss_backward_reduced(grad, p, t, out, divisor, delta, weight, positive):
        scale = grad[0] / divisor
        for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
            out[i] = scale * slope(p[i], t[i], i, delta, weight, positive)

    return loss_backward_reduced


for _name in ("mse", "l1", "huber", "binary_cross_entropy"):
    globals()[f"loss_forward_{_name}"] = _forward(globals()[_name])
    globals()[f"loss_forward_reduced_{_name}"] = _forward_reduced(globals()[_name])
    globals()[f"loss_backward_{_name}"] = _backward(globals()[f"{_name}_slope"])
    globals()[f"loss_backward_reduced_{_name}"] = _backward_reduced(globals()[f"{_name}_slope"])
