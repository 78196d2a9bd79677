"""The compiler and its cache, on any machine with NVRTC; no GPU."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpunn.device import compiler, launch, sources
from gpunn.errors import CompileError

EXPRESSIONS = ("activation_forward<float, Relu, true>", "activation_forward<__half, Tanh, false>")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path))
    return tmp_path


def test_a_build_has_code_symbols_and_reports(cache):
    made = compiler.build("activation.cu", EXPRESSIONS, "sm_90a")
    assert made.cubin[:4] == b"\x7fELF" and not made.warnings
    assert set(made.symbols) == set(EXPRESSIONS)
    assert all(symbol.encode() in made.cubin for symbol in made.symbols.values())
    for report in made.reports:
        assert 8 <= report.registers <= 64 and report.spill_stores == report.spill_loads == 0


def test_the_second_build_comes_from_the_cache(cache):
    first = compiler.build("activation.cu", EXPRESSIONS, "sm_80")
    second = compiler.build("activation.cu", reversed(EXPRESSIONS), "sm_80")
    assert first.path is None and second.path is not None
    assert (second.cubin, second.symbols, second.reports) == (
        first.cubin,
        first.symbols,
        first.reports,
    )


def test_a_damaged_entry_is_built_again(cache):
    first = compiler.build("activation.cu", EXPRESSIONS[:1], "sm_80")
    path = compiler.build("activation.cu", EXPRESSIONS[:1], "sm_80").path
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", b"not json\n" + whole, whole[:-1] + b"x"):
        path.write_bytes(damaged)
        again = compiler.build("activation.cu", EXPRESSIONS[:1], "sm_80")
        assert again.path is None and again.cubin == first.cubin
        assert path.read_bytes() == whole


def test_a_changed_include_makes_a_new_entry(cache, tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "cuda"
    folder.mkdir(parents=True)
    (folder / "common.cuh").write_text("#define VALUE 1\n")
    (folder / "mine.cu").write_text(
        '#include "common.cuh"\ntemplate <typename T> __global__ void mine(T* x) { x[0] = VALUE; }'
    )
    monkeypatch.setattr(sources, "kernels_folder", lambda: folder.parent)
    sources.source_digest.cache_clear()
    one = compiler.build("mine.cu", ["mine<int>"], "sm_80")
    (folder / "common.cuh").write_text("#define VALUE 2\n")
    sources.source_digest.cache_clear()
    two = compiler.build("mine.cu", ["mine<int>"], "sm_80")
    assert two.path is None and one.cubin != two.cubin
    sources.source_digest.cache_clear()


def test_an_unwritable_cache_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path / "file"))
    assert compiler.build("activation.cu", EXPRESSIONS[:1], "sm_80").cubin


def test_processes_share_the_cache(cache):
    code = (
        "from gpunn.device import compiler\n"
        f"print(len(compiler.build('activation.cu', {EXPRESSIONS!r}, 'sm_80').cubin))"
    )
    with ThreadPoolExecutor(3) as pool:
        done = list(
            pool.map(
                lambda _: (
                    subprocess.run(
                        [sys.executable, "-c", code], capture_output=True, text=True, check=True
                    ).stdout
                ),
                range(3),
            )
        )
    assert len(set(done)) == 1
    files = [path.name for path in (cache / "cubin").iterdir()]
    assert len(files) == 1 and files[0].endswith(".cubin")


def test_errors_of_the_compiler_are_shown(cache):
    with pytest.raises(CompileError, match=r"activation.cu does not compile for sm_80:\n.*NoSuch"):
        compiler.build("activation.cu", ["activation_forward<float, NoSuch, true>"], "sm_80")
    with pytest.raises(CompileError, match="sm_12345 is not an architecture .* it knows .*sm_80"):
        compiler.build("activation.cu", EXPRESSIONS, "sm_12345")


def test_recorded_launches_refuse_python_numbers():
    launcher = launch.RecordingLauncher("activation.cu")
    launcher("kernel<float>", (1,), (1,), (np.zeros(3), np.int64(3), None))
    assert launcher.launches == [("activation.cu", "kernel<float>")]
    with pytest.raises(TypeError, match="argument 1 is a Python int; pass a NumPy scalar"):
        launcher("kernel<float>", (1,), (1,), (np.zeros(3), 3))


def test_alignment_and_names_of_types():
    x = np.zeros(64, np.float32)
    start = (-launch.pointer(x) // 4) % 4
    aligned = x[start:]
    assert launch.Launcher.aligned(16, aligned, None)
    assert not launch.Launcher.aligned(16, aligned, aligned[1:])
    alike = launch.Launcher.alike
    assert alike(16, aligned[1:], aligned[5:], None) and alike(16, None)
    assert not alike(16, aligned[1:], aligned[2:]) and not alike(16, aligned, aligned[1:])
    between = x.view(np.uint8)[1:-3].view(np.float32)  # no whole elements from a multiple
    assert not alike(16, between)
    assert launch.Launcher.int64(5) is launch.Launcher.int64(5)
    assert [type(launch.Launcher.int64(5)), type(launch.Launcher.int32(5))] == [np.int64, np.int32]
    names = [launch.Launcher.ctype(d) for d in (np.float32, launch.BFLOAT16, np.int64, bool)]
    assert names == ["float", "__nv_bfloat16", "long long", "bool"]
