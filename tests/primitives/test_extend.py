"""Kernels that users bring: the example's, the smallest one, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpunn
from gpunn import autograd, emulator, extend, kernels
from gpunn.device import sources
from gpunn.errors import CompileError, GpunnError
from gpunn.primitives.registry import TABLE

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_kernel.py"


@pytest.fixture
def only_ours():
    """What a test declares is gone afterwards: the table is that of the whole process."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)
    for name in [name for name in sys.modules if name.startswith("gpunn_extension_")]:
        del sys.modules[name]
    extend._loaded.clear()


@pytest.fixture
def example(only_ours):
    spec = importlib.util.spec_from_file_location("own_kernel", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declare(cuda, name="tripled", **more):
    """A primitive 3 x whose kernel is `cuda`."""
    scope: dict = {}
    exec(f"def {name}(call, x):\n"
         "    x = call.array('x', x)\n"
         "    out = call.empty(x.shape, x.dtype)\n"
         "    call.run(x, out)\n"
         "    return out\n", scope)  # fmt: skip
    scope[name].__code__ = scope[name].__code__.replace(co_filename=__file__)
    made = extend.primitive(cuda=cuda, **more)(scope[name])

    @made.reference
    def _(x, out):
        out[...] = 3 * x

    @made.cuda
    def _(launch, x, out):
        launch("tripled", (1,), (32,), (x, out, np.int32(x.size)))

    @made.samples
    def _(rng):
        yield extend.Sample("5", (rng.normal(size=5),))

    return made


TRIPLED = """
extern "C" __global__ void tripled(const float* x, float* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = FACTOR * x[threadIdx.x];
}
"""


def test_the_example_is_right_everywhere_and_learns(example):
    for made in (example.snake_forward, example.snake_backward):
        told = extend.check(made)
        assert told.count("24 samples agree") >= 3, told
    x = np.linspace(-3, 3, 31)
    wanted = x + np.sin(0.7 * x) ** 2 / 0.7
    np.testing.assert_allclose(example.snake(gpunn.tensor(x), 0.7).numpy(), wanted, rtol=1e-12)
    autograd.gradcheck(lambda t: example.snake(t, 0.7), (gpunn.tensor(x, requires_grad=True),))
    assert example.train(example.Snake) < 0.3 < example.train(gpunn.nn.ReLU)


def test_it_runs_on_the_emulators_arrays(example):
    x = np.linspace(-3, 3, 31, dtype=np.float32)
    with emulator.settings(check=True):
        there = example.snake(gpunn.tensor(x, device="emulator"))
    np.testing.assert_allclose(there.cpu().numpy(), x + np.sin(x) ** 2, rtol=1e-6)


def test_the_table_the_commands_and_the_page_know_it(only_ours, monkeypatch, capsys):
    from gpunn.bench.machine import source_digests
    from gpunn.cli.main import main

    monkeypatch.setenv("GPUNN_EXTENSIONS", str(EXAMPLE))
    assert list(kernels.table())[-2:] == ["snake_forward", "snake_backward"]
    assert set(source_digests()["snake_forward"]) == {"numpy", "cuda", "numba"}
    assert main(["kernels", "snake"]) == 0
    assert "x + sin(a x)^2 / a" in capsys.readouterr().out
    made = TABLE["snake_forward"]
    assert set(extend.kernels_of(made)) >= {"snake_forward<float>", "snake_forward<double>"}
    # 5 operations an element, 4 bytes read and 4 written.
    assert "| 1024 | 5,120 | 8,192 |" in extend.page([made])


def test_it_is_timed_beside_its_peers(example):
    from gpunn.bench.cases import Case
    from gpunn.bench.ceilings import Ceilings
    from gpunn.bench.measure import measure
    from gpunn.device import Device

    case, ceilings = Case("snake_forward", (64,), "float32"), Ceilings("cpu", 1e9, {}, {})
    rows, skipped = measure(case, Device("cpu"), ceilings, peer_names=["numpy"], samples=2,
                            sample_seconds=1e-4)  # fmt: skip
    assert [row.ours for row in rows] == [True, False] and not skipped
    assert rows[0].flops == 5 * 64 and rows[0].bytes == 2 * 4 * 64


def test_numba_kernels_in_the_simulator():
    code = (
        "import own_kernel\n"
        "from gpunn import kernels\n"
        "from gpunn.primitives import parity\n"
        "for made in (own_kernel.snake_forward, own_kernel.snake_backward):\n"
        "    results = [parity.check(made, sample, dtype, 'numba')\n"
        "               for sample, dtype in parity.cases(made, 'numba')]\n"
        "    assert len(results) > 8 and all(r.passed for r in results), results\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLE.parent,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1",
             "PYTHONPATH": f"{EXAMPLE.parent}:{EXAMPLE.parents[1]}"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]


def test_a_wrong_kernel_is_told(only_ours):
    made = declare(TRIPLED.replace("FACTOR", "2"))
    with pytest.raises(extend.ParityError, match="emulator, .*, 5, float32: .*relative error"):
        extend.check(made)


def test_messages_name_the_line_of_the_python_file(only_ours, tmp_path, monkeypatch):
    source = "\n\n# one\nCUDA = '''\n" + TRIPLED.replace("FACTOR", "three") + "'''\n"
    place = tmp_path / "mine.py"
    place.write_text(source)
    text = source.partition("'''")[2].rpartition("'''")[0]
    path = extend._written("tripled", text, place, ".cu")
    with pytest.raises(CompileError, match=r"mine\.py:7"):
        emulator.RawKernel(path.read_text(), "tripled")(
            (1,), (32,), (np.zeros(5, np.float32), np.zeros(5, np.float32), np.int32(5))
        )


def test_what_is_missing_is_named(only_ours):
    def bare(call, x):
        """Nothing yet."""

    made = extend.primitive(cuda=TRIPLED.replace("FACTOR", "3"))(bare)
    with pytest.raises(GpunnError, match="declare @bare.reference and @bare.cuda and @bare.samp"):
        extend.check(made)


def test_names_and_files_are_looked_at(only_ours, tmp_path, monkeypatch):
    def softmax_forward(call, x):
        """Ours has this name."""

    with pytest.raises(ValueError, match="there is a primitive softmax_forward already"):
        extend.primitive(cuda=TRIPLED)(softmax_forward)
    with pytest.raises(FileNotFoundError, match="tripled: there is no file .*nowhere.cu"):
        declare(tmp_path / "nowhere.cu")
    with pytest.raises(FileNotFoundError, match="there is no extension"):
        extend.load(tmp_path / "nothing.py")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(ValueError, match="declares no primitive"):
        extend.load(empty)
    monkeypatch.setenv("GPUNN_EXTENSIONS", str(empty))
    with pytest.raises(ValueError, match="GPUNN_EXTENSIONS: .*declares no primitive"):
        kernels.table()


CELL = """
from gpunn import extend
@extend.primitive(cuda='extern "C" __global__ void cell(const float* x, float* y) { *y = 3 * *x; }')
def cell(call, x):
    out = call.empty(x.shape, x.dtype)
    call.run(call.array("x", x), out)
    return out
@cell.reference
def _(x, out):
    out[...] = FACTOR * x
@cell.cuda
def _(launch, x, out):
    launch("cell", (1,), (1,), (x, out))
@cell.samples
def _(rng):
    yield extend.Sample("1", (rng.normal(size=1),))
"""


def test_cells_lines_and_changed_files_replace_what_they_declared(only_ours, tmp_path):
    scope: dict = {}
    for factor, name in (("2", "/tmp/ipykernel_1/1.py"), ("2", "<stdin>"), ("3", "<stdin>")):
        exec(compile(CELL.replace("FACTOR", factor), name, "exec"), scope)
    assert "emulator, every access checked: 1 samples agree" in extend.check(scope["cell"])
    file = tmp_path / "a folder" / "cell.py"
    file.parent.mkdir()
    file.write_text(CELL.replace("FACTOR", "5"))
    (first,) = extend.load(file)
    assert extend.load(file) == [first] and first(np.ones(1, np.float32)).item() == 5.0
    with pytest.raises(ValueError, match="there is a primitive cell already, of .*cell.py"):
        exec(compile(CELL, "<stdin>", "exec"), scope)
    file.write_text(CELL.replace("FACTOR", "7"))
    (second,) = extend.load(file)
    assert TABLE["cell"] is second and second(np.ones(1, np.float32)).item() == 7.0
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        extend.load(file)
    assert TABLE["cell"] is second
    second.numba(lambda launch, x, out: None)
    with pytest.raises(GpunnError, match="launches Numba kernels and has none"):
        extend.check(second)
    with pytest.raises(GpunnError, match="cell has no benchmark inputs: declare @cell.inputs"):
        second.benchmark_inputs((4,))


@pytest.mark.parametrize(
    "text, told",
    [
        ("\n\n1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("import nothing_like_it", "line 1: ModuleNotFoundError: No module"),
        ("def (", r"invalid syntax \(broken.py, line 1"),
    ],
)
def test_a_broken_extension_is_told_in_one_sentence(only_ours, tmp_path, monkeypatch, text, told):
    file = tmp_path / "broken.py"
    file.write_text(text)
    monkeypatch.setenv("GPUNN_EXTENSIONS", str(file))
    with pytest.raises(extend.ExtensionError, match=f"GPUNN_EXTENSIONS: .*broken.py.*{told}"):
        kernels.table()


def test_text_may_include_a_header_beside_its_python_file(only_ours, tmp_path):
    (tmp_path / "three.cuh").write_text("#define FACTOR 3\n")
    (tmp_path / "mine.py").write_text("")
    text = '#include "three.cuh"\n' + TRIPLED
    path = extend._written("tripled", text, tmp_path / "mine.py", ".cu")
    x, y = np.ones(5, np.float32), np.zeros(5, np.float32)
    emulator.RawKernel(path.read_text(), "tripled")((1,), (32,), (x, y, np.int32(5)))
    assert y.tolist() == [3.0] * 5
    assert path.read_text().startswith(f'#line 1 "{tmp_path}/mine.py, tripled"')
    first = sources.bring("tripled", path, None, tmp_path)
    (tmp_path / "three.cuh").write_text("#define FACTOR 4\n")
    assert sources.bring("tripled", path, None, tmp_path) != first


def test_a_file_may_include_a_header_beside_it(only_ours, tmp_path):
    (tmp_path / "three.cuh").write_text("#define FACTOR 3\n")
    source = tmp_path / "tripled.cu"
    source.write_text('#include "three.cuh"\n#include "common.cuh"\n' + TRIPLED)
    made = declare(source)
    assert "emulator, every access checked: 1 samples" in extend.check(made)
    first = kernels.table()["tripled"].cuda_source
    source.write_text(source.read_text() + "// another version\n")
    assert declare(source).cuda_source != first
