"""What several ranks measured, made one: as one process measures it.

The ranks are threads here, whose group does what a job's does with bytes and values.
"""

import json
import math
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn import tensor
from gpunn.autograd.dtypes import bfloat16
from gpunn.data.parts import share
from gpunn.device import Device, device_of, to_device
from gpunn.distributed.values import packed, unpacked
from gpunn.train.metrics import BLEU, METRICS, ConfusionMatrix, Metric, R2Score, as_metric
from gpunn.train.metrics.base import merged
from gpunn.train.running import LossMean, NonFiniteLoss

RNG = np.random.default_rng(3)
CPU = Device("cpu")


class Threads:
    """Ranks that are threads."""

    def __init__(self, size):
        self.size, self.barrier, self.given = size, threading.Barrier(size), [None] * size

    def run(self, function):
        """[function(group of rank r), …], or the exceptions that were raised."""
        found = [None] * self.size

        def work(rank):
            try:
                found[rank] = function(Rank(self, rank))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Rank:
    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size, self.main = ranks, rank, ranks.size, rank == 0

    def exchange_bytes(self, data):
        self.ranks.given[self.rank] = data
        self.ranks.barrier.wait(10)
        found = list(self.ranks.given)
        self.ranks.barrier.wait(10)
        return found

    def exchange(self, value):
        return [json.loads(d) for d in self.exchange_bytes(json.dumps(value).encode())]


def on_ranks(make, batches, size):
    """The value of a metric on each rank, which saw its part of each batch."""

    def one(group):
        metric = make()
        for prediction, target in batches:
            start, stop = share(len(target), group.rank, size)
            if stop > start:
                metric.update(prediction[start:stop], target[start:stop])
        metric.merge(group)
        return metric.compute()

    return Threads(size).run(one)


def batches_for(name):
    """Batches of 8, 8 and 1 samples that a metric takes."""
    for count in (8, 8, 1):
        if name in ("bleu", "chrf", "wer", "cer"):
            yield RNG.integers(0, 5, (count, 7)), RNG.integers(0, 5, (count, 7))
        elif name in ("exact_match", "hamming_accuracy", "jaccard"):
            yield RNG.standard_normal((count, 4)), RNG.integers(0, 2, (count, 4))
        elif name.startswith("interval"):
            yield np.sort(RNG.standard_normal((count, 3))), RNG.standard_normal(count)
        elif name in ("mae", "mean_absolute_error", "mse", "mean_squared_error", "rmse", "mape",
                      "r2", "r2_score", "pinball_0.9"):  # fmt: skip
            yield RNG.standard_normal((count, 1)) + 100, RNG.standard_normal(count) + 100
        else:
            yield RNG.standard_normal((count, 3)), RNG.integers(0, 3, count)


@pytest.mark.parametrize("name", [*METRICS, "pinball_0.9", "top_2_accuracy", "f0.5"])
def test_every_metric_is_that_of_one_process(name):
    if name == "top_5_accuracy":
        name = "top_2_accuracy"
    batches = list(batches_for(name))
    one = as_metric(name)
    for batch in batches:
        one.update(*batch)
    wanted = one.compute()
    for size in (2, 3):
        found = on_ranks(lambda: as_metric(name), batches, size)
        for value in found:
            np.testing.assert_allclose(value, wanted, rtol=1e-12)
            np.testing.assert_array_equal(value, found[0])


def test_functions_see_the_samples_in_the_order_of_one_process():
    batches = [(np.arange(n) + 10.0 * k, np.arange(n)) for k, n in enumerate((5, 5, 3))]
    seen = []

    def noted(prediction, target):
        seen.append((prediction.tolist(), target.tolist()))
        return 0.5

    on_ranks(lambda: as_metric(noted), batches, 3)
    wanted = tuple(np.concatenate(part).tolist() for part in zip(*batches, strict=True))
    assert seen == [wanted] * 3


def test_ranks_without_samples_and_ignored_samples():
    half = [(np.eye(3)[:1] - 0.5, np.array([2]))]  # one sample: rank 1 of 2 has it
    for name in ("accuracy", "f1", "log_loss", "auc", "confusion_matrix", "mse", "bleu"):
        batches = half if name not in ("mse", "bleu") else [(np.ones((1, 4), int),) * 2]
        one = as_metric(name)
        one.update(*batches[0])
        for value in on_ranks(lambda name=name: as_metric(name), batches, 2):
            np.testing.assert_array_equal(value, one.compute())
        none = on_ranks(lambda name=name: as_metric(name), [], 2)
        assert all(isinstance(error, ValueError) for error in none)
    matrices = on_ranks(lambda: ConfusionMatrix(ignore_index=2), half, 2)
    assert matrices[0].tolist() == np.zeros((3, 3)).tolist()
    scores = on_ranks(R2Score, [(np.arange(4.0), np.arange(4.0) + 1e8)] * 2, 4)
    one = R2Score()
    one.update(np.tile(np.arange(4.0), 2), np.tile(np.arange(4.0), 2) + 1e8)
    assert np.allclose(scores, one.compute(), rtol=1e-9)


