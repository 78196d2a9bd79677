"""Attention as layers: generation with a cache, grouped queries, masks, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
from gpunn import nn

RNG = np.random.default_rng(3)


def tensor(*shape):
    return gpunn.tensor(RNG.normal(size=shape))


def attention(*args, **kwargs):
    return nn.MultiheadAttention(*args, batch_first=True, dtype=np.float64, **kwargs).eval()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_cache_gives_what_the_whole_sequence_gives(kv_heads):
    layer = attention(16, 4, num_kv_heads=kv_heads)
    x = tensor(2, 7, 16)
    whole, _ = layer(x, need_weights=False, is_causal=True)
    cache = nn.KeyValueCache(2, 7, kv_heads, 4, np.float64)
    parts = [(0, 3), (3, 4), (4, 7)]  # several positions, one, several behind others
    found = [
        layer(x[:, a:b], need_weights=False, is_causal=True, cache=cache)[0] for a, b in parts
    ]
    assert cache.length == 7
    joined = gpunn.cat(found, 1).detach().numpy()
    np.testing.assert_allclose(joined, whole.detach().numpy(), atol=1e-12)
    cache.reset()
    first, weights = layer(x[:, :3], is_causal=True, cache=cache)
    np.testing.assert_allclose(first.detach().numpy(), whole[:, :3].detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(weights.sum(-1).detach().numpy(), 1, atol=1e-12)
    assert (np.triu(weights.detach().numpy(), 1) == 0).all()
    with pytest.raises(ValueError, match="3 positions are kept and 5 more came; it was made for 7"):
        layer(x[:, :5], need_weights=False, is_causal=True, cache=cache)


def test_a_cache_keeps_chosen_sequences():
    cache = nn.KeyValueCache(3, 4, 1, 2)
    keys = gpunn.tensor(np.arange(6, dtype=np.float32).reshape(3, 1, 1, 2))
    cache.append(keys, -keys)
    cache.select([2, 0, 0])
    kept, values = cache.append(keys, keys)
    np.testing.assert_array_equal(kept.numpy()[:, :, 0, 0], [[4, 0], [0, 2], [0, 4]])
    np.testing.assert_array_equal(values.numpy()[:, 0, 0, 0], [-4, 0, 0])
    with pytest.raises(ValueError, match=r"takes \(3, T, 1, 2\)"):
        cache.append(keys[:2], keys[:2])
    with pytest.raises(ValueError, match="dtype float64 on cpu; this cache was made for float32"):
        cache.append(keys, keys.double())


def test_with_and_without_weights_are_the_same():
    layer = attention(12, 3, num_kv_heads=1)
    query, key = tensor(2, 5, 12), tensor(2, 6, 12)
    padding = gpunn.tensor(np.array([[False] * 6, [True] * 6]))  # the second sees nothing at all
    mask = gpunn.tensor(RNG.random((5, 6)) < 0.3)
    for options in ({}, {"attn_mask": mask}, {"attn_mask": tensor(6, 5, 6)}):
        with_, weights = layer(query, key, key, padding, **options)
        without, none = layer(query, key, key, padding, need_weights=False, **options)
        assert none is None and weights.shape == (2, 5, 6)
        if not options or options["attn_mask"].dtype == np.bool_:
            np.testing.assert_allclose(
                with_.detach().numpy(), without.detach().numpy(), atol=1e-12
            )


@pytest.mark.parametrize("dtype", [np.float16, np.float64], ids=str)
def test_masks_of_numbers_may_be_of_another_type(dtype):
    layer = nn.MultiheadAttention(8, 2, batch_first=True, dtype=dtype)
    x = gpunn.tensor(RNG.normal(size=(2, 4, 8)).astype(dtype), requires_grad=True)
    hidden = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    hidden[2] = -np.inf  # a row that may look nowhere
    padding = gpunn.tensor(np.array([[False] * 4, [False, True, True, True]]))
    found = []
    for weights in (True, False):
        out, _ = layer(x, None, None, padding, weights, gpunn.tensor(hidden))
        assert out.dtype == dtype
        out.sum().backward()
        found.append([out.detach().numpy(), x.grad.numpy().copy()])
        x.grad = None
    bound = 1e-2 if dtype == np.float16 else 1e-12
    for one, other in zip(*found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=bound)
    with pytest.raises(TypeError, match="a mask has dtype int64; expected bool"):
        layer(x, attn_mask=gpunn.tensor(np.zeros((4, 4), np.int64)))


def test_without_a_batch_and_time_first():
    layer = attention(8, 2)
    x = tensor(5, 8)
    alone, _ = layer(x)
    batch, _ = layer(x[None])
    np.testing.assert_allclose(alone.detach().numpy(), batch[0].detach().numpy())
    layer.batch_first = False
    first, _ = layer(x.reshape(5, 1, 8))
    np.testing.assert_allclose(alone.detach().numpy(), first[:, 0].detach().numpy())


def test_layers_of_a_stack_learn_apart():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    stack = nn.TransformerEncoder(layer, 3, nn.LayerNorm(8))
    assert len({id(p) for p in stack.parameters()}) == 3 * len(list(layer.parameters())) + 2
    weights = [part.linear1.weight.detach().numpy() for part in stack.layers]
    np.testing.assert_array_equal(weights[0], weights[2])


X = np.zeros((2, 3, 8), np.float32)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda m: nn.MultiheadAttention(10, 4), "embed_dim 10 is not a multiple of num_heads 4"),
        (lambda m: nn.MultiheadAttention(8, 4, num_kv_heads=3), "4 is not a multiple of .* 3"),
        (lambda m: nn.MultiheadAttention(8, 4, dropout=2), "dropout is 2"),
        (lambda m: m(gpunn.tensor(X[..., :7])), r"query has shape \(2, 3, 7\); its last .* 8"),
        (lambda m: m(gpunn.tensor(X), gpunn.tensor(X[:1])), "batch sizes"),
        (lambda m: m(gpunn.tensor(X), gpunn.tensor(X[0])), "3 dimensions each"),
        (
            lambda m: m(gpunn.tensor(X), attn_mask=gpunn.zeros(3, 4)),
            r"attn_mask has shape \(3, 4\); expected \(3, 3\) or \(4, 3, 3\)",
        ),
        (
            lambda m: m(gpunn.tensor(X), key_padding_mask=gpunn.zeros(2, 4)),
            r"key_padding_mask has shape \(2, 4\); expected \(2, 3\)",
        ),
        (lambda m: nn.TransformerEncoderLayer(8, 2, activation="rely"), "'rely' is not known"),
        (lambda m: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 0), "num_layers is 0"),
    ],
)
def test_errors(action, text):
    with pytest.raises(ValueError, match=text):
        action(nn.MultiheadAttention(8, 2, batch_first=True))
