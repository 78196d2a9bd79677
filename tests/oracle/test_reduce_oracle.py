"""Reductions against PyTorch at each dtype, also over axes that are not neighbours."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gpunn.primitives.reduce import (  # noqa: E402
    reduce_argmax,
    reduce_max,
    reduce_mean,
    reduce_sum,
)

pytestmark = pytest.mark.oracle

BOUND = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3}
AXES = [0, 1, 2, (0, 1), (1, 2), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_floating(dtype, axis, keepdims):
    torch.manual_seed(1)
    x = torch.rand(7, 150, 33, dtype=torch.float64).sub(0.2).to(dtype)
    options = {"axis": axis, "keepdims": keepdims}
    for ours, theirs in (
        (reduce_sum, torch.sum),
        (reduce_mean, torch.mean),
        (reduce_max, torch.amax),
    ):
        expected = theirs(x, dim=axis, keepdim=keepdims)
        value = ours(x.numpy(), **options)
        assert value.dtype == expected.numpy().dtype and value.shape == tuple(expected.shape)
        np.testing.assert_allclose(value, expected.numpy(), rtol=2 * BOUND[dtype])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("axis", [0, 1, (0, 1)], ids=str)
def test_integers(dtype, axis):
    torch.manual_seed(2)
    x = torch.randint(0, 2 if dtype == torch.bool else 200, (60, 40)).to(dtype)
    for ours, theirs in ((reduce_sum, torch.sum), (reduce_max, torch.amax)):
        expected = theirs(x, dim=axis).numpy()
        value = ours(x.numpy(), axis=axis)
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("axis", [None, 0, 1], ids=str)
def test_argmax_with_not_a_number(axis):
    torch.manual_seed(3)
    x = torch.randn(50, 20)
    x[7, 3] = x[7, 9] = x[20, 3] = torch.nan
    expected = torch.argmax(x, dim=axis).numpy()
    np.testing.assert_array_equal(reduce_argmax(x.numpy(), axis=axis), expected)
