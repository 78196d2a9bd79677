"""Batch, group and instance norm: statistics of sets of channels, forward and backward.

Arrays of values are flat: value (o, c, l) lies at o * channels * length + c * step + l * along,
with (step, along) = (1, channels) where the channels are innermost, else (length, 1). An array that
is not there has size 0. Value (o, c, l) belongs to the set k = c of batch norm (groups 0), or
k = o * groups + c // group:

    channel_statistics   mean, 1 / sqrt(variance + eps) and variance of each set: a block for a set
    channel_running      running = (1 - momentum) running + momentum * the average over the samples
    channel_apply        y = act((x - mean) * reciprocal * weight + bias + residual)
    channel_sums         sums of d = grad act'(z) and of d h for each (o, c): a block for one
    channel_totals       dweight, dbias and, for each set, the means of d weight and d weight h
    channel_backward     out = reciprocal (d weight - mean of it - h mean of (d weight h))

The statistics take two passes, the variance from differences from the mean. The limit is memory: x
is read three times and written once forward; grad and x are read twice backward, unless a cache
holds them. Sums go through a tree in shared memory: no atomics, the same bits each time. `spread`
is the reciprocal deviation, or with `variances` a variance.
"""

import math

import numpy as np
from numba import cuda, float32, float64, int64

THREADS = 128  # of a block at most: a power of two


@cuda.jit
def count_up(batches):
    batches[0] += 1


