"""`gpunn profile` and `gpunn explain`."""

from __future__ import annotations

import json

import pytest

from gpunn.cli.main import main

QUICK = ["--device", "cpu", "--steps", "2", "--warmup", "1", "--batch-size", "8"]


def test_profile_prints_a_table_and_writes_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    trace, memory = tmp_path / "trace.json", tmp_path / "memory.png"
    files = ["--trace", str(trace), "--memory", str(memory)]
    assert main(["profile", "mlp", *QUICK, *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mlp-784-256-128-10, batch 8\n") and "mean of 2 steps" in out
    assert "adam_update" in out and "between kernels" in out and "One more step: peak memory" in out
    assert json.loads(trace.read_text())["otherData"] == {"device": "cpu", "steps": 2}
    assert memory.stat().st_size > 0


def test_profile_by_layer_and_as_json(capsys):
    assert main(["profile", "mlp", *QUICK, "--by", "layer"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[4:]][:5] == [
        "AdamW", "Sequential", "0", "2", "4",
    ]  # fmt: skip
    assert main(["profile", "mlp", *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == "mlp-784-256-128-10" and found["steps"] == 2


def test_explain(capsys):
    assert main(["explain", "mlp", "--kernels", "--batch-size", "128"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mlp-784-256-128-10, batch 128 on H200") and "advance_step<" in out
    assert main(["explain", "cnn", "--chip", "a100", "--batch-size", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chip"] == "A100" and found["rows"][0]["primitive"] == "convolution_forward"


def test_nothing_is_wider_than_the_terminal(monkeypatch, capsys):
    once = ["--device", "cpu", "--steps", "1", "--warmup", "0", "--batch-size", "2"]
    commands = (
        ["explain", "gpt", "--batch-size", "1", "--kernels"],
        *(["profile", "lenet", *once, "--by", by] for by in ("kernel", "layer", "call")),
    )
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        for command in commands:
            assert main(command) == 0
            widths = [len(line) for line in capsys.readouterr().out.splitlines()]
            assert max(widths) <= columns and len(widths) > 10, command


@pytest.mark.parametrize("command", ["profile", "explain"])
def test_lists(command, capsys):
    assert main([command, "--list"]) == 0
    assert "resnet18" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["profile"], "name a step, such as gpunn profile mlp"),
        (["explain"], "name a step, such as gpunn explain mlp"),
        (["profile", "mpl"], "there is no step named 'mpl'; did you mean mlp? Known: digits"),
        (["explain", "mpl"], "there is no step named 'mpl'; did you mean mlp? Known: digits"),
        (["profile", "mlp", "--steps", "0"], "--steps is 0; expected 1 or more"),
        (["profile", "mlp", "--depth", "0"], "--depth is 0; expected 1 or more"),
        (["profile", "mlp", "--trace", "a.txt"], "a trace is JSON"),
        (["profile", "mlp", "--memory", "a.txt"], "--memory a.txt: give a name that ends in .png"),
        (["profile", "mlp", "--trace", "/no/such/a.json"], "the folder /no/such does not exist"),
        (["explain", "mlp", "--chip", "b200"], "known: h200, h100, a100"),
        (["explain", "mlp", "--device", "cpu"], "what is explained are the kernels of a GPU"),
        (["explain", "mlp", "--chip", "h100", "--device", "cuda"], "give one of them"),
        (["explain", "mlp", "--batch-size", "0"], "the batch size is 0"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
