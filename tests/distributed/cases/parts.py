"""Shares of a loss on several ranks: their sum, and that of their gradients, is one process's."""

import numpy as np

import gpunn
from gpunn import nn, tensor
from gpunn.autograd.dtypes import bfloat16
from gpunn.compiled import CompiledStep
from gpunn.data import DataLoader
from gpunn.data.parts import part_of_batch, parts_of
from gpunn.device import to_numpy
from gpunn.distributed.loss import begin_divisor, global_mean
from gpunn.train.metrics import as_metric

RANKS = (2, 4)
RNG = np.random.default_rng(7)
LABELS = np.array([0, 2, -100, 1, 2, -100, -100])
WEIGHT = np.array([1.0, 0.25, 3.0])


class Counted(nn.MSELoss):
    """A loss of a user with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(tensor(1.0))

    def forward(self, input, target):
        return super().forward(input, target) + self.factor * input.mean()


class Odd(nn.CrossEntropyLoss):
    """One whose forward is not that of the class that has the divisor."""

    def forward(self, input, target):
        return nn.functional.cross_entropy(input, target, reduction="mean", ignore_index=-1)


class Filled(nn.MSELoss):
    """One that counts the targets that are not 0."""

    def divisor(self, target):
        return (target != 0).sum()

    def forward(self, input, target):
        total = (((input - target) * (target != 0)) ** 2).sum()
        return total if self.reduction == "sum" else total / self.divisor(target)


def losses(dtype):
    """(loss, shape of the predictions of a row, targets of 7 rows)"""
    weight = tensor(WEIGHT.astype(dtype))
    labels, deep = LABELS, np.stack([LABELS, LABELS[::-1]], 1)
    numbers = RNG.standard_normal((7, 3)).astype(dtype)
    shares = np.abs(numbers) / np.abs(numbers).sum(1, keepdims=True)
    holes = numbers * (labels != 1)[:, None]
    for smoothing in (0.0, 0.1):
        yield nn.CrossEntropyLoss(label_smoothing=smoothing), (3,), labels
        yield nn.CrossEntropyLoss(weight, label_smoothing=smoothing), (3,), labels
    yield nn.CrossEntropyLoss(weight, ignore_index=2), (3, 2), np.where(deep < 0, 0, deep)
    yield nn.CrossEntropyLoss(reduction="sum"), (3,), labels
    yield nn.CrossEntropyLoss(weight), (3,), shares
    yield nn.NLLLoss(weight), (3,), labels
    yield nn.NLLLoss(), (3, 2), deep
    yield nn.MSELoss(), (3,), numbers
    yield nn.L1Loss("sum"), (3,), numbers
    yield nn.QuantileLoss([0.1, 0.5, 0.9]), (3,), numbers[:, 0]
    yield nn.BCEWithLogitsLoss(weight), (3,), np.abs(shares)
    yield Counted(), (3,), numbers
    yield Odd(), (3,), np.maximum(labels, 0)
    yield Filled(), (3,), holes
    yield nn.functional.huber_loss, (3,), numbers
    yield lambda p, t: ((p - t) ** 2).mean(), (3,), numbers


def summed(group, *arrays):
    """The sum of each array over the ranks."""
    found = [np.array(to_numpy(array), np.float64) for array in arrays]
    for array in found:
        group.all_reduce(array)
    return found


def case_losses(group):
    """Every loss, also with rows that do not divide, and fewer than there are ranks."""
    few = ((np.float64, 1e-13), (np.float32, 1e-6))
    for dtype, close in few if group.size == 2 else few[:1]:
        for loss, shape, targets in losses(dtype):
            if hasattr(loss, "to"):
                loss.to(dtype)
            for rows in (7, 1) if group.size == 2 else (3,):
                check(group, loss, RNG.standard_normal((rows, *shape)).astype(dtype),
                      targets[:rows], close, early=rows == 7)  # fmt: skip


def check(group, loss, scores, targets, close, early):
    def share_of(scores, targets, *counts):
        x, t = tensor(scores).requires_grad_(), tensor(targets)
        if counts:
            begun = begin_divisor(loss, t, counts[0], group) if early else None
            found = global_mean(loss, x, t, *counts, group, begun)
        else:
            found = loss(x, t)
        found.backward()
        return found, x.grad

    wanted, slope = share_of(scores, targets)
    (mine, labels), own, whole = part_of_batch((scores, targets), group.rank, group.size)
    found, grad = share_of(mine, labels, own, whole)
    assert found.dtype == wanted.dtype and found.shape == ()
    if own == 0:
        assert found.item() == 0 and not to_numpy(grad.array).any()
    full = np.zeros(scores.shape)
    start = whole * group.rank // group.size
    full[start : start + own] = to_numpy(grad.array)[:own]
    (all_of_it,) = summed(group, np.append(full.reshape(-1), found.item()))
    expected = np.append(to_numpy(slope.array).reshape(-1), wanted.item())
    np.testing.assert_allclose(all_of_it, expected, rtol=close, atol=close)


def case_bits_of_one_process_that_accumulates(group):
    """Two equal parts are two batches of which each counts half, bit for bit."""
    for rows in (4, 5):
        scores, labels = RNG.standard_normal((rows, 3)).astype(np.float32), np.arange(rows) % 3
        for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)):
            x, y = tensor(scores).requires_grad_(), tensor(scores).requires_grad_()
            global_mean(loss, x, tensor(labels), rows, 2 * rows, group).backward()
            (loss(y, tensor(labels)) / 2).backward()
            assert x.grad.numpy().tobytes() == y.grad.numpy().tobytes()


case_bits_of_one_process_that_accumulates.ranks = (2,)


def case_nothing_counts(group):
    """The mean over ignored labels alone is NaN everywhere, and its gradients are 0, as of one."""
    for loss in (nn.CrossEntropyLoss(), nn.NLLLoss(tensor(WEIGHT))):
        x = tensor(RNG.standard_normal((2, 3))).requires_grad_()
        found = global_mean(loss, x, tensor(np.array([-100, -100])), 2, 2 * group.size, group)
        found.backward()
        assert np.isnan(found.item()) and not x.grad.numpy().any()


def case_rows_of_nobody_may_hold_anything(group):
    """Of a rank without own rows nothing counts, not even NaN, and all parameters get zeros."""
    for loss, value in ((nn.MSELoss(), 1), (nn.MSELoss("sum"), 3), (nn.functional.mse_loss, 1)):
        x = tensor(np.full((1, 3), np.nan if group.rank else 1.0)).requires_grad_()
        found = global_mean(loss, x, tensor(np.zeros((1, 3))), int(group.main), 1, group)
        found.backward()
        assert found.item() == (value if group.main else 0)
        assert np.isfinite(x.grad.numpy()).all() and x.grad.numpy().any() == group.main
    head = nn.LinearCrossEntropyLoss(4, 3)
    x = tensor(np.ones((1, 4), np.float32)).requires_grad_()
    global_mean(head, x, tensor(np.array([1])), int(group.main), 1, group).backward()
    for parameter in head.parameters():
        assert parameter.grad.numpy().any() == group.main


def case_linear_head(group):
    """Its own parameters' gradients add up, in float32 and bfloat16, in chunks."""
    scores, labels = RNG.standard_normal((7, 2, 4)), np.stack([LABELS, LABELS[::-1]], 1)
    for dtype, close in ((np.float32, 1e-6), (bfloat16, 2e-2)):
        grads = {}
        for way in ("one", "parts"):
            gpunn.manual_seed(1)
            head = nn.LinearCrossEntropyLoss(4, 3, chunk_rows=4, dtype=dtype)
            if way == "one":
                head(tensor(scores.astype(dtype)), tensor(labels)).backward()
            else:
                (mine, own_labels), own, whole = part_of_batch(
                    (scores.astype(dtype), labels), group.rank, group.size
                )
                global_mean(head, tensor(mine), tensor(own_labels), own, whole, group).backward()
            grads[way] = [p.grad.array.astype(np.float64) for p in head.parameters()]
        for wanted, found in zip(grads["one"], summed(group, *grads["parts"]), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=close, atol=close)


