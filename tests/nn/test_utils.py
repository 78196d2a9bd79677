"""Clipping gradients, parameters as a vector."""

import numpy as np
import pytest

import gpunn.autograd as g
from gpunn.nn import utils


def parameters(*gradients, dtype="float32"):
    made = []
    for gradient in gradients:
        p = g.zeros(len(gradient), device="cpu", dtype=dtype, requires_grad=True)
        p.grad = g.tensor(gradient, device="cpu", dtype=dtype)
        made.append(p)
    return made


def test_clip_by_norm():
    a, b = parameters([3.0, 0.0], [4.0])
    memory = a.grad.array
    assert utils.clip_grad_norm_([a, b], 1.0).item() == 5
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(b.grad.numpy(), [0.8], rtol=1e-6)
    assert a.grad.array is memory
    assert utils.clip_grad_norm_([a, b], 10.0).item() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(b.grad.numpy(), [0.8], rtol=1e-5)
    assert utils.clip_grad_norm_(a, 1.0, float("inf")).item() == pytest.approx(0.6, rel=1e-5)
    (c,) = parameters([1.0, -2.0])
    assert utils.clip_grad_norm_(c, 1.5, 1.0).item() == 3
    np.testing.assert_allclose(c.grad.numpy(), [0.5, -1], rtol=1e-5)
    (d,) = parameters([3.0, 4.0], dtype="bfloat16")
    assert utils.clip_grad_norm_(d, 1.0).item() == 5
    assert d.grad.dtype == g.bfloat16
    assert utils.clip_grad_norm_([g.zeros(2, device="cpu")], 1.0).item() == 0


def test_a_norm_that_is_not_finite():
    (p,) = parameters([float("nan")])
    with pytest.raises(RuntimeError, match="norm of the gradients is nan"):
        utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert np.isnan(utils.clip_grad_norm_(p, 1.0).item())


def test_clip_by_value():
    a, b = parameters([3.0, -0.1], [-4.0])
    utils.clip_grad_value_([a, b], 0.5)
    np.testing.assert_array_equal(a.grad.numpy(), np.float32([0.5, -0.1]))
    assert b.grad.tolist() == [-0.5]


def test_vector_and_back():
    a, b = g.ones(2, 3, device="cpu", requires_grad=True), g.zeros(2, device="cpu")
    vector = utils.parameters_to_vector([a, b])
    assert vector.tolist() == [1] * 6 + [0] * 2
    utils.vector_to_parameters(g.arange(8, device="cpu").float(), [a, b])
    assert a.tolist() == [[0, 1, 2], [3, 4, 5]] and b.tolist() == [6, 7]
    with pytest.raises(ValueError, match=r"the parameters need \(8,\)"):
        utils.vector_to_parameters(g.zeros(3, device="cpu"), [a, b])
