"""Clipping the gradients of a model, inside and outside of an arena."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn import nn, optim
from gpunn.autograd.tensor import wrap
from gpunn.optim import clip


def with_gradients(*values, dtype=np.float32, slots=False):
    """Parameters with these gradients, in the arena of an optimizer if `slots`."""
    values = [np.array(value, dtype) for value in values]
    params = [nn.Parameter(np.ones_like(value)) for value in values]
    if slots:
        optim.SGD(params, lr=1.0)
    for parameter, value in zip(params, values, strict=True):
        if slots:
            parameter._grad_slot[...] = value
            parameter.grad = wrap(parameter._grad_slot)
        else:
            parameter.grad = wrap(value)
    return params


@pytest.mark.parametrize("slots", [False, True])
def test_norm_over_all_gradients(slots):
    params = with_gradients([3.0, 0.0], [[4.0]], 12.0, slots=slots)
    norm = clip.clip_grad_norm_(params, 6.5)
    assert norm.shape == () and norm.item() == 13
    np.testing.assert_allclose(params[0].grad.array, [1.5, 0], rtol=1e-6)
    np.testing.assert_allclose(params[1].grad.array, [[2]], rtol=1e-6)
    np.testing.assert_allclose(params[2].grad.array, 6, rtol=1e-6)


def test_neighbours_in_an_arena_are_one_run():
    params = with_gradients([1.0] * 3, [2.0] * 8, [3.0] * 5, [4.0], slots=True)
    arena = params[0]._grad_slot.base
    (run,) = clip.gradient_runs(params)
    assert run.base is arena and run.size == 25
    params[1].grad = None  # its old gradient is still in the arena, and must not count
    first, second = clip.gradient_runs(clip.with_gradient(params))
    assert [first.size, second.size] == [3, 9]
    norm = clip.clip_grad_norm_(params, 1e9).item()
    assert norm == pytest.approx((3 + 9 * 5 + 16) ** 0.5, rel=1e-6)
    assert params[1]._grad_slot.tolist() == [2.0] * 8


def test_gradients_of_several_dtypes():
    params = with_gradients([3.0]) + with_gradients([4.0], dtype=np.float64)
    params += with_gradients([12.0], dtype=np.float16)
    assert clip.clip_grad_norm_(params, 1.0).item() == 13
    np.testing.assert_allclose([p.grad.item() * 13 for p in params], [3, 4, 12], rtol=1e-3)


def test_a_nan_does_not_stay_behind_in_the_gaps():
    """One bad batch spoils its own gradients, not the arena."""
    params = with_gradients([1.0] * 3, [np.nan], slots=True)
    assert np.isnan(clip.clip_grad_norm_(params, 1.0).item())
    for parameter in params:
        parameter._grad_slot[...] = 1.0
    assert clip.clip_grad_norm_(params, 1.0).item() == 2


def test_strided_gradients():
    parameter = nn.Parameter(np.ones((2, 3), np.float32))
    parameter.grad = wrap(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], np.float32).T)
    clip.add_penalty_gradient_(parameter, l1=0.0)
    assert clip.clip_grad_norm_(parameter, 2.5).item() == 5
    np.testing.assert_allclose(parameter.grad.array, [[1.5, 0, 0], [0, 2, 0]], rtol=1e-6)
    clip.clip_grad_value_(parameter, 1.0)
    np.testing.assert_allclose(parameter.grad.array, [[1, 0, 0], [0, 1, 0]], rtol=1e-6)


def test_no_gradients():
    assert clip.clip_grad_norm_([nn.Parameter(np.ones(3, np.float32))], 1.0).item() == 0
    clip.clip_grad_value_([], 1.0)


def test_error_if_nonfinite():
    (parameter,) = with_gradients([1.0, np.inf])
    with pytest.raises(RuntimeError, match="norm of the gradients is inf"):
        clip.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)
    assert parameter.grad.tolist() == [1.0, np.inf]
    with pytest.raises(ValueError, match="norm_type is -1"):
        clip.clip_grad_norm_(parameter, 1.0, norm_type=-1)


def test_clip_grad_value():
    (parameter,) = with_gradients([1.0, -3.0, 0.5])
    clip.clip_grad_value_(parameter, 0.75)
    assert parameter.grad.tolist() == [0.75, -0.75, 0.5]


@pytest.mark.parametrize("slots", [False, True])
def test_a_penalty_is_the_same_as_in_the_loss(slots):
    rng = np.random.default_rng(0)
    both = [nn.Parameter(rng.normal(size=(3, 4))), nn.Parameter(rng.normal(size=4))]
    twins = [nn.Parameter(np.array(parameter.array)) for parameter in both]
    if slots:
        optim.SGD(both, lr=1.0)
    sum((p * p * p).sum() for p in both).backward()
    clip.add_penalty_gradient_(both, l1=0.1, l2=0.3)
    loss = sum((p * p * p).sum() + 0.1 * p.abs().sum() + 0.3 * (p * p).sum() for p in twins)
    loss.backward()
    for p, q in zip(both, twins, strict=True):
        np.testing.assert_allclose(p.grad.array, q.grad.array, rtol=1e-12)