def test_on_the_emulator_sums_come_to_the_host():
    def one(group):
        metric = as_metric("accuracy")
        prediction = to_device(np.eye(2, dtype=np.float32), "emulator")
        metric.update(prediction, to_device(np.array([0, group.rank]), "emulator"))
        metric.merge(group)
        value = metric.compute()
        metric.reset()
        metric.update(prediction, to_device(np.array([0, 1]), "emulator"))
        return value, metric.compute()

    assert Threads(2).run(one) == [(0.75, 1.0)] * 2


class Own(Metric):
    """A metric of a user, with state of all kinds beside settings."""

    def __init__(self):
        self.name, self.weight, self.function, self.options = "own", 3, math.exp, {"a": 1}
        self.reset()

    def reset(self):
        self.count, self.total, self.first = 0, None, 1.0
        self.kinds, self.seen, self.any, self.all = Counter(), set(), False, True
        self.texts, self.pair, self.table = [], (0, [0.0, 0]), np.zeros(2)
        self.flags, self.where = None, None

    def update(self, prediction, target):
        self.count += len(target)
        self.total = prediction.sum() if self.total is None else self.total + prediction.sum()
        self.first += 0.5
        self.kinds.update(target.tolist())
        self.seen |= set(target.tolist())
        self.any, self.all = self.any or bool(target[0]), self.all and bool(target[0])
        self.texts.append(str(target[0]))
        self.pair = (self.pair[0] + 1, [self.pair[1][0] + 0.5, self.pair[1][1] + 1])
        self.table += [1, len(target)]
        self.flags = np.array([target[0] == 0, True])
        self.where = tensor(self.table.copy())


def test_a_metric_of_the_users_own():
    def one(group):
        metric = Own()
        for batch in range(2 if group.main else 1):
            metric.update(np.ones(2) * batch, np.array([group.rank, batch]))
        before = {name: str(value) for name, value in vars(metric).items()}
        copy = merged(metric, group)
        assert {name: str(value) for name, value in vars(metric).items()} == before
        return copy

    first, second = Threads(2).run(one)
    assert {n: str(v) for n, v in vars(first).items()} == {
        n: str(v) for n, v in vars(second).items()
    }
    assert (first.count, first.total, first.first, first.weight) == (6, 2.0, 2.5, 3)
    assert first.kinds == Counter({0: 4, 1: 2}) and isinstance(first.kinds, Counter)
    assert first.seen == {0, 1} and first.any is True and first.all is False
    assert first.texts == ["0", "1", "0"] and first.pair == (3, [1.5, 3])
    assert first.table.tolist() == [3, 6] and first.function is math.exp
    assert first.flags.tolist() == [True, True] and first.where.numpy().tolist() == [3, 6]


class Composed(Metric):
    """Of other metrics, and with sums that `reset` clears in place, on the emulator."""

    name = "composed"

    def __init__(self):
        self.parts, self.best = {"matrix": ConfusionMatrix(), "r2": [R2Score()]}, float("nan")
        self.sums = [to_device(np.zeros(2), "emulator")]
        self.table = tensor(np.zeros(2), device="emulator")

    def reset(self):
        self.parts["matrix"].reset()
        self.parts["r2"][0].reset()
        self.sums[0][...] = 0
        self.table.zero_()
        self.best = float("nan")

    def update(self, prediction, target):
        labels = to_device(target, "emulator")
        self.parts["matrix"].update(to_device(prediction, "emulator"), labels)
        self.parts["r2"][0].update(prediction[:, 0], target)
        self.sums[0] += len(target)
        self.table += tensor(self.sums[0], device="emulator")


def test_a_metric_made_of_others_keeps_its_samples_and_devices():
    prediction, target = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 1, 2])

    def one(group):
        metric = Composed()
        metric.update(prediction[2 * group.rank :][:2], target[2 * group.rank :][:2])
        copy = merged(metric, group)
        found = []
        for made in (copy, metric):
            found.append([made.parts["matrix"].compute().tolist(), made.table.numpy().tolist()])
        where = device_of(copy.parts["matrix"]._counts), copy.table.device
        assert {device.type for device in where} == {"emulator"}
        metric.merge(group)
        return *found, metric.parts["r2"][0].compute(), metric.sums[0].tolist()

    whole, r2 = Composed(), R2Score()
    whole.update(prediction, target)
    r2.update(prediction[:, 0], target)
    matrix = whole.parts["matrix"].compute().tolist()
    for rank, (copy, own, score, sums) in enumerate(Threads(2).run(one)):
        assert copy == [matrix, [4, 4]] and own[1] == [2, 2]
        assert np.trace(own[0]) == (2, 0)[rank] and np.sum(own[0]) == 2
        assert score == pytest.approx(r2.compute()) and sums == [4, 4]


