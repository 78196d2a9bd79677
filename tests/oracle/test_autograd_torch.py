"""Tensor against PyTorch: the same code with both libraries, values, types and gradients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn.autograd as g  # noqa: E402
import gpunn.nn.functional as F  # noqa: E402

pytestmark = pytest.mark.oracle

rng = np.random.default_rng(11)
DATA = rng.normal(size=(3, 4))
OTHER = rng.normal(size=(4,))
POSITIVE = rng.uniform(0.1, 2, size=(3, 4))

# Written once, run with `t` as torch and as gpunn on x (3, 4), y (4,), p (3, 4) positive.
EXPRESSIONS = """
x + y
2 - x * y / 3
x ** 2 + p ** y + 2 ** x
p % 0.3
-x @ y
x @ x.T
t.stack([x, p]) @ x.T
x.sum() + x.sum(1).sum() + x.sum(dim=(0, 1), keepdim=True)
x.mean(0) * x.mean()
x.var(1) + x.var(dim=1, unbiased=False) + x.std()
x.prod(1)
x.max(dim=1).values + x.min(1, keepdim=True)[0]
x.max() - x.min()
x.amax(0) + t.amax(x, dim=(0, 1))
t.maximum(x, y) - t.minimum(x, p)
x.abs().log1p().sqrt()
t.exp(x).log2() + p.log10() + p.log() + p.rsqrt() + t.expm1(x)
x.sin() * x.cos() + t.tan(x / 4) + t.atan(x)
x.clamp(-0.5, 0.5) + x.clamp(min=0)
x.sigmoid() + x.tanh() + t.relu(x)
x.softmax(0) * t.log_softmax(x, dim=1)
t.where(x > 0, x, y)
x.masked_fill(x < 0, 1.5)
x[1] * x[:, 2:3].sum() + x[..., -1].sum()
x[[0, 0, 2]] * x[x > 0].sum()
x[[0, 1], [3, 3]]
x.view(4, 3).t() + x.reshape(-1, 4)
x.permute(1, 0).flatten()
x.unsqueeze(1).expand(3, 2, 4).sum(1)
x.repeat(2, 1)[:4]
t.cat([x, p], 1).flip(0)
t.cat([x, p]).chunk(4)[1]
x.split([1, 3], 1)[1].cumsum(0)
x.tril() + x.triu(1)
x.norm() + x.norm(dim=1).sum() + x.norm(1)
x.logsumexp(1)
x.gather(1, (x > 0).long())
t.outer(x[0], y)
x.squeeze().transpose(0, 1).contiguous()
x.floor() + x.round() + x.sign() * x
""".strip().splitlines()


def run(t, leaf, code):
    x, y, p = leaf(DATA), leaf(OTHER), leaf(POSITIVE)
    out = eval(code, {"t": t, "x": x, "y": y, "p": p})
    weights = np.random.default_rng(0).normal(size=tuple(out.shape))
    out.backward(t.tensor(weights))
    return [out.detach().numpy()] + [
        np.zeros(v.shape) if v.grad is None else v.grad.numpy() for v in (x, y, p)
    ]


@pytest.mark.parametrize("code", EXPRESSIONS)
def test_values_and_gradients(code):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUNN_DEVICE", "cpu")
        ours = run(g, lambda a: g.tensor(a, requires_grad=True), code)
    theirs = run(torch, lambda a: torch.tensor(a, requires_grad=True), code)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=1e-10, atol=1e-12)


PROGRAMS = {
    "writes in place": """
y = x * 1
y += 2
y[0] = 0
y[:, 1] *= w[1]
y[1] -= y[2]
out = (y * y).sum()
""",
    "a total": """
total = t.zeros(1)
for i in range(3):
    total += (x[i] * w).sum()
out = total.sum()
""",
    "a buffer filled row by row": """
buffer = t.zeros(3, 4)
for i in range(3):
    buffer[i] = x[i] * w + (i + 1)
out = (buffer ** 2).sum()
""",
    "detached and without grad": """
with t.no_grad():
    scale = (x * 2).mean()
out = (x * scale).sum() + (x.detach() * w).sum()
""",
    "a loop over time": """
h = t.zeros(4)
for i in range(3):
    h = t.tanh(h * w + x[i])
out = h.sum()
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    found = []
    for t in (g, torch):
        x = t.tensor(DATA.astype(np.float32), requires_grad=True)
        w = t.tensor(OTHER.astype(np.float32), requires_grad=True)
        scope = {"t": t, "x": x, "w": w}
        exec(PROGRAMS[name], scope)
        scope["out"].backward()
        found.append([scope["out"].item(), x.grad.numpy(), w.grad.numpy()])
    for mine, expected in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=2e-5, atol=1e-6)


NAMES = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool")


@pytest.mark.parametrize("a", NAMES)
def test_promotion_table(a, monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    shapes = ((2,), ())
    for b in NAMES:
        for shape_a in shapes:
            for shape_b in shapes:
                results = []
                for t in (g, torch):
                    kinds = vars(t).get(a, getattr(t, "bool", None)), vars(t).get(b)
                    kinds = tuple(_kind(t, name) for name in (a, b))
                    x, y = t.ones(shape_a, dtype=kinds[0]), t.ones(shape_b, dtype=kinds[1])
                    results.append(str((x * y).dtype).removeprefix("torch."))
                assert results[0] == results[1], (a, shape_a, b, shape_b)
        for number in (2, 2.5):
            results = [
                str((t.ones(2, dtype=_kind(t, a)) * number).dtype).removeprefix("torch.")
                for t in (g, torch)
            ]
            assert results[0] == results[1], (a, number)


def _kind(t, name):
    return getattr(torch, name) if t is torch else name


def pairs_of_losses():
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    labels = np.array([0, 4, 2, -100, 1, 1])
    soft = rng.dirichlet(np.ones(5), 6)
    weight = rng.uniform(0.5, 2, 5)
    yield "mse_loss", (x, y), {}
    yield "l1_loss", (x, y), {}
    yield "huber_loss", (x, y), {"delta": 0.6}
    yield "smooth_l1_loss", (x, y), {"beta": 0.4}
    yield "binary_cross_entropy", (1 / (1 + np.exp(-x)), soft), {"weight": weight}
    yield "binary_cross_entropy_with_logits", (x, soft), {"pos_weight": weight}
    yield "cross_entropy", (x, labels), {"weight": weight, "label_smoothing": 0.1}
    yield "cross_entropy", (x, soft), {"weight": weight, "label_smoothing": 0.1}
    yield "cross_entropy", (x[0], np.array(3)), {}
    yield "cross_entropy", (rng.normal(size=(2, 3, 4, 2)), rng.integers(0, 3, (2, 4, 2))), {}
    yield "nll_loss", (x, labels), {"weight": weight}
    yield "nll_loss", (rng.normal(size=(2, 3, 4)), rng.integers(0, 3, (2, 4))), {}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", list(pairs_of_losses()), ids=lambda case: case[0])
def test_losses(case, reduction):
    name, (x, target), options = case
    found = []
    for t, functions in ((g, F), (torch, torch.nn.functional)):
        make = (lambda a: g.tensor(a, device="cpu")) if t is g else torch.tensor
        leaf = make(x)
        leaf.requires_grad_()
        given = {k: make(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        loss = getattr(functions, name)(leaf, make(target), reduction=reduction, **given)
        loss.sum().backward()
        found.append((loss.detach().numpy(), leaf.grad.numpy()))
    for mine, expected in zip(*found, strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-12)
