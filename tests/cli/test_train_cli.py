"""The commands train, predict and evaluate, from arguments to files and exit codes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gpunn import io
from gpunn.cli.main import main, parser

pytest.importorskip("sklearn")

QUICK = ["--device", "cpu", "--epochs", "3", "--limit", "300", "--hidden", "32", "--seed", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", *QUICK, "--quiet", "--output", str(path)]) == 0
    return path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"gpunn {command} " in capsys.readouterr().out.split("examples:")[1]


def test_train_prints_a_table_last(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "train", "digits", *QUICK)
    assert code == 0
    (made,) = (tmp_path / "runs").iterdir()
    lines = out.rstrip().splitlines()
    table = lines[-11:]
    assert any(line.startswith("  test accuracy        0.") for line in table)
    assert f"  run folder           runs/{made.name}" in table
    assert any(f"gpunn predict runs/{made.name} digits-test" in line for line in table)
    assert sum(line.startswith("epoch") for line in lines) == 3 and "device      cpu" in out


def test_train_again_from_the_configuration(capsys, folder, tmp_path):
    again = tmp_path / "again"
    code, out, _ = run(
        capsys, "train", "--config", folder / "config.toml", "--quiet", "--output", again
    )
    assert code == 0 and "epoch 1/" not in out
    for name in ("model.safetensors", "normalizer.safetensors", "config.toml"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    changed = tmp_path / "changed"
    code, out, _ = run(
        capsys, "train", "--config", folder, "--epochs", 1, "--quiet", "--output", changed
    )
    assert code == 0 and "1 of at most 1" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "say which job to train, for example: gpunn train digits"),
        (["train", "digit"], "there is no training job 'digit'; did you mean digits? Known:"),
        (["train", "digits", "--epochs", "0"], "epochs is 0; it must be 1 or more"),
        (["train", "digits", "--learning-rate", "-1"], "learning_rate is -1.0"),
        (["train", "digits", "--hidden", "0"], "--hidden: hidden[0] is 0; it must be 1 or more"),
        (["train", "digits", "--device", "tpu"], 'device is "tpu"; it must be one of auto, cpu'),
        (["train", "--config", "none.toml"], "no configuration file none.toml"),
        (["predict", "none", "digits-test"], "none is not a run folder: it does not exist"),
        (["evaluate", "none"], "not a run folder"),
    ],
)
def test_mistakes_get_one_sentence(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and len(err.splitlines()) == 1 and out == ""
    assert not (tmp_path / "runs").exists()


def test_train_refuses_a_folder_that_is_there(capsys, folder):
    code, _, err = run(capsys, "train", "digits", *QUICK, "--output", folder)
    assert code == 2 and "no run is overwritten" in err


def test_train_refuses_the_wrong_job(capsys, tmp_path):
    (tmp_path / "c.toml").write_text('job = "letters"\n')
    code, _, err = run(capsys, "train", "digits", "--config", tmp_path / "c.toml")
    assert code == 2 and "of the job 'letters', not 'digits'" in err
    (tmp_path / "c.toml").write_text('job = "digits"\n[digits]\nepoch = 3\n')
    code, _, err = run(capsys, "train", "--config", tmp_path / "c.toml")
    assert code == 2 and "did you mean 'epochs'" in err


def test_predict_the_held_out_samples(capsys, folder):
    code, out, err = run(capsys, "predict", folder, "digits-test", "--device", "cpu")
    assert code == 0 and err == ""
    written = folder / "predictions-digits-test.csv"
    assert written.read_text() == (folder / "test_predictions.csv").read_text()
    assert "accuracy  0." in out and "… and 50 more" in out and str(written) in out


def test_predict_files(capsys, folder, tmp_path):
    from sklearn.datasets import load_digits

    x = load_digits().data[:12]
    np.save(tmp_path / "x.npy", x.reshape(-1, 8, 8))
    np.savez(tmp_path / "x.npz", x=x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    answers = []
    for name in ("x.npy", "x.npz", "x.csv"):
        target = tmp_path / "out.csv"
        code, out, err = run(
            capsys, "predict", folder, tmp_path / name, "--output", target, "--probabilities"
        )
        assert code == 0 and err == "" and "accuracy" not in out
        answers.append(target.read_text())
    assert answers[0] == answers[1] == answers[2]
    header, *rows = answers[0].splitlines()
    assert header == "row,prediction,probability," + ",".join(f"p{n}" for n in range(10))
    table = np.array([row.split(",") for row in rows], float)
    assert table.shape == (12, 13) and np.array_equal(table[:, 1], table[:, 3:].argmax(axis=1))
    assert np.allclose(table[:, 3:].sum(axis=1), 1, atol=1e-4)


def test_predict_refuses_other_features(capsys, folder, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 30)))
    code, _, err = run(capsys, "predict", folder, tmp_path / "x.npy")
    assert code == 2 and len(err.splitlines()) == 1
    assert "5 samples of 30 features came" in err and "expects 64 (8 x 8)" in err
    code, _, err = run(capsys, "predict", folder, tmp_path / "none.csv")
    assert code == 2 and "there is no file" in err


def test_predict_doubts_other_units(capsys, folder, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((5, 64)))
    code, _, err = run(capsys, "predict", folder, tmp_path / "x.npy")
    assert code == 0 and "same units" in err


def test_evaluate(capsys, folder, tmp_path):
    import json

    from sklearn.datasets import load_digits

    code, out, _ = run(capsys, "evaluate", folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert code == 0 and f"accuracy       {metrics['test_accuracy']:.4f}" in out
    assert f"cross-entropy  {metrics['test_loss']:.4f}" in out and "taken for" in out
    x, y = load_digits(return_X_y=True)
    np.savez(tmp_path / "d.npz", x=x[:50], y=y[:50])
    np.savetxt(tmp_path / "d.csv", np.c_[x, y][:50], delimiter=";")
    one, two = (run(capsys, "evaluate", folder, tmp_path / name) for name in ("d.npz", "d.csv"))
    assert one == two and one[0] == 0 and "of 50)" in one[1]
    np.save(tmp_path / "x.npy", x[:5])
    code, _, err = run(capsys, "evaluate", folder, tmp_path / "x.npy")
    assert code == 2 and "has no labels" in err


def test_ctrl_c_keeps_the_run_and_says_so(capsys, tmp_path, monkeypatch):
    from gpunn.train.callbacks import EarlyStopping

    original = EarlyStopping.on_epoch_end

    def interrupt(self, trainer, epoch, record):
        original(self, trainer, epoch, record)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(EarlyStopping, "on_epoch_end", interrupt)
    folder = tmp_path / "run"
    code, out, _ = run(capsys, "train", "digits", *QUICK, "--quiet", "--output", folder)
    assert code == 130 and "2 of at most 3, interrupted" in out
    assert (folder / "model.safetensors").is_file() and "train the same model again" not in out
    assert f"gpunn train --resume {folder}" in out
    monkeypatch.setattr(EarlyStopping, "on_epoch_end", original)
    code, _, err = run(capsys, "train", "digits", "--resume", folder, "--set", "epochs=9")
    assert code == 2 and "leave out job, --set, or begin a new run" in err
    code, out, _ = run(capsys, "train", "--resume", folder)
    assert code == 0 and "goes on from" in out and "epoch 2 of 3" in out and "3 of at most 3" in out
    code, _, err = run(capsys, "train", "--resume", folder)
    assert code == 2 and "is complete (3 epochs)" in err


def test_the_next_command_is_one_that_works(tmp_path, monkeypatch):
    from gpunn.cli import train

    script = tmp_path / ".venv" / "bin" / "gpunn"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [".venv/bin/gpunn", "train"])
    monkeypatch.setenv("PATH", "")
    assert train.how_called() == str(Path(".venv/bin/gpunn"))
    monkeypatch.setattr("sys.argv", [str(tmp_path / "__main__.py"), "train"])
    assert train.how_called() == "gpunn"


def test_a_model_with_nan_or_without_a_job_does_not_predict(capsys, folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    model = broken / "model.safetensors"
    metadata, arrays = io.load_metadata(model), io.load_arrays(model)
    io.save({**arrays, "0.bias": arrays["0.bias"] * np.nan}, model, metadata)
    code, _, err = run(capsys, "predict", broken, "digits-test")
    assert code == 2 and "model.safetensors: 0.bias holds NaN or infinity" in err
    io.save(arrays, model, dict.fromkeys(metadata, "{"))
    code, _, err = run(capsys, "predict", broken, "digits-test")
    assert code == 2 and "model.safetensors does not say how it was made" in err


def test_the_next_command_is_quoted(capsys, tmp_path):
    code, out, _ = run(
        capsys, "train", "digits", *QUICK, "--epochs", 1, "--quiet", "--output", tmp_path / "a b"
    )
    assert code == 0 and f"predict '{tmp_path}/a b' digits-test" in out