def _kernels(real):
    """The kernels whose shared memory holds `real`."""
    number = np.dtype(str(real)).type
    zero, one, three, six = number(0), number(1), number(3), number(6)

    @cuda.jit(device=True)
    def add(sums, total):
        """The sum of `total` over the threads of the block, for all of them."""
        me = cuda.threadIdx.x
        cuda.syncthreads()
        sums[me] = total
        cuda.syncthreads()
        half = cuda.blockDim.x // 2
        while half > 0:
            if me < half:
                sums[me] += sums[me + half]
            cuda.syncthreads()
            half //= 2
        return sums[0]

    @cuda.jit(device=True)
    def activate(which, z, alpha):
        if which == 0:  # identity, relu or leaky_relu, by alpha
            if z <= zero:
                return zero if alpha == zero else alpha * z
            return z
        if which == 1:
            e = math.exp(-abs(z))
            return z * ((one if z >= zero else e) / (one + e))
        return zero if z <= -three else z if z >= three else z * (z + three) / six

    @cuda.jit(device=True)
    def slope(which, z, alpha):
        if which == 0:
            return alpha if z <= zero else one
        if which == 1:
            e = math.exp(-abs(z))
            s = (one if z >= zero else e) / (one + e)
            return s + z * (e / ((one + e) * (one + e)))
        return zero if z <= -three else one if z >= three else (z + z + three) / six

    @cuda.jit(device=True)
    def set_of(o, c, groups, group):
        return o * groups + c // group

    @cuda.jit(device=True)
    def reciprocal_of(spread, k, eps, variances):
        return one / math.sqrt(spread[k] + eps) if variances else spread[k]

    @cuda.jit(device=True)
    def affine(h, c, weight, bias):
        if weight.size > 0:
            h *= weight[c]
        if bias.size > 0:
            h += bias[c]
        return h

    @cuda.jit
    def channel_statistics(
        x, outer, all_channels, length, step, along, mean, reciprocal, variance, groups, group, eps
    ):
        sums = cuda.shared.array(THREADS, real)
        for k in range(cuda.blockIdx.x, mean.shape[0], cuda.gridDim.x):
            first, samples, channel, channels = int64(0), int64(outer), int64(k), int64(1)
            if groups > 0:
                first, samples = int64(k // groups), int64(1)
                channel, channels = int64(k % groups) * group, int64(group)
            count = samples * channels * length
            share, total = one / number(count), zero
            for i in range(cuda.threadIdx.x, count, cuda.blockDim.x):
                o, c = first + i // (channels * length), channel + i // length % channels
                total += x[o * all_channels * length + c * step + i % length * along]
            middle = add(sums, total) * share
            total = zero
            for i in range(cuda.threadIdx.x, count, cuda.blockDim.x):
                o, c = first + i // (channels * length), channel + i // length % channels
                at = o * all_channels * length + c * step + i % length * along
                difference = x[at] - middle
                total += difference * difference
            square = add(sums, total) * share
            if cuda.threadIdx.x == 0:
                mean[k] = middle + (square - square)  # NaN where there is an inf
                variance[k] = square
                reciprocal[k] = one / math.sqrt(square + eps)

    @cuda.jit
    def channel_running(mean, variance, running_mean, running_var, batches, unbiased, momentum):
        c, channels = cuda.grid(1), running_mean.shape[0]
        if c < channels:
            samples = mean.shape[0] // channels
            first, second = zero, zero
            for o in range(samples):
                first += mean[o * channels + c]
                second += variance[o * channels + c] * unbiased
            factor = momentum
            if momentum < zero:
                factor = one / number(batches[0] + 1)
            rest = one - factor
            running_mean[c] = rest * running_mean[c] + factor * (first / number(samples))
            running_var[c] = rest * running_var[c] + factor * (second / number(samples))

    @cuda.jit
    def channel_apply(
        x, outer, channels, length, step, along, residual, out, mean, spread, weight, bias, groups,
        group, eps, variances, which, alpha,
    ):  # fmt: skip
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            o, c = i // (channels * length), i // step % channels
            k = set_of(o, c, groups, group)
            h = (x[i] - mean[k]) * reciprocal_of(spread, k, eps, variances)
            z = affine(h, c, weight, bias)
            if residual.size > 0:
                z += residual[i]
            out[i] = activate(which, z, alpha)

    @cuda.jit
    def channel_sums(
        grad, x, outer, channels, length, step, along, residual, grad_z, sums, mean, spread, weight,
        bias, groups, group, eps, variances, which, alpha,
    ):  # fmt: skip
        tree = cuda.shared.array(THREADS, real)
        for line in range(cuda.blockIdx.x, outer * channels, cuda.gridDim.x):
            o, c = line // channels, line % channels
            k = set_of(o, c, groups, group)
            middle, reciprocal = mean[k], reciprocal_of(spread, k, eps, variances)
            first, second = zero, zero
            for place in range(cuda.threadIdx.x, length, cuda.blockDim.x):
                at = o * channels * length + c * step + place * along
                h = (x[at] - middle) * reciprocal
                z = affine(h, c, weight, bias)
                if residual.size > 0:
                    z += residual[at]
                d = grad[at] * slope(which, z, alpha)
                first += d
                second += d * h
                if grad_z.size > 0:
                    grad_z[at] = d
            first, second = add(tree, first), add(tree, second)
            if cuda.threadIdx.x == 0:
                sums[o, c, 0] = first
                sums[o, c, 1] = second

    @cuda.jit
    def channel_totals(sums, weight, means, dweight, dbias, groups, group, share):
        k, outer = cuda.grid(1), sums.shape[0]
        if k < sums.shape[1]:
            first, second = zero, zero
            for o in range(outer):
                first += sums[o, k, 0]
                second += sums[o, k, 1]
            if dweight.size > 0:
                dweight[k] = second
            if dbias.size > 0:
                dbias[k] = first
            if groups == 0 and means.size > 0:
                w = share
                if weight.size > 0:
                    w *= weight[k]
                means[k, 0] = first * w
                means[k, 1] = second * w
        if groups > 0 and k < means.shape[0]:
            first, second = zero, zero
            for i in range(group):
                o, c = k // groups, k % groups * group + i
                w = share
                if weight.size > 0:
                    w *= weight[c]
                first += sums[o, c, 0] * w
                second += sums[o, c, 1] * w
            means[k, 0] = first
            means[k, 1] = second

    @cuda.jit
    def channel_backward(
        grad, x, outer, channels, length, step, along, out, mean, spread, weight, bias, means,
        groups, group, eps, variances, which, alpha,
    ):  # fmt: skip
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            o, c = i // (channels * length), i // step % channels
            k = set_of(o, c, groups, group)
            reciprocal = reciprocal_of(spread, k, eps, variances)
            h = (x[i] - mean[k]) * reciprocal
            d = grad[i] * slope(which, affine(h, c, weight, bias), alpha)
            if weight.size > 0:
                d *= weight[c]
            if means.size > 0:
                d -= means[k, 0] + h * means[k, 1]
            out[i] = d * reciprocal

    return (
        channel_statistics, channel_running, channel_apply, channel_sums, channel_totals,
        channel_backward,
    )  # fmt: skip


_NAMES = (
    "channel_statistics", "channel_running", "channel_apply", "channel_sums", "channel_totals",
    "channel_backward",
)  # fmt: skip
for _real in (float32, float64):
    for _kernel, _name in zip(_kernels(_real), _NAMES, strict=True):
        globals()[f"{_name}_{_real}"] = _kernel
