"""`autocast`: which function computes in which dtype, and how blocks nest."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.primitives.registry import listening

LOW = ["bfloat16", "float16"]
BOUND = {"bfloat16": 0.02, "float16": 0.003}


def normal(*shape, seed=0, dtype=np.float32, requires_grad=False):
    values = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return gpunn.tensor(values, requires_grad=requires_grad)


def casts(function, kind="cast"):
    """(what the function returns, how many casts, or others of a kind, it launched)"""
    names = []

    def note(call, args, run):
        names.append(call.primitive.name)
        run(call, args)

    with listening(note):
        return function(), names.count(kind)


# ---- dtypes and values, op by op -----------------------------------------------------------------

X = normal(4, 6)
IMAGES, HEADS = normal(2, 3, 5, 6), normal(2, 3, 4, 8)
LABELS = gpunn.tensor(np.arange(4) % 3)

PRODUCTS = {
    "linear": lambda x: F.linear(x, normal(5, 6, seed=1), normal(5, seed=2), "gelu"),
    "matmul": lambda x: x @ normal(6, 5, seed=1),
    "vector": lambda x: gpunn.dot(x[0], normal(6, seed=1)),
    "bmm": lambda x: gpunn.bmm(x[None], normal(1, 6, 2, seed=1)),
    "conv2d": lambda x: F.conv2d(IMAGES * x[0, 0], normal(4, 3, 3, 3), normal(4), padding=1),
    "conv1d, no batch": lambda x: F.conv1d(x, normal(3, 4, 3, seed=1)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(IMAGES * x[0, 0], normal(3, 2, 2, 2, seed=1)),
    "attention": lambda x: F.scaled_dot_product_attention(
        HEADS * x[0, 0], HEADS, HEADS, normal(4, 4, seed=5)
    ),
    "packed_attention": lambda x: F.packed_attention(normal(2, 4, 3, 2, 8) * x[0, 0]),
}  # fmt: skip
WIDE = {
    "exp": gpunn.exp, "log": lambda x: gpunn.log(abs(x)), "reciprocal": lambda x: 1 / x,
    "pow": lambda x: abs(x) ** 1.5, "rsqrt": lambda x: gpunn.rsqrt(abs(x)), "tan": gpunn.tan,
    "softmax": lambda x: F.softmax(x, 0), "log_softmax": lambda x: F.log_softmax(x, -1),
    "softplus": F.softplus, "sum": lambda x: x.sum(1), "mean": gpunn.mean, "var": gpunn.var,
    "std": lambda x: x.std(0), "norm": gpunn.norm, "prod": lambda x: x[0].prod(),
    "cumsum": lambda x: x.cumsum(0), "logsumexp": lambda x: gpunn.logsumexp(x, 1),
    "mse": lambda x: F.mse_loss(x, normal(4, 6, seed=3)),
    "l1": lambda x: F.l1_loss(x, normal(4, 6, seed=3)),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, normal(4, 6, seed=3)),
    "bce_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, normal(4, 6, seed=3)),
    "bce": lambda x: F.binary_cross_entropy(F.sigmoid(x), F.sigmoid(normal(4, 6, seed=3))),
    "nll": lambda x: F.nll_loss(x, LABELS), "cross_entropy": lambda x: F.cross_entropy(x, LABELS),
    "cross_entropy of each": lambda x: F.cross_entropy(x, LABELS, reduction="none"),
    "cross_entropy of probabilities": lambda x: F.cross_entropy(x, F.softmax(X, 1)),
    "cross_entropy with weights": lambda x: F.cross_entropy(x, LABELS, normal(6, seed=4) ** 2),
    "linear_cross_entropy": lambda x: F.linear_cross_entropy(x, normal(3, 6), None, LABELS),
    "linear_cross_entropy of each": lambda x: F.linear_cross_entropy(
        x, normal(3, 6), None, LABELS, reduction="none"
    ),
}  # fmt: skip
OWN = {
    "relu": F.relu, "gelu": F.gelu, "sigmoid": F.sigmoid, "reshape": lambda x: x.reshape(2, 12),
    "layer_norm": lambda x: F.layer_norm(x, 6, normal(6, seed=1), normal(6, seed=2)),
    "rms_norm": lambda x: F.rms_norm(x, 6, normal(6, seed=1)),
    "batch_norm": lambda x: F.batch_norm(
        x, gpunn.zeros(6), gpunn.ones(6), normal(6, seed=1), normal(6, seed=2), training=True
    ),
    "group_norm": lambda x: F.group_norm(x[..., None], 2, normal(6, seed=1), normal(6, seed=2)),
    "max_pool1d": lambda x: F.max_pool1d(x[None], 2), "add": lambda x: x + 1.5,
    "abs": gpunn.abs, "sqrt": lambda x: gpunn.sqrt(x * x + 1), "max": lambda x: x.max(),
}  # fmt: skip


def both_ways(function, dtype, x):
    """(result in float32, its gradient; result inside autocast, its gradient)"""
    found = []
    for enabled in (False, True):
        x.grad = None
        with gpunn.autocast(dtype, enabled=enabled):
            y = function(x)
        y.backward(gpunn.tensor(np.cos(np.arange(y.numel())).reshape(y.shape)).to(y.dtype))
        found += [y, x.grad]
    return found


def close(low, exact, bound):
    low, exact = (t.detach().float().numpy() for t in (low, exact))
    np.testing.assert_allclose(low, exact, rtol=0, atol=bound * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize("dtype", LOW)
def test_products_are_made_in_16_bits(dtype):
    for name, function in PRODUCTS.items():
        x = normal(4, 6, requires_grad=True)
        exact, gradient, low, low_gradient = both_ways(function, dtype, x)
        assert (exact.dtype, low.dtype) == (np.float32, getattr(gpunn, dtype)), name
        assert low_gradient.dtype == np.float32, name
        assert (low.float() != exact).any().item(), name
        close(low, exact, 2 * BOUND[dtype])
        close(low_gradient, gradient, 4 * BOUND[dtype])


@pytest.mark.parametrize("dtype", LOW)
def test_sums_steep_functions_and_losses_are_float32(dtype):
    for name, function in WIDE.items():
        x = normal(4, 6).to(dtype).requires_grad_()
        with gpunn.autocast(dtype):
            y = function(x)
        assert y.dtype == np.float32, name
        y.sum().backward()
        assert x.grad.dtype == x.dtype, name
        exact = x.detach().float().requires_grad_()
        wanted = function(exact)
        wanted.sum().backward()
        rounded = name == "bce" or name.startswith("linear")  # before it, or inside
        close(y, wanted, BOUND[dtype] if rounded else 1e-6)
        close(x.grad, exact.grad, 2 * BOUND[dtype])


def test_the_others_keep_the_dtype_of_their_input():
    for name, function in OWN.items():
        for dtype in ("bfloat16", "float32"):
            with gpunn.autocast("bfloat16"):
                assert function(X.to(dtype)).dtype == getattr(gpunn, dtype), name


def test_where_dtypes_meet_the_wider_wins():
    low = X.bfloat16()
    with gpunn.autocast("bfloat16"):
        for y in (X + low, low * X, gpunn.cat([low, X]), gpunn.where(X > 0, low, X)):
            assert y.dtype == np.float32
        out, stream = F.add_layer_norm(X, low, 6, normal(6))
        assert (out.dtype, stream.dtype) == (np.float32, np.float32)
        out = F.batch_norm(low, gpunn.zeros(6), gpunn.ones(6), residual=X)
        assert out.dtype == np.float32
        assert (X @ low.T).dtype == gpunn.bfloat16


@pytest.mark.parametrize("dtype", LOW)
def test_a_norm_adds_16_bits_to_a_float32_stream(dtype):
    """To the bit what it makes of the widened input, without a launch that widens it."""
    for shape in ((4, 6), (2, 3, 50), (1, 8193)):  # the last: longer than the kernel takes
        values, stream = normal(*shape).to(dtype), normal(*shape, seed=1)
        weight, bias = normal(shape[-1], seed=2), normal(shape[-1], seed=3)
        for norm in (
            lambda x, r, n, w=weight, b=bias: F.add_layer_norm(x, r, n, w, b),
            lambda x, r, n, w=weight: F.add_rms_norm(x, r, n, w),
        ):
            found = []
            for wide in (False, True):
                x = values.detach().requires_grad_()
                residual = stream.detach().requires_grad_()
                with gpunn.autocast(dtype):
                    given = x.float() if wide else x
                    (out, total), made = casts(functools.partial(norm, given, residual, shape[-1]))
                assert made == (not wide and shape[-1] > 8192)
                (out.cos().sum() + (total * stream).sum()).backward()
                found.append([t.detach() for t in (out, total, x.grad, residual.grad)])
            for mixed, widened in zip(*found, strict=True):
                assert mixed.dtype == widened.dtype and (mixed == widened).all().item()
    with pytest.raises(ValueError, match="add_layer_norm: residual .* they must be equal"):
        F.add_layer_norm(values, stream, shape[-1])


def test_a_16_bit_model_in_a_block():
    """Its norms meet a float32 stream, or products of the other 16-bit type."""
    gpunn.manual_seed(0)
    for norm_first in (False, True):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
        x = normal(2, 5, 8)
        exact = layer(x).detach()
        layer.bfloat16()
        for dtype in LOW:
            layer.zero_grad()
            with gpunn.autocast(dtype):
                out = layer(x)
            close(out, exact, 0.05)
            out.sum().backward()
            assert all(p.grad.dtype == gpunn.bfloat16 for p in layer.parameters())


def test_how_many_casts_a_transformer_makes():
    """The weights; what a norm gives to a product; the last; and their gradients."""
    model = models.GPT(models.GPTConfig(11, 4, n_layer=2, n_head=1, n_embd=8))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    tokens = LABELS[None]
    with gpunn.autocast("bfloat16"):
        loss, made = casts(lambda: F.cross_entropy(model(tokens)[0], LABELS))
    assert made == 1 + 2 * 2 + 1
    assert casts(loss.backward)[1] == 2 * 4 + 1  # beside, what a product gives to the stream
    assert all(p.grad.array is p._grad_slot for p in model.parameters())
    optimizer.step()


def test_float64_and_integers_are_left_alone():
    x = normal(4, 6, dtype=np.float64)
    with gpunn.autocast("bfloat16"):
        assert (x @ x.T).dtype == np.float64
        assert F.softmax(x, 1).dtype == np.float64
        assert (gpunn.arange(3) @ gpunn.arange(3)).item() == 5
        with pytest.raises(TypeError, match="linear: input has dtype float64 and weight float32"):
            F.linear(x, normal(5, 6))


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers(kind, cell):
    gpunn.manual_seed(0)
    layer = getattr(nn, kind + "Cell" if cell else kind)(6, 5)
    x = normal(4, 6) if cell else normal(3, 4, 6)
    with gpunn.autocast("bfloat16"):
        out = layer(x)
        again = layer(x.bfloat16(), out if cell else out[1])  # states in 16 bits, back in
    first = out[0] if cell is False or kind == "LSTM" else out
    exact = layer(x)
    wanted = exact[0] if cell is False or kind == "LSTM" else exact
    assert first.dtype == gpunn.bfloat16
    close(first, wanted, 0.02)
    last = again[0] if cell is False or kind == "LSTM" else again
    last.sum().backward()
    assert all(p.grad.dtype == np.float32 for p in layer.parameters())


# ---- the block -----------------------------------------------------------------------------------


def test_blocks_nest_and_end():
    assert gpunn.get_autocast_dtype() is None and not gpunn.is_autocast_enabled()
    with gpunn.autocast("float16"):
        assert gpunn.is_autocast_enabled() and (X @ X.T).dtype == np.float16
        with gpunn.autocast(enabled=False):
            assert (X @ X.T).dtype == np.float32
            with gpunn.autocast("bfloat16"):
                assert gpunn.get_autocast_dtype() == gpunn.bfloat16
        assert (X @ X.T).dtype == np.float16
    assert (X @ X.T).dtype == np.float32
    with pytest.raises(ZeroDivisionError), gpunn.autocast("float16"):
        raise ZeroDivisionError
    assert not gpunn.is_autocast_enabled()

    @gpunn.autocast("cuda", dtype=gpunn.bfloat16)
    def product(a):
        return a @ a.T

    assert product(X).dtype == product(X).dtype == gpunn.bfloat16
    assert gpunn.autocast("cuda").dtype == np.float16 and gpunn.amp.autocast is gpunn.autocast


@pytest.mark.parametrize("dtype", ["float32", "int8", "nothing", 3.5])
def test_only_16_bits(dtype):
    with pytest.raises(ValueError, match="autocast: .* is no 16-bit floating dtype"):
        gpunn.autocast(dtype)
