"""The rule that chooses a product's kernel, and the autotuner that overrules it."""

import json

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device.emulator_launch import emulator_launcher
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import matmul_plan, matmul_tune
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.matmul_parity import BFLOAT16, FLOAT32, make_problem
from gpunn.primitives.matmul_problem import Finish, problem_of


def shaped(M, N, K, dtype):
    """A problem of any size without its memory."""
    one = np.zeros(1, dtype)

    def array(*shape):
        strides = (shape[1] * one.itemsize, one.itemsize)
        return np.lib.stride_tricks.as_strided(one, shape, strides)

    return problem_of(array(M, K), array(K, N), Finish(array(M, N)), [])


def chosen(M, N, K, dtype, **chip):
    options = matmul_plan.options(shaped(M, N, K, dtype), RecordingLauncher("matmul.cu", **chip))
    return min(options, key=lambda option: option.seconds).name


def test_the_rule_by_architecture_dtype_and_shape():
    large, small = (4096, 4096, 4096), (64, 64, 64)
    assert chosen(*large, BFLOAT16).startswith("wgmma 128x256 share2 native")
    assert chosen(*large, FLOAT32).startswith("wgmma 128x128 share") and "split" in chosen(
        *large, FLOAT32
    )
    assert chosen(*small, FLOAT32).startswith("simt 32x32")
    assert chosen(*large, np.dtype(np.float64)).startswith("simt")
    for arch in ("sm_80", "sm_100a"):  # wgmma is sm_90a's alone
        assert chosen(*large, BFLOAT16, arch=arch).startswith("mma")
    assert chosen(*large, FLOAT32, arch="sm_75").startswith("simt")
    assert chosen(*large, BFLOAT16, arch="sm_75").startswith("simt")


def test_names_of_options_are_their_own():
    for dtype in (BFLOAT16, FLOAT32):
        for shape in ((40, 200, 136), (4096, 4096, 4096)):
            problem = shaped(*shape, dtype)
            names = [o.name for o in matmul_plan.options(problem, RecordingLauncher("matmul.cu"))]
            assert len(set(names)) == len(names) > 5


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    """A GPU in name, whose times are told by the test."""
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path))
    monkeypatch.setattr(matmul_tune, "_gpu_of", lambda launch: "Test GPU (sm_90)")
    monkeypatch.setattr(matmul_tune, "_on", False)
    monkeypatch.setattr(matmul_tune, "_capturing", lambda: False)
    times = {}
    timed = []

    def seconds(launch, problem, option):
        timed.append(option.name)
        return times[option.name]

    monkeypatch.setattr(matmul_tune, "_seconds", seconds)
    matmul_tune._file.cache_clear()
    yield times, timed, tmp_path / "tuned" / "matmul-Test-GPU--sm-90-.json"
    matmul_tune._file.cache_clear()


def options_of(*seconds):
    return [Option(f"option {i}", value, None) for i, value in enumerate(seconds)]


def best(key, *seconds):
    launch = RecordingLauncher("matmul.cu")
    problem = make_problem(8, 8, 8, FLOAT32)
    return matmul_tune.best(launch, problem, options_of(*seconds), key).name


def test_without_it_the_least_estimate_is_taken(tuner):
    assert best(("a",), 3.0, 1.0, 2.0) == "option 1" and not tuner[1]


def test_it_times_what_is_worth_it_once_and_remembers(tuner):
    times, timed, path = tuner
    times |= {"option 0": 5e-6, "option 1": 7e-6}
    kernels.autotune()
    assert best(("a",), 2.0, 1.0, 100.0) == "option 0"
    assert timed == ["option 0", "option 1"]  # the third is estimated to be far too slow
    assert best(("a",), 2.0, 1.0, 100.0) == "option 0" and len(timed) == 2
    assert list(json.loads(path.read_text()).values()) == ["option 0"]
    # Another process, with the tuner off, finds the choice.
    kernels.autotune(False)
    matmul_tune._file.cache_clear()
    assert best(("a",), 2.0, 1.0) == "option 0"
    assert best(("b",), 2.0, 1.0) == "option 1"  # another kind of product
    assert best(("a",), 2.0, 1.0)[:6] == "option" and len(timed) == 2


