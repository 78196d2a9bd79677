"""Devices: names, defaults, and the sentence for each thing that can be missing."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import gpunn
from gpunn.device import arrays, probe
from gpunn.device import device as module
from gpunn.device.device import Device, default_device, set_default_device
from gpunn.errors import DeviceError, OutOfMemoryError


def test_cpu_is_a_value():
    cpu = gpunn.device("cpu")
    assert cpu is Device("CPU ") and cpu == Device("cpu:0") and cpu == "cpu"
    assert (cpu.type, cpu.index, str(cpu), repr(cpu)) == ("cpu", 0, "cpu", "device('cpu')")
    assert copy.deepcopy(cpu) == cpu and hash(cpu) == hash(Device("cpu"))
    assert Device(cpu) is cpu


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("gpu", ValueError, "'gpu' is not known; use 'cpu', 'cuda', 'cuda:1' or 'emulator'"),
        ("cuda:x", ValueError, "no valid index"),
        ("cuda:-1", ValueError, "no valid index"),
        ("cpu:1", ValueError, "there is one CPU device"),
        ("emulator:1", ValueError, "there is one emulator, 'emulator'"),
        ("", ValueError, "not known"),
        (3, TypeError, "expected a string"),
        (None, TypeError, "expected a string"),
    ],
)
def test_wrong_names(spec, error, text):
    with pytest.raises(error, match=text):
        Device(spec)


# ---- a stand-in for CuPy on which each step of the way to a GPU can be made to fail --------------


class FakeRuntimeError(Exception):
    pass


class FakeOutOfMemory(Exception):
    pass


class FakeDevice:
    def __init__(self, index):
        self.id = index

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def fake_cupy(driver=13000, build=12090, count=1, broken=False, nvrtc=(12, 9)):
    def free(pointer):
        if broken:
            raise FakeRuntimeError("cudaErrorDevicesUnavailable")

    def device_count():
        if isinstance(count, Exception):
            raise count
        return count

    def version():
        if nvrtc is None:
            raise RuntimeError("libnvrtc.so.12 not found")
        return nvrtc

    def empty(shape, dtype):
        raise FakeOutOfMemory("out of memory")

    runtime = SimpleNamespace(
        driverGetVersion=lambda: driver,
        getDeviceCount=device_count,
        getDeviceProperties=lambda i: {"name": b"NVIDIA H200", "major": 9, "minor": 0},
        CUDARuntimeError=FakeRuntimeError,
        free=free,
        getDevice=lambda: 0,
        memGetInfo=lambda: (512 * 2**20, 1024 * 2**20),
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        driver=SimpleNamespace(get_build_version=lambda: build),
        Device=FakeDevice,
        nvrtc=SimpleNamespace(getVersion=version),
        memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemory),
    )
    return SimpleNamespace(__version__="14.2.0", cuda=cuda, empty=empty)


@pytest.fixture
def pretend(monkeypatch):
    """Put a stand-in for CuPy in place and forget every device that was made before."""

    def put(cupy, headers=("/include",)):
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        if cupy is not None:
            monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        monkeypatch.setattr(module, "_made", {})
        monkeypatch.setattr(probe, "cuda_include_folders", lambda: headers)

    return put


def test_cupy_missing(pretend):
    pretend(None)
    with pytest.raises(
        DeviceError, match=r"CuPy is not installed: .*pip install 'gpunn\[cuda12\]'"
    ):
        Device("cuda")


def test_cupy_broken(pretend, monkeypatch, tmp_path):
    pretend(None)
    monkeypatch.delitem(sys.modules, "cupy")
    (tmp_path / "cupy.py").write_text("raise ImportError('two CuPy wheels are installed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DeviceError, match="does not import .two CuPy wheels.*only one of cupy-cuda12x"
    ):
        Device("cuda")


def test_no_driver(pretend):
    pretend(fake_cupy(driver=0))
    with pytest.raises(DeviceError, match="No NVIDIA driver answers .*or use device 'cpu'"):
        Device("cuda")


def test_driver_too_old(pretend):
    pretend(fake_cupy(driver=12040, build=13000))
    text = "driver supports CUDA 12.4 .*built for CUDA 13.0: .*replace cupy-cuda13x by cupy-cuda12x"
    with pytest.raises(DeviceError, match=text):
        Device("cuda")


def test_no_gpu_listed(pretend):
    pretend(fake_cupy(count=0))
    with pytest.raises(DeviceError, match="No GPU is visible: check CUDA_VISIBLE_DEVICES"):
        Device("cuda")
    pretend(fake_cupy(count=FakeRuntimeError("cudaErrorNoDevice")))
    with pytest.raises(DeviceError, match="gives no GPU .cudaErrorNoDevice."):
        Device("cuda")


def test_no_nvrtc(pretend):
    pretend(fake_cupy(nvrtc=None))
    with pytest.raises(DeviceError, match="NVRTC.* not found .*nvidia-cuda-nvrtc-cu12"):
        Device("cuda")


def test_no_headers(pretend):
    pretend(fake_cupy(), headers=())
    with pytest.raises(
        DeviceError, match="cuda_fp16.h.*install nvidia-cuda-runtime-cu12.*CUDA_PATH"
    ):
        Device("cuda")


def test_index_out_of_range(pretend):
    pretend(fake_cupy(count=2))
    assert Device("cuda").index == 0 and Device("cuda:1").index == 1
    text = r"cuda:2 does not exist: this machine shows 2 GPUs \(cuda:0 to cuda:1\)"
    with pytest.raises(DeviceError, match=text):
        Device("cuda:2")


def test_listed_but_unusable(pretend):
    pretend(fake_cupy(broken=True))
    with pytest.raises(DeviceError, match="cuda:0 is listed but cannot be used .*Unavailable"):
        Device("cuda")


def test_out_of_memory(pretend):
    pretend(fake_cupy())
    text = (
        r"cuda:0 has no room for an array of shape \(1024, 1024, 1024\) float32 \(4,096.0 MiB\): "
        r"512 MiB of 1,024 MiB are free"
    )
    with pytest.raises(OutOfMemoryError, match=text):
        arrays.empty((1024, 1024, 1024), np.float32, "cuda")


# ---- the default ---------------------------------------------------------------------------------


@pytest.fixture
def no_default(monkeypatch):
    monkeypatch.setattr(module, "_default", None)
    monkeypatch.delenv("GPUNN_DEVICE", raising=False)
    module._automatic.cache_clear()
    yield
    module._automatic.cache_clear()


def test_default_is_the_gpu_only_if_usable(no_default, monkeypatch, pretend):
    monkeypatch.setattr(probe, "cuda_usable", lambda: False)
    assert default_device() == Device("cpu")
    module._automatic.cache_clear()
    pretend(fake_cupy())
    monkeypatch.setattr(probe, "cuda_usable", lambda: True)
    assert str(default_device()) == "cuda:0"


def test_environment_chooses(no_default, monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    assert default_device() == Device("cpu")
    monkeypatch.setenv("GPUNN_DEVICE", "tpu")
    with pytest.raises(ValueError, match="GPUNN_DEVICE=tpu: .*'tpu' is not known"):
        default_device()


def test_environment_names_a_gpu_that_cannot_be_used(no_default, monkeypatch, pretend):
    pretend(fake_cupy(driver=0))
    monkeypatch.setenv("GPUNN_DEVICE", "cuda")
    with pytest.raises(DeviceError, match="GPUNN_DEVICE=cuda: No NVIDIA driver"):
        default_device()


def test_set_default_wins(no_default, monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "nonsense")
    set_default_device("cpu")
    assert default_device() == Device("cpu")
    set_default_device(None)


# ---- arrays --------------------------------------------------------------------------------------


def test_arrays_on_the_cpu():
    x = np.arange(6.0).reshape(2, 3)
    assert arrays.device_of(x) == "cpu" and arrays.to_device(x, "cpu") is x
    assert arrays.array_module("cpu") is np and arrays.pointer(x) == x.ctypes.data
    assert arrays.empty((2, 0), np.float32, "cpu").shape == (2, 0)
    arrays.synchronize("cpu")
    np.testing.assert_array_equal(arrays.as_array([[1, 2]]), [[1, 2]])


class OnlyDLPack:
    """An array of another library, seen through DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_foreign_cpu_arrays_come_without_a_copy():
    x = np.arange(4.0)
    assert np.shares_memory(arrays.as_array(OnlyDLPack(x)), x)


def test_the_path_to_a_gpu_is_reported_in_order(pretend):
    pretend(fake_cupy(driver=0))
    found = probe.findings()
    assert [f.name for f in found] == ["CuPy", "NVIDIA driver", "NVRTC", "CUDA headers"]
    assert [f.passed for f in found] == [True, False, True, True]
    pretend(fake_cupy())
    assert [f.name for f in probe.findings()][2] == "GPU"
    assert probe.find_gpus().detail == "cuda:0 NVIDIA H200 (sm_90)"


def test_numba_compiles_or_the_finding_says_why_not(monkeypatch):
    before = hasattr(np, "row_stack")
    found = probe.find_numba()
    assert found.passed or found.detail == "not installed" or found.detail in found.remedy
    assert hasattr(np, "row_stack") == before
    probe.find_numba.cache_clear()
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: None)
    found = probe.find_numba()
    probe.find_numba.cache_clear()
    assert not found.passed and "pip install 'gpunn[numba]'" in found.remedy
