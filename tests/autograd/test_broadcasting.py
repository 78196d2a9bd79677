"""Arithmetic on every pair of shapes that broadcast, against NumPy; types that meet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

import gpunn.autograd as g
from gpunn.autograd.dtypes import FLOATS, promote

pairs = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4, min_side=0)


@settings(max_examples=80, deadline=None)
@given(pairs)
def test_values_and_gradients_of_broadcast_products(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(1, 9, shape).astype(np.float64) for shape in shapes.input_shapes)
    x, y = (g.tensor(v, device="cpu", requires_grad=True) for v in (a, b))
    for operation in ("__add__", "__sub__", "__mul__", "__truediv__"):
        out = getattr(x, operation)(y)
        np.testing.assert_array_equal(out.detach().numpy(), getattr(a, operation)(b))
    out = x * y
    weights = rng.integers(-5, 5, out.shape).astype(np.float64)
    out.backward(g.tensor(weights, device="cpu"))
    for leaf, other in ((x, b), (y, a)):
        full = weights * np.broadcast_to(other, out.shape)
        lead = full.sum(axis=tuple(range(full.ndim - leaf.ndim)))
        axes = tuple(i for i, n in enumerate(leaf.shape) if n == 1 and lead.shape[i] != 1)
        np.testing.assert_array_equal(leaf.grad.numpy(), lead.sum(axis=axes, keepdims=True))


@settings(max_examples=50, deadline=None)
@given(
    hnp.mutually_broadcastable_shapes(
        signature="(m?,n),(n,p?)->(m?,p?)", max_dims=2, max_side=3, min_side=1
    )
)
def test_matmul_of_all_shapes(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float64) for shape in shapes.input_shapes)
    x, y = (g.tensor(v, device="cpu", requires_grad=True) for v in (a, b))
    out = x @ y
    assert out.shape == (a @ b).shape
    np.testing.assert_array_equal(out.detach().numpy(), a @ b)
    out.sum().backward()
    moved = g.tensor(a + 1, device="cpu") @ y.detach()  # bilinear: exact differences
    np.testing.assert_allclose(x.grad.sum().item(), (moved - out.detach()).sum().item())
    assert x.grad.shape == x.shape and y.grad.shape == y.shape


def test_python_numbers_never_widen():
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        x = g.ones(2, dtype=dtype, device="cpu")
        for out in (x + 1.5, 2 * x, x / 3, x**2, 1 - x, x * np.float64(2), x.clamp(0.1, 0.5)):
            assert out.dtype == x.dtype
    whole = g.ones(2, dtype="int32", device="cpu")
    assert (whole + 1).dtype == np.int32 and (whole * 1.5).dtype == np.float32
    assert (whole / 2).dtype == np.float32 and (whole // 2).dtype == np.int32
    assert (g.tensor([True], device="cpu") + 1).dtype == np.int64
    assert whole.exp().dtype == np.float32


@pytest.mark.parametrize("a", [*FLOATS, np.dtype("int64"), np.dtype("bool")])
@pytest.mark.parametrize("b", [*FLOATS, np.dtype("int32"), np.dtype("uint8")])
def test_types_that_meet(a, b):
    x, y = g.ones(2, dtype=a, device="cpu"), g.ones(2, dtype=b, device="cpu")
    out = x + y
    assert out.dtype == promote(a, b) and out.dtype == (y + x).dtype
    if a in FLOATS and b not in FLOATS:
        assert out.dtype == a
    if {a, b} == {g.float16, g.bfloat16}:
        assert out.dtype == np.float32
    assert out.float().tolist() == [2, 2]


def test_a_scalar_tensor_does_not_widen_its_kind():
    x = g.ones(2, device="cpu")
    assert (x * g.tensor(2.0, dtype="float64", device="cpu")).dtype == np.float32
    assert (x.long() * g.tensor(2.0, device="cpu")).dtype == np.float32
    assert (x.half() + g.tensor(2, device="cpu")).dtype == np.float16
    assert (x.int() + g.tensor(2, device="cpu")).dtype == np.int32


def test_sixteen_bits_are_computed_in_float32_and_rounded_once():
    for dtype in (g.float16, g.bfloat16):
        ones = g.ones(3000, dtype=dtype, device="cpu", requires_grad=True)
        total = ones.sum()
        assert total.dtype == dtype
        assert abs(total.item() - 3000) <= 8  # the spacing of bfloat16 there is 16
        assert ones.mean().item() == 1
        (ones * 3).sum().backward()
        assert ones.grad.dtype == dtype and ones.grad.float().tolist() == [3] * 3000
        x = g.tensor([0.1, 0.7, 3.0], dtype=dtype, device="cpu")
        exact = np.exp(x.float().numpy()).astype(dtype)
        assert x.exp().float().tolist() == exact.astype(np.float32).tolist()
        shared = g.ones(1, dtype=dtype, device="cpu", requires_grad=True)
        (shared * g.ones(3000, dtype=dtype, device="cpu")).sum().backward()
        assert abs(shared.grad.item() - 3000) <= 8
        assert (x == x).all() and x.max().item() == 3


def test_divisions_by_zero_are_silent_as_in_pytorch():
    x = g.tensor([0.0, 1.0], device="cpu")
    with np.errstate(all="raise"):
        assert (x / 0).tolist()[1] == float("inf")
        assert g.log(x).tolist()[0] == float("-inf")
        assert (1 / x).tolist()[0] == float("inf")
