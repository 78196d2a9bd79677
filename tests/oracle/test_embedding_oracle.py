"""Embedding, bags and CTC against PyTorch on random configurations, values and gradients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn.autograd as g  # noqa: E402
import gpunn.nn.functional as F  # noqa: E402
from gpunn import nn  # noqa: E402

pytestmark = pytest.mark.oracle


def both(array, requires_grad=False):
    """The same values for us and for PyTorch."""
    array = np.asarray(array)
    return (
        g.tensor(array, device="cpu", requires_grad=requires_grad),
        torch.tensor(array, requires_grad=requires_grad),
    )


def compare(ours, theirs, leaves, rng, atol=1e-10):
    """Values, and the gradients of (ours, theirs) leaves for a random direction."""
    expected = theirs.detach().numpy()
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-10, atol=atol)
    direction = rng.normal(size=expected.shape)
    ours.backward(g.tensor(direction, device="cpu"))
    theirs.backward(torch.tensor(direction))
    for mine, other in leaves:
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-9, atol=atol)


def test_embedding():
    rng = np.random.default_rng(0)
    for case in range(40):
        rows, columns = rng.integers(1, 9, 2)
        weight = both(3 * rng.normal(size=(rows, columns)), True)
        shape = rng.integers(0, 5, rng.integers(0, 4))
        indices = both(rng.integers(0, rows, shape).astype([np.int32, np.int64][case % 2]))
        options = {
            "padding_idx": None if case % 3 else int(rng.integers(-rows, rows)),
            "max_norm": 2.0 if case % 5 == 1 else None,
            "norm_type": [2.0, 1.0, 3.5][case % 3],
            "scale_grad_by_freq": case % 4 == 3,
        }
        if options["max_norm"]:  # PyTorch writes to a leaf there
            theirs = torch.nn.functional.embedding(indices[1], weight[1].detach(), **options)
            ours = F.embedding(indices[0], weight[0].detach(), **options)
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12)
            np.testing.assert_allclose(weight[0].detach().numpy(), weight[1].detach().numpy())
            continue
        theirs = torch.nn.functional.embedding(indices[1], weight[1], **options)
        compare(F.embedding(indices[0], weight[0], **options), theirs, [weight], rng)


def test_embedding_bag():
    rng = np.random.default_rng(1)
    for case in range(40):
        rows, count, bags = rng.integers(1, 7), int(rng.integers(1, 12)), int(rng.integers(1, 6))
        mode = ["sum", "mean", "max"][case % 3]
        weight = both(rng.normal(size=(rows, 3)), True)
        indices = rng.integers(0, rows, count if case % 2 else (bags, 3))
        options = {"mode": mode, "padding_idx": None if case % 4 else int(rng.integers(0, rows))}
        leaves, offsets = [weight], (None, None)
        if case % 2:
            offsets = np.sort(rng.integers(0, count + 1, bags))
            offsets[0] = 0
            offsets = both(np.append(offsets, count) if case % 5 == 0 else offsets)
            options["include_last_offset"] = case % 5 == 0
        factors = (None, None)
        if mode == "sum" and case % 2:
            factors = both(rng.normal(size=indices.shape), True)
            leaves = [weight, factors]
        indices = both(indices)
        ours = F.embedding_bag(
            indices[0], weight[0], offsets[0], per_sample_weights=factors[0], **options
        )
        theirs = torch.nn.functional.embedding_bag(
            indices[1], weight[1], offsets[1], per_sample_weights=factors[1], **options
        )
        compare(ours, theirs, leaves, rng)


def test_weights_load_both_ways():
    ours, theirs = nn.Embedding(5, 3, device="cpu"), torch.nn.Embedding(5, 3)
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(ours.weight.detach().numpy(), theirs.weight.detach().numpy())
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})


@pytest.fixture
def one_thread():
    """PyTorch's CTC wakes all of its threads for each call, which takes longer than the call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_ctc_loss(one_thread):
    rng = np.random.default_rng(2)
    for case in range(60):
        steps, batch, labels = (int(n) for n in rng.integers(1, 12, 3))
        classes = int(rng.integers(2, 7))
        blank = int(rng.integers(0, classes))
        targets = rng.integers(0, classes - 1, (batch, labels))
        targets += targets >= blank
        inputs, lengths = rng.integers(1, steps + 1, batch), rng.integers(0, labels + 1, batch)
        if case % 2:
            targets = np.concatenate([t[:n] for t, n in zip(targets, lengths, strict=True)])
        x = both(rng.normal(size=(steps, batch, classes)), True)
        options = {
            "blank": blank, "reduction": ["none", "mean", "sum"][case % 3],
            "zero_infinity": case % 4 < 2,
        }  # fmt: skip
        problems = zip(both(targets), both(inputs), both(lengths), strict=True)
        ours, theirs = problems
        loss = F.ctc_loss(F.log_softmax(x[0], -1), *ours, **options)
        other = torch.log_softmax(x[1], -1)
        compare(loss, torch.nn.functional.ctc_loss(other, *theirs, **options), [x], rng)
    # And by the log-probabilities themselves, where no log-softmax follows.
    logs = both(np.log(rng.dirichlet(np.ones(4), (6, 2))), True)
    arguments = [1, 2, 2, 3], [6, 5], [3, 1]
    theirs = torch.nn.functional.ctc_loss(logs[1], *map(torch.tensor, arguments))
    compare(F.ctc_loss(logs[0], g.tensor([1, 2, 2, 3], device="cpu"), [6, 5], [3, 1]), theirs,
            [logs], rng)  # fmt: skip
