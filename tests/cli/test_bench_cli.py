"""The command gpunn bench: its table, files and exit codes."""

import json

import pytest

from gpunn.bench import ceilings
from gpunn.bench.ceilings import Ceilings
from gpunn.cli.main import main


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    made = Ceilings("cpu", 1e10, {"float32": 1e11}, {"copy": "made up", "float32": "made up"})
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda device: made)


SMALL = ["bench", "softmax_forward", "--shape", "8x16", "--device", "cpu", "--samples", "2"]


def test_table_json_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "a.json", tmp_path / "a.png"
    files = ["--json", str(out), "--plot", str(picture)]
    assert main([*SMALL, "--peers", "numpy", *files]) == 0
    text = capsys.readouterr().out
    assert "vs plain numpy" in text and "softmax_forward" in text and "made up" in text
    rows = json.loads(out.read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["numpy", "plain numpy"]
    assert picture.stat().st_size > 0


def test_compare_finds_what_became_slower(tmp_path, capsys):
    out = tmp_path / "a.json"
    assert main([*SMALL, "--peers", "none", "--json", str(out)]) == 0
    old = json.loads(out.read_text())
    for row in old["rows"]:
        row["samples"] = [s / 1000 for s in row["samples"]]
    out.write_text(json.dumps(old))
    assert main([*SMALL, "--peers", "none", "--compare", str(out)]) == 1
    assert "1 of 1 became slower by more than 5%" in capsys.readouterr().out
    for row in old["rows"]:
        row["samples"] = [s * 1e6 for s in row["samples"]]
    out.write_text(json.dumps(old))
    assert main([*SMALL, "--peers", "none", "--compare", str(out)]) == 0
    assert "faster" in capsys.readouterr().out


def test_launch_is_measured_without_a_gpu(tmp_path, capsys):
    out = tmp_path / "launch.json"
    arguments = ["bench", "launch", "--device", "cpu", "--samples", "2", "--json", str(out)]
    assert main(arguments) == 0
    said, _, tables = capsys.readouterr().out.partition("\n\n")
    assert said.startswith("There is no GPU here: ") and said.count(".") == 1
    lines = tables.splitlines()
    assert lines[0].split("  ")[0] == "a launch, us" and "20 arguments" in lines[0]
    assert lines[2].startswith("gpunn ") and lines[2].count("±") == 3
    assert any(line.startswith("activation_forward") and line.count("±") == 4 for line in lines)
    rows = json.loads(out.read_text())["launches"]
    assert {row["kind"] for row in rows} == {"launch", "call"}
    assert not any(row["driver"] for row in rows)


def test_list(capsys):
    assert main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    assert "softmax_forward" in text and "numpy cuda numba" in text


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "gpunn bench softmax_forward" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench"], "name a primitive, a family or all"),
        (["bench", "sofmax"], "sofmax is no primitive; did you mean softmax?"),
        ([*SMALL[:2], "--shape", "8by16"], "write for example 4096x1024"),
        ([*SMALL, "--threshold", "much"], "write for example 5%"),
        ([*SMALL, "--peers", "cupy"], "cupy is no peer on cpu"),
        (["bench", "launch", "matmul"], "launch is measured alone"),
        (["bench", "launch", "--peers", "cupy"], "launch takes no --peers"),
        ([*SMALL, "--samples", "0"], "--samples is 0; expected 1 or more"),
        ([*SMALL, "--compare", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys):
    assert main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_nothing_timed_is_exit_code_1(capsys):
    assert main([*SMALL, "--implementation", "cuda", "--peers", "none"]) == 1
    assert "cuda does not run on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_cannot_be_written_is_said_before_measuring(option, tmp_path, capsys):
    nowhere = tmp_path / "none" / "x.png"
    assert main(["bench", "softmax_forward", "--device", "cpu", option, str(nowhere)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "the folder" in captured.err and "does not exist" in captured.err
