"""`Trainer` on several ranks against the same Trainer in one process."""

import itertools
import signal
import tempfile
from pathlib import Path

import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader
from gpunn.errors import GpunnError
from gpunn.train import (
    Callback,
    Checkpoints,
    CSVLogger,
    EarlyStopping,
    Metric,
    NaNWatch,
    Trainer,
    TrainingError,
    checkpointing,
    find_learning_rate,
)

RANKS = (2, 4)


def data(rows=45, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6))
    return x, (x[:, :3].argmax(axis=1)).astype(np.int64)


def model(norm=False, dropout=0.0):
    gpunn.manual_seed(1)
    middle = [nn.BatchNorm1d(8, dtype="float64")] if norm else []
    middle += [nn.Tanh(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(
        nn.Linear(6, 8, dtype="float64"), *middle, nn.Linear(8, 3, dtype="float64")
    )


def fitted(group, epochs=2, norm=False, dropout=0.0, fit=None, train=None, **options):
    """(trainer, history) of a training in float64; `group` False: of this process alone."""
    options = {"loss": nn.CrossEntropyLoss(), "seed": 5, "metrics": ["accuracy"]} | options
    options.setdefault("optimizer", lambda p: optim.AdamW(p, lr=0.01))
    trainer = Trainer(model(norm, dropout), distributed=group, **options)
    arguments = {"epochs": epochs, "batch_size": 10, "verbose": False} | (fit or {})
    return trainer, trainer.fit(data() if train is None else train, data(23, 1), **arguments)


def weights(trainer):
    return {name: value.numpy() for name, value in trainer.model.state_dict().items()}


def assert_same(one, other, rtol):
    """Two (trainer, history) have come to the same weights and measured the same."""
    (trainer, history), (reference, expected) = one, other
    found, wanted = weights(trainer), weights(reference)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol, 1e-13, err_msg=name)
    assert len(history) == len(expected)
    for record, right in zip(history, expected, strict=True):
        assert list(record) == list(right)
        for key in right:
            if key != "seconds":
                np.testing.assert_allclose(record[key], right[key], rtol, err_msg=key)


def case_same_trajectory(group):
    settings = {
        "plain": {},
        "clipped": {"gradient_clip_norm": 0.05, "l2": 0.01, "metrics": ["accuracy", "f1", "auc"]},
        "accumulated": {"accumulate": 2},
        "summed": {"loss": nn.CrossEntropyLoss(reduction="sum")},
        "weighted": {"loss": nn.CrossEntropyLoss(gpunn.tensor([0.2, 1.0, 3.0], dtype="float64"))},
        "function": {"loss": lambda p, t: nn.functional.cross_entropy(p, t)},
        "augmented": {"fit": {"transform": lambda f, rng: (f[0] + rng.random(f[0].shape), f[1])}},
    }
    for name, options in settings.items():
        together, alone = fitted(group, **options), fitted(False, **options)
        assert_same(together, alone, 1e-9)
        assert len({str(h) for h in group.exchange(repr(list(together[1])))}) == 1, name


def case_two_ranks_are_two_parts_to_the_bit(group):
    """Two ranks add the same two numbers as one process that accumulates two batches."""
    x, y = data(40)
    fit = {"shuffle": False}
    together, _ = fitted(group, train=(x, y), fit={**fit, "batch_size": 10})
    alone, _ = fitted(False, train=(x, y), fit={**fit, "batch_size": 5}, accumulate=2)
    found, expected = weights(together), weights(alone)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


case_two_ranks_are_two_parts_to_the_bit.ranks = (2,)


def case_sharded_states(group):
    for options in ({}, {"gradient_clip_norm": 0.05}, {"accumulate": 2}):
        sharded, whole = fitted(group, zero=1, **options), fitted(group, **options)
        assert_same(sharded, whole, 1e-12)
        try:
            Trainer(sharded[0].model, nn.MSELoss(), sharded[0].optimizer, distributed=False)
        except ValueError as error:
            assert "shared out to several ranks" in str(error)
        else:
            raise AssertionError("it would wait for the other ranks")
        assert all(arena.bounds is not None for arena in sharded[0].optimizer.arenas)


def case_batch_norm(group):
    # Not Adam: a bias before batch norm has a gradient of rounding errors, which it scales up.
    options = {"norm": True, "optimizer": lambda p: optim.SGD(p, lr=0.1, momentum=0.9)}
    fit = {"batch_size": 7}  # of the last batch, of 3 rows, one of four ranks has none
    alone = fitted(False, **options, fit=fit)
    assert_same(fitted(group, **options, fit=fit, sync_batch_norm=True), alone, 1e-9)
    trainer, _ = fitted(group, **options, sync_batch_norm=True, epochs=1)
    if group.main:  # alone the same model waits for nobody
        alone = Trainer(trainer.model, trainer.loss, trainer.optimizer, distributed=False)
        alone.fit(data(), verbose=False)
    own, _ = fitted(group, **options, train=data(40))  # each rank's own statistics
    assert len(set(group.exchange_bytes(b"".join(v.tobytes() for v in weights(own).values())))) == 1


class Batches:
    """A loader of somebody else's."""

    def __init__(self, stops):
        self.stops = stops

    def __iter__(self):
        x, y = data(40)
        return ((x[i:j], y[i:j]) for i, j in itertools.pairwise(self.stops))


def case_small_batches_and_lists(group):
    """A last batch of one row, and batches that are no DataLoader's."""
    x, y = data(21)
    assert_same(
        fitted(group, train=(x, y), norm=False), fitted(False, train=(x, y), norm=False), 1e-9
    )

    batches = Batches((0, 3, 10, 21))
    assert_same(fitted(group, train=batches), fitted(False, train=batches), 1e-9)
    loader = DataLoader((x, y), 8, shuffle=True, seed=2)
    again = DataLoader((x, y), 8, shuffle=True, seed=2)
    assert_same(fitted(group, train=loader), fitted(False, train=again), 1e-9)
    assert loader.part == (0, 1)


def case_ranks_that_begin_with_other_seeds(group):
    """A DataLoader that has drawn a seed of its own shuffles as rank 0's."""
    x, y = data(40)
    gpunn.manual_seed(group.rank)
    loader = DataLoader((x, y), 8, shuffle=True)
    again = DataLoader((x, y), 8, shuffle=True, seed=group.share(loader.seed))
    assert_same(fitted(group, train=loader), fitted(False, train=again), 1e-9)


class Count(Metric):
    """Samples, as a number that JSON does not know."""

    name = "count"

    def reset(self):
        self.count = 0

    def update(self, prediction, target):
        self.count += len(target)

    def compute(self):
        return np.float32(self.count)


def case_the_same_everywhere_without_validation(group):
    trainer = Trainer(model(norm=True), nn.CrossEntropyLoss(), optim.AdamW, metrics=[Count()],
        profile=True, distributed=group)  # fmt: skip
    history = trainer.fit(data(40), epochs=1, batch_size=10, verbose=False)
    assert history[0]["count"] == 40
    values = b"".join(value.tobytes() for value in weights(trainer).values())
    assert len(set(group.exchange_bytes(values))) == 1  # the running statistics, too
    assert (trainer.step.profiler is None) != group.main


def case_dropout_repeats_and_differs_between_ranks(group):
    class Seeds(Callback):
        def on_batch_end(self, trainer, epoch, step):
            seen.append(gpunn.random.get_rng_state())

    seen = []
    first, second = fitted(group, dropout=0.5), fitted(group, dropout=0.5, callbacks=[Seeds()])
    assert_same(first, second, 0)
    assert len(set(group.exchange(seen[0]["seed"]))) == group.size
    seen.clear()
    trainer, _ = fitted(group, 1, dropout=0.5, callbacks=[Seeds()], seed=None)
    trainer.fit(data(), epochs=1, verbose=False)
    assert len({str(state) for state in seen}) == len(seen)  # a second fit has masks of its own
    states = group.exchange(gpunn.random.get_rng_state())
    assert all(state == states[0] for state in states)  # for what the script does next


def case_mixed_precision(group):
    for precision in ("bf16", "fp16"):
        found = []
        for who in (group, False):
            gpunn.manual_seed(1)
            net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
            trainer = Trainer(net, nn.CrossEntropyLoss(), optim.SGD(net.parameters(), lr=0.1),
                seed=3, precision=precision, distributed=who)  # fmt: skip
            found.append(trainer.fit(data(), epochs=3, batch_size=8, verbose=False))
        np.testing.assert_allclose(found[0]["loss"], found[1]["loss"], rtol=0.02)


def case_compiled_on_the_emulator(group):
    """The replay of a captured step sums the gradients anew, in the step's graph."""
    found = []
    for options in ({"compile": True, "zero": 1}, {"compile": False}):
        gpunn.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        trainer = Trainer(net, nn.CrossEntropyLoss(), lambda p: optim.AdamW(p, lr=0.01),
            device="emulator", seed=3, distributed=group, sync_batch_norm=True,
            metrics=["accuracy"], fused=False, **options)  # fmt: skip
        x, y = data(48)
        history = trainer.fit((x.astype(np.float32), y), epochs=2, batch_size=8, verbose=False)
        assert trainer.way == ("compiled" if options["compile"] else "step by step"), trainer.way
        found.append((trainer, history))
    assert_same(*found, 1e-6)
    assert "captured" in found[0][0].summary()


case_compiled_on_the_emulator.ranks = (2,)


def case_resume(group):
    """From a checkpoint within an epoch: on as many ranks to the bit, on one to rounding."""
    checkpointing._PIECE = 4096  # it is sent in several
    folder = Path(group.share(tempfile.mkdtemp() if group.main else None))

    for zero, dropout in ((0, 0.5), (1, 0.0)):
        place = folder / str(zero)
        options = {"epochs": 3, "dropout": dropout, "zero": zero, "metrics": ["accuracy", "auc"]}
        whole = fitted(group, **options)
        kept = Checkpoints(place, epochs=None, steps=2, keep=9)
        fitted(group, **options, fit={"checkpoint": kept})
        names = sorted(path.name for path in place.iterdir() if "epoch-1-step-3" in path.name)
        assert len(names) == 1, names
        again = fitted(group, **options, fit={"resume": str(place / names[0])})
        assert again[0].resumed
        assert_same(again, whole, 0)
        if not dropout:
            options |= {"zero": 0, "fit": {"resume": str(place / names[0])}}
            assert_same(fitted(False, **options), whole, 1e-9)
            group.barrier()
            if group.main:
                fitted(False, epochs=2, fit={"checkpoint": place / "alone"})
            group.barrier()
            resumed = fitted(group, epochs=3, fit={"resume": str(place / "alone")})
            assert_same(resumed, fitted(False, epochs=3), 1e-9)
    group.barrier()


def case_a_signal_to_one_rank_stops_all(group):
    """All stop after the same step, and go on to the bit."""
    folder = Path(group.share(tempfile.mkdtemp() if group.main else None))

    class Interrupt(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if (epoch, step) == (2, 2) and group.rank == group.size - 1:
                signal.raise_signal(signal.SIGINT)

    whole = fitted(group, epochs=3, dropout=0.5)
    kept = {"checkpoint": folder / "run", "resume": "auto"}
    cut, history = fitted(group, epochs=3, dropout=0.5, callbacks=[Interrupt()], fit=kept)
    assert history.interrupted and len(history) == 1
    group.barrier()
    names = group.exchange(max(path.name for path in (folder / "run").iterdir()))
    assert "epoch-1-step-3" in names[0], names
    assert_same(fitted(group, epochs=3, dropout=0.5, fit=kept), whole, 0)
    _, history = fitted(group, epochs=3, callbacks=[Interrupt()])  # without checkpoints
    assert history.interrupted and len(history) == 1


def case_rank_0_writes_and_all_stop_together(group):
    folder = Path(group.share(tempfile.mkdtemp() if group.main else None))

    class Last(Callback):
        def on_epoch_end(self, trainer, epoch, record):
            if group.rank == group.size - 1 and epoch == 2:
                trainer.stop("the last rank says so")

    callbacks = [CSVLogger(folder / "log.csv"), EarlyStopping("validation_loss", 5), Last()]
    _, history = fitted(group, epochs=6, callbacks=callbacks)
    assert history.stop_reason == "the last rank says so" and len(history) == 2
    group.barrier()
    assert len((folder / "log.csv").read_text().splitlines()) == 3


def case_a_loss_that_is_not_finite(group):
    x, y = data(40)
    target = x[:, :3].copy()
    x[37], target[37] = np.nan, np.nan  # of the last rank, in the last batch
    regression = {"loss": nn.MSELoss(), "metrics": [], "norm": True, "sync_batch_norm": True}
    for train, options in (((x, y), {}), ((np.nan_to_num(x), target), regression)):
        text = ""
        try:
            fitted(group, train=train, fit={"shuffle": False}, **options)
        except TrainingError as error:
            text = str(error)
        assert "became nan in epoch 1, step 4" in text, text
        assert len(set(group.exchange(text))) == 1


def case_learning_rates(group):
    found = []
    for who in (group, False):
        net = model(norm=True)
        if who is group and not group.main:
            net[0].weight.data[...] += 1  # rank 0's counts
        trainer = Trainer(net, nn.CrossEntropyLoss(), optim.AdamW(net.parameters()),
            distributed=who, sync_batch_norm=True, zero=1)  # fmt: skip
        found.append(find_learning_rate(trainer, data(), steps=6, minimum=1e-3, maximum=1))
    np.testing.assert_allclose(found[0].losses, found[1].losses, 1e-9)
    assert len(set(group.exchange(found[0].losses.tolist().__repr__()))) == 1


def case_wrong_use(group):
    def error(function, *kinds):
        try:
            function()
        except kinds as found:
            return str(found)
        raise AssertionError("nothing was refused")

    x, y = data()
    batches = [(x[group.rank :], y[group.rank :])]
    text = error(lambda: fitted(group, train=iter(batches)), RuntimeError)
    assert "number 1 is of" in text and "targets of checksum" in text
    net = nn.Linear(6, 3 + group.rank, dtype="float64")
    trainer = Trainer(net, nn.CrossEntropyLoss(), optim.SGD(net.parameters()), distributed=group)
    text = error(lambda: trainer.fit(data(), verbose=False), RuntimeError)
    assert "different models" in text and "[3, 6]" in text and "[4, 6]" in text
    x, y = data()
    own = x[group.rank :: group.size], y[group.rank :: group.size]
    order = np.random.default_rng(group.rank).permutation(len(x))
    text = error(
        lambda: fitted(group, train=(x[: 10 + group.rank], y[: 10 + group.rank])), RuntimeError
    )
    assert "different training data" in text and "10 samples in batches of 10, shuffled" in text
    for train in (own, (x[order], y[order])):
        text = error(lambda train=train: fitted(group, train=train), RuntimeError)
        assert "different training data" in text
    for stops in (range(0, 41 - 10 * group.rank, 10), (0, 10, 15 + group.rank, 40)):
        text = error(lambda stops=stops: fitted(group, train=Batches(stops)), RuntimeError)
        assert "different batches" in text, text
    net = model()
    parameters = list(net.parameters())[:: 1 if group.main else -1]
    trainer = Trainer(net, nn.CrossEntropyLoss(), optim.SGD(parameters), distributed=group)
    assert "next in the optimizer" in error(
        lambda: trainer.fit((x, y), verbose=False), RuntimeError
    )
    for options, kind, words in (
        ({"zero": 2}, ValueError, "zero is 2"),
        ({"distributed": "yes"}, ValueError, "distributed is 'yes'"),
        ({"fused": True}, ValueError, "several processes train together"),
        ({"zero": 1, "callbacks": [NaNWatch()]}, ValueError, "NaNWatch reads gradients"),
        ({"optimizer": lambda p: Foreign()}, TypeError, "got Foreign"),
    ):
        assert words in error(lambda o=options: fitted(**{"group": group, **rename(o)}), kind)
    folder = Path(group.share(tempfile.mkdtemp() if group.main else None))
    words = error(
        lambda: fitted(group, fit={"resume": True, "checkpoint": folder / "none"}),
        FileNotFoundError, GpunnError,
    )  # fmt: skip
    assert "there is no folder" in words


class Foreign:
    """An optimizer of somebody else."""

    param_groups = ()

    def step(self):
        raise AssertionError("it was used")


def rename(options):
    return {("group" if key == "distributed" else key): value for key, value in options.items()}
