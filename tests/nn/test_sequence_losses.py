"""CTC as a layer, its decoders, and losses of padded sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.autograd import gradcheck
from gpunn.device import probe

RNG = np.random.default_rng(0)


def cpu(data, **options):
    return g.tensor(data, device="cpu", **options)


# ---- CTC -----------------------------------------------------------------------------------------


def test_ctc_gradients_by_differences_and_reductions():
    x = cpu(RNG.normal(size=(6, 3, 4)), requires_grad=True)
    targets, lengths = cpu([[1, 1, 2], [3, 0, 0], [2, 3, 2]]), ([6, 3, 4], cpu([3, 1, 3]))
    loss = lambda x, **o: F.ctc_loss(F.log_softmax(x, -1), targets, *lengths, **o)  # noqa: E731
    for reduction in ("none", "sum", "mean"):
        assert gradcheck(lambda x, r=reduction: loss(x, reduction=r), x)
    each = loss(x, reduction="none").detach().numpy()
    assert loss(x, reduction="sum").item() == pytest.approx(each.sum())
    assert nn.CTCLoss()(F.log_softmax(x, -1), targets, *lengths).item() == pytest.approx(
        (each / [3, 1, 3]).mean()
    )
    one = F.ctc_loss(F.log_softmax(x, -1)[:, 0], cpu([1, 1, 2]), 6, 3, reduction="none")
    assert one.shape == () and one.item() == pytest.approx(each[0])


def test_a_target_that_is_too_long():
    x = cpu(RNG.normal(size=(2, 2, 3)), requires_grad=True)
    arguments = cpu([[1, 1], [1, 2]]), [2, 2], [2, 2]
    loss = nn.CTCLoss(reduction="none")(F.log_softmax(x, -1), *arguments)
    assert loss[0].item() == np.inf and np.isfinite(loss[1].item())
    loss = nn.CTCLoss(zero_infinity=True, reduction="sum")(F.log_softmax(x, -1), *arguments)
    loss.backward()
    assert (
        np.isfinite(loss.item()) and not x.grad.numpy()[:, 0].any() and x.grad.numpy()[:, 1].any()
    )
    with pytest.raises(ValueError, match="expected \\(T, B, C\\), or \\(T, C\\)"):
        F.ctc_loss(x[0, 0], *arguments)


def test_ctc_keeps_its_targets():
    x, targets = g.zeros(4, 1, 3, device="cpu", requires_grad=True), cpu([[1, 2]])
    loss = F.ctc_loss(F.log_softmax(x, -1), targets, [4], [2])
    targets += 0
    with pytest.raises(RuntimeError, match="Ctc.* modified in place"):
        loss.backward()


def test_ctc_of_16_bits_has_a_loss_in_float32():
    x = F.log_softmax(g.randn(5, 2, 4, device="cpu"), -1).bfloat16().requires_grad_()
    loss = F.ctc_loss(x, cpu([[1, 2], [3, 3]]), [5, 5], [2, 2])
    loss.backward()
    assert loss.dtype == np.float32 and x.grad.dtype == g.bfloat16


def test_greedy_decoding():
    path = np.array([[1, 0, 2], [1, 0, 2], [0, 0, 1], [1, 3, 1], [2, 3, 1]])
    scores = cpu(np.eye(4)[path])
    assert nn.ctc_greedy_decode(scores) == [[1, 1, 2], [3], [2, 1]]
    assert nn.ctc_greedy_decode(scores, [3, 0, 1], blank=2) == [[1, 0], [], []]
    assert nn.ctc_greedy_decode(scores[:0]) == [[], [], []]
    with pytest.raises(ValueError, match="blank is 4; .* 0 to 3"):
        nn.ctc_greedy_decode(scores, blank=4)


def test_beam_search_finds_the_most_probable_reading():
    """Against the sums over all paths; the best path alone reads something else."""
    logs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))[:, None]
    assert nn.ctc_greedy_decode(cpu(logs)) == [[]]
    ((best, second),) = nn.ctc_beam_decode(cpu(logs), top=2)
    assert best.labels == [1] and best.log_probability == pytest.approx(np.log(0.64))
    assert second.labels == [] and second.log_probability == pytest.approx(np.log(0.36))
    x = RNG.normal(size=(4, 1, 3))
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    totals: dict = {}
    for path in itertools.product(range(3), repeat=4):
        labels = tuple(k for k, _ in itertools.groupby(path) if k != 1)
        totals[labels] = np.logaddexp(totals.get(labels, -np.inf), logs[range(4), 0, path].sum())
    ranked = sorted(totals.items(), key=lambda item: -item[1])[:5]
    (found,) = nn.ctc_beam_decode(cpu(logs), blank=1, beam_width=100, top=5)
    assert [tuple(h.labels) for h in found] == [labels for labels, _ in ranked]
    np.testing.assert_allclose([h.log_probability for h in found], [p for _, p in ranked])


# ---- padded sequences ----------------------------------------------------------------------------

LENGTHS = [3, 0, 4]


def test_a_mask_of_lengths():
    mask = F.sequence_mask(cpu(LENGTHS))
    assert mask.dtype == np.bool_ and mask.tolist() == [
        [True, True, True, False], [False] * 4, [True] * 4
    ]  # fmt: skip
    assert F.sequence_mask(cpu([[1], [2]]), 3, np.float32).tolist() == [[[1, 0, 0]], [[1, 1, 0]]]
    with pytest.raises(ValueError, match="from 0 to 4; expected 0 to max_len 3"):
        F.sequence_mask(cpu(LENGTHS), 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "sequence", "sequence_sum"])
def test_cross_entropy_of_the_steps_that_count(reduction):
    logits = cpu(RNG.normal(size=(3, 4, 5)), requires_grad=True)
    labels = RNG.integers(0, 5, (3, 4))
    mask = np.arange(4) < np.array(LENGTHS)[:, None]
    x = logits.detach().numpy()
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    each = -np.take_along_axis(logs, labels[..., None], 2)[..., 0] * mask
    expected = {
        "mean": each.sum() / 7, "sum": each.sum(), "none": each,
        "sequence": each.sum(1) / [3, 1, 4], "sequence_sum": each.sum(1),
    }[reduction]  # fmt: skip
    labels[~mask] = 99  # anything may stand there
    target = cpu(labels)
    for given in ({"lengths": LENGTHS}, {"lengths": cpu(LENGTHS)}, {"mask": cpu(mask)}):
        loss = F.sequence_cross_entropy(logits, target, **given, reduction=reduction)
        np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    assert gradcheck(
        lambda x: F.sequence_cross_entropy(x, target, LENGTHS, reduction=reduction), logits
    )


def test_mse_of_the_places_that_count():
    x = cpu(RNG.normal(size=(3, 4, 2)), requires_grad=True)
    y = RNG.normal(size=(3, 4, 2))
    each = (x.detach().numpy() - y) ** 2 * (np.arange(4) < np.array(LENGTHS)[:, None])[..., None]
    y[1] = np.nan
    target = cpu(y)
    for reduction, expected in (
        ("mean", each.sum() / 14), ("none", each), ("sequence", each.sum((1, 2)) / [6, 1, 8])
    ):  # fmt: skip
        loss = F.masked_mse_loss(x, target, LENGTHS, reduction=reduction)
        np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    assert gradcheck(lambda x: F.masked_mse_loss(x, target, LENGTHS), x)
    assert F.masked_mse_loss(x, x.detach() + 2.0).item() == pytest.approx(4)
    x = g.zeros(2, 40_000, 1, dtype=g.float16, device="cpu", requires_grad=True)
    loss = F.masked_mse_loss(x, x.detach() - 2.0, [40_000, 35_000])  # neither sum is a float16
    loss.backward()
    assert loss.item() == 4 and loss.dtype == x.dtype and x.grad[0, 0].item() > 0


X, T = g.zeros(2, 3, 4, device="cpu"), g.zeros(2, 3, device="cpu").long()


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: F.sequence_cross_entropy(X, T[:, :2]), ValueError, r"target \(2, 2\)"),
        (lambda: F.sequence_cross_entropy(X, T, [3, 4]), ValueError, r"\[3, 4\]; .* from 0 to 3"),
        (lambda: F.sequence_cross_entropy(X, T, [3]), ValueError, r"lengths has shape \(1,\)"),
        (lambda: F.sequence_cross_entropy(X, T, [3, 3], T), ValueError, "both lengths and mask"),
        (lambda: F.sequence_cross_entropy(X, T, mask=T[0]), ValueError, r"mask has shape \(3,\)"),
        (lambda: F.sequence_cross_entropy(X, T + 4), ValueError, "has label 4 in row 0"),
        (lambda: F.sequence_cross_entropy(X, T, reduction="all"), ValueError, "'all' is not known"),
        (lambda: F.masked_mse_loss(X, X[:1]), ValueError, "one shape"),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()


# ---- all of it on a device -----------------------------------------------------------------------


class Tagger(nn.Module):
    """Every layer for tokens, with the table as its own output layer."""

    def __init__(self, device):
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0, max_norm=3.0, device=device)
        self.bag = nn.EmbeddingBag(11, 8, mode="max", device=device)
        self.waves = nn.SinusoidalPositionalEncoding(8, 20, device=device)
        self.learned = nn.LearnedPositionalEncoding(8, 20, device=device)
        self.rotary = nn.RotaryEmbedding(4)
        self.head = nn.Linear(8, 11, device=device)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.rotary(self.learned(self.waves(self.table(tokens))))
        return self.head(x + self.bag(tokens).unsqueeze(1))


def losses(device):
    g.manual_seed(0)
    rng, found = np.random.default_rng(0), []
    net = Tagger(device)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    lengths, labels = g.tensor([6, 2, 4], device=device), g.tensor([[1, 2], [3, 3], [4, 5]])
    for _ in range(2):
        tokens = g.tensor(rng.integers(0, 11, (3, 6)), device=device)
        logits = net(tokens)
        loss = F.sequence_cross_entropy(logits, tokens, lengths, reduction="sequence").mean()
        logs = F.log_softmax(logits, -1).transpose(0, 1)
        for known in (lengths, [6, 2, 4]):  # on the device, and on the host
            loss = loss + F.ctc_loss(logs, labels.to(device), known, [2, 1, 2])
        loss = loss + F.masked_mse_loss(logits, logits.detach() * 0.5, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [loss.item(), net.table.weight.grad.abs().sum().item()]
    return found


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_the_same_on_the_emulator():
    np.testing.assert_allclose(losses("emulator"), losses("cpu"), rtol=1e-5)
