"""MultiheadAttention and the Transformer's layers against PyTorch, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
from gpunn import nn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


def pair(ours, theirs):
    """Our module in float64 with the weights of theirs, both in evaluation mode."""
    theirs = theirs.double().eval()
    ours = ours.double().eval()
    ours.load_state_dict({k: v.detach().numpy() for k, v in theirs.state_dict().items()})
    theirs.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in ours.state_dict().items()})
    return ours, theirs


def compare(ours, theirs, out, expected, inputs):
    """Outputs, and the gradients of inputs and parameters for one random gradient."""
    got, want = out.detach().numpy(), expected.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    grad = np.random.default_rng(5).normal(size=out.shape)
    out.backward(gpunn.tensor(grad))
    expected.backward(torch.from_numpy(grad))
    for mine, other in inputs:
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-8, atol=1e-10)
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = theirs[name].grad
        got = parameter.grad
        assert (got is None) == (want is None), name
        if got is not None:
            np.testing.assert_allclose(
                got.numpy(), want.numpy(), rtol=1e-8, atol=1e-10, err_msg=name
            )


def both(rng, *shape):
    values = rng.normal(size=shape)
    return gpunn.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)


def masks(rng, kind, batch, heads, rows, columns):
    """An attn_mask that leaves each query something to see."""
    if kind is None:
        return None
    shape = (batch * heads, rows, columns) if kind.endswith("each") else (rows, columns)
    if kind.startswith("bool"):
        mask = rng.random(shape) < 0.4
        mask[..., 0] = False
        return mask
    return rng.normal(size=shape)


def as_both(mask):
    if mask is None:
        return None, None
    return gpunn.tensor(mask), torch.from_numpy(np.array(mask))


def test_multihead_attention():
    rng = np.random.default_rng(0)
    for trial in range(24):
        batch, rows, columns = rng.integers(1, 5, 3)
        heads = int(rng.choice([1, 2, 4]))
        size = heads * int(rng.integers(1, 5))
        first, bias, self_attention = (bool(b) for b in rng.integers(0, 2, 3))
        kdim, vdim = (None, None) if rng.random() < 0.6 else (int(d) for d in rng.integers(2, 7, 2))
        self_attention &= kdim is None
        options = dict(bias=bias, kdim=kdim, vdim=vdim, batch_first=first)
        ours, theirs = pair(
            nn.MultiheadAttention(size, heads, **options),
            torch.nn.MultiheadAttention(size, heads, **options),
        )
        columns = rows if self_attention else columns

        def shape(length, features, batch=batch, first=first):
            return (batch, length, features) if first else (length, batch, features)

        query = both(rng, *shape(rows, size))
        key = value = query
        if not self_attention:
            key = both(rng, *shape(columns, kdim or size))
            value = both(rng, *shape(columns, vdim or size))
        kind = [None, "bool", "float", "bool each", "float each"][trial % 5]
        mask = as_both(masks(rng, kind, batch, heads, rows, columns))
        padding = None
        if rng.random() < 0.5 and (kind is None or kind.startswith("bool")):
            padding = rng.random((batch, columns)) < 0.3
            padding[:, 0] = False
        padding = as_both(padding)
        weights, average = (bool(b) for b in rng.integers(0, 2, 2))
        call = dict(need_weights=weights, average_attn_weights=average)
        out, w = ours(query[0], key[0], value[0], padding[0], attn_mask=mask[0], **call)
        expected, v = theirs(query[1], key[1], value[1], padding[1], attn_mask=mask[1], **call)
        assert (w is None) == (v is None)
        if w is not None:
            np.testing.assert_allclose(w.detach().numpy(), v.detach().numpy(), atol=1e-12)
        inputs = {id(mine): (mine, other) for mine, other in (query, key, value)}
        compare(ours, theirs, out, expected, inputs.values())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_and_decoder_layers(norm_first, activation):
    rng = np.random.default_rng(1)
    options = dict(activation=activation, norm_first=norm_first, batch_first=True, dropout=0.1)
    ours, theirs = pair(
        nn.TransformerEncoderLayer(12, 3, 20, **options),
        torch.nn.TransformerEncoderLayer(12, 3, 20, **options),
    )
    x = both(rng, 2, 5, 12)
    causal = as_both(np.triu(np.ones((5, 5), bool), 1))
    compare(ours, theirs, ours(x[0], causal[0]), theirs(x[1], causal[1]), [x])
    same = ours(x[0], is_causal=True).detach().numpy()
    np.testing.assert_allclose(same, theirs(x[1], causal[1]).detach().numpy(), atol=1e-12)

    ours, theirs = pair(
        nn.TransformerDecoderLayer(12, 3, 20, **options),
        torch.nn.TransformerDecoderLayer(12, 3, 20, **options),
    )
    x, memory = both(rng, 2, 5, 12), both(rng, 2, 4, 12)
    padding = as_both(np.array([[False, False, True, True], [False] * 4]))
    out = ours(x[0], memory[0], memory_key_padding_mask=padding[0], tgt_is_causal=True)
    expected = theirs(x[1], memory[1], causal[1], memory_key_padding_mask=padding[1])
    compare(ours, theirs, out, expected, [x, memory])


def test_the_whole_transformer():
    rng = np.random.default_rng(2)
    options = dict(d_model=8, nhead=2, num_encoder_layers=2, num_decoder_layers=2,
                   dim_feedforward=16)  # fmt: skip
    ours, theirs = pair(nn.Transformer(**options), torch.nn.Transformer(**options))
    source, target = both(rng, 5, 3, 8), both(rng, 4, 3, 8)
    mask = as_both(nn.Transformer.generate_square_subsequent_mask(4, dtype=np.float64).numpy())
    out = ours(source[0], target[0], tgt_mask=mask[0])
    compare(ours, theirs, out, theirs(source[1], target[1], tgt_mask=mask[1]), [source, target])
