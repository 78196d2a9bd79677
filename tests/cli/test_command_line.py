"""What all commands share: help, exit codes, JSON that stands alone, suggestions, completion."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gpunn
from gpunn.cli import page
from gpunn.cli.arguments import only_result, print_json
from gpunn.cli.completion import SHELLS, script
from gpunn.cli.main import COMMANDS, main, parser
from gpunn.train.configuration import ConfigurationError
from gpunn.train.jobs import DigitsConfig

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
WITHOUT_RESULT = ("completion", "report")
QUICK = ["train", "digits", "--device", "cpu", "--limit", "200", "--set", "hidden=[8]"]


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def as_json(capsys, *arguments):
    """What a program reads from standard output, which must be one JSON document."""
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


# ---- help ---------------------------------------------------------------------------------------


def test_gpunn_alone_shows_what_there_is(capsys):
    code, out, err = run(capsys)
    assert code == 0 and err == "" and out.startswith("usage: gpunn")
    assert all(f"    {command}" in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_exit_codes(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    _, _, rest = out.partition("examples:\n")
    examples, _, codes = rest.partition("exit codes:\n")
    assert code == 0 and f"gpunn {command}" in examples
    assert [line[2:5].strip() for line in codes.splitlines() if line[2:3].strip()] in (
        ["0", "2", "130"], ["0", "1", "2", "130"],
    )  # fmt: skip
    if command not in WITHOUT_RESULT:
        assert "--json" in out and "--quiet" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_page_is_what_the_parsers_say():
    text = PAGE.read_text(encoding="utf-8")
    assert page.whole(text) == text, "run: python -m gpunn.cli.page docs/cli.md"
    with pytest.raises(ValueError, match="the page has no line"):
        page.whole("# Another page")


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "gpunn: there is no command 'trian'; did you mean train? Known: train, pr"),
        (["xyzzy"], "gpunn: there is no command 'xyzzy'; known: train, predict"),
        (["train", "--epoch", "3"], "gpunn train: there is no option --epoch; did you mean --epo"),
        (["bench", "matmul", "--sampels=3"], "there is no option --sampels; did you mean --sam"),
        (["profile", "--zzz"], "there is no option --zzz (see gpunn profile --help)"),
        (["train", "digits", "--precision", "fp23"], "--precision cannot be 'fp23'; did you mean"),
        (["train", "digits", "more"], "unexpected argument 'more'"),
        (["completion", "csh"], "cannot be 'csh'; did you mean zsh?"),
        (["predict"], "the following arguments are required: RUN_FOLDER, DATA"),
        (["--json", "doctor"], "--json before a command goes with --version"),
        (["train", "digits", "--epochs", "many"], "--epochs must be a whole number, got 'many'"),
        (["bench", "--json", "softmax"], "'softmax' was taken for the file of --json: put --json"),
        (["evaluate", "x", "--at-least", "90"], "an accuracy lies between 0 and 1"),
        (["train", "digits", "--set", "epochs"], "--set epochs: write NAME=VALUE"),
        (["train", "digits", "--set", "epochs=x"], "--set epochs: epochs must be a whole number"),
        (["train", "digits", "--set", f"hidden={'[' * 5000}"], "--set hidden: hidden must be a li"),
        (["bench", "sofmax"], "sofmax is no primitive; did you mean softmax? (see gpunn bench -"),
        (["bench", "--list", "--json", "x.json"], "--list writes no file; give --json without a n"),
        (["kernels", "sofmax"], "named like sofmax; did you mean softmax_forward? (see gpunn ker"),
        (["kernels", "softmax", "--compile", "sm90"], "--compile sm90: write an architecture such"),
        (["check", "none.cu", "--list"], "gpunn check: none.cu: No such file or directory"),
        (["check", "k.cu", "--launch", "f", "--preempt", "-1"], "--preempt is -1; expected 0 or"),
        (["check", "k.cu", "--launch", "f", "-I", "none"], "--include none: there is no such fol"),
        (["evaluate", __file__], "test_command_line.py is not a run folder: it is a file"),
    ],
)
def test_wrong_use_is_one_sentence_and_names_the_nearest(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1


# ---- JSON and quiet -----------------------------------------------------------------------------


def test_version_as_json(capsys):
    found = as_json(capsys, "--version")
    assert found["gpunn"] == gpunn.__version__ and found["numpy"] == np.__version__
    assert found["optional"]["onnx"] is None or found["optional"]["onnx"][0].isdigit()
    assert "CuPy" in found["cuda"]


def test_doctor_as_json_and_quiet(capsys, monkeypatch):
    monkeypatch.setattr("gpunn.kernels.table", lambda table=gpunn.kernels.table: {
        name: made for name, made in table().items() if name.startswith("softmax")
    })  # fmt: skip
    found = as_json(capsys, "doctor", "--device", "cpu")
    assert [one["kernel"] for one in found["kernels"]] == ["softmax_forward", "softmax_backward"]
    assert all(one["passed"] and one["error"] < 1e-5 for one in found["kernels"])
    assert found["device"] == "cpu" and found["packages"]["scikit-learn"]["version"]
    names = [one["name"] for one in found["findings"]]
    assert names[-3:] == ["emulator", "MPI", "NCCL"] and "mpi4py" in found["packages"]
    code, out, _ = run(capsys, "doctor", "--device", "cpu", "--quiet")
    assert code == 0 and out.startswith("2 of 2 passed on cpu") and out.count("\n") == 1
    code, out, _ = run(capsys, "doctor", "--no-kernels", "--device", "cpu")
    assert code == 0 and "optional package" in out and "onnxruntime" in out
    assert "for several processes" in out and re.search(r"\n(yes|NO) +MPI   ", out)


def test_results_as_json(capsys, monkeypatch, tmp_path):
    from gpunn.bench import ceilings

    made = ceilings.Ceilings("cpu", 1e10, {"float32": 1e11}, {"copy": "x", "float32": "x"})
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda device: made)
    bench = ["bench", "softmax_forward", "--device", "cpu", "--shape", "8x16", "--samples", "2",
             "--peers", "none"]  # fmt: skip
    (row,) = as_json(capsys, *bench)["rows"]
    assert row["implementation"] == "numpy" and len(row["samples"]) == 2
    assert as_json(capsys, "bench", "--list")[0]["primitive"] == "matmul"
    listed = as_json(capsys, "bench", "--list", "log_softmax_forward")
    assert [one["primitive"] for one in listed] == ["log_softmax_forward"]
    code, out, _ = run(capsys, *bench, "--quiet")
    assert code == 0 and out == ""
    steps = [one["step"] for one in as_json(capsys, "profile", "--list")]
    assert "mlp" in steps and as_json(capsys, "explain", "--list")[0]["step"] == "digits"
    code, out, _ = run(capsys, "explain", "mlp", "--quiet")
    assert code == 0 and out.startswith("A step: ") and "\n\n" not in out
    source = tmp_path / "k.cu"
    source.write_text("__global__ void fill(float* x, int n) { x[threadIdx.x] = n; }\n")
    (kernel,) = as_json(capsys, "check", source, "--list")
    assert kernel["name"] == "fill"


def test_train_evaluate_and_predict_as_json(capsys, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run(capsys, *QUICK, "--epochs", 2, "--json", "--output", folder)
    trained = json.loads(out)
    assert code == 0 and "epoch 1/2" in err and "device      cpu" in err
    assert trained["folder"] == str(folder) and trained["config"]["hidden"] == [8]
    assert [record["epoch"] for record in trained["history"]] == [1, 2]
    evaluated = as_json(capsys, "evaluate", folder)
    assert evaluated["accuracy"] == trained["metrics"]["test_accuracy"]
    counts = np.array(evaluated["confusion_matrix"])
    for one in evaluated["classes"]:
        row, column = counts[one["class"]], counts[:, one["class"]]
        assert one["samples"] == row.sum() and one["right"] == row[one["class"]]
        if one["right"]:
            recall, precision = one["right"] / row.sum(), one["right"] / column.sum()
            assert (one["recall"], one["precision"]) == (recall, precision)
            assert one["f1"] == pytest.approx(2 * recall * precision / (recall + precision))
    found = as_json(capsys, "predict", folder, "digits-test", "--probabilities")
    assert found["accuracy"] == evaluated["accuracy"] and found["samples"] == counts.sum()
    first = found["predictions"][0]
    assert first["prediction"] == np.argmax(first["probabilities"])
    assert not list(folder.glob("predictions-*"))  # with --json nothing is written unasked
    target = tmp_path / "answers.json"
    code, out, _ = run(capsys, "predict", folder, "digits-test", "--output", target, "--quiet")
    assert code == 0 and out.count("\n") == 3 and f"predictions to {target}" in out
    assert json.loads(target.read_text())["predictions"][0]["row"] == first["row"]
    for least, expected in ((0, 0), (1, 1)):
        code, out, _ = run(capsys, "evaluate", folder, "--at-least", least, "--quiet")
        assert code == expected and out.startswith("accuracy  ")
    code, _, err = run(capsys, "predict", folder, "digits-test", "--output", tmp_path / "a.xlsx")
    assert code == 2 and "ends in .csv or .json" in err


def test_training_that_fails_is_exit_code_1(capsys, tmp_path, monkeypatch):
    from gpunn.train import TrainingError

    def fail(*arguments, **options):
        raise TrainingError("the loss of step 3 is nan")

    monkeypatch.setattr("gpunn.train.classification.fit", fail)
    code, out, err = run(capsys, *QUICK, "--quiet", "--output", tmp_path / "run")
    assert code == 1 and out == "" and err == "gpunn train: the loss of step 3 is nan\n"
    assert not (tmp_path / "run").exists()


def test_only_the_result_reaches_standard_output(capfd):
    with only_result(True):
        print("from Python")
        os.write(1, b"from a kernel\n")
    print_json({"a": [1.5, float("nan"), np.float32(2), Path("x")], 3: (np.arange(2),)})
    out, err = capfd.readouterr()
    assert json.loads(out) == {"a": [1.5, None, 2.0, "x"], "3": [[0, 1]]}
    assert sorted(err.splitlines()) == ["from Python", "from a kernel"]


# ---- where it prints ----------------------------------------------------------------------------


def test_a_terminal_without_all_characters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--help"])
    sys.stdout.flush()
    assert stop.value.code == 0 and b"gpunn predict runs/digits-? digits-test" in written.getvalue()
    written.truncate(0)
    print_json({"path": "é…"})
    assert json.loads(written.getvalue().strip(b"\0")) == {"path": "é…"}


def test_output_that_nobody_reads(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["--debug", "kernels"]) == 141
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0 and sys.stdout.name == os.devnull
    sys.stdout.close()


# ---- configuration ------------------------------------------------------------------------------


def test_show_config_is_a_configuration(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    code, out, _ = run(capsys, "train", "digits", "--show-config", "--set", "activation=gelu")
    assert code == 0 and tomllib.loads(out)["digits"]["activation"] == "gelu"
    path.write_text(out)
    arguments = ["--set", "seed=3", "--set", "epochs=9", "--epochs", 2, "--show-config"]
    code, out, _ = run(capsys, "train", "--config", path, *arguments)
    values = tomllib.loads(out)["digits"]
    values["hidden"] = tuple(values["hidden"])
    assert DigitsConfig(**values) == DigitsConfig(activation="gelu", seed=3, epochs=2)


def test_all_mistakes_of_a_configuration_with_their_lines(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('job = "digits"\n[digits]\nepoch = 3\nhidden = [\n  64,\n  -64,\n]\n')
    code, out, err = run(capsys, "train", "--config", path, "--set", "seeds=1", "--limit", "5")
    assert code == 2 and out == ""
    assert err.splitlines() == [
        "gpunn train: 4 mistakes in the settings",
        f"  {path}:3: there is no setting 'epoch'; did you mean 'epochs'?",
        f"  {path}:6: hidden[1] is -64; it must be 1 or more",
        "  --set seeds: there is no setting 'seeds'; did you mean 'seed'?",
        "  --limit: limit is 5; it must be 100 or more",
    ]
    path.write_text('# mine\njob = "letters"\n')
    code, _, err = run(capsys, "train", "--config", path)
    assert code == 2 and err.startswith(f"gpunn train: {path}:2: there is no training job 'let")
    with pytest.raises(ConfigurationError):
        main(["--debug", "train", "--config", str(path)])


# ---- completion ---------------------------------------------------------------------------------

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_gpunn
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_completion_in_bash(tmp_path, capsys):
    code, out, _ = run(capsys, "completion", "bash")
    assert code == 0
    path = tmp_path / "gpunn.bash"
    path.write_text(out)
    subprocess.run(["bash", "-n", path], check=True)

    def completed(*words):
        done = subprocess.run(
            ["bash", "-c", COMPLETE, "bash", path, "gpunn", *words],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        return done.stdout.split()

    assert completed("tr") == ["train"]
    assert completed("bench", "softmax_f") == ["softmax_forward"]
    assert set(completed("kernels", "matm")) == {"matmul", "matmul_activation_backward"}
    assert "--learning-rate" in completed("train", "--le")
    assert completed("train", "digits", "--set", "learn") == ["learning_rate="]
    assert completed("train", "--precision", "bf") == ["bf16"]
    assert completed("explain", "resnet1") == ["resnet18"]
    (tmp_path / "mine.toml").touch()
    assert completed("train", "--config", "mi") == ["mine.toml"]


def test_completion_for_the_other_shells_and_without_shtab(monkeypatch, capsys):
    for shell in SHELLS:
        text = script(parser(), shell)
        assert all(word in text for word in ("evaluate", "softmax_forward", "resnet18")), shell
    assert "#compdef gpunn" in script(parser(), "zsh")
    assert "complete -c gpunn" in script(parser(), "fish")
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = run(capsys, "completion", "bash")
    assert code == 2 and out == "" and "pip install shtab" in err
