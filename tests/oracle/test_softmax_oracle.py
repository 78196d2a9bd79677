"""Softmax and log-softmax against PyTorch, values and gradients, at each dtype."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gpunn.primitives.softmax import (  # noqa: E402
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)

pytestmark = pytest.mark.oracle

SHAPES = [(1, 1), (5, 10), (3, 257), (2, 3, 40), (2, 5000)]
CASES = [
    (softmax_forward, softmax_backward, torch.softmax),
    (log_softmax_forward, log_softmax_backward, torch.log_softmax),
]
BOUND = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def both(forward, backward, theirs, x, grad):
    x = x.requires_grad_()
    expected = theirs(x, -1)
    expected.backward(grad)
    arrays = [as_numpy(tensor) for tensor in (x, grad)]
    y = forward(arrays[0])
    return (y, backward(arrays[1], y)), (as_numpy(expected), as_numpy(x.grad))


def as_numpy(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize(("forward", "backward", "theirs"), CASES, ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(forward, backward, theirs, dtype, shape):
    torch.manual_seed(0)
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    ours, expected = both(forward, backward, theirs, (3 * x).to(dtype), grad.to(dtype))
    for value, want in zip(ours, expected, strict=True):
        value, want = value.astype(np.float64), want.astype(np.float64)
        scale = np.abs(want).max() + 1e-30
        np.testing.assert_allclose(value / scale, want / scale, rtol=0, atol=2 * BOUND[dtype])


@pytest.mark.parametrize(("forward", "backward", "theirs"), CASES, ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("columns", [6, 60])
def test_masks_infinities_and_not_a_number(forward, backward, theirs, columns):
    x = torch.zeros(5, columns)
    x[0, 1:] = -torch.inf
    x[1] = -torch.inf
    x[2, 3], x[3, 4] = torch.inf, torch.nan
    expected = theirs(x, -1).numpy()
    np.testing.assert_allclose(forward(x.numpy()), expected, rtol=1e-6)


def test_pytorch_tensors_are_taken_as_they_are():
    x = torch.randn(4, 7)
    np.testing.assert_allclose(softmax_forward(x), torch.softmax(x, -1), rtol=2e-6)
