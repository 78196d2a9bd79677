"""The command line itself, `doctor` and `kernels`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import gpunn
from gpunn.cli import main as module
from gpunn.cli.main import COMMANDS, main
from gpunn.errors import DeviceError
from gpunn.text import table


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"gpunn {gpunn.__version__}"
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and f"gpunn {command}" in text and "example" in text


def test_wrong_use_is_one_sentence(capsys):
    assert main(["doctor", "--device", "gpu7"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpunn doctor: device: 'gpu7' is not known") and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["no-such-command"])
    assert stop.value.code == 2


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="gpu7"):
        main(["--debug", "doctor", "--device", "gpu7"])


def test_interrupt(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpunn.cli.doctor.run", interrupted)
    monkeypatch.setattr(module, "COMMANDS", ("doctor",))
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_doctor_checks_every_kernel(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name in gpunn.kernels.table():
        assert f"\n{name} " in out
    count = len(gpunn.kernels.table())
    assert f"{count} of {count} passed on cpu" in out and "FAILED" not in out


def test_doctor_names_a_kernel_that_fails(capsys, monkeypatch):
    made = gpunn.kernels.table()["softmax_forward"]
    monkeypatch.setattr(made, "_reference", lambda x, out: out.fill(x.itemsize))
    assert main(["doctor", "--device", "cpu"]) == 1
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("softmax_forward"))
    assert "FAILED" in line and "relative error" in line


def test_doctor_without_a_driver_says_what_to_do(capsys, monkeypatch):
    from gpunn.device import probe

    def missing():
        raise DeviceError("CuPy is not installed: install it.")

    monkeypatch.setattr(probe, "import_cupy", missing)
    assert main(["doctor", "--no-kernels", "--device", "cpu"]) == 0
    assert "CuPy is not installed: install it." in capsys.readouterr().out


def test_kernels_lists_the_table(capsys):
    assert main(["kernels", "log_softmax", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["log_softmax_forward", "log_softmax_backward"]
    assert rows[0]["implementations"] == "numpy, cuda, numba"
    assert main(["kernels", "nothing-like-this"]) == 2


def test_kernels_compiles_without_a_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path))
    assert main(["kernels", "random", "--compile", "sm_80", "sm_90a"]) == 0
    out = capsys.readouterr().out
    assert (
        "registers" in out and "compiled for sm_80, sm_90a" in out and "0 spill, 0 warnings" in out
    )
    assert main(["kernels", "random", "--compile", "sm_1"]) == 2


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import gpunn; "
        "heavy = [m for m in ('cupy', 'numba', 'matplotlib', 'sklearn', 'tqdm', 'torch', 'scipy') "
        "if m in sys.modules]; print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_table_aligns():
    text = table(["name", "bytes"], [["x", 12], ["total", 7]], right=[1])
    assert text.splitlines() == ["name   bytes", "-----  -----", "x         12", "total      7"]
