"""`gpunn check`: launches as text, the table of runs, exit codes, errors that say what to write."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from gpunn.cli.main import main
from gpunn.device import probe
from gpunn.emulator import TensorMap, checking, launch_text
from gpunn.emulator.launch_text import Wanted, read

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

SAXPY = """
// a comment with saxpy(int, int) in it
extern "C" __global__ void saxpy(float* y, const float* __restrict__ x, float a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BUG
    if (i <= n) y[i] += a * x[i];
#else
    if (i < n) y[i] += a * x[i];
#endif
}
template <typename T, int SCALE> __global__ void __launch_bounds__(64) scale(T* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = y[threadIdx.x] * static_cast<T>(SCALE);
}
extern "C" __global__ void order(int* last) { *last = blockIdx.x; }
extern "C" __global__ void first(int* winner) {
    if (threadIdx.x == 0) atomicCAS(winner, 0, static_cast<int>(blockIdx.x) + 1);
}
extern "C" __global__ void staged(float* y) {
    extern __shared__ float s[];
    s[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
"""
GOOD = "saxpy<<<4, 256>>>(float[1000], [1000], 2.5f, 1000)"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "saxpy.cu"
    path.write_text(SAXPY)
    return str(path)


def test_a_clean_kernel(source, capsys):
    assert main(["check", source, "--launch", GOOD, "--seeds", "3"]) == 0
    out = capsys.readouterr().out
    assert "saxpy<<<4, 256>>>(float32[1000], float32[1000], float32 2.5, int32 1000)" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line[:2] in ("in", "re", "ra")}
    assert set(lines) == {"in", "reverse", "random"}
    assert "0 to 2" in lines["random"] and "3,000" in lines["random"] and "clean" in lines["random"]
    assert out.endswith("nothing found\n")


def test_a_fault_is_printed_once_and_in_full(source, capsys):
    assert main(["check", source, "--launch", GOOD, "--seeds", "3", "-D", "BUG"]) == 1
    out = capsys.readouterr().out
    assert out.count("if (i <= n) y[i]") == 1
    assert "OutOfBoundsError in all 5 runs" in out and "element 1000" in out
    assert "faults in 3 of 3" in out and out.endswith("1 fault found\n")


def test_json(source, capsys):
    arguments = ["check", source, "--launch", GOOD, "--seeds", "2", "--seed", "7", "--json"]
    assert main([*arguments, "--define", "BUG=1"]) == 1
    read = json.loads(capsys.readouterr().out)
    assert [(run["schedule"], run["seed"]) for run in read["runs"]] == [
        ("in order", 0), ("reverse", 0), ("random", 7), ("random", 8)]  # fmt: skip
    (found,) = read["findings"]
    assert found["error"] == "OutOfBoundsError" and found["line"] == 6 and not read["clean"]
    assert found["argument"] == 0 and found["index"] == 1000 and found["runs"] == [0, 1, 2, 3]
    assert main(arguments) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["clean"] and [run["result"] for run in read["runs"]] == ["the same"] * 4


def test_json_is_not_disturbed_by_printf(source, tmp_path, capfd):
    (tmp_path / "hello.cu").write_text(
        'extern "C" __global__ void hello() { printf("hello %d\\n", threadIdx.x); }\n'
    )
    arguments = ["check", str(tmp_path / "hello.cu"), "--launch", "hello<<<1, 2>>>()", "--json"]
    assert main(arguments) == 0
    seen = capfd.readouterr()
    assert json.loads(seen.out)["clean"] and "hello 1" in seen.err


def test_list(source, capsys):
    assert main(["check", source, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "saxpy(float* y, const float* __restrict__ x, float a, int n)"
    assert lines[1] == "template <typename T, int SCALE> scale(T* y, int n)"
    assert main(["check", source, "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[4] == {
        "name": "staged", "declaration": "staged(float* y)"}  # fmt: skip


def test_templates_and_the_types_of_their_parameters(source, capsys):
    for kind, name in (("__half", "float16"), ("__nv_bfloat16", "bfloat16"), ("int", "int32")):
        launch = f"scale<{kind}, 3><<<1, 64>>>([50], 50)"
        assert main(["check", source, "--launch", launch, "--seeds", "1"]) == 0
        assert f"({name}[50], int32 50)" in capsys.readouterr().out


def test_dynamic_shared_memory(source, capsys):
    assert main(["check", source, "--launch", "staged<<<1, 64, 64 * 4>>>([64])"]) == 0
    assert main(["check", source, "--launch", "staged<<<1, 64, 63 * 4>>>([64])"]) == 1
    assert "dynamic shared memory" in capsys.readouterr().out
    assert main(["check", source, "--launch", "staged<<<1, 64, 100 * 1024>>>([64])"]) == 0


def test_launches_share_named_arrays(source, capsys):
    launches = [
        "saxpy<<<1, 32>>>(y = zeros [32], ones [32], 2, 32)",
        "saxpy<<<1, 32>>>(ones [32], y, 1, 32)",
    ]
    options = [part for text in launches for part in ("--launch", text)]
    assert main(["check", source, *options, "--seeds", "1"]) == 0
    report = checking.check(source, launches, seeds=1)
    assert report.clean and len(report.launches) == 2


def test_a_result_that_depends_on_the_order(source, capsys):
    # Two blocks write different values: a race. One wins an atomic: allowed, but noted.
    assert main(["check", source, "--launch", "order<<<2, 1>>>(int[1])", "--seeds", "4"]) == 1
    assert "RaceError" in capsys.readouterr().out
    assert main(["check", source, "--launch", "first<<<64, 32>>>(int[1])"]) == 0
    out = capsys.readouterr().out
    assert "differs" in out and "the result depends on the order" in out


def test_an_array_from_a_file(source, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones(8, np.float32))
    launch = f"saxpy<<<1, 32>>>([8], @{tmp_path / 'x.npy'}, 1.0, 8)"
    assert main(["check", source, "--launch", launch, "--seeds", "0"]) == 0
    launch = launch.replace("x.npy", "other.npy")
    assert main(["check", source, "--launch", launch]) == 2
    assert "other.npy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launch", "says"),
    [
        ("sapxy<<<4, 256>>>([1])", "no kernel 'sapxy'; it has\n  saxpy(float* y"),
        ("saxpy<<<4, 256>>>([1000], [1000], 2)", "takes 4 arguments, the launch has 3"),
        ("saxpy(1000)", "is not of the form"),
        ("saxpy<<<4>>>()", "expected <<<grid, block>>>"),
        ("saxpy<<<4, 256, (1, 2)>>>()", "is not a number of bytes"),
        ("saxpy<<<a, 256>>>()", "'a' is not a whole number"),
        ("saxpy<<<4, 2048>>>([1000], [1000], 2, 1000)", "1 to 1024"),
        ("saxpy<<<4, 256>>>([1000], y, 2, 1000)", "no array that was named before"),
        ("saxpy<<<4, 256>>>([1000], 0, 2, 1000)", "is a pointer: write an array"),
        ("saxpy<<<4, 256>>>([1000], double[1000], 2, 1000)", "points to float32"),
        ("saxpy<<<4, 256>>>([1000], real[1000], 2, 1000)", "the type 'real' is not known"),
        ("saxpy<<<4, 256>>>([1000], [1000], 2, 2.5)", "is no integer"),
        ("saxpy<<<4, 256>>>([1000], [1000], 2, 3000000000)", "too large for 'int n'"),
        ("saxpy<<<4, 256>>>([1000], [1000], 2, int64(5))", "int64"),
        ("saxpy<<<4, 256>>>([1000], [1000], $, 5)", "cannot be read"),
        ("scale<<<1, 64>>>([50], 50)", "is a template"),
        ("scale<float><<<1, 64>>>([50], 50)", "does not compile"),
        ("order<<<2, 1>>>(nan int[1])", "has no NaN"),
        ("order<<<2, 1>>>(zeros(1, 2) int[1])", "random(low, high)"),
    ],
)
def test_wrong_use_says_what_to_write(source, capsys, launch, says):
    assert main(["check", source, "--launch", launch]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpunn check: ") and says in error, error


def test_without_a_launch_the_kernels_are_named(source, capsys):
    assert main(["check", source]) == 2
    assert "saxpy(float* y" in capsys.readouterr().err
    assert main(["check", source + "x", "--launch", GOOD]) == 2
    assert "no file" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in out and "<<<4, 256>>>" in out


# ---- reading -------------------------------------------------------------------------------------


def value(text, words="float* x", pointer=True, dtype=np.float32, named=None):
    wanted = Wanted(words, pointer, None if dtype is None else np.dtype(dtype))
    argument = read(f"f<<<1, 1>>>({text})").arguments[0]
    return argument.make(wanted, {} if named is None else named, np.random.default_rng(0))


def test_what_a_launch_says():
    launch = read(" ns::f<float, 4> <<< dim3(4, 2), (8, 8, 2), 1 << 10, 0 >>> ( [3] , 2 ) ; ")
    assert launch.kernel == "ns::f<float, 4>" and launch.shared == 1024
    assert launch.grid == (4, 2) and launch.block == (8, 8, 2)
    assert read("f<<<(1000 + 255) / 256, 256>>>()").grid == (4,)
    assert read("f<<<1, 1>>>()").arguments == ()


def test_arrays():
    assert value("[3]").dtype == np.float32 and value("[3]").any()
    assert value("double[2, 3]").shape == value("double[2][3]").shape == (2, 3)
    assert value("unsigned long long[2 * 8]").dtype == np.uint64
    assert not value("int[5]").any() and (value("ones int[5]") == 1).all()
    assert value("arange int[2,3]").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.isnan(value("nan bfloat16[5]").astype(np.float32)).all()
    assert value("bfloat16[5]").dtype == ml_dtypes.bfloat16
    assert value("float4[256]").shape == (256, 4) and value("uint8[4]").dtype == np.uint8
    drawn = value("random(3, 9) int[1000]")
    assert drawn.min() == 3 and drawn.max() == 8
    assert 3 <= value("random(3, 4) float[99]").min() < value("random(3, 4) float[99]").max() < 4
    assert value("[0]").size == 0
    assert value("null") is None and value("nullptr") is None


def test_numbers():
    def number(text, dtype):
        return value(text, "number", pointer=False, dtype=dtype)

    assert number("-0x10", np.int32) == -16 and number("1 << 20", np.int64) == 1 << 20
    assert number("2.5f", np.float32) == np.float32(2.5) and number("1e3", np.int32) == 1000
    assert number("true", np.bool_) and not number("false", np.bool_)
    assert np.isnan(number("nan", np.float64)) and number("-inf", np.float32) == -np.inf
    half = value("half(2.5)", "T x", pointer=False, dtype=None)
    assert half == 2.5 and half.dtype == np.float16
    with pytest.raises(ValueError, match="is not known here"):
        number("2.5", None)


def test_names_and_maps():
    named = {}
    array = value("x = half[128, 64]", named=named)
    assert value("x", named=named) is array
    made = value("TensorMap(x, box=(64, 64), swizzle=128)", dtype=None, named=named)
    assert isinstance(made, TensorMap) and made.array is array and made.swizzle == 128
    with pytest.raises(ValueError, match="option=value"):
        value("TensorMap(half[128, 64], 64)")


def test_every_type_is_known():
    for name in (*launch_text._C_TYPES, *launch_text._NUMPY_TYPES, "int32_t", "const float"):
        assert launch_text.dtype_of(name) is not None
    assert launch_text.dtype_of("real") is None
