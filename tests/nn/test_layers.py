"""Layers, containers, activations and losses as modules."""

import math

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn.functional as F
from gpunn import nn

ACTIVATIONS = [
    nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.GELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(),
]  # fmt: skip


def mlp(activation, **options):
    g.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 4, device="cpu", **options),
        activation,
        nn.Linear(4, 2, device="cpu", **options),
    )


def test_linear_starts_as_pytorch_does():
    g.manual_seed(0)
    layer = nn.Linear(400, 300, device="cpu")
    bound = 1 / math.sqrt(400)
    for values in (layer.weight, layer.bias):
        assert values.abs().max().item() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    g.manual_seed(0)
    assert g.equal(nn.Linear(400, 300, device="cpu").weight, layer.weight)
    without = nn.Linear(2, 3, bias=False, device="cpu")
    assert without.bias is None and "bias=False" in repr(without)
    assert without(g.ones(5, 1, 2, device="cpu")).shape == (5, 1, 3)
    assert nn.Linear(2, 3, dtype="float64", device="cpu").weight.dtype == np.float64
    with pytest.raises(ValueError, match="Linear: in_features is 0"):
        nn.Linear(0, 2)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_fused_sequential_is_exactly_the_unfused_one(activation, dtype):
    net = mlp(activation, dtype=dtype)
    x = g.randn(6, 3, device="cpu", dtype=dtype)
    results = []
    for fuse in (True, False):
        net.fuse = fuse
        net.zero_grad()
        out = net(x)
        out.float().sum().backward()
        results.append([out, *(p.grad for p in net.parameters())])
        names = [type(node).__name__ for node in tape(out)]
        assert ("Activation" in names) == (not fuse or dtype == "bfloat16")
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(fused.detach().float(), plain.detach().float())


def tape(out):
    from gpunn.autograd.function import _ordered

    return _ordered(out.grad_fn)[0]


def test_fusing_leaves_subclasses_and_hooks_alone():
    class Shifted(nn.ReLU):
        def forward(self, input):
            return super().forward(input) + 1

    x = g.randn(2, 3, device="cpu")
    net = mlp(Shifted())
    expected = net[2](F.relu(F.linear(x, net[0].weight, net[0].bias)) + 1)
    assert g.allclose(net(x), expected)
    net = mlp(nn.ReLU())
    shapes = []
    net[1].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    net(x)
    assert shapes == [(2, 4)]


def test_activation_modules_are_the_functions():
    x = g.randn(4, 5, device="cpu")
    pairs = [
        (nn.LeakyReLU(0.3), F.leaky_relu(x, 0.3)),
        (nn.ELU(0.5), F.elu(x, 0.5)),
        (nn.Softplus(2.0), F.softplus(x, 2.0)),
        (nn.Softmax(dim=0), F.softmax(x, 0)),
        (nn.LogSoftmax(dim=1), F.log_softmax(x, 1)),
        (nn.LogSigmoid(), F.logsigmoid(x)),
        (nn.Identity(3, a=1), x),
    ]
    for module, expected in pairs:
        assert g.equal(module(x), expected)
    with pytest.raises(ValueError, match="approximate"):
        nn.GELU("erf")


def test_dropout_acts_in_training_only():
    g.manual_seed(0)
    layer, x = nn.Dropout(0.5), g.ones(1000, device="cpu")
    kept = (layer(x) != 0).float().mean().item()
    assert 0.4 < kept < 0.6 and set(layer(x).tolist()) == {0.0, 2.0}
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="Dropout: p is -0.1"):
        nn.Dropout(-0.1)


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.Dropout1d, (50, 40, 3)), (nn.Dropout2d, (9, 4, 5))]
)
def test_dropout_of_channels(kind, shape):
    g.manual_seed(0)
    layer, x = kind(0.25), g.ones(*shape, device="cpu", requires_grad=True)
    dropped = layer(x)
    channels = dropped.detach().numpy().reshape(-1, 3 if kind is nn.Dropout1d else 20)
    assert (channels == channels[:, :1]).all()
    assert set(np.unique(channels)) == {0.0, np.float32(1 / 0.75)}
    assert kind is nn.Dropout2d or abs((channels == 0).mean() - 0.25) < 0.03
    dropped.sum().backward()
    assert g.equal(x.grad, dropped.detach())  # where a one was kept it was scaled
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=f"{kind.__name__}: input has shape"):
        layer(g.ones(2))


