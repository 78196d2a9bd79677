"""`RawModule` and `RawKernel` take what CuPy's take, refuse what they must, and say why."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import probe

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

SOURCE = r"""
#include <cuda_fp16.h>
struct Point { float x, y; int tag; };

extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
extern "C" __global__ void values(double* out, float f, double d, int i, unsigned u, long long l,
                                  unsigned char c, bool b, __half h) {
    out[0] = f, out[1] = d, out[2] = i, out[3] = u;
    out[4] = l, out[5] = c, out[6] = b, out[7] = __half2float(h);
}
extern "C" __global__ void point(float* out, Point p) {
    out[0] = p.x, out[1] = p.y, out[2] = p.tag;
}
extern "C" __global__ void is_null(int* out, const float* p) { *out = p == nullptr; }
extern "C" __global__ void where(int* blocks) {
    blocks[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] =
        blockDim.x * 10000 + blockDim.y * 100 + blockDim.z;
}
extern "C" __global__ void __launch_bounds__(128) bounded(int* x) {
    if (!threadIdx.x) *x = blockDim.x;
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) pairs(int* x) {
    if (!threadIdx.x) x[blockIdx.x] = gridDim.x;
}
extern "C" __global__ void staged(float* y) {
    extern __shared__ float s[];
    s[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def module():
    return emulator.RawModule(SOURCE)


def i32(value):
    return np.int32(value)


def f32(value):
    return np.float32(value)


# ---- arguments -----------------------------------------------------------------------------------


def test_axpy(module):
    y, x = np.ones(1000, np.float32), np.arange(1000, dtype=np.float32)
    assert module.get_function("axpy")((4,), (256,), (y, x, f32(2), i32(1000))) is None
    assert (y == 1 + 2 * x).all()


def test_python_ints_fit_any_integer(module):
    out = np.zeros(8)
    one = np.float16(1.5)
    module.get_function("values")(
        (1,), (1,), (out, f32(0.5), 2.25, -3, 4000000000, -1 << 40, 200, True, one)
    )
    assert out.tolist() == [0.5, 2.25, -3, 4000000000, -float(1 << 40), 200, 1, 1.5]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ((None, 2.5), TypeError, r"argument 1 \(f\) is the Python float 2.5 .*np.float32"),
        ((None, np.float64(2.5)), TypeError, r"argument 1 \(f\) is a float64"),
        ((None, i32(1)), TypeError, r"argument 1 \(f\)"),
        ((None, np.zeros(3, np.float32)), TypeError, "is an array of float32"),
        ((None, "x"), TypeError, "of type str"),
        ((None, None), TypeError, "NoneType"),
    ],
)
def test_values_of_the_wrong_type(module, change, error, says):
    arguments = [np.zeros(8), f32(0), 2.25, 0, 0, 0, 0, True, np.float16(1)]
    arguments[1] = change[1]
    with pytest.raises(error, match=says):
        module.get_function("values")((1,), (1,), arguments)


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_integers_that_do_not_fit(module, number):
    arguments = [np.zeros(8), f32(0), 2.25, 0, 0, 0, 0, True, np.float16(1)]
    arguments[number] = 1 << 64
    with pytest.raises(ValueError, match=f"argument {number} .* does not fit"):
        module.get_function("values")((1,), (1,), arguments)
    arguments[number] = 1.0
    with pytest.raises(TypeError, match=f"argument {number} "):
        module.get_function("values")((1,), (1,), arguments)


def test_number_of_arguments(module):
    x = np.ones(8, np.float32)
    for arguments in ((x, x, f32(1)), (x, x, f32(1), i32(8), i32(8)), ()):
        with pytest.raises(TypeError, match=f"takes 4 arguments, got {len(arguments)}"):
            module.get_function("axpy")((1,), (8,), arguments)


def test_arrays_of_the_wrong_type(module):
    y, x = np.ones(8, np.float32), np.ones(8)
    axpy = module.get_function("axpy")
    with pytest.raises(TypeError, match=r"argument 1 \(x\) is an array of float64"):
        axpy((1,), (8,), (y, x, f32(1), i32(8)))
    with pytest.raises(TypeError, match=r"argument 0 \(y\) is of type list.*NumPy array"):
        axpy((1,), (8,), ([1.0], y, f32(1), i32(8)))
    with pytest.raises(TypeError, match=r"argument 0 \(y\) is the Python int 5"):
        axpy((1,), (8,), (5, y, f32(1), i32(8)))


