"""Cross-entropy of rows of logits: several threads a row, one pass over it for the loss.

    cross_entropy_forward_<target>            losses[row], own[row], normalizer[row]
    cross_entropy_finish                      the sum or mean of the losses, and the sum of own
    cross_entropy_backward_<target>           out[row, c]
    cross_entropy_weights_<target>            own[row], what the row adds to the mean's divisor
    cross_entropy_forward_backward_<target>   losses[row], normalizer[row] and gradient[row, c]

<target> is ``labels``, one integer a row, or ``probabilities``, one number a row and class. A row's
loss is the sum over the classes c of share_c (L - x_c), where L = log(sum of exp(x_c)), and share_c
is the target's part of class c, smoothed, times the weight of the class. An empty `weight` means 1.

A block of `wide` x `high` threads works on `high` rows at a time; thread (t, r) visits classes t,
t + wide, … of row r, four under way at a time in the first pass, which finds the largest logit and
the sum of exponentials together (Milakov & Gimelshein 2018). Trees in shared memory join the
threads; no atomics, the same bits each time. Later passes over a row find it in the second-level
cache, so the limit is each logit read once from memory, and written once where there is a gradient.
A label without smoothing needs no second pass for the loss.

All is computed in the dtype of the logits: constants are given that dtype, because beside a float64
Numba would widen everything.
"""

import math

from numba import cuda, float64

THREADS = 256  # of a block of rows at most; powers of two along both axes
BLOCK = 64  # threads of a block of cross_entropy_finish


# ---- shares --------------------------------------------------------------------------------------


@cuda.jit(device=True)
def weight_of(weight, c, one):
    return weight[c] if weight.size > 0 else one


@cuda.jit(device=True)
def label_share(label, c, keep, uniform, weight, one):
    """The part of class c in a row whose target is a label; uniform = smoothing / classes."""
    share = uniform + keep if c == label else uniform
    return share * weight_of(weight, c, one)


@cuda.jit(device=True)
def label_loss(share, log_sum, x, zero):
    """share (log_sum - x), x less the largest; a share of 0 gives 0 at x = -inf. NaN travels."""
    return share * (log_sum if share == zero else log_sum - x)


@cuda.jit(device=True)
def probability_share(probability, c, keep, uniform, weight, one):
    return (probability * keep + uniform) * weight_of(weight, c, one)


# ---- rows ----------------------------------------------------------------------------------------


@cuda.jit(device=True)
def larger(a, b):
    return b if b > a else a  # drops a NaN in b; the sum keeps it


@cuda.jit(device=True)
def scan(logits, row, lowest, zero):
    """(largest, sum of exp(x - largest)) of this thread's classes of a row."""
    wide, classes = cuda.blockDim.x, logits.shape[1]
    top, total = lowest, zero
    for k in range(cuda.threadIdx.x, classes, 4 * wide):
        a, b, c, d = logits[row, k], lowest, lowest, lowest
        if k + wide < classes:
            b = logits[row, k + wide]
        if k + 2 * wide < classes:
            c = logits[row, k + 2 * wide]
        if k + 3 * wide < classes:
            d = logits[row, k + 3 * wide]
        new = larger(larger(larger(larger(top, a), b), c), d)
        reference = new if new > lowest else zero  # exp(-inf - 0) is 0, exp(-inf + inf) is NaN
        added = math.exp(a - reference) + math.exp(b - reference)
        added += math.exp(c - reference) + math.exp(d - reference)
        total = total * math.exp(top - reference) + added
        top = new
    return top, total


@cuda.jit(device=True)
def join(tops, sums, top, total, lowest, zero):
    """What `scan` found, of all threads of the row and for all of them."""
    t, me = cuda.threadIdx.x, cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    cuda.syncthreads()  # the memory may still be read from the last time
    tops[me] = top
    sums[me] = total
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            mine, other = tops[me], tops[me + half]
            new = larger(mine, other)
            reference = new if new > lowest else zero
            scaled = sums[me] * math.exp(mine - reference)
            sums[me] = scaled + sums[me + half] * math.exp(other - reference)
            tops[me] = new
        cuda.syncthreads()
        half //= 2
    return tops[me - t], sums[me - t]


@cuda.jit(device=True)
def add(sums, total):
    """The sum of `total` over the threads of the row, for all of them."""
    t, me = cuda.threadIdx.x, cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    cuda.syncthreads()
    sums[me] = total
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            sums[me] += sums[me + half]
        cuda.syncthreads()
        half //= 2
    return sums[me - t]


@cuda.jit(device=True)
def normalizer_of(tops, sums, logits, row, reads, lowest, zero):
    """(largest, log of the sum of exp(x - largest)) of a row, for all its threads.

    The largest is 0 for a row of -inf alone, whose log is -inf.
    """
    top, total = lowest, zero
    if reads:
        top, total = scan(logits, row, lowest, zero)
    top, total = join(tops, sums, top, total, lowest, zero)
    log_sum = math.log(total) if total != zero else lowest
    return top if top > lowest else zero, log_sum


