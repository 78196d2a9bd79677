"""`autocast`: which function computes in which dtype, and where weights and gradients lie."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.autograd.autocast import forget
from gpunn.device import probe
from gpunn.primitives.registry import listening

LOW = ["bfloat16", "float16"]
BOUND = {"bfloat16": 0.02, "float16": 0.003}
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def normal(*shape, seed=0, dtype=np.float32, requires_grad=False):
    values = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return gpunn.tensor(values, requires_grad=requires_grad)


def casts(function):
    """(what the function returns, how many casts it launched)"""
    names = []

    def note(call, args, run):
        names.append(call.primitive.name)
        run(call, args)

    with listening(note):
        return function(), names.count("cast")


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


# ---- copies of the weights -----------------------------------------------------------------------


def test_a_weight_alone_is_cast_once_a_block():
    weight, x = normal(5, 6, requires_grad=True), X.bfloat16()

    def twice():
        with gpunn.autocast("bfloat16"):
            return F.linear(x, weight).sum() + F.linear(x, weight).sum()

    out, made = casts(twice)
    assert made == 1 + 2  # the weight; both results, for their sums
    assert weight._low is None  # nothing stays behind
    out.backward()
    wanted = np.tile(2 * x.float().sum(0).numpy(), (5, 1))
    np.testing.assert_allclose(weight.grad.numpy(), wanted, rtol=0.01)
    with gpunn.autocast("bfloat16"):
        first = F.linear(x, weight)
        with gpunn.no_grad():
            weight.mul_(2)
        assert (F.linear(x, weight) == 2 * first).all().item()
        with gpunn.no_grad():
            assert not F.linear(x, weight).requires_grad
        assert F.linear(x, weight).requires_grad
    with gpunn.autocast("bfloat16", cache_enabled=False):
        assert casts(lambda: [F.linear(x, weight) for _ in range(3)])[1] == 3


def model_and_optimizer(kind=optim.SGD, **how):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Linear(7, 3))
    return model, kind(model.parameters(), lr=0.1, **how)


def test_the_weights_of_an_optimizer_are_cast_in_one_launch_and_so_are_their_gradients():
    model, optimizer = model_and_optimizer()
    x = X.bfloat16()
    for _ in range(2):
        optimizer.zero_grad()
        with gpunn.autocast("bfloat16"):
            loss, made = casts(lambda: F.cross_entropy(model(x), LABELS))
            assert made == 1
        assert casts(loss.backward)[1] == 1
        for parameter in model.parameters():
            assert parameter.grad.dtype == np.float32
            assert parameter.grad.array is parameter._grad_slot
        optimizer.step()
    (arena,) = optimizer._arenas[0]
    low = arena.low(gpunn.bfloat16)
    np.testing.assert_array_equal(low, arena.parameters.astype(low.dtype))
    places = {view.ctypes.data % 16 for view in arena.copies_in(low.dtype).views}
    assert places == {low.ctypes.data % 16}  # for loads of 16 bytes


def gradients_of(model, optimizer, losses, walks=1):
    """The gradients of all losses, walked back from as many times."""
    optimizer.zero_grad()
    for _ in range(walks):
        for loss in losses():
            loss.backward()
    return [parameter.grad.numpy().copy() for parameter in model.parameters()]


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_add_up(shared):
    """Over walks, over blocks of one walk, and beside a use of the weight in float32."""
    model, optimizer = model_and_optimizer()
    y = normal(4, 6, seed=7)

    def in_one_block(enabled=True):
        with gpunn.autocast("bfloat16", enabled=enabled):
            losses = [F.cross_entropy(model(z), LABELS) for z in (X, y)]
        return [losses[0] + losses[1]] if shared else losses

    def with_weights(enabled=True):
        (loss,) = in_two_blocks(enabled)
        return [loss + model[0].weight.square().sum()]

    def in_two_blocks(enabled=True):
        total = 0.0
        for z in (X, y):
            with gpunn.autocast("bfloat16", enabled=enabled):
                total = total + F.cross_entropy(model(z), LABELS)
        return [total]

    for losses in (in_one_block, in_two_blocks, with_weights):
        exact = gradients_of(model, optimizer, lambda losses=losses: losses(False), walks=2)
        found = gradients_of(model, optimizer, losses, walks=2)
        for low, wanted in zip(found, exact, strict=True):
            np.testing.assert_allclose(low, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())
        assert all(p.grad.array is p._grad_slot for p in model.parameters())


def test_a_walk_that_breaks_off_leaves_nothing():
    model, optimizer = model_and_optimizer()

    class Broken(gpunn.Function):
        def forward(self, x):
            return x.copy()

        def backward(self, grad):
            raise ArithmeticError

    with gpunn.autocast("bfloat16"):
        loss = F.cross_entropy(model[2:](Broken.apply(model[0](X))), LABELS)
    with pytest.raises(ArithmeticError):
        loss.backward()
    with gpunn.autocast("bfloat16"):
        loss = F.cross_entropy(model[3](normal(4, 7)), LABELS)
    loss.backward()
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False] * 2


def test_written_weights_are_noticed():
    model, optimizer = model_and_optimizer()
    layer = model[3]
    with gpunn.autocast("bfloat16"):
        before = layer(normal(4, 7, requires_grad=True))
        with gpunn.no_grad():
            layer.weight.fill_(0)
            layer.bias.fill_(1)
        assert (layer(normal(4, 7)) == 1).all().item()
    with pytest.raises(RuntimeError, match="modified in place"):
        before.sum().backward()
    layer.weight.data = gpunn.ones(3, 7)  # leaves the arena until the next step
    with gpunn.autocast("bfloat16"):
        assert (layer(gpunn.ones(1, 7)) == 8).all().item()
    layer.weight.data[...] = 0  # which nothing but a new block could notice
    with gpunn.autocast("bfloat16"):
        assert (layer(gpunn.ones(1, 7)) == 1).all().item()
        layer.bias.data[...] = 2
        forget()
        assert (layer(gpunn.ones(1, 7)) == 2).all().item()
    optimizer.step()


def test_a_copy_holds_nobody():
    """An arena goes with its optimizer, at once and not when the garbage is collected."""
    model, optimizer = model_and_optimizer()
    with gpunn.autocast("bfloat16"):
        F.cross_entropy(model(X), LABELS).backward()
    arena = weakref.ref(optimizer._arenas[0][0])
    gc.disable()
    try:
        del optimizer
        assert arena() is None
    finally:
        gc.enable()
    with gpunn.autocast("bfloat16"):
        F.cross_entropy(model(X), LABELS).backward()  # the parameters stay, and work alone


def test_channels_last_weights_and_images():
    gpunn.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    x = IMAGES.to(memory_format=gpunn.channels_last)
    found = []
    for enabled in (True, False):
        optimizer.zero_grad()
        with gpunn.autocast("bfloat16", enabled=enabled):
            out = layer(x)
        out.float().square().sum().backward()
        assert out.is_contiguous(memory_format=gpunn.channels_last)
        found.append(layer.weight.grad.numpy().copy())
    assert x.bfloat16().is_contiguous(memory_format=gpunn.channels_last)
    np.testing.assert_allclose(*found, rtol=0, atol=0.02 * np.abs(found[1]).max())


@emulated
def test_in_the_emulator_as_on_the_cpu():
    found = []
    for device in ("cpu", "emulator"):
        model, _ = model_and_optimizer()
        model.to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            with gpunn.autocast("bfloat16"):
                loss = F.cross_entropy(model(X.to(device)), LABELS.to(device))
            loss.backward()
            optimizer.step()
        found.append(np.concatenate([p.detach().cpu().numpy().ravel() for p in model.parameters()]))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)
