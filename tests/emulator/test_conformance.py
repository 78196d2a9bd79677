"""Every function of ptx.cuh on the emulator: the conformance cases, in fast and in checked mode."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from gpunn.device import probe, sources
from gpunn.emulator import TensorMap, TrapError, conformance, tensor_map
from gpunn.errors import DeviceError

# A block of one warp or more, its threads in order, in reverse, and mixed.
LAUNCHES = {
    "fast": conformance.emulator_launch(check=False, schedule="random", seed=1),
    "checked": conformance.emulator_launch(check=True, schedule="random", seed=2),
    "checked in order": conformance.emulator_launch(check=True, schedule="in order"),
}


@pytest.mark.parametrize("mode", LAUNCHES)
@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_on_the_emulator(case, mode):
    outcome = conformance.run(case, LAUNCHES[mode], seed=3)
    assert outcome.passed, outcome.message


@pytest.mark.gpu
@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_on_a_gpu(case):
    from gpunn.device.device import Device
    from gpunn.device.launch import device_properties

    device = Device("cuda")
    number = int(re.search(r"\d+", device_properties(device.index)["arch"])[0])
    if number < case.arch or (case.arch == 90 and "wgmma" in case.source and number != 90):
        pytest.skip(f"needs sm_{case.arch}")
    outcome = conformance.run(case, conformance.cuda_launch(device), seed=3)
    assert outcome.passed, outcome.message


def wrappers() -> set[str]:
    """The functions that ptx_*.cuh declare for kernels."""
    names = set()
    for header in (sources.kernels_folder() / "cuda").glob("ptx_*.cuh"):
        text = re.sub(r"//.*|#define (?:[^\n]*\\\n)*[^\n]*", "", header.read_text(encoding="utf-8"))
        names |= set(re.findall(r"__device__ __forceinline__\s+[\w*]+\s+(\w+)\(", text))
    return names - {"mbarrier_look"}  # what mbarrier_wait is made of


def test_every_wrapper_has_a_case():
    covered = {name for case in conformance.CASES for name in case.covers}
    assert len(wrappers()) > 50
    assert covered == wrappers()


def test_cases_have_names_of_their_own():
    names = [case.name for case in conformance.CASES]
    assert len(names) == len(set(names))
    assert conformance.get("mma_s8").expression == "multiply_s8"


def test_every_width_of_wgmma_has_a_case():
    expressions = " ".join(case.expression for case in conformance.CASES)
    for n in range(8, 257, 8):
        assert f"from_shared<{n}, ptx::Kind::bf16" in expressions


def test_a_difference_is_told():
    case = conformance.get("mma_f64")

    def wrong(_, arguments):
        arguments[2][3, 4] += 1

    outcome = conformance.run(case, wrong)
    assert not outcome.passed and outcome.message.startswith("mma_f64: ")
    assert " of 64 elements of output 0 differ" in outcome.message


# ---- numbers: what a bit pattern of each format is worth, read through a product with 1 ----------


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("bf16", ml_dtypes.bfloat16),
        ("f16", np.float16),
        ("e4m3", ml_dtypes.float8_e4m3fn),
        ("e5m2", ml_dtypes.float8_e5m2),
    ],
)
def test_numbers_of(kind, dtype):
    case = conformance.get(f"mma {kind}")
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    patterns = np.arange(256) if bits.itemsize == 1 else np.arange(0, 1 << 16, 37)
    for some in patterns[: len(patterns) // 16 * 16].reshape(-1, 16):
        a, b = np.zeros((16, 32 // bits.itemsize), bits), np.zeros((8, 32 // bits.itemsize), bits)
        a[:, 3] = some
        b[:, 3] = np.ones(1, dtype).view(bits)
        d = np.zeros((16, 8), np.float32)
        LAUNCHES["fast"](case, (a.view(np.uint32), b.view(np.uint32), d))
        worth = some.astype(bits).view(dtype).astype(np.float32)
        np.testing.assert_array_equal(d, np.repeat(worth[:, None], 8, axis=1))


# ---- tensor maps ---------------------------------------------------------------------------------


def test_what_a_tensor_map_refuses():
    array = np.zeros((8, 64), np.float16)
    for arguments, keywords, text in (
        ((array, (8, 32)), {}, "box: 32 float16 .* 64 bytes, less .* use swizzle=64"),
        ((array, (8, 128)), {}, "256 bytes, more than the swizzle's 128"),
        ((array, (8, 4)), {"swizzle": 0}, "8 bytes, not a multiple of 16"),
        ((array, (257, 64)), {}, "box: 257 is not within 1 … 256"),
        ((array, (64,)), {}, "box: expected 2 integers, got 1"),
        ((array, (8, 64)), {"swizzle": 16}, "swizzle: 16 is none of"),
        ((array, (8, 64)), {"element_strides": (9, 1)}, "element_strides: 9 is not within 1 … 8"),
        ((array, (8, 64)), {"element_strides": (1, 2)}, "no stride along the last axis"),
        ((array, (8, 64)), {"fill": "one"}, "fill: 'one'"),
        ((array.astype(np.int16), (8, 64)), {"fill": "nan"}, "needs a floating type"),
        ((array[:, ::2], (8, 32)), {"swizzle": 64}, "last axis must be contiguous"),
        ((np.zeros((8, 9), np.float16), (8, 8)), {"swizzle": 0}, "stride of axis 0 is 18 bytes"),
        ((array[::-1], (8, 64)), {}, "stride of axis 0 is -128"),
        ((np.zeros((1,) * 6), (1,) * 6), {}, "1 to 5 axes, not 6"),
        ((np.zeros((0, 64), np.float16), (8, 64)), {}, "axis 0 has size 0"),
    ):
        with pytest.raises(ValueError, match=text):
            TensorMap(*arguments, **keywords)
    with pytest.raises(TypeError, match="cannot hold complex64"):
        TensorMap(np.zeros((8, 16), np.complex64), (8, 16))
    with pytest.raises(ValueError, match="address: 0x18 is not a multiple of 16"):
        TensorMap(array, (8, 64)).pack(24)


def test_what_an_im2col_map_refuses():
    array = np.zeros((2, 5, 6, 64), np.float16)
    good = dict(lower=(0, 0), upper=(0, 0), channels=64, pixels=8)
    for changed, text in (
        ({"lower": (-129, 0)}, "lower: -129 is not within -128 … 127"),
        ({"upper": (-5, 0)}, "leave no pixels along axis 1"),
        ({"pixels": 1025}, "pixels: 1025 is not within 1 … 1024"),
        ({"channels": 8}, "channels: 8 float16 .* 16 bytes, less"),
        ({"element_strides": (2, 1, 1, 1)}, "would skip images"),
    ):
        with pytest.raises(ValueError, match=text):
            TensorMap.im2col(array, **{**good, **changed})
    with pytest.raises(ValueError, match="im2col needs 3 to 5 axes"):
        TensorMap.im2col(array[0, 0], **good)


def test_tensor_maps_of_views_and_small_axes():
    whole = np.zeros((4, 10, 72), ml_dtypes.bfloat16)
    tensor = TensorMap(whole[1:3, :, 8:], (2, 5, 64))
    assert tensor.strides == (144, 1440) and tensor.box_bytes == 2 * 5 * 128
    single = np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (1, 8), (3, 4))
    assert TensorMap(single, (1, 8), swizzle=32).strides == (32,)
    packed = tensor.pack(0x1000)
    assert packed.nbytes == 128 and packed.ctypes.data % 64 == 0
    assert bytes(packed[:8]) == b"gpunnTMA"
    with pytest.raises(ValueError, match="cannot take the place"):
        tensor.with_array(whole)
    assert tensor.with_array(whole[:2, :, 8:]).strides == tensor.strides
    with pytest.raises(ValueError, match="strides"):
        tensor.with_array(whole[1:3, :, 8:].copy())


class FakeDriver:
    """Notes what the driver would be asked for, and gives a status."""

    def __init__(self, status: int = 0):
        self.status, self.calls = status, []

    def function(self, name):
        def call(*values):
            plain = [list(v) if hasattr(v, "__len__") else v.value for v in values]
            self.calls.append((name, plain))
            return self.status

        return call


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    monkeypatch.setattr(tensor_map, "_driver_function", fake.function)
    return fake


def test_what_the_driver_is_asked_for(driver):
    array = np.zeros((5, 9, 48), ml_dtypes.bfloat16)[:, :, :40]
    tensor = TensorMap(array, (2, 6, 32), swizzle=64, element_strides=(1, 2, 1), fill="nan")
    argument = tensor.as_argument(0x7000)
    assert argument.shape == (1,) and argument.nbytes == 128 and argument.ctypes.data % 64 == 0
    name, values = driver.calls[0]
    assert name == "cuTensorMapEncodeTiled" and values[0] == argument.ctypes.data
    assert values[1:] == [
        *(9, 3, 0x7000, [40, 9, 5], [96, 864], [32, 6, 2], [1, 2, 1]),
        *(0, 2, 3, 1),  # no interleave, 64 bytes, promotion to 256 bytes, NaN
    ]
    assert tensor.as_argument(0x7000) is argument and len(driver.calls) == 1
    assert tensor.with_array(array).as_argument(0x8000) is not argument


def test_what_the_driver_is_asked_for_im2col(driver):
    array = np.zeros((2, 6, 7, 64), np.float16)
    TensorMap.im2col(
        array, lower=(-1, -2), upper=(-3, -4), channels=64, pixels=32, element_strides=(1, 2, 3, 1)
    ).encode(0x7000)
    name, values = driver.calls[0]
    assert name == "cuTensorMapEncodeIm2col"
    assert values[1:] == [
        *(6, 4, 0x7000, [64, 7, 6, 2], [128, 896, 5376], [-2, -1], [-4, -3], 64, 32),
        *([1, 3, 2, 1], 0, 3, 3, 0),
    ]


def test_a_refusal_of_the_driver(driver, monkeypatch):
    driver.status = 1
    monkeypatch.setattr(tensor_map, "_driver_error", lambda status: "CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(DeviceError, match="refused <TensorMap of float32 .*INVALID_VALUE"):
        TensorMap(np.zeros((8, 32), np.float32), (8, 32)).encode(0x7000)


@pytest.mark.skipif(probe.cuda_usable(), reason="there is a GPU")
def test_the_driver_is_asked_for_by_name():
    with pytest.raises(DeviceError, match="does not load here|does not start|refused"):
        TensorMap(np.zeros((8, 64), np.float16), (8, 64)).as_argument(0x1000)


@pytest.mark.parametrize(
    ("name", "places", "message"),
    [
        ("tensor_load 2-D int32 swizzle 64 #2", [[2, 3], [16, 16]], "not a multiple of 16 bytes"),
        ("tensor_store 2-D int32 swizzle 64 #2", [[2, 3]], "not a multiple of 16 bytes"),
        ("tensor_store 2-D int32 swizzle 64 #2", [[4, -1]], "begins at -1 in dimension 1"),
    ],
)
def test_a_box_begins_where_a_gpu_takes_it(name, places, message):
    """Elsewhere an H100 stops with "an illegal instruction"."""
    case = conformance.get(name)
    arguments = list(case.make(np.random.default_rng(0)).arguments)
    arguments[1] = np.array(places, np.int32)
    with pytest.raises(TrapError, match=message):
        conformance.emulator_launch()(case, arguments)
