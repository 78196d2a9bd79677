"""DLPack with NumPy and with the protocol itself; PyTorch is among the oracles."""

from __future__ import annotations

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
