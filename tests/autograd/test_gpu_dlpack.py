"""Memory of a GPU shared with CuPy, Numba and PyTorch. Collected where a GPU is usable."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "float16", "bfloat16", "int64", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy(dtype):
    import cupy

    tensor = gpunn.tensor([[1, 0, 2], [3, 4, 5]], device="cuda").to(dtype=getattr(gpunn, dtype))
    if dtype != "bfloat16":
        array = cupy.from_dlpack(tensor.t())
        assert array.data.ptr == tensor.data_ptr() and array.shape == (3, 2)
        array[...] = 1
        assert (tensor.float().numpy() == 1).all()
    back = gpunn.from_dlpack(tensor[:, 1:])
    assert back.dtype == tensor.dtype and back.data_ptr() == tensor[:, 1:].data_ptr()
    assert cupy.asarray(tensor).data.ptr == tensor.data_ptr()  # __cuda_array_interface__
    with pytest.raises(RuntimeError, match="detach"):
        cupy.asarray(tensor.float().requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch(dtype):
    torch = pytest.importorskip("torch")
    given = torch.ones(4, 6, device="cuda").to(getattr(torch, dtype))
    tensor = gpunn.from_dlpack(given.t())
    assert tensor.data_ptr() == given.data_ptr() and tensor.dtype == getattr(gpunn, dtype)
    tensor.fill_(0)
    gpunn.synchronize()
    assert not given.any()
    back = torch.from_dlpack(tensor)
    assert back.dtype == given.dtype and back.data_ptr() == given.data_ptr()
    state = {"weight": given.float()}
    layer = gpunn.nn.Linear(6, 4, bias=False, device="cuda")
    layer.load_state_dict(state)
    assert not layer.weight.any()


def test_numba():
    cuda = pytest.importorskip("numba.cuda")
    tensor = gpunn.arange(6, device="cuda", dtype=gpunn.float32)
    seen = cuda.as_cuda_array(tensor)
    assert seen.__cuda_array_interface__["data"][0] == tensor.data_ptr()
    np.testing.assert_array_equal(seen.copy_to_host(), np.arange(6, dtype="f"))
    theirs = cuda.to_device(np.arange(3.0))
    ours = gpunn.from_dlpack(theirs)
    ours.add_(1)
    gpunn.synchronize()
    assert theirs.copy_to_host().tolist() == [1, 2, 3]


def test_another_stream_waits():
    """What another stream reads through DLPack was written before, also if much was queued."""
    import cupy

    tensor = gpunn.zeros(1 << 22, device="cuda")
    for _ in range(200):
        tensor.add_(1)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        array = cupy.from_dlpack(tensor)
        total = array.sum()
        stream.synchronize()
    assert float(total) == 200.0 * (1 << 22)


def test_to_the_host():
    tensor = gpunn.ones(3, device="cuda", dtype=gpunn.bfloat16)
    assert gpunn.from_dlpack(tensor, device="cpu").tolist() == [1, 1, 1]
    with pytest.raises(BufferError, match="copy=False, but from cuda:0 to cpu"):
        gpunn.from_dlpack(tensor, device="cpu", copy=False)