def test_a_choice_that_no_longer_exists_is_made_again(tuner):
    times, timed, path = tuner
    times["option 0"] = 1e-6
    kernels.autotune()
    times["option 1"] = 2e-6
    best(("a",), 1.0, 1.0)
    path.write_text(path.read_text().replace("option 0", "gone"))
    matmul_tune._file.cache_clear()
    assert best(("a",), 1.0, 1.0) == "option 0" and len(timed) == 4


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]"])
def test_a_broken_file_is_as_none(tuner, text):
    path = tuner[2]
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert best(("a",), 1.0, 2.0) == "option 0"


def test_other_processes_choices_stay(tuner):
    times, _, path = tuner
    times |= {"option 0": 1e-6, "option 1": 2e-6}
    kernels.autotune()
    best(("a",), 1.0, 1.0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "theirs": "option 9"}))
    best(("b",), 1.0, 1.0)
    assert len(json.loads(path.read_text())) == 3


def test_timing_adds_to_nothing_twice(monkeypatch, tmp_path):
    """What is accumulated into must not see the trial runs."""
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path))
    monkeypatch.setattr(matmul_tune, "_gpu_of", lambda launch: "Test GPU")
    monkeypatch.setattr(matmul_tune, "_on", True)
    monkeypatch.setattr(matmul_tune, "_capturing", lambda: False)
    matmul_tune._file.cache_clear()

    def run_twice(launch, problem, option):
        option.run(launch, problem)
        option.run(launch, problem)
        return option.seconds

    monkeypatch.setattr(matmul_tune, "_seconds", run_twice)
    launch = emulator_launcher("matmul.cu")
    problem = make_problem(24, 16, 8, FLOAT32, residual="out", column_sums=None)
    before = problem.out.copy()
    simt = [o for o in matmul_plan.options(problem, launch) if o.name.startswith("simt")]
    found = matmul_tune.best(launch, problem, simt, ("x",))
    np.testing.assert_array_equal(problem.out, before)
    found.run(launch, problem)
    np.testing.assert_allclose(problem.out, problem.a @ problem.b + before, rtol=1e-5, atol=1e-5)
    matmul_tune._file.cache_clear()


def test_nothing_is_timed_while_a_graph_is_captured(tuner, monkeypatch):
    kernels.autotune()
    monkeypatch.setattr(matmul_tune, "_capturing", lambda: True)
    assert best(("a",), 3.0, 1.0) == "option 1" and not tuner[1]


def test_kinds_that_take_other_kernels_are_told_apart(monkeypatch):
    """Relu leaves by tensor copies, gelu by slabs; a tuner that was switched on has its say."""
    monkeypatch.setattr(matmul_plan, "_chosen", {})
    launch = RecordingLauncher("matmul.cu")
    for activation in ("relu", "gelu", "relu"):
        matmul_plan.choose(launch, make_problem(64, 64, 64, BFLOAT16, activation=activation))
    assert len(matmul_plan._chosen) == 2
    monkeypatch.setattr(matmul_tune, "_on", True)
    matmul_plan.choose(launch, make_problem(64, 64, 64, BFLOAT16, activation="relu"))
    assert len(matmul_plan._chosen) == 3


def test_forcing_an_option():
    a = np.ones((8, 8), np.float32)
    with kernels.using("emulator"), matmul_tune.forcing("simt 64x64 k1"):
        np.testing.assert_array_equal(kernels.matmul(a, a), 8)
        with pytest.raises(LookupError, match="no option 'simt 64x64 k1' .* there are mma"):
            kernels.matmul(a.astype(BFLOAT16), a.astype(BFLOAT16))
