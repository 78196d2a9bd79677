"""Cross-entropy, the teaching version: one thread a row, three readable loops over its logits.

    cross_entropy_forward_<target>    losses[row], own[row], normalizer[row]
    cross_entropy_finish              the sum or mean of the losses, and the sum of own
    cross_entropy_backward_<target>   out[row, c]

<target> is ``labels``, one integer a row, or ``probabilities``, one number a row and class. A row's
loss is the sum over the classes c of share_c (L - x_c), where L = log(sum of exp(x_c)), and share_c
is the target's part of class c, smoothed, times the weight of the class. An empty `weight` means 1.
"""

import math

from numba import cuda, float64

BLOCK = 64  # threads of a block


@cuda.jit(device=True)
def weight_of(weight, c):
    return weight[c] if weight.size > 0 else 1.0


@cuda.jit(device=True)
def label_share(label, c, classes, smoothing, weight):
    """The part of class c in a row whose target is a label."""
    share = smoothing / classes
    if c == label:
        share += 1.0 - smoothing
    return share * weight_of(weight, c)


@cuda.jit(device=True)
def probability_share(probability, c, classes, smoothing, weight):
    share = probability * (1.0 - smoothing) + smoothing / classes
    return share * weight_of(weight, c)


@cuda.jit(device=True)
def largest_of(logits, row):
    """The row's largest logit, 0 if all are -inf: what keeps exp from overflowing."""
    largest = -math.inf
    for c in range(logits.shape[1]):
        if logits[row, c] > largest:
            largest = logits[row, c]
    return 0.0 if largest == -math.inf else largest


@cuda.jit(device=True)
def log_sum_of(logits, row, largest):
    """log(sum of exp(x - largest)); -inf for a row of -inf alone."""
    total = 0.0
    for c in range(logits.shape[1]):
        total += math.exp(logits[row, c] - largest)
    return math.log(total) if total != 0.0 else -math.inf


@cuda.jit
def cross_entropy_forward_labels(
    logits, target, weight, ignore_index, smoothing, losses, own, normalizer
):
    classes = logits.shape[1]
    for row in range(cuda.grid(1), logits.shape[0], cuda.gridsize(1)):
        label = target[row]
        if label == ignore_index:
            losses[row] = own[row] = normalizer[row] = 0.0
        elif label < 0 or label >= classes:
            # The label is wrong. NaN says so, where reading at it would read outside the row.
            losses[row] = normalizer[row] = math.nan
            own[row] = 0.0
        else:
            largest = largest_of(logits, row)
            log_sum = log_sum_of(logits, row, largest)
            loss = 0.0
            for c in range(classes):
                share = label_share(label, c, classes, smoothing, weight)
                if share != 0.0 or c == label:
                    loss += share * (log_sum - (logits[row, c] - largest))
            losses[row] = loss
            own[row] = weight_of(weight, label)
            normalizer[row] = largest + log_sum


@cuda.jit
def cross_entropy_forward_probabilities(
    logits, target, weight, ignore_index, smoothing, losses, own, normalizer
):
    classes = logits.shape[1]
    for row in range(cuda.grid(1), logits.shape[0], cuda.gridsize(1)):
        largest = largest_of(logits, row)
        log_sum = log_sum_of(logits, row, largest)
        loss = 0.0 * log_sum  # NaN if a logit is
        for c in range(classes):
            share = probability_share(target[row, c], c, classes, smoothing, weight)
            if share != 0.0:
                loss += share * (log_sum - (logits[row, c] - largest))
        losses[row] = loss
        own[row] = 1.0
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


@cuda.jit
def cross_entropy_backward_labels(
    grad, logits, target, normalizer, total_weight, weight, ignore_index, smoothing, mean, out
):
    classes = logits.shape[1]
    for row in range(cuda.grid(1), logits.shape[0], cuda.gridsize(1)):
        label = target[row]
        if label == ignore_index or label < 0 or label >= classes:
            for c in range(classes):
                out[row, c] = 0.0 if label == ignore_index else math.nan
            continue
        scale = grad[row] if grad.size > 1 else grad[0]
        if mean:
            scale /= total_weight[0]
        total = 0.0
        for c in range(classes):
            total += label_share(label, c, classes, smoothing, weight)
        for c in range(classes):
            share = label_share(label, c, classes, smoothing, weight)
            slope = total * math.exp(logits[row, c] - normalizer[row]) - share
            out[row, c] = scale * slope


@cuda.jit
def cross_entropy_backward_probabilities(
    grad, logits, target, normalizer, total_weight, weight, ignore_index, smoothing, mean, out
):
    classes = logits.shape[1]
    for row in range(cuda.grid(1), logits.shape[0], cuda.gridsize(1)):
        scale = grad[row] if grad.size > 1 else grad[0]
        if mean:
            scale /= total_weight[0]
        total = 0.0
        for c in range(classes):
            total += probability_share(target[row, c], c, classes, smoothing, weight)
        for c in range(classes):
            share = probability_share(target[row, c], c, classes, smoothing, weight)
            slope = total * math.exp(logits[row, c] - normalizer[row]) - share
            out[row, c] = scale * slope