def test_arrays_that_are_read_only(module):
    y, x = np.ones(8, np.float32), np.ones(8, np.float32)
    x.flags.writeable = False
    axpy = module.get_function("axpy")
    axpy((1,), (8,), (y, x, f32(1), i32(8)))  # x is const for the kernel
    with pytest.raises(ValueError, match=r"argument 0 \(y\) is a read-only array"):
        axpy((1,), (8,), (x, y, f32(1), i32(8)))


def test_arrays_with_gaps(module):
    """As for CuPy a pointer is all that is passed; what lies between is not touched."""
    wide = np.arange(40, dtype=np.float32)
    y = wide[::2]
    module.get_function("axpy")((1,), (32,), (y, np.ones(20, np.float32), f32(1), i32(20)))
    assert (wide[:20] == np.arange(20) + 1).all() and (wide[20:] == np.arange(20, 40)).all()
    with pytest.raises(emulator.OutOfBoundsError):
        module.get_function("axpy")((2,), (32,), (y, np.ones(64, np.float32), f32(1), i32(64)))


def test_fortran_order_and_reversed(module):
    square = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    module.get_function("axpy")((1,), (32,), (square, np.ones(12, np.float32), f32(1), i32(12)))
    assert (square == np.arange(12).reshape(3, 4) + 1).all()


def test_arrays_that_overlap(module):
    x = np.arange(100, dtype=np.float32)
    module.get_function("axpy")((1,), (64,), (x[40:], x, f32(1), i32(40)))
    assert (x[40:80] == np.arange(40, 80) + np.arange(40)).all()
    both = np.arange(8, dtype=np.float32)
    module.get_function("axpy")((1,), (8,), (both, both, f32(1), i32(8)))
    assert (both == 2 * np.arange(8)).all()


def test_a_view_does_not_reach_beyond_itself(module):
    x = np.zeros(100, np.float32)
    with pytest.raises(emulator.OutOfBoundsError) as caught:
        module.get_function("axpy")((1,), (64,), (x[:40], np.ones(64, np.float32), f32(1), i32(64)))
    assert caught.value.findings[0].argument == 0 and (x[40:] == 0).all()


def test_null_and_empty(module):
    is_null, out = module.get_function("is_null"), np.zeros(1, np.int32)
    is_null((1,), (1,), (out, None))
    assert out[0] == 1
    is_null((1,), (1,), (out, np.zeros(0, np.float32)))
    assert out[0] in (0, 1)  # CuPy passes a null pointer here, others do not
    nothing = np.zeros((0, 3), np.float32)
    module.get_function("axpy")((1,), (32,), (nothing, nothing, f32(1), i32(0)))
    with pytest.raises(emulator.OutOfBoundsError):
        module.get_function("axpy")((1,), (32,), (nothing, nothing, f32(1), i32(1)))
    with pytest.raises(emulator.OutOfBoundsError):
        module.get_function("axpy")((1,), (32,), (None, nothing, f32(1), i32(1)))


def test_arrays_without_axes(module):
    out = np.array(7, np.int32)
    module.get_function("bounded")((1,), (32,), (out,))
    assert out.shape == () and out == 32


def test_structures_by_value(module):
    kind = np.dtype([("x", "f4"), ("y", "f4"), ("tag", "i4")])
    out = np.zeros(3, np.float32)
    for value in (np.array((1.5, 2.5, 3), kind), np.array([(1.5, 2.5, 3)], kind)[0]):
        out[:] = 0
        module.get_function("point")((1,), (1,), (out, value))
        assert out.tolist() == [1.5, 2.5, 3]
    with pytest.raises(TypeError, match=r"argument 1 \(p\)"):
        module.get_function("point")((1,), (1,), (out, np.zeros(2, np.float32)))


def test_bfloat16():
    kernel = emulator.RawKernel(
        "#include <cuda_bf16.h>\n"
        'extern "C" __global__ void f(__nv_bfloat16* x, __nv_bfloat16 y) { x[threadIdx.x] = y; }',
        "f",
    )
    x = np.zeros(4, ml_dtypes.bfloat16)
    kernel((1,), (4,), (x, ml_dtypes.bfloat16(1.5)))
    assert (x.astype(np.float32) == 1.5).all()


# ---- launches ------------------------------------------------------------------------------------