# ---- forward -------------------------------------------------------------------------------------


@cuda.jit
def cross_entropy_forward_labels(
    logits, target, weight, ignore_index, smoothing, losses, own, normalizer
):
    tops = cuda.shared.array(THREADS, logits.dtype)
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    lowest, zero, one = real(-math.inf), real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    for first in range(cuda.blockIdx.x * high, rows, cuda.gridDim.x * high):
        row = first + cuda.threadIdx.y
        label = target[row] if row < rows else ignore_index
        valid = label != ignore_index and 0 <= label and label < classes
        # No thread leaves early: all meet in the trees.
        largest, log_sum = normalizer_of(tops, sums, logits, row, valid, lowest, zero)
        loss = zero
        if smoothing != zero:
            if valid:
                for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                    share = label_share(label, c, keep, uniform, weight, one)
                    if share != zero or c == label:
                        loss += label_loss(share, log_sum, logits[row, c] - largest, zero)
            loss = add(sums, loss)
        if row < rows and cuda.threadIdx.x == 0:
            if valid:
                of_label = weight_of(weight, label, one)
                if smoothing == zero:
                    loss = label_loss(of_label, log_sum, logits[row, label] - largest, zero)
                losses[row] = loss
                own[row] = of_label
                normalizer[row] = largest + log_sum
            else:
                # A wrong label: NaN says so, where reading at it would read outside the row.
                losses[row] = normalizer[row] = zero if label == ignore_index else real(math.nan)
                own[row] = zero


@cuda.jit
def cross_entropy_forward_probabilities(
    logits, target, weight, ignore_index, smoothing, losses, own, normalizer
):
    tops = cuda.shared.array(THREADS, logits.dtype)
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    lowest, zero, one = real(-math.inf), real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    for first in range(cuda.blockIdx.x * high, rows, cuda.gridDim.x * high):
        row = first + cuda.threadIdx.y
        active = row < rows
        largest, log_sum = normalizer_of(tops, sums, logits, row, active, lowest, zero)
        loss = zero
        if active:
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                share = probability_share(target[row, c], c, keep, uniform, weight, one)
                if share != zero:
                    loss += share * (log_sum - (logits[row, c] - largest))
        loss = add(sums, loss)
        if active and cuda.threadIdx.x == 0:
            losses[row] = loss + zero * log_sum  # NaN if a logit is
            own[row] = one
            normalizer[row] = largest + log_sum


@cuda.jit(device=True)
def add_tree(tree):
    """Leave the sum of all of `tree` in its first place."""
    me = cuda.threadIdx.x
    width = BLOCK // 2
    while width > 0:
        cuda.syncthreads()
        if me < width:
            tree[me] += tree[me + width]
        width //= 2


@cuda.jit
def cross_entropy_finish(losses, own, out, total_weight, mean):
    """One block. Thread i adds rows i, i + BLOCK, …; a tree adds the threads."""
    loss_tree = cuda.shared.array(BLOCK, float64)
    own_tree = cuda.shared.array(BLOCK, float64)
    me = cuda.threadIdx.x
    loss_tree[me] = 0.0
    own_tree[me] = 0.0
    for row in range(me, losses.size, BLOCK):
        loss_tree[me] += losses[row]
        own_tree[me] += own[row]
    add_tree(loss_tree)
    add_tree(own_tree)
    if me == 0:
        out[0] = loss_tree[0] / own_tree[0] if mean else loss_tree[0]
        total_weight[0] = own_tree[0]


# ---- backward ------------------------------------------------------------------------------------


@cuda.jit(device=True)
def smoothed_total(sums, weight, uniform, smoothing, zero):
    """The sum of the classes' smoothed parts, the same for each row with a label."""
    if weight.size == 0 or smoothing == zero:
        return smoothing
    total = zero
    for c in range(cuda.threadIdx.x, weight.size, cuda.blockDim.x):
        total += uniform * weight[c]
    return add(sums, total)


@cuda.jit
def cross_entropy_backward_labels(
    grad, logits, target, normalizer, total_weight, weight, ignore_index, smoothing, mean, out
):
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    zero, one = real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    of_all = smoothed_total(sums, weight, uniform, smoothing, zero)
    start = cuda.blockIdx.x * high + cuda.threadIdx.y
    for row in range(start, rows, cuda.gridDim.x * high):
        label = target[row]
        if label == ignore_index or label < 0 or label >= classes:
            value = zero if label == ignore_index else real(math.nan)
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                out[row, c] = value
            continue
        scale = grad[row] if grad.size > 1 else grad[0]
        if mean:
            scale /= total_weight[0]
        total, level = of_all + keep * weight_of(weight, label, one), normalizer[row]
        for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
            share = label_share(label, c, keep, uniform, weight, one)
            out[row, c] = scale * (total * math.exp(logits[row, c] - level) - share)


