"""Modules against PyTorch: forwards, gradients, a short script run with both libraries."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn.autograd as g  # noqa: E402
from gpunn import nn  # noqa: E402
from gpunn.nn import init, utils  # noqa: E402

pytestmark = pytest.mark.oracle

ACTIVATIONS = [
    "Sigmoid()", "Tanh()", "ReLU()", "LeakyReLU(0.2)", "ELU(0.7)", "SELU()", "GELU()",
    "GELU(approximate='tanh')", "SiLU()", "Softplus(beta=2)", "Mish()", "Hardswish()",
    "Softmax(dim=-1)", "LogSoftmax(dim=1)", "LogSigmoid()",
]  # fmt: skip


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")


def same_state(ours, theirs):
    """Copy PyTorch's weights into our module."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks_with_every_activation(activation):
    def build(n):
        return eval(f"n.Sequential(n.Linear(5, 7), n.{activation}, n.Linear(7, 3))", {"n": n})

    torch.manual_seed(0)
    theirs, ours = build(torch.nn), build(nn)
    same_state(ours, theirs)
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3
    a = g.tensor(x, requires_grad=True)
    b = torch.tensor(x, requires_grad=True)
    found, expected = ours(a), theirs(b)
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), atol=2e-6)
    (found * found).sum().backward()
    (expected * expected).sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_names_in_the_state_and_in_print():
    def build(n):
        return n.Sequential(
            n.Flatten(), n.Linear(4, 3, bias=False), n.LeakyReLU(0.2), n.Dropout(0.3),
            n.Sequential(n.Linear(3, 2), n.Softmax(dim=1), n.ELU(alpha=0.5), n.Softplus()),
        )  # fmt: skip

    ours, theirs = build(nn), build(torch.nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)


SCRIPT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.hidden(x))
        return F.log_softmax(self.out(x), dim=1)

lib.manual_seed(0)
model = Net()
load(model)
X = lib.tensor(inputs)
Y = lib.tensor(labels)
losses = []
for step in range(30):
    model.zero_grad()
    loss = F.nll_loss(model(X), Y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with lib.no_grad():
        for p in model.parameters():
            p -= 0.3 * p.grad
    losses.append(loss.item())
model.eval()
with lib.no_grad():
    predictions = model(X).argmax(dim=1)
    accuracy = (predictions == Y).float().mean().item()
"""


def test_a_short_script_gives_the_same_trajectory():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(64, 8)).astype(np.float32)
    labels = inputs[:, :3].argmax(1)
    torch.manual_seed(1)
    start = {
        "hidden.weight": torch.randn(16, 8) / 3, "hidden.bias": torch.zeros(16),
        "out.weight": torch.randn(3, 16) / 4, "out.bias": torch.zeros(3),
    }  # fmt: skip
    import gpunn.nn.functional as ours_functional

    scopes = []
    for lib, modules, functional, convert in (
        (g, nn, ours_functional, lambda value: value.numpy()),
        (torch, torch.nn, torch.nn.functional, lambda value: value),
    ):
        state = {name: convert(value) for name, value in start.items()}
        scope = {
            "lib": lib, "nn": modules, "F": functional, "inputs": inputs, "labels": labels,
            "load": lambda model, state=state: model.load_state_dict(state),
        }  # fmt: skip
        exec(SCRIPT, scope)
        scopes.append(scope)
    ours, theirs = scopes
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=2e-4)
    assert ours["losses"][-1] < 0.5 * ours["losses"][0]
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1 / 64)


def test_initialisers_have_pytorch_moments():
    for name, options in (
        ("xavier_uniform_", {"gain": 1.5}), ("xavier_normal_", {}), ("kaiming_uniform_", {"a": 1}),
        ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}), ("orthogonal_", {}),
        ("trunc_normal_", {"std": 0.5, "a": -0.4, "b": 1.0}),
    ):  # fmt: skip
        ours = getattr(init, name)(g.empty(200, 300), **options).numpy()
        theirs = getattr(torch.nn.init, name)(torch.empty(200, 300), **options).numpy()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
        assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02 * float(theirs.std()))
        if "uniform" in name:
            assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=1e-2)
    for name in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0, float("inf")])
def test_clipping(norm):
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)]
    ours, theirs = [], []
    for gradient in gradients:
        p, q = g.zeros(*gradient.shape, requires_grad=True), torch.zeros(gradient.shape)
        p.grad, q.grad = g.tensor(gradient), torch.tensor(gradient)
        ours.append(p)
        theirs.append(q)
    found = utils.clip_grad_norm_(ours, 0.7, norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.7, norm)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)
