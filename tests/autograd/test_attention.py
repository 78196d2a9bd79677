"""scaled_dot_product_attention: gradients by differences, shapes, views, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd import gradcheck


def draw(*shape, seed=0, grad=True):
    values = np.random.default_rng(seed).normal(size=shape)
    return gpunn.tensor(values, requires_grad=grad)


def test_gradients_by_differences():
    q, k, v = draw(2, 4, 3, 5), draw(2, 2, 4, 5, seed=1), draw(2, 2, 4, 5, seed=2)
    mask = np.random.default_rng(3).random((2, 1, 3, 4)) < 0.7
    mask[0, 0, 1] = False
    lengths = gpunn.tensor(np.array([2, 4]))
    for options in (
        {"is_causal": True, "causal_offset": 1},
        {"attn_mask": gpunn.tensor(mask), "scale": 0.7},
        {"attn_mask": draw(3, 4, seed=4, grad=False)},
        {"kv_lengths": lengths, "q_lengths": gpunn.tensor(np.array([3, 1]))},
        {"dropout_p": 0.4},
    ):

        def attend(q, k, v, options=options):
            gpunn.manual_seed(7)  # the same weights are dropped each time
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

        assert gradcheck(attend, (q, k, v))
    assert gradcheck(lambda x: F.packed_attention(x, is_causal=True), draw(2, 3, 3, 2, 4))


def test_packed_attention_is_the_same():
    packed = draw(2, 6, 3, 2, 4)
    lengths = gpunn.tensor(np.array([6, 3]))
    out = F.packed_attention(packed, is_causal=True, window=3, kv_lengths=lengths)
    out.sum().backward()
    parts = [gpunn.tensor(packed.detach().numpy()[:, :, n].transpose(0, 2, 1, 3)) for n in range(3)]
    for part in parts:
        part.requires_grad = True
    same = F.scaled_dot_product_attention(
        *parts, is_causal=True, window=3, q_lengths=lengths, kv_lengths=lengths
    )
    same.sum().backward()
    np.testing.assert_allclose(out.detach().numpy(), same.detach().numpy().transpose(0, 2, 1, 3))
    for n, part in enumerate(parts):
        np.testing.assert_allclose(
            packed.grad.numpy()[:, :, n], part.grad.numpy().transpose(0, 2, 1, 3), rtol=1e-12
        )


def test_other_numbers_of_dimensions():
    q, k, v = draw(2, 3, 4, 5, 8), draw(2, 3, 4, 6, 8, seed=1), draw(2, 3, 4, 6, 8, seed=2)
    mask = gpunn.tensor(np.random.default_rng(3).random((2, 1, 1, 5, 6)) < 0.8)
    out = F.scaled_dot_product_attention(q, k, v, mask)
    assert out.shape == (2, 3, 4, 5, 8)
    out.sum().backward()
    assert q.grad.shape == q.shape and v.grad.shape == v.shape
    four = F.scaled_dot_product_attention(q[1], k[1], v[1], mask[1])
    np.testing.assert_allclose(out[1].detach().numpy(), four.detach().numpy(), rtol=1e-12)
    three = F.scaled_dot_product_attention(q[1, 2], k[1, 2], v[1, 2], mask[1, 0])
    np.testing.assert_allclose(out[1, 2].detach().numpy(), three.detach().numpy(), rtol=1e-12)
    two = F.scaled_dot_product_attention(q[1, 2, 3], k[1, 2, 3], v[1, 2, 3], mask[1, 0, 0])
    np.testing.assert_allclose(out[1, 2, 3].detach().numpy(), two.detach().numpy(), rtol=1e-12)


def test_the_result_is_a_view_that_the_next_projection_takes_as_it_is():
    q = draw(2, 3, 4, 8)
    out = F.scaled_dot_product_attention(q, q, q)
    joined = out.detach().transpose(1, 2).reshape(2, 4, 24)
    assert np.shares_memory(joined.numpy(), out.detach().numpy())


def test_a_changed_input_is_found():
    q, k = draw(1, 1, 2, 4), draw(1, 1, 2, 4, seed=1, grad=False)
    out = F.scaled_dot_product_attention(q, k, k)
    k += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        out.sum().backward()


def test_dropout_draws_from_the_generator():
    q = draw(1, 2, 16, 8, grad=False)
    results = []
    for seed in (1, 1, 2):
        gpunn.manual_seed(seed)
        results.append(F.scaled_dot_product_attention(q, q, q, dropout_p=0.5).numpy())
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda q: F.scaled_dot_product_attention(q, q[:, :1], q[:, :1]), ValueError, "enable_gqa"),
        (lambda q: F.scaled_dot_product_attention(q, q[0], q[0]), ValueError, "dimensions"),
        (lambda q: F.scaled_dot_product_attention(q, q.numpy(), q), TypeError, "must be Tensors"),
        (lambda q: F.scaled_dot_product_attention(q, q, q, draw(3, 3)), ValueError, "detach"),
        (
            lambda q: F.scaled_dot_product_attention(q, q, q, gpunn.tensor(np.ones((3, 3), int))),
            TypeError,
            "attn_mask has dtype int64",
        ),
        (lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=2), ValueError, "dropout_p"),
        (lambda q: F.packed_attention(q), ValueError, r"expected \(B, T, 3, H, D\)"),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action(draw(1, 2, 3, 4, grad=False))
