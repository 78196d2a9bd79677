"""Module: registration, state, modes, conversion, printing, summary."""

import copy
import pickle

import numpy as np
import pytest

import gpunn.autograd as g
from gpunn import nn


class Net(nn.Module):
    """Two layers with a buffer, one layer used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, device="cpu")
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(4, 4, device="cpu"), nn.Dropout(0.5))
        self.again = self.body[1]
        self.scale = nn.Parameter(g.ones(1, device="cpu"))
        self.register_buffer("count", g.zeros(2, device="cpu", dtype="int64"))
        self.register_buffer("cache", g.zeros(1, device="cpu"), persistent=False)
        self.note = "plain"

    def forward(self, x):
        return self.again(self.body(self.first(x))) * self.scale


def test_what_is_registered():
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    assert names == ["scale", "first.weight", "first.bias", "body.1.weight", "body.1.bias"]
    assert [name for name, _ in net.named_buffers()] == ["count", "cache"]
    assert [name for name, _ in net.named_children()] == ["first", "body", "again"]
    assert [name for name, _ in net.named_modules()] == [
        "", "first", "body", "body.0", "body.1", "body.2"
    ]  # fmt: skip
    assert len(list(net.parameters())) == 5 and len(list(net.modules())) == 6
    assert len(list(net.parameters(recurse=False))) == 1
    assert net.note == "plain" and "first" in dir(net)
    del net.scale
    assert not hasattr(net, "scale")
    net.first = nn.Identity()
    assert "first.weight" not in dict(net.named_parameters())


def test_attribute_errors():
    net = Net()
    with pytest.raises(TypeError, match="Net.scale holds a Parameter; cannot assign int"):
        net.scale = 3
    with pytest.raises(TypeError, match="is a buffer"):
        net.count = 3
    with pytest.raises(AttributeError, match="Net has no attribute 'missing'"):
        _ = net.missing
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)

    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.Identity()

    with pytest.raises(AttributeError, match=r"call super\(\).__init__"):
        Early()
    with pytest.raises(TypeError, match="register_buffer"):
        net.register_buffer("b", 3)
    with pytest.raises(TypeError, match="register_parameter"):
        net.register_parameter("p", g.ones(1))
    with pytest.raises(TypeError, match="add_module"):
        net.add_module("m", 3)


def test_state_goes_round():
    g.manual_seed(0)
    one, two = Net(), Net()
    state = one.state_dict()
    assert list(state) == [
        "scale", "count", "first.weight", "first.bias", "body.1.weight", "body.1.bias",
        "again.weight", "again.bias",
    ]  # fmt: skip
    assert not any(value.requires_grad for value in state.values())
    memory = two.first.weight.array
    assert two.load_state_dict(state) == ([], [])
    assert two.first.weight.array is memory  # an optimizer's arena stays in place
    x = g.randn(5, 3, device="cpu")
    assert g.equal(one.eval()(x), two.eval()(x))
    arrays = {name: value.numpy().astype(np.float64) for name, value in state.items()}
    two.load_state_dict(arrays)
    assert two.first.weight.dtype == np.float32


def test_state_that_does_not_fit_changes_nothing():
    net = Net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    before = net.first.bias.detach().clone()
    state["first.bias"] = state["first.bias"] + 1
    state["first.weight"] = g.ones(2, 2, device="cpu")
    del state["scale"]
    state["other"] = g.ones(1, device="cpu")
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    text = str(caught.value)
    assert "missing: scale" in text and "unexpected: other" in text
    assert "size mismatch for first.weight: the state has (2, 2), not (4, 3)" in text
    assert g.equal(net.first.bias, before)
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict(state, strict=False)
    del state["first.weight"]
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == ["scale", "first.weight"] and unexpected == ["other"]
    assert g.equal(net.first.bias, before + 1)


def test_modes_gradients_and_freezing():
    net = Net()
    assert net.train(False) is net and not net.body[2].training
    net.train()
    assert net.body[2].training
    net(g.ones(2, 3, device="cpu")).sum().backward()
    assert net.first.weight.grad is not None
    net.zero_grad(set_to_none=False)
    assert net.first.weight.grad.tolist() == [[0] * 3] * 4
    net.zero_grad()
    assert net.first.weight.grad is None
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    seen = []
    net.apply(lambda module: seen.append(type(module).__name__))
    assert seen[-1] == "Net" and seen[0] == "Linear"


def test_conversion_keeps_the_parameters_and_moves_gradients():
    net = Net()
    weight = net.first.weight
    weight._grad_slot = np.zeros((4, 3), np.float32)
    net(g.ones(2, 3, device="cpu")).sum().backward()
    assert net.double() is net and net.first.weight is weight
    assert weight.dtype == weight.grad.dtype == np.float64 and weight._grad_slot is None
    assert net.count.dtype == np.int64
    assert net.half().scale.dtype == np.float16 and net.bfloat16().scale.dtype == g.bfloat16
    assert net.to("cpu", g.float32).cpu().float().scale.dtype == np.float32
    with pytest.raises(TypeError, match="not floating"):
        net.to(g.int32)


def test_copies_are_independent():
    net = Net().eval()
    x = g.ones(2, 3, device="cpu")
    expected = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert g.equal(other(x), expected)
        assert other.again is other.body[1]
        other.scale.data[0] = 5
        assert net.scale.item() == 1 and isinstance(other.scale, nn.Parameter)


def test_printing():
    net = nn.Sequential(nn.Linear(2, 3, device="cpu"), nn.ReLU(), nn.Sequential(nn.GELU()))
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): ReLU()\n"
        "  (2): Sequential(\n"
        "    (0): GELU(approximate='none')\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Parameter(g.ones(1, device="cpu"))) == (
        "Parameter containing:\ntensor([1.], requires_grad=True)"
    )


def test_summary(capsys):
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5, device="cpu"), nn.ReLU(), nn.Linear(5, 2, device="cpu")
    )
    net[1].requires_grad_(False)
    table = net.summary((3, 4))
    printed = capsys.readouterr().out
    assert printed.strip() == str(table)
    assert [row.output_shape[1:] for row in table.rows] == [(12,), (5,), (5,), (2,)]
    assert [row.parameters for row in table.rows] == [0, 65, 0, 12]
    assert (table.total, table.trainable, table.parameter_bytes) == (77, 12, 308)
    assert "1 (Linear)   (N, 5)" in printed and "77 (12 trainable)" in printed
    assert repr(table) == "<Summary: 4 layers, 77 parameters>"
    assert net.training and not net[1]._forward_hooks
    shared = Net().summary((3,))
    assert shared.total == 16 + 20 + 1


def test_forward_hooks():
    layer = nn.Identity()
    hook = layer.register_forward_hook(lambda module, args, output: output * 2)
    assert layer(g.ones(1, device="cpu")).item() == 2
    hook.remove()
    hook.remove()
    assert layer(g.ones(1, device="cpu")).item() == 1
    with layer.register_forward_hook(lambda module, args, output: output * 3):
        assert layer(g.ones(1, device="cpu")).item() == 3
    assert layer(g.ones(1, device="cpu")).item() == 1
