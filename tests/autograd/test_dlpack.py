"""DLPack with NumPy and with the protocol itself; PyTorch is among the oracles."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpunn
from gpunn.autograd.dlpack import _type_in


def cpu(data, dtype=None):
    return gpunn.tensor(data, device="cpu", dtype=dtype)


def test_numpy_shares_memory_both_ways():
    tensor = cpu([[1.0, 2, 3], [4, 5, 6]])
    for view in (tensor, tensor.t(), tensor[:, 1:], tensor.flip(1)):
        array = np.from_dlpack(view)
        assert array.tolist() == view.tolist()
        array[0, 0] += 10
        assert view[0, 0].item() == array[0, 0]
        assert gpunn.from_dlpack(array).data_ptr() == view.data_ptr()


def test_copies_and_devices():
    array = np.arange(3.0)
    assert gpunn.from_dlpack(array, copy=True).data_ptr() != array.ctypes.data
    emulated = gpunn.from_dlpack(array, device="emulator")
    assert emulated.device.type == "emulator" and emulated.tolist() == [0, 1, 2]
    assert gpunn.from_dlpack(emulated).device.type == "emulator"
    with pytest.raises(BufferError, match="copy=False, but from cpu to emulator"):
        gpunn.from_dlpack(array, device="emulator", copy=False)
    tensor = cpu([1.0, 2])
    assert np.from_dlpack(tensor, copy=True).ctypes.data != tensor.data_ptr()
    assert np.from_dlpack(tensor, device="cpu").ctypes.data == tensor.data_ptr()
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(2, 0))
    assert tensor.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_bfloat16_passes_in_both_kinds_of_capsules(version):
    """Code 4, 16 bits, one lane, whether the capsule has a version or not."""
    tensor = cpu([1.5, -2.0], gpunn.bfloat16)
    capsule = tensor.__dlpack__(max_version=version)
    found = _type_in(capsule)
    assert (found.code, found.bits, found.lanes) == (4, 16, 1)
    assert ("versioned" in repr(capsule)) == (version is not None)

    class Producer:
        def __dlpack__(self, **_):
            return capsule

        def __dlpack_device__(self):
            return (1, 0)

    back = gpunn.from_dlpack(Producer())
    assert back.dtype == gpunn.bfloat16 and back.data_ptr() == tensor.data_ptr()
    assert back.tolist() == [1.5, -2.0]


def test_read_only_memory_stays_so():
    array = np.arange(3.0)
    array.flags.writeable = False
    tensor = gpunn.from_dlpack(array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.add_(1)
    with pytest.raises(BufferError, match="readonly"):
        tensor.__dlpack__()  # the old protocol cannot say that it is
    assert not np.from_dlpack(tensor).flags.writeable


def test_the_memory_lives_as_long_as_someone_has_it():
    array = np.from_dlpack(cpu(np.arange(1000.0)))
    tensor = gpunn.from_dlpack(np.arange(1000.0))
    gpunn.from_dlpack(np.zeros(1000))
    assert array.sum() == tensor.sum().item() == 499500


def test_what_is_no_array():
    with pytest.raises(TypeError, match="expected an array with __dlpack__, got list"):
        gpunn.from_dlpack([1, 2])

    class Elsewhere:
        def __dlpack__(self, **_):
            raise AssertionError

        def __dlpack_device__(self):
            return (10, 0)

    with pytest.raises(BufferError, match="DLPack's type 10"):
        gpunn.from_dlpack(Elsewhere())
    leaf = cpu([1.0]).requires_grad_()
    with pytest.raises(BufferError, match="detach"):
        (leaf * 2).__dlpack__()


@pytest.mark.parametrize("dtype", [">f4", "c8", "U1", "O", "M8[s]", "g"])
def test_dtypes_that_gpunn_does_not_have(dtype):
    array = np.zeros(2, dtype)
    with pytest.raises(BufferError, match="which gpunn does not have"):
        gpunn.from_dlpack(array)
    with pytest.raises(TypeError, match="from_numpy: gpunn has no dtype"):
        gpunn.from_numpy(array)
    if dtype == ">f4":
        turned = gpunn.tensor(np.array([1, 2], dtype), device="cpu")
        assert turned.dtype == gpunn.float32 and turned.tolist() == [1, 2]
    else:
        with pytest.raises(TypeError, match="tensor: gpunn has no dtype"):
            gpunn.tensor(array, device="cpu")


def test_a_capsule_serves_once():
    class Producer:
        capsule = cpu([1.0, 2]).__dlpack__()

        def __dlpack__(self, **_):
            return self.capsule

        def __dlpack_device__(self):
            return (1, 0)

    assert gpunn.from_dlpack(Producer()).tolist() == [1, 2]
    with pytest.raises(BufferError, match="not a capsule that nobody took before"):
        gpunn.from_dlpack(Producer())
    Producer.capsule = 3
    with pytest.raises(BufferError, match="gave 3, not a capsule"):
        gpunn.from_dlpack(Producer())


def test_capsules_leak_nothing():
    """Unused, used, and refused ones: the array has as many owners afterwards as before."""
    for dtype in (gpunn.float32, gpunn.bfloat16):
        tensor = cpu(np.ones(100), dtype)
        before = sys.getrefcount(tensor.array)
        for version in (None, (1, 0)):
            tensor.__dlpack__(max_version=version)
        gpunn.from_dlpack(tensor)
        after = sys.getrefcount(tensor.array)  # not within `assert`, which keeps what it compares
        assert after == before


def test_memory_that_runs_backwards():
    """PyTorch does not refuse it, it ends the process."""
    backwards = gpunn.from_numpy(np.arange(6.0).reshape(2, 3)[:, ::-1])
    with pytest.raises(BufferError, match="runs backwards"):
        backwards.__dlpack__()
    assert np.from_dlpack(backwards.contiguous()).tolist() == [[2, 1, 0], [5, 4, 3]]
    np.from_dlpack(gpunn.from_numpy(np.arange(3.0).reshape(3, 1)[:, ::-1]))  # only by name
