"""`gpunn.cuda`: PyTorch's names for asking about GPUs."""

from __future__ import annotations

import pytest

import gpunn
from gpunn.device import probe
from gpunn.errors import DeviceError


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(probe, "cuda_usable", lambda: False)
    assert not gpunn.cuda.is_available() and gpunn.cuda.device_count() == 0
    assert gpunn.cuda.memory_allocated() == 0
    gpunn.cuda.empty_cache()
    device = gpunn.device("cuda" if gpunn.cuda.is_available() else "cpu")
    assert str(device) == "cpu"
    with pytest.raises(ValueError, match="cpu is no GPU"):
        gpunn.cuda.get_device_name("cpu")


@pytest.mark.skipif(probe.cuda_usable(), reason="there is a GPU")
def test_the_error_says_what_is_missing():
    for ask in (gpunn.cuda.current_device, gpunn.cuda.get_device_name):
        with pytest.raises(DeviceError, match="use device 'cpu'|pip install|NVRTC|headers"):
            ask()


def test_one_seed_for_all():
    gpunn.cuda.manual_seed_all(5)
    assert gpunn.initial_seed() == 5


@pytest.mark.gpu
def test_on_a_gpu():
    assert gpunn.cuda.is_available() and gpunn.cuda.device_count() >= 1
    assert gpunn.cuda.get_device_capability(0) >= (5, 0) and gpunn.cuda.get_device_name()
    assert gpunn.cuda.current_device() >= 0
    kept = gpunn.ones(1000, device="cuda")
    gpunn.cuda.synchronize()
    assert gpunn.cuda.memory_allocated() >= kept.nbytes
