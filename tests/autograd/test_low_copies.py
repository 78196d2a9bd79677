"""Copies of weights inside `autocast`, and where their gradients lie."""

from __future__ import annotations

import functools
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

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


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


X, IMAGES = normal(4, 6), normal(2, 3, 5, 6)
LABELS = gpunn.tensor(np.arange(4) % 3)


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
    """Also where those of norms, which come in float32, lie between them."""
    model, optimizer = model_and_optimizer()
    model.insert(1, nn.LayerNorm(8))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = X.bfloat16()
    for _ in range(2):
        optimizer.zero_grad()
        with gpunn.autocast("bfloat16"):
            loss, made = casts(lambda: F.cross_entropy(model(x), LABELS))
            assert made == 1
        walk = functools.partial(loss.backward, retain_graph=True)
        assert casts(walk)[1] == 0
        once = [parameter.grad.numpy().copy() for parameter in model.parameters()]
        assert casts(loss.backward, "accumulate_parts")[1] == 1
        for parameter, gradient in zip(model.parameters(), once, strict=True):
            np.testing.assert_array_equal(parameter.grad.numpy(), 2 * gradient)
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


def test_a_shared_weight_has_its_gradient_in_one_place():
    """A table of rows adds to what came from the products, and touches no other row."""
    gpunn.manual_seed(0)
    table = nn.Embedding(9, 6)
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    found = []
    for enabled in (True, False):
        optimizer.zero_grad()
        with gpunn.autocast("bfloat16", enabled=enabled):
            out = F.linear(F.tanh(table(LABELS)), table.weight)
        out.float().square().sum().backward()
        assert table.weight.grad.array is table.weight._grad_slot
        found.append(table.weight.grad.numpy().copy())
    np.testing.assert_allclose(*found, rtol=0, atol=0.03 * np.abs(found[1]).max())


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
    with gpunn.autocast("bfloat16"):  # back into the arena inside a block
        layer(gpunn.ones(1, 7))
        layer.weight.data = gpunn.zeros(3, 7)
        optimizer.zero_grad()
        assert (layer(gpunn.ones(1, 7)) == layer.bias.bfloat16()).all().item()


def test_nothing_stays_behind():
    """Neither on inputs nor on frozen weights; and a block keeps none of them alive."""
    model, _ = model_and_optimizer()
    model[0].weight.requires_grad_(False)
    x, gone = normal(4, 6), normal(4, 6)
    reference = weakref.ref(gone)
    with gpunn.autocast("bfloat16"):
        model(x), model(gone)
        del gone
        assert reference() is None
        assert x._low is not None
    assert [tensor._low for tensor in (x, *model.parameters())] == [None] * 7


@emulated
@pytest.mark.parametrize("forget_at", ["start", "end", "outside"])
def test_a_replay_is_noticed_by_who_uses_the_weights_in_the_same_block(forget_at):
    model, optimizer = model_and_optimizer()
    model.to("emulator")
    x, y = X.to("emulator"), LABELS.to("emulator")

    def step(x, y):
        if forget_at == "start":
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if forget_at == "end":
            optimizer.zero_grad()

    step = gpunn.compile(step, side_effects="allow")
    with gpunn.autocast("bfloat16"):
        for _ in range(5):
            step(x, y)
            if forget_at == "outside":
                optimizer.zero_grad()
            inside = model(x)
            with gpunn.autocast("bfloat16", cache_enabled=False):
                fresh = model(x)
            assert (inside == fresh).all().item()


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
