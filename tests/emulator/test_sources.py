"""What `RawModule` compiles: templates, options, include folders, globals; and its errors."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import probe
from gpunn.errors import CompileError

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

TEMPLATES = """
namespace shapes {
template <typename T, int N> __global__ void fill(T* x, T value) {
    if (threadIdx.x < N) x[threadIdx.x] = value;
}
}
#ifndef SCALE
#define SCALE 1
#endif
extern "C" __global__ void scale(int* x) { x[threadIdx.x] *= SCALE; }
"""


def test_name_expressions():
    names = ("shapes::fill<float, 4>", "shapes::fill<int, 2>")
    made = emulator.RawModule(TEMPLATES, options=("--std=c++17",), name_expressions=names)
    x, y = np.zeros(8, np.float32), np.zeros(8, np.int32)
    made.get_function(names[0])((1,), (8,), (x, np.float32(2.5)))
    made.get_function(names[1])((1,), (8,), (y, np.int32(3)))
    assert x.tolist() == [2.5] * 4 + [0] * 4 and y.tolist() == [3] * 2 + [0] * 6
    made.get_function("scale")((1,), (8,), (y,))  # a plain kernel beside them
    with pytest.raises(CompileError, match="double"):
        made.get_function("shapes::fill<double, none>")


@pytest.mark.parametrize("name", ["wait", "send", "environ_of"])
def test_names_of_the_c_library(name):
    """The kernel is called, not the function of that name that is loaded already."""
    source = f"""
    __device__ int environ = 7;
    extern "C" __global__ void {name}(int* x) {{ *x = environ; }}
    """
    x = np.zeros(1, np.int32)
    emulator.RawKernel(source, name)((1,), (1,), (x,))
    assert x[0] == 7


def test_options():
    x = np.ones(4, np.int32)
    for options in (
        ("-DSCALE=3",),
        ("-D", "SCALE=3"),
        ("--define-macro=SCALE=3", "--use_fast_math"),
    ):
        x[:] = 1
        emulator.RawKernel(TEMPLATES, "scale", options=options)((1,), (4,), (x,))
        assert (x == 3).all()
    emulator.RawKernel(TEMPLATES, "scale", ("-arch=sm_90", "-lineinfo"))((1,), (4,), (x,))
    with pytest.raises(TypeError, match=r"options=\('-DSCALE=3',\)"):
        emulator.RawKernel(TEMPLATES, "scale", options="-DSCALE=3")


def test_include_folders(tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "far.cuh").write_text("constexpr int FAR = 5;\n")
    (tmp_path / "near.cuh").write_text("constexpr int NEAR = 6;\n")
    source = tmp_path / "k.cu"
    source.write_text(
        '#include <far.cuh>\n#include "near.cuh"\n'
        'extern "C" __global__ void k(int* x) { *x = 10 * FAR + NEAR; }\n'
    )
    x = np.zeros(1, np.int32)
    options = (f"-I{tmp_path / 'include'}",)
    emulator.RawModule(path=source, options=options).get_function("k")((1,), (1,), (x,))
    assert x[0] == 56
    (tmp_path / "near.cuh").write_text("constexpr int NEAR = 7;\n")  # compiled anew
    emulator.RawModule(path=source, options=options).get_function("k")((1,), (1,), (x,))
    assert x[0] == 57
    with pytest.raises(CompileError, match="far.cuh"):
        emulator.RawModule(path=source).get_function("k")


def test_compile_errors_quote_the_compiler():
    with pytest.raises(CompileError) as caught:
        emulator.RawKernel('extern "C" __global__ void f(int* x) { *x = lenght; }', "f").compile()
    assert "lenght" in str(caught.value) and "does not compile" in str(caught.value)
    with pytest.raises(CompileError, match="no_such_kernel"):
        emulator.RawModule(TEMPLATES).get_function("no_such_kernel")


def test_one_bad_kernel_does_not_spoil_the_others():
    source = """
    template <class T> __global__ void good(T* x) { *x = 1; }
    template <class T> __global__ void bad(T* x) { *x = x->nothing; }
    """
    made = emulator.RawModule(source, name_expressions=("good<int>", "bad<int>"))
    with pytest.raises(CompileError, match="nothing"):
        made.get_function("bad<int>")


def test_what_a_module_needs(tmp_path):
    with pytest.raises(TypeError, match="either code or path"):
        emulator.RawModule()
    with pytest.raises(TypeError, match="either code or path"):
        emulator.RawModule("x", path="y")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        emulator.RawModule(path=tmp_path / "none.cu")
    with pytest.raises(TypeError, match="code is bytes"):
        emulator.RawModule(b"x")
    with pytest.raises(ValueError, match="'in order', 'random', 'reverse'"):
        emulator.RawModule(TEMPLATES, schedule="sideways")
    with pytest.raises(TypeError, match="sead"):
        emulator.RawModule(TEMPLATES, sead=3)


# ---- globals -------------------------------------------------------------------------------------


GLOBALS = """
__constant__ float weights[4];
__device__ int counter;
extern "C" __global__ void weigh(float* y) { y[threadIdx.x] *= weights[threadIdx.x % 4]; }
extern "C" __global__ void count() { atomicAdd(&counter, 1); }
"""


def test_globals():
    made = emulator.RawModule(GLOBALS)
    weights = made.get_global("weights")
    weights.set(np.array([1, 2, 3, 4], np.float32))
    assert weights.get(np.float32).tolist() == [1, 2, 3, 4]
    y = np.ones(8, np.float32)
    for check in (True, False):  # two builds, one variable
        y[:] = 1
        made.get_function("weigh")((1,), (8,), (y,), check=check)
        assert y.tolist() == [1, 2, 3, 4] * 2
    with pytest.raises(ValueError, match="16 bytes"):
        weights.set(np.zeros(5, np.float32))
    with pytest.raises(KeyError, match="no_such_variable"):
        made.get_global("no_such_variable")


def test_a_device_variable_is_kept_between_launches():
    made = emulator.RawModule(GLOBALS)
    count = made.get_function("count")
    made.get_global("counter").set(np.int32(5))
    for _ in range(3):
        count((2,), (32,))
    assert made.get_global("counter").get(np.int32).tolist() == [5 + 3 * 64]
