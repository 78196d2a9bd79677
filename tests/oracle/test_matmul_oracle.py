"""matmul and bias_gradient against PyTorch on the CPU."""

import ml_dtypes
import numpy as np
import pytest

from gpunn.primitives.matmul import matmul
from gpunn.primitives.matmul_backward import bias_gradient

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.oracle

ACTIVATIONS = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "mish": F.mish,
    "hard_swish": F.hardswish,
}


def rand(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_linear_layer_with_activation(activation):
    x, weight, bias = rand(17, 33), rand(9, 33, seed=1), rand(9, seed=2)
    out, before = matmul(
        x, weight, transpose_b=True, bias=bias, activation=activation, keep_preactivation=True
    )
    expected = F.linear(*map(torch.from_numpy, (x, weight, bias)))
    np.testing.assert_allclose(before, expected.numpy(), rtol=1e-12, atol=1e-12)
    expected = ACTIVATIONS[activation](expected).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "of_a, of_b",
    [((5, 4), (4, 3)), ((2, 5, 4), (4, 3)), ((5, 4), (6, 4, 3)), ((2, 1, 5, 4), (3, 4, 3))],
)
def test_batches(of_a, of_b):
    a, b = rand(*of_a), rand(*of_b, seed=1)
    expected = torch.matmul(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(matmul(a, b), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, dtype", [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_sixteen_bit_products_are_no_less_accurate(name, dtype):
    a, b = rand(40, 700).astype(dtype), rand(700, 30, seed=1).astype(dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    theirs = torch.matmul(
        *(torch.from_numpy(x.astype(np.float32)).to(getattr(torch, name)) for x in (a, b))
    )

    def error(out):
        return np.linalg.norm(out - exact) / np.linalg.norm(exact)

    assert error(matmul(a, b).astype(np.float64)) <= 1.01 * error(theirs.double().numpy())


def test_gradients_of_a_linear_layer():
    x, weight, grad = rand(17, 33), rand(9, 33, seed=1), rand(17, 9, seed=3)
    tensors = [torch.from_numpy(v).requires_grad_() for v in (x, weight, np.zeros(9))]
    F.linear(*tensors).backward(torch.from_numpy(grad))
    for ours, tensor in zip(
        (matmul(grad, weight), matmul(grad, x, transpose_a=True), bias_gradient(grad)),
        tensors,
        strict=True,
    ):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-12, atol=1e-12)
