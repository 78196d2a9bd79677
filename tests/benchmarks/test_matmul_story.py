"""benchmarks/matmul_story: each kernel is right in the emulator and compiles; what run.py says."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gpunn.device import Device, cuda_launch, probe
from gpunn.device.compiler import build
from gpunn.emulator import EmulatorError
from gpunn.errors import LaunchError

ROOT = Path(__file__).parents[2]


def load_runner():
    """run.py as a module, by its path."""
    path = ROOT / "benchmarks" / "matmul_story" / "run.py"
    spec = importlib.util.spec_from_file_location("matmul_story_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


story = load_runner()
STEPS = {step.number: step for step in story.STEPS}

emulated = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)
compiled = pytest.mark.skipif(
    not (probe.find_cupy().passed and probe.find_nvrtc().passed), reason="NVRTC is not there"
)


def test_every_file_is_a_step_and_says_what_it_is():
    files = sorted(path.name for path in story.STEPS[0].path.parent.glob("*.cu"))
    assert files == [step.file for step in story.STEPS]
    for step in story.STEPS:
        first = step.path.read_text("utf-8").splitlines()[0]
        assert re.fullmatch(rf"// {step.number} - .*\.( .*)?", first), first


@emulated
@pytest.mark.parametrize("number", STEPS)
def test_right_in_the_emulator(number):
    step = STEPS[number]
    size = story.small_size(step)
    allowed = story.allowed_error(step.dtype, size[2])
    for schedule in ("in order", "reverse", "random"):
        assert story.emulate(step, size, schedule=schedule) <= allowed, schedule


@emulated
def test_persistent_blocks_find_every_tile():
    """More rows of pairs than a group has, an odd rest, and two clusters that share the work."""
    step = STEPS["14"]
    size = (9 * 256, 512, 64)
    assert story.emulate(step, size, multiprocessors=5) <= story.allowed_error(step.dtype, 64)


@emulated
def test_a_missing_barrier_would_be_seen(tmp_path, monkeypatch):
    """The check of the story does check: without its second barrier step 03 is a race."""
    step = STEPS["03"]
    text = step.path.read_text("utf-8")
    broken = tmp_path / step.file
    broken.write_text(re.sub(r"__syncthreads\(\);  // all have read.*", "", text))
    monkeypatch.setattr(type(step), "path", property(lambda self: broken))
    with pytest.raises(EmulatorError):
        story.emulate(step, (64, 64, 96))


@compiled
@pytest.mark.parametrize("number", STEPS)
def test_compiles_without_warnings_and_spills(number):
    step = STEPS[number]
    for arch in {step.arch, "sm_90a"}:
        made = build(str(step.path), ["matmul"], arch)
        (report,) = made.reports
        assert not made.warnings
        assert report.spill_stores == report.spill_loads == 0
        assert report.registers * step.threads <= 65536
        assert report.shared + step.shared <= 227 * 1024


@pytest.mark.parametrize(
    ("number", "size", "message"),
    [
        ("07", (128, 100, 8), "07_.*: N = 100 is no positive multiple of 128"),
        ("14", (128, 256, 64), "14_.*: M = 128 is no positive multiple of 256"),
        ("01", (0, 32, 1), "01_.*: M = 0 is no positive multiple"),
        ("02", (1 << 16, 1 << 15, 1), r"2\^31 or more elements"),
    ],
)
def test_sizes_that_the_kernels_cannot_multiply(number, size, message):
    with pytest.raises(ValueError, match=message):
        STEPS[number].check_size(*size)


def test_the_model():
    chip = story.CHIPS["H200"]
    assert chip.peak("float32") == pytest.approx(66.9e12, rel=1e-3)
    assert chip.peak("bfloat16") == pytest.approx(989.4e12, rel=1e-3)
    size = (8192, 8192, 8192)
    found = {number: step.predict(chip, *size) for number, step in STEPS.items()}
    # 33 clocks of loading for 32 multiply-adds that take a quarter of a clock.
    naive = chip.peak("float32") / (33 * 4)
    assert naive * 0.99 < found["01"].flops <= naive
    for number, made in found.items():
        assert made.flops <= chip.peak(STEPS[number].dtype) * (1 + 1e-9)
        assert made.seconds == pytest.approx(2 * 8192**3 / made.flops)
    assert found["14"].limit == "arithmetic" and found["13"].limit == "L2"
    # One slice of depth 1: nothing but reading and writing the matrices.
    thin = STEPS["02"].predict(chip, 8192, 8192, 1)
    assert thin.limit == "memory" and thin.seconds == pytest.approx(4 * 8192**2 / 4.8e12, rel=1e-3)


def test_the_page_shows_the_model(capsys, monkeypatch):
    monkeypatch.setattr(story, "usable_gpu", lambda: (None, "none"))
    assert story.main(["--markdown"]) == 0
    page = (ROOT / "docs" / "kernels" / "matmul.md").read_text("utf-8")
    assert capsys.readouterr().out in page, "put the output of run.py --markdown into the page"


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(story, "usable_gpu", lambda: (None, "no driver here"))
    file = tmp_path / "story.json"
    assert story.main(["--steps", "01", "14", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Speed was not measured: no driver here" in printed
    assert printed.count("not yet run on hardware") == 2
    found = json.loads(file.read_text())
    assert found["measured"] is False and found["why not"] == "no driver here"
    assert [row["measured"] for row in found["steps"]] == [None, None]


def test_explain_and_wrong_sizes(capsys):
    assert story.main(["--explain", "06"]) == 0
    assert "16 lines of A" in capsys.readouterr().out
    assert story.main(["--size", "100", "128", "128"]) == 2
    assert "M = 100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        story.main(["--steps", "15"])


@emulated
def test_check_prints_a_verdict(capsys):
    assert story.main(["--check", "--steps", "02"]) == 0
    assert re.search(r"02_coalesced.cu .* right", capsys.readouterr().out)


@emulated
def test_the_run_on_a_gpu_with_the_emulator_in_its_place(monkeypatch, capsys, tmp_path):
    """Launches, comparisons and clocks go their way on a GPU that is none."""
    from gpunn import emulator
    from gpunn.bench import timing

    class Launcher:
        arch, multiprocessors = "sm_90a", 4

        def __init__(self, source, device):
            self.module = emulator.RawModule(path=source, check=False)

        def __call__(self, name, grid, block, args, shared):
            if "07" in self.module.path.name:
                raise LaunchError("this one cannot be launched")
            self.module.get_function(name)(grid, block, args, shared_mem=shared)

    def cublas(dtype, a, b):
        if dtype == "bfloat16":
            raise ImportError("no cuBLAS here")
        return float32_cublas(dtype, a, b)

    gpu = types.SimpleNamespace(
        **{name: getattr(np, name) for name in ("zeros", "empty", "float32", "float64", "linalg")},
        asarray=lambda x: x,
        matmul=lambda a, b, out: np.matmul(a, b, out=out),
    )
    float32_cublas = story.cublas
    monkeypatch.setitem(sys.modules, "cupy", gpu)
    monkeypatch.setattr(cuda_launch, "cuda_launcher", Launcher)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", {"cpu": 0})
    monkeypatch.setattr(story, "usable_gpu", lambda: (Device("cpu"), ""))
    monkeypatch.setattr(story, "cublas", cublas)
    file = tmp_path / "story.json"
    given = ["--steps", "02", "07", "11", "--size", "128", "128", "64", "--samples", "2"]
    assert story.main([*given, "--json", str(file)]) == 0
    assert "cuBLAS float32" in capsys.readouterr().out
    found = json.loads(file.read_text())
    rows = {row["file"][:2]: row["measured"] for row in found["steps"]}
    assert rows["02"]["correct"] and rows["11"]["correct"] and rows["11"]["tflops"] > 0
    assert rows["07"] == {"error": "LaunchError: this one cannot be launched"}
    assert len(found["peers"]["cuBLAS float32"]["samples"]) == 2
    assert found["peers"]["cuBLAS bfloat16"] == {"error": "ImportError: no cuBLAS here"}
    assert not story.can_run(STEPS["11"], "sm_80") and not story.can_run(STEPS["11"], "sm_100a")


@pytest.mark.gpu
def test_on_a_gpu():
    device = Device("cuda")
    rows = story.time_on(device, story.STEPS, (512, 512, 320), samples=2)
    arch = cuda_launch.cuda_launcher(str(story.STEPS[0].path), device).arch
    for step in story.STEPS:
        if story.can_run(step, arch):
            assert rows[step.file]["correct"], rows[step.file]
            assert rows[step.file]["tflops"] > 0
    assert rows["cuBLAS bfloat16"]["tflops"] > 0