@pytest.mark.parametrize(
    ("start", "value", "told"),
    [
        (None, SimpleNamespace(), "a SimpleNamespace cannot be sent"),
        (-math.inf, 1.0, "reset sets it to -inf, with which no sum begins"),
        ((), np.array(["a"], object), "an array of object cannot be sent"),
        ("", lambda rank: f"text {rank}", "the texts differ"),
        (0, lambda rank: np.zeros(rank + 1), "shapes are"),
        (0, lambda rank: [1, {"a": 1}][rank], "there is no sum of dict and int"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_up_says_so_on_all_ranks(start, value, told):
    class Odd(Metric):
        name = "odd"

        def reset(self):
            self.top = start

    def one(group):
        metric = Odd()
        metric.reset()
        metric.top = value(group.rank) if callable(value) else value
        metric.merge(group)

    for error in Threads(2).run(one):
        assert isinstance(error, TypeError)
        assert "odd: its attribute top cannot be added up over processes" in str(error)
        assert told in str(error) and str(error).endswith("define merge(group) in Odd")


def test_sentences_keep_their_references():
    corpus = [("a b c d", ["a b c", "a b d e"]), ("x y", ["x y z"]), ("p q r s t", ["p q s t"])]

    def one(group):
        metric = BLEU(max_order=2)
        for said, true in corpus[group.rank :: 2]:
            metric.update([said], [true])
        metric.merge(group)
        return metric.compute()

    whole = BLEU(max_order=2)
    whole.update(*map(list, zip(*corpus, strict=True)))
    assert Threads(2).run(one) == [whole.compute()] * 2


# ---- the loss ------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 4), st.booleans()
)  # fmt: skip
def test_the_mean_loss_is_that_of_one_process(counts, size, summed):
    losses = [RNG.standard_normal(count) for count in counts]

    def add(mean, values, whole=None):
        value = values.sum() / (1 if summed else whole or len(values))
        mean.add(np.asarray(value), len(values), whole)
        mean.tick()

    one = LossMean(summed, 2, CPU)
    for values in losses:
        add(one, values)

    def on_rank(group):
        mean = LossMean(summed, 2, CPU, group)
        for number, values in enumerate(losses):
            if number == 2:  # a checkpoint, and on from it
                state = mean.state_dict()
                mean = LossMean(summed, 2, CPU, group)
                mean.load_state_dict(state)
            start, stop = share(len(values), group.rank, size)
            add(mean, values[start:stop], len(values))
        mean.merge()
        value = mean.value()
        mean.reset()
        return value, mean.empty

    for value, is_empty in Threads(size).run(on_rank):
        assert value == pytest.approx(one.value(), rel=1e-12) and is_empty


def test_a_loss_that_is_not_finite_is_an_error_on_all_ranks():
    def on_rank(group, every=4):
        mean = LossMean(False, every, CPU, group)
        for step in range(1, 9):
            bad = {0: 8, 1: 3, 2: 2}.get(group.rank) == step
            mean.add(np.asarray(math.inf if bad else 1.0), 1, group.size)
            if step == 3:
                assert math.isnan(mean.value()) == (group.rank in (1, 2))
            mean.tick()
            assert step < 4

    errors = Threads(4).run(on_rank)
    assert [type(error) for error in errors] == [NonFiniteLoss] * 4
    assert {(error.step, error.value) for error in errors} == {(2, math.inf)}

    def at_the_end(group):
        mean = LossMean(False, 64, CPU, group)
        mean.add(np.asarray(math.nan if group.rank else 1.0), 1, 2)
        mean.tick()
        mean.merge()

    assert [error.step for error in Threads(2).run(at_the_end)] == [1, 1]


def test_values_travel_without_pickle():
    value = {
        "numbers": [1, -(2**80), 0.1, math.inf, True, None], ("a", 1): (b"\0b", "ü"),
        "arrays": [np.arange(6).reshape(2, 3).T, np.float32(0.5), np.array([], np.int8)],
        "low": np.array([1.5, 2], bfloat16), "texts": np.array(["a", "bc"]), 3: {1, 2},
    }  # fmt: skip
    found = unpacked(packed(value))
    assert str(found) == str({**value, "arrays": [*map(np.asarray, value["arrays"])]})
    assert found["low"].dtype == bfloat16 and found["arrays"][0].flags.writeable
    assert found["arrays"][1].dtype == np.float32 and found["arrays"][1].shape == ()
    for odd in (object(), [math.exp], np.array([None])):
        with pytest.raises(TypeError, match="cannot be sent to other processes"):
            packed(odd)
