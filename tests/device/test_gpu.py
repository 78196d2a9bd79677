"""What only a GPU can show of the device layer. Collected where a GPU is usable."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
from gpunn import kernels
from gpunn.device import arrays, default_device, probe
from gpunn.errors import OutOfMemoryError

pytestmark = pytest.mark.gpu

X = np.linspace(-3, 3, 1001, dtype=np.float32)
RELU = np.maximum(X, 0)


def relu(x, **options):
    return kernels.activation_forward(x, activation="relu", **options)


def test_the_gpu_is_the_default():
    assert default_device() == "cuda:0" and gpunn.device("cuda") == "cuda:0"


def test_cupy_arrays():
    import cupy

    x = cupy.asarray(X)
    out = cupy.empty_like(x)
    assert relu(x, out=out) is out
    np.testing.assert_array_equal(out.get(), RELU)
    np.testing.assert_array_equal(relu(x[::2]).get(), RELU[::2])
    np.testing.assert_array_equal(relu(x[1:]).get(), RELU[1:])  # not aligned to 16 bytes


def test_torch_tensors_are_taken_and_written_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X).cuda()
    out = torch.zeros_like(x)
    relu(x, out=out)
    np.testing.assert_array_equal(out.cpu().numpy(), RELU)
    half = x.to(torch.bfloat16)
    assert relu(half).dtype.name == "bfloat16"


def test_numba_arrays():
    cuda = pytest.importorskip("numba.cuda")
    np.testing.assert_array_equal(relu(cuda.to_device(X)).get(), RELU)


def test_devices_are_not_mixed():
    import cupy

    with pytest.raises(ValueError, match="x is on cpu but grad_output is on cuda:0; move both"):
        kernels.activation_backward(cupy.asarray(X), X, activation="relu")


def test_implementations_can_be_chosen():
    import cupy

    x = cupy.asarray(X)
    if probe.find_numba().passed:
        with kernels.using("numba"):
            np.testing.assert_array_equal(relu(x).get(), RELU)
    with (
        kernels.using("numpy"),
        pytest.raises(NotImplementedError, match="NumPy does not run on GPU"),
    ):
        relu(x)


def test_out_of_memory_names_the_sizes():
    with pytest.raises(OutOfMemoryError, match=r"cuda:0 has no room for .*MiB are free"):
        arrays.empty(1 << 50, np.uint8, "cuda")


def test_one_stream_after_another():
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        result = relu(relu(cupy.asarray(X)))
    stream.synchronize()
    np.testing.assert_array_equal(result.get(), RELU)


def test_more_than_two_to_the_31_elements():
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    n = 2**31 + 9
    if free < 3 * n:
        pytest.skip(f"needs {3 * n / 2**30:.0f} GiB of GPU memory")
    x = cupy.full(n, -1, cupy.float16)
    x[-5:] = 2
    out = relu(x, out=x)
    assert out[-5:].get().tolist() == [2] * 5 and int((out != 0).sum()) == 5
