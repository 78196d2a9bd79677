"""Recurrent layers and packed sequences against PyTorch: values, states and all gradients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn as g  # noqa: E402
from gpunn import nn  # noqa: E402
from gpunn.nn.utils import rnn  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")


def close(found, expected, bound=1e-11):
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    np.testing.assert_allclose(
        found.detach().numpy() / scale, expected.detach().numpy() / scale, rtol=0, atol=bound
    )


def pair(value):
    """The same leaf for both libraries."""
    ours = g.tensor(value, dtype="float64", requires_grad=True)
    return ours, torch.tensor(value, requires_grad=True)


def made(kind, *sizes, **options):
    """A module of each library with the same weights, carried over in turn one way and the other"""
    ours, theirs = getattr(nn, kind)(*sizes, **options), getattr(torch.nn, kind)(*sizes, **options)
    ours, theirs = ours.double(), theirs.double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if sum(sizes) % 2:
        ours.load_state_dict({name: v.numpy() for name, v in theirs.state_dict().items()})
    else:
        theirs.load_state_dict(
            {name: torch.from_numpy(v.numpy().copy()) for name, v in ours.state_dict().items()}
        )
    return ours, theirs


def states(rng, kind, shape):
    """(ours, theirs, the leaves) of random initial states."""
    leaves = [pair(rng.normal(size=shape)) for _ in range(1 + kind.startswith("LSTM"))]
    ours, theirs = zip(*leaves, strict=True)
    return (*((ours, theirs) if len(leaves) == 2 else (ours[0], theirs[0])), leaves)


def listed(value):
    return list(value) if isinstance(value, tuple) else [value]


def compare(rng, found, expected, leaves, ours, theirs):
    """Outputs, then the gradients of a random combination of some of them."""
    chosen = [k for k in range(len(found)) if rng.random() < 0.7] or [0]
    losses = [0.0, 0.0]
    for k, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert mine.shape == tuple(other.shape)
        close(mine, other)
        if k in chosen:
            factor = rng.normal(size=mine.shape)
            losses[0] = losses[0] + (mine * g.tensor(factor, dtype="float64")).sum()
            losses[1] = losses[1] + (other * torch.from_numpy(factor)).sum()
    losses[0].backward()
    losses[1].backward()
    names = [name for name, _ in ours.named_parameters()]
    pairs = [*leaves, *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for name, (mine, other) in zip([*("x", "h0", "c0")[: len(leaves)], *names], pairs, strict=True):
        want = torch.zeros_like(other) if other.grad is None else other.grad
        got = g.zeros(*mine.shape, dtype="float64") if mine.grad is None else mine.grad
        close(got, want, 1e-10)
        assert name


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_random_layers(kind):
    rng = np.random.default_rng({"RNN": 1, "LSTM": 2, "GRU": 3}[kind])
    for trial in range(12):
        inputs, hidden, layers = (int(n) for n in rng.integers(1, (6, 7, 4)))
        steps, batch = (int(n) for n in rng.integers(1, (9, 7)))
        both_ways, bias, first = (bool(flag) for flag in rng.integers(0, 2, 3))
        options = {"bidirectional": both_ways, "bias": bias, "batch_first": first}
        if kind == "RNN":
            options["nonlinearity"] = ("tanh", "relu")[trial % 2]
        ours, theirs = made(kind, inputs, hidden, layers, **options)
        form = ("padded", "one", "packed", "lengths")[trial % 4]
        rows = layers * (1 + both_ways)
        shape = (rows, hidden) if form == "one" else (rows, batch, hidden)
        hx, their_hx, leaves = states(rng, kind, shape)
        if trial % 3 == 0:
            hx, their_hx, leaves = None, None, []
        shape = (batch, steps) if first else (steps, batch)
        x, their_x = pair(rng.normal(size=(*(shape if form != "one" else (steps,)), inputs)))
        leaves = [(x, their_x), *leaves]
        if form in ("padded", "one"):
            output, ends = ours(x, hx)
            their_output, their_ends = theirs(their_x, their_hx)
        else:
            lengths = rng.integers(1, steps + 1, batch)
            falls = trial // 4 % 2 == 0
            lengths = np.sort(lengths)[::-1].copy() if falls else lengths
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                their_x, torch.from_numpy(lengths), first, enforce_sorted=falls
            )
            their_packed, their_ends = theirs(packed, their_hx)
            their_output = torch.nn.utils.rnn.pad_packed_sequence(
                their_packed, first, total_length=steps
            )[0]
            if form == "lengths":
                output, ends = ours(x, hx, lengths)
            else:
                mine, ends = ours(rnn.pack_padded_sequence(x, lengths, first, falls), hx)
                close(mine.data, their_packed.data)
                output = rnn.pad_packed_sequence(mine, first, total_length=steps)[0]
        compare(
            rng, [output, *listed(ends)], [their_output, *listed(their_ends)], leaves, ours, theirs
        )


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind):
    rng = np.random.default_rng(0)
    for trial in range(6):
        options = {"bias": trial % 2 == 0}
        if kind == "RNNCell":
            options["nonlinearity"] = ("tanh", "relu")[trial // 2 % 2]
        ours, theirs = made(kind, 3, 4 + trial % 2, **options)
        shape = (5,) if trial < 4 else ()
        hx, their_hx, leaves = states(rng, kind, (*shape, 4 + trial % 2))
        x, their_x = pair(rng.normal(size=(*shape, 3)))
        if trial == 0:
            hx, their_hx, leaves = None, None, []
        found, expected = ours(x, hx), theirs(their_x, their_hx)
        if trial == 1:  # a second step from the first one's result
            found, expected = ours(x, found), theirs(their_x, expected)
        compare(rng, listed(found), listed(expected), [(x, their_x), *leaves], ours, theirs)


def test_packing_and_padding():
    rng = np.random.default_rng(0)
    theirs = torch.nn.utils.rnn
    for trial in range(8):
        first, side = trial % 2 == 1, ("right", "left")[trial // 2 % 2]
        shape = [(), (2,), (2, 3)][trial % 3]
        pairs = [pair(rng.normal(size=(n, *shape))) for n in rng.integers(1, 6, 4)]
        a, b = ([p[k] for p in pairs] for k in (0, 1))
        mine = rnn.pad_sequence(a, first, -2.0, side)
        other = theirs.pad_sequence(b, first, -2.0, side)
        close(mine, other)
        lengths = [len(s) for s in a]
        packed = rnn.pack_padded_sequence(mine, lengths, first, enforce_sorted=False)
        expected = theirs.pack_padded_sequence(other, lengths, first, enforce_sorted=False)
        close(packed.data, expected.data)
        assert packed.batch_sizes.tolist() == expected.batch_sizes.tolist()
        back, found = rnn.pad_packed_sequence(packed, not first, 0.5, 7)
        wanted, their_lengths = theirs.pad_packed_sequence(expected, not first, 0.5, 7)
        close(back, wanted)
        assert found.tolist() == their_lengths.tolist() == lengths
        (back * back).sum().backward()
        (wanted * wanted).sum().backward()
        for one, two in pairs:
            close(one.grad, two.grad)
        for one, two in zip(
            rnn.unpad_sequence(mine, lengths, first),
            theirs.unpad_sequence(other, torch.tensor(lengths), first),
            strict=True,
        ):
            close(one, two)