def case_in_a_compiled_step(group):
    """On the emulator the all-reduce of the divisor is part of what a graph repeats."""
    loss, rows = nn.CrossEntropyLoss(), 2 * group.size

    def step(x, target):
        return global_mean(loss, x, target, 2, rows, group)

    compiled = CompiledStep(step, uses=(loss,))
    for number in range(4):
        rng = np.random.default_rng(number)
        x = rng.standard_normal((rows, 3), dtype=np.float32)
        labels = rng.integers(0, 3, rows)
        labels[:number] = -100
        mine = slice(2 * group.rank, 2 * group.rank + 2)
        found = compiled(*(tensor(array[mine], device="emulator") for array in (x, labels)))
        (total,) = summed(group, found.array)
        np.testing.assert_allclose(total, loss(tensor(x), tensor(labels)).item(), rtol=1e-6)
    assert "captured" in compiled.summary()


case_in_a_compiled_step.ranks = (2,)


def case_an_epoch(group):
    """A loader, a loss and a metric: each rank has what one process has."""
    x, y = RNG.standard_normal((23, 3)), np.tile(LABELS, 4)[:23]
    loader = DataLoader((x, y), 5, shuffle=True, seed=4, device="cpu")
    loss, metric, whole_metric = nn.CrossEntropyLoss(), *map(as_metric, ("accuracy",) * 2)
    metric.ignore_index = whole_metric.ignore_index = -100
    values = []
    for (scores, labels), own, whole in parts_of(loader, group.rank, group.size):
        share = global_mean(loss, scores, labels, own, whole, group)
        values.append(summed(group, share.array)[0].item())
        if own:
            metric.update(scores, labels)
    metric.merge(group)
    loader.set_epoch(0)
    wanted = []
    for scores, labels in loader:
        wanted.append(loss(scores, labels).item())
        whole_metric.update(scores, labels)
    np.testing.assert_allclose(values, wanted, rtol=1e-12)
    assert metric.compute() == whole_metric.compute()