@cuda.jit
def cross_entropy_backward_probabilities(
    grad, logits, target, normalizer, total_weight, weight, ignore_index, smoothing, mean, out
):
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    zero, one = real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    for first in range(cuda.blockIdx.x * high, rows, cuda.gridDim.x * high):
        row = first + cuda.threadIdx.y
        total = zero
        if row < rows:
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                total += probability_share(target[row, c], c, keep, uniform, weight, one)
        total = add(sums, total)
        if row < rows:
            scale, level = grad[row] if grad.size > 1 else grad[0], normalizer[row]
            if mean:
                scale /= total_weight[0]
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                share = probability_share(target[row, c], c, keep, uniform, weight, one)
                out[row, c] = scale * (total * math.exp(logits[row, c] - level) - share)


# ---- forward and backward at once ----------------------------------------------------------------
#
# `total_weight` is the sum of own. The gradient may be the array of the logits: a thread reads each
# of its classes for the last time before it writes it, and no other thread does after the trees.


@cuda.jit
def cross_entropy_weights_labels(target, weight, classes, ignore_index, own):
    one = own.dtype.type(1)
    for row in range(cuda.grid(1), target.size, cuda.gridsize(1)):
        label = target[row]
        counts = label != ignore_index and 0 <= label and label < classes
        own[row] = weight_of(weight, label, one) if counts else 0.0


@cuda.jit
def cross_entropy_weights_probabilities(own):
    for row in range(cuda.grid(1), own.size, cuda.gridsize(1)):
        own[row] = 1.0


@cuda.jit
def cross_entropy_forward_backward_labels(
    logits,
    target,
    weight,
    ignore_index,
    smoothing,
    mean,
    total_weight,
    losses,
    normalizer,
    gradient,
):
    tops = cuda.shared.array(THREADS, logits.dtype)
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    lowest, zero, one = real(-math.inf), real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    scale = one / total_weight[0] if mean else one
    of_all = smoothed_total(sums, weight, uniform, smoothing, zero)
    for first in range(cuda.blockIdx.x * high, rows, cuda.gridDim.x * high):
        row = first + cuda.threadIdx.y
        label = target[row] if row < rows else ignore_index
        valid = label != ignore_index and 0 <= label and label < classes
        largest, log_sum = normalizer_of(tops, sums, logits, row, valid, lowest, zero)
        loss, total = zero, of_all
        if valid:
            total += keep * weight_of(weight, label, one)
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                share = label_share(label, c, keep, uniform, weight, one)
                x = logits[row, c] - largest
                if share != zero or c == label:
                    loss += label_loss(share, log_sum, x, zero)
                gradient[row, c] = scale * (total * math.exp(x - log_sum) - share)
        elif row < rows:
            value = zero if label == ignore_index else real(math.nan)
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                gradient[row, c] = value
            loss = value
        loss = add(sums, loss)
        if row < rows and cuda.threadIdx.x == 0:
            losses[row] = loss
            normalizer[row] = largest + log_sum if valid else loss


@cuda.jit
def cross_entropy_forward_backward_probabilities(
    logits,
    target,
    weight,
    ignore_index,
    smoothing,
    mean,
    total_weight,
    losses,
    normalizer,
    gradient,
):
    tops = cuda.shared.array(THREADS, logits.dtype)
    sums = cuda.shared.array(THREADS, logits.dtype)
    real = logits.dtype.type
    lowest, zero, one = real(-math.inf), real(0), real(1)
    rows, classes, high = logits.shape[0], logits.shape[1], cuda.blockDim.y
    keep, uniform = one - smoothing, smoothing / real(classes)
    scale = one / total_weight[0] if mean else one
    for first in range(cuda.blockIdx.x * high, rows, cuda.gridDim.x * high):
        row = first + cuda.threadIdx.y
        active = row < rows
        largest, log_sum = normalizer_of(tops, sums, logits, row, active, lowest, zero)
        loss, total = zero, zero
        if active:
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                share = probability_share(target[row, c], c, keep, uniform, weight, one)
                total += share
                if share != zero:
                    loss += share * (log_sum - (logits[row, c] - largest))
        loss = add(sums, loss)
        total = add(sums, total)
        if active:
            for c in range(cuda.threadIdx.x, classes, cuda.blockDim.x):
                share = probability_share(target[row, c], c, keep, uniform, weight, one)
                x = logits[row, c] - largest
                gradient[row, c] = scale * (total * math.exp(x - log_sum) - share)
            if cuda.threadIdx.x == 0:
                losses[row] = loss + zero * log_sum  # NaN if a logit is
                normalizer[row] = largest + log_sum
