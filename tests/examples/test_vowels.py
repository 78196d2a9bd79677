"""The vowels example: its baselines against other ways to compute them, and what predict takes."""

import sys

import numpy as np
import pytest

import gpunn
from gpunn import data
from gpunn.train import find_job
from gpunn.train.run import Run

JOB = find_job("vowels")
VOWELS = sys.modules[JOB.train.__module__]


def test_nearest_is_the_least_distance_of_stretched_utterances():
    (x, lengths, y), (asked, ends, _) = data.load_japanese_vowels()
    found = VOWELS.nearest((x, lengths, y), asked[:5], ends[:5])
    at = np.linspace(0, 1, 20)
    stretched = [
        np.stack([np.interp(at * (n - 1), np.arange(n), column) for column in one[:n].T], 1)
        for part, those in ((x, lengths), (asked[:5], ends[:5]))
        for one, n in zip(part, those, strict=True)
    ]
    known, new = stretched[: len(x)], stretched[len(x) :]
    expected = [y[np.argmin([((a - b) ** 2).sum() for a in known])] for b in new]
    assert found.tolist() == expected


def test_logistic_regression_takes_frames_that_training_chose():
    """Twelve numbers of one frame are the label; the others tell nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 7, 12)), np.arange(90) % 9
    x[:, 3] = 0  # the middle one, which an odd number of frames has
    x[np.arange(90), 3, y] = 9
    lengths = np.full(90, 7)
    found = VOWELS.logistic((x, lengths, y), x[::-1], lengths)
    assert list(found) == ["logistic regression, 3 frames",
        "logistic regression, mean and deviation"]  # fmt: skip
    assert found["logistic regression, 3 frames"].tolist() == y[::-1].tolist()


def test_padding_changes_nothing():
    gpunn.manual_seed(0)
    (x, lengths, _), _ = data.load_japanese_vowels()
    model = VOWELS.Listener(6, 0.5, 0.7).eval()
    together = VOWELS.opinions([model], x[:4], lengths[:4])[0]
    for row in range(4):
        n = lengths[row]
        alone = VOWELS.opinions([model], x[row : row + 1, :n], lengths[row : row + 1])[0]
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5)


def test_predict_takes_numbers_and_files(tmp_path):
    config = JOB.configure(**JOB.quick, device="cpu")
    run = Run(JOB, config, tmp_path, verbose=False)
    for number in range(config.parts):
        run.save(f"network-{number + 1}", VOWELS.model_for(config))
    _, (x, lengths, y) = data.load_japanese_vowels()
    rows = list(JOB.predict(run, "3, 9"))
    assert [row["utterance"] for row in rows] == [3, 9]
    assert [row["frames"] for row in rows] == lengths[[3, 9]].tolist()
    assert [row["was"] for row in rows] == [str(y[3] + 1), str(y[9] + 1)]
    columns = x[3, : lengths[3]].T
    text = ":".join(",".join(repr(float(value)) for value in column) for column in columns)
    (tmp_path / "a.ts").write_text(f"@dimensions 12\n@classLabel false\n@data\n{text}\n")
    (row,) = JOB.predict(run, str(tmp_path / "a.ts"))
    assert row["speaker"] == rows[0]["speaker"] and "was" not in row
    assert row["probability"] == pytest.approx(rows[0]["probability"], rel=1e-5)
    for wrong in ("370", "x", "", "-1"):
        with pytest.raises(ValueError, match="numbers of test utterances from 0 to 369"):
            list(JOB.predict(run, wrong))
    (tmp_path / "a.ts").write_text("@classLabel false\n@data\n" + ":".join(12 * ["?"]))
    with pytest.raises(ValueError, match=r"a\.ts: values of utterance 0 are missing"):
        list(JOB.predict(run, str(tmp_path / "a.ts")))
    (tmp_path / "a.ts").write_text("@classLabel false\n@data\n1,2:3,4\n")
    with pytest.raises(ValueError, match="12 coefficients a frame"):
        list(JOB.predict(run, str(tmp_path / "a.ts")))