def test_flatten_and_unflatten():
    x = g.zeros(2, 3, 4, device="cpu")
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Flatten(0, 1)(x).shape == (6, 4)
    assert nn.Unflatten(1, (3, 4))(nn.Flatten()(x)).shape == (2, 3, 4)


def test_sequential_as_a_list():
    net = nn.Sequential(nn.Identity(), nn.Tanh(), nn.ReLU())
    assert isinstance(net[-1], nn.ReLU) and len(net[1:]) == 2 and len(net) == 3
    assert net[1] in net and [type(m).__name__ for m in net] == ["Identity", "Tanh", "ReLU"]
    net.append(nn.GELU()).insert(0, nn.SiLU())
    assert [type(m).__name__ for m in net] == ["SiLU", "Identity", "Tanh", "ReLU", "GELU"]
    del net[1]
    net[0] = nn.Mish()
    assert list(net._modules) == ["0", "1", "2", "3"] and isinstance(net[0], nn.Mish)
    named = nn.Sequential({"a": nn.Identity(), "b": nn.Tanh()})
    assert isinstance(named.b, nn.Tanh) and list(named[1:]._modules) == ["b"]
    with pytest.raises(IndexError, match="out of range for 4"):
        net[4]
    with pytest.raises(TypeError, match="expected a Module, got int"):
        nn.Sequential(3)


def test_module_list_and_dict():
    layers = nn.ModuleList(nn.Linear(2, 2, device="cpu") for _ in range(3))
    layers += [nn.Identity()]
    layers.extend([nn.Tanh()])
    assert len(list(layers.parameters())) == 6 and len(layers[1:]) == 4
    table = nn.ModuleDict({"x": nn.Identity()})
    table["y"] = nn.Linear(1, 1, device="cpu")
    assert list(table) == ["x", "y"] and "y" in table and len(table) == 2
    assert [name for name, _ in table.named_parameters()] == ["y.weight", "y.bias"]
    del table["x"]
    assert list(table.keys()) == ["y"] and len(list(table.values())) == len(list(table.items()))


def test_losses_are_the_functions():
    a, b = g.randn(4, 3, device="cpu"), g.randn(4, 3, device="cpu")
    labels, p, t = g.tensor([0, 2, 1, -100], device="cpu"), F.sigmoid(a), (b > 0).float()
    weight = g.tensor([1.0, 2.0, 3.0], device="cpu")
    head = nn.LinearCrossEntropyLoss(3, 3, weight=weight, label_smoothing=0.1, device="cpu")
    pairs = [
        (nn.MSELoss("sum"), (a, b), F.mse_loss(a, b, reduction="sum")),
        (nn.L1Loss(), (a, b), F.l1_loss(a, b)),
        (nn.HuberLoss(delta=0.5), (a, b), F.huber_loss(a, b, delta=0.5)),
        (nn.SmoothL1Loss(beta=0.5), (a, b), F.smooth_l1_loss(a, b, beta=0.5)),
        (nn.BCELoss(), (p, t), F.binary_cross_entropy(p, t)),
        (
            nn.BCEWithLogitsLoss(pos_weight=weight),
            (a, t),
            F.binary_cross_entropy_with_logits(a, t, pos_weight=weight.expand(4, 3)),
        ),
        (
            nn.CrossEntropyLoss(weight, label_smoothing=0.1),
            (a, labels),
            F.cross_entropy(a, labels, weight, label_smoothing=0.1),
        ),
        (
            head,
            (a, labels),
            F.cross_entropy(head.linear(a), labels, weight, label_smoothing=0.1),
        ),
        (nn.NLLLoss(), (a, labels), F.nll_loss(a, labels)),
    ]
    for module, inputs, expected in pairs:
        assert module(*inputs).item() == pytest.approx(expected.item(), rel=1e-6)
    assert nn.CrossEntropyLoss(weight).state_dict() == {}
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}
    with pytest.raises(ValueError, match="MSELoss: reduction 'avg'"):
        nn.MSELoss("avg")


def test_a_network_learns_xor():
    g.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8, device="cpu"), nn.Tanh(), nn.Linear(8, 2, device="cpu"))
    x = g.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], device="cpu")
    y = g.tensor([0, 1, 1, 0], device="cpu")
    for _ in range(300):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        with g.no_grad():
            for parameter in net.parameters():
                parameter -= 0.5 * parameter.grad
    assert net(x).argmax(1).tolist() == [0, 1, 1, 0]


def test_linear_refuses_a_size_that_is_no_integer():
    with pytest.raises(ValueError, match="Linear: in_features is 3.5; expected an integer of 1"):
        nn.Linear(3.5, 2)