def test_grids_and_blocks(module):
    where = module.get_function("where")
    blocks = np.zeros((3, 4, 5), np.int32)
    where((5, 4, 3), (8, 4, 2), (blocks,))
    assert (blocks == 80402).all()
    blocks = np.zeros(70000, np.int32)
    where((70000,), (1,), (blocks,), check=False)
    assert (blocks == 10101).all()
    where((0,), (32,), (blocks,))  # nothing to do
    one = np.zeros(1, np.int32)
    where(1, 32, (one,))  # a number will do
    assert one[0] == 320101


@pytest.mark.parametrize(
    ("grid", "block", "says"),
    [
        ((1,), (1025,), "1 to 1024"),
        ((1,), (32, 33), "1 to 1024"),
        ((1,), (0,), "1 to 1024"),
        ((1,), (1, 1, 65), "64 along z"),
        ((1, 65536), (1,), "65535"),
        ((1, 1, 65536), (1,), "65535"),
        ((1 << 31,), (1,), r"2\^31"),
        ((1, 1, 1, 1), (1,), "one to three numbers"),
        ((), (1,), "one to three numbers"),
        ((1.5,), (1,), "one to three numbers"),
        ((-1,), (1,), "one to three numbers"),
    ],
)
def test_launches_that_no_gpu_takes(module, grid, block, says):
    with pytest.raises(ValueError, match=says):
        module.get_function("where")(grid, block, (np.zeros(1, np.int32),))


def test_launch_bounds(module):
    x = np.zeros(1, np.int32)
    module.get_function("bounded")((1,), (128,), (x,))
    with pytest.raises(ValueError, match="__launch_bounds__ allow 128"):
        module.get_function("bounded")((1,), (129,), (x,))


def test_dynamic_shared_memory(module):
    y = np.arange(64, dtype=np.float32)
    staged = module.get_function("staged")
    staged((1,), (64,), (y,), shared_mem=256)
    assert (y == np.arange(64)[::-1]).all()
    with pytest.raises(emulator.OutOfBoundsError, match="dynamic shared memory"):
        staged((1,), (64,), (y,), shared_mem=252)
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes = 50000"):
        staged((1,), (64,), (y,), shared_mem=50000)
    with pytest.raises(ValueError, match="232448"):
        staged((1,), (64,), (y,), shared_mem=232449)
    kernel = emulator.RawKernel(SOURCE, "staged")
    assert kernel.max_dynamic_shared_size_bytes == 48 * 1024
    kernel.max_dynamic_shared_size_bytes = 232448
    kernel((1,), (64,), (y,), shared_mem=232448)
    assert (y == np.arange(64)).all()


def test_clusters(module):
    x = np.zeros(6, np.int32)
    module.get_function("pairs")((6,), (32,), (x,))
    assert (x == 6).all()
    with pytest.raises(ValueError, match="must divide grid.x = 5"):
        module.get_function("pairs")((5,), (32,), (x,))
    with pytest.raises(ValueError, match="is not its __cluster_dims__"):
        module.get_function("pairs")((6,), (32,), (x,), cluster=3)
    module.get_function("where")((6,), (32,), (x,), cluster=(3,))
    with pytest.raises(ValueError, match="16 at most"):
        module.get_function("where")((17,), (32,), (np.zeros(17, np.int32),), cluster=17)


COOPERATIVE = """
#include <cooperative_groups.h>
extern "C" __global__ void total(int* parts, int* out) {
    if (!threadIdx.x) parts[blockIdx.x] = blockIdx.x + 1;
    cooperative_groups::this_grid().sync();
    int sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += parts[i];
    if (!threadIdx.x) out[blockIdx.x] = sum;
}
"""


def test_cooperative_launch():
    made = emulator.RawModule(COOPERATIVE, enable_cooperative_groups=True)
    parts, out = np.zeros(9, np.int32), np.zeros(9, np.int32)
    made.get_function("total")((9,), (32,), (parts, out))
    assert (out == 45).all()
    with pytest.raises(ValueError, match="cooperative launch of 5000 blocks"):
        made.get_function("total")((5000,), (32,), (parts, out))
    # Without the option a GPU refuses grid.sync(), too.
    with pytest.raises(emulator.EmulatorError):
        emulator.RawModule(COOPERATIVE).get_function("total")((9,), (32,), (parts, out))


def test_representation(module):
    assert re.fullmatch(r"<emulated kernel axpy of .+>", repr(module.get_function("axpy")))
