"""The images example: the user's own datasets, what is held out, how results are compared."""

import re
import struct
import sys

import numpy as np
import pytest

from gpunn.data import load_digits
from gpunn.train import find_job
from gpunn.train.configuration import ConfigurationError
from gpunn.train.run import Run

JOB = find_job("images")
example = sys.modules[JOB.config.__module__]


def idx(array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write(folder, kind):
    """Twenty images to train with and twenty to test, in the official format; the test images."""
    rng = np.random.default_rng(0)
    shape = (3, 32, 32) if kind == "cifar10" else (1, 12, 12)
    x = rng.integers(0, 256, (40, *shape)).astype(np.uint8)
    y = (np.arange(40) % 10).astype(np.uint8)
    if kind == "cifar10":
        records = np.concatenate([y[:, None], x.reshape(40, -1)], axis=1)
        for number in range(5):
            (folder / f"data_batch_{number + 1}.bin").write_bytes(
                records[4 * number :][:4].tobytes()
            )
        (folder / "test_batch.bin").write_bytes(records[20:].tobytes())
    else:
        for part, some in (("train", slice(20)), ("t10k", slice(20, 40))):
            (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(x[some, 0]))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(y[some]))
    return x, y


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist", "cifar10"])
def test_the_users_copy(tmp_path, kind, monkeypatch):
    x, y = write(tmp_path, kind)
    config = JOB.configure(
        data=kind, folder=str(tmp_path), width=2, epochs=1, batch_size=8, device="cpu"
    )
    split = example.load(config)
    assert np.array_equal(split.test[0], x[20:]) and np.array_equal(split.test[1], y[20:])
    assert len(split.validation[1]) == 2
    used = np.concatenate([split.train[0], split.validation[0]])
    assert sorted(map(bytes, used.astype(np.uint8))) == sorted(map(bytes, x[:20]))
    run = Run(JOB, config, tmp_path, verbose=False)
    monkeypatch.setattr(Run, "figure", lambda run, name, draw: None)
    JOB.train(run)
    saved = run.load("scaling")
    inside = split.train[0].astype(np.float64)  # of the training images alone
    np.testing.assert_allclose(saved["mean"], inside.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(saved["std"], inside.std(axis=(0, 2, 3)), rtol=1e-12)
    outcome = JOB.evaluate(run)
    probabilities = example.classify(run, split.test[0])
    assert outcome.samples == 20 and outcome.baselines["majority class"] == 0.1
    assert outcome.value == (probabilities.argmax(1) == y[20:]).mean()
    np.save(tmp_path / "some.npy", x[20:23])
    rows = list(JOB.predict(run, str(tmp_path / "some.npy")))
    names = [example.SOURCES[kind].classes[number] for number in probabilities[:3].argmax(1)]
    assert [row["class"] for row in rows] == names
    np.testing.assert_allclose(
        [row["probability"] for row in rows], probabilities[:3].max(1), rtol=1e-5
    )


def test_the_digits_to_test_with_are_always_the_same():
    parts = [example.load(JOB.configure(seed=seed)) for seed in (0, 1)]
    assert np.array_equal(parts[0].test[0], parts[1].test[0])
    assert not np.array_equal(parts[0].validation[1], parts[1].validation[1])
    assert [len(part[1]) for part in parts[0]] == [1294, 144, 359]
    held, every = (np.bincount(part) for part in (parts[0].test[1], load_digits()[1]))
    assert np.abs(held - every / 5).max() <= 1


def test_which_folder_goes_with_which_data():
    with pytest.raises(ConfigurationError, match="data is mnist: say in which folder your copy"):
        JOB.configure(data="mnist")
    with pytest.raises(ConfigurationError, match="the digits ship with scikit-learn"):
        JOB.configure(folder="x")


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        (3, 3, "cannot be told apart by these images: only the network has 3 images right, only "),
        (5, 2, "cannot be told apart"),  # (5 - 2)² < 4 (5 + 2)
        (7, 1, "The network is better than the other: only the network has 7"),
        (0, 5, "The network is worse than the other: .* only the other 5"),
        (0, 0, "cannot be told apart"),
    ],
)
def test_how_two_classifiers_compare(own, other, words):
    right = np.array([True] * own + [False] * other + [True, False] * 9)
    other_right = np.array([False] * own + [True] * other + [True, False] * 9)
    found = example.verdict(right, other_right, "other")
    assert re.search(words, found)
