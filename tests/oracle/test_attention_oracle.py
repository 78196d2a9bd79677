"""Attention against PyTorch: many configurations, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn  # noqa: E402
import gpunn.nn.functional as F  # noqa: E402

pytestmark = pytest.mark.oracle

THEIRS = torch.nn.functional.scaled_dot_product_attention


def configuration(rng):
    """(shapes of query and key, options for both)"""
    kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    batch, queries, keys, dim = (int(n) for n in rng.integers(1, (4, 20, 20, 40)))
    options = {"enable_gqa": group > 1}
    kind = rng.integers(4)
    full = (batch, kv_heads * group, queries, keys)
    shape = tuple(n if rng.random() < 0.6 else 1 for n in full[:2]) + full[2:]
    shape = shape[rng.integers(3) :]
    if kind == 1:
        options["is_causal"] = True
    elif kind == 2:
        options["attn_mask"] = rng.random(shape) < 0.7
        options["attn_mask"][..., 0] = True  # PyTorch's gradients of a row of nothing are NaN
    elif kind == 3:
        options["attn_mask"] = rng.normal(size=shape).astype(np.float32)
    if rng.random() < 0.3:
        options["scale"] = float(rng.random())  # below 0 PyTorch's causal mask makes NaN
    return (batch, kv_heads * group, queries, dim), (batch, kv_heads, keys, dim), options


def test_values_and_gradients():
    rng = np.random.default_rng(0)
    for _ in range(60):
        q_shape, k_shape, options = configuration(rng)
        shapes = (q_shape, k_shape, k_shape, q_shape)
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        *ours, grad = map(gpunn.tensor, arrays)
        *theirs, their_grad = map(torch.tensor, arrays)
        for tensor in (*ours, *theirs):
            tensor.requires_grad = True
        mask = options.pop("attn_mask", None)
        out = F.scaled_dot_product_attention(
            *ours, None if mask is None else gpunn.tensor(mask), **options
        )
        expected = THEIRS(*theirs, None if mask is None else torch.tensor(mask), **options)
        out.backward(grad)
        expected.backward(their_grad)
        pairs = [(out.detach(), expected.detach())]
        pairs += [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)]
        for got, want in pairs:
            np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-4, atol=2e-5)


def test_a_cache_of_keys_as_pytorchs_lower_right_bias():
    from torch.nn.attention.bias import causal_lower_right

    q, k = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 9, 16)
    expected = THEIRS(q, k, k, attn_mask=causal_lower_right(4, 9))
    q, k = gpunn.tensor(q.numpy()), gpunn.tensor(k.numpy())
    got = F.scaled_dot_product_attention(q, k, k, is_causal=True, causal_offset=9 - 4)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
