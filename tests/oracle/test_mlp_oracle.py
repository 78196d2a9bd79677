"""`mlp_train` against the same training in PyTorch, in float64."""

import numpy as np
import pytest

from gpunn import kernels
from gpunn.primitives.mlp_samples import arena, chain
from gpunn.primitives.optimizer import hyper_array

torch = pytest.importorskip("torch")
F = torch.nn.functional

ACTIVATIONS = {
    "identity": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": F.relu,
    "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "gelu": F.gelu, "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": F.softplus, "mish": F.mish,
    "hard_swish": F.hardswish,
}  # fmt: skip
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, "sgd", {"weight_decay": 0.03}),
    "momentum": (torch.optim.SGD, "sgd", {"momentum": 0.8, "dampening": 0.2}),
    "nesterov": (torch.optim.SGD, "sgd", {"momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, "adam", {"weight_decay": 0.03}),
    "adamw": (torch.optim.AdamW, "adam", {"weight_decay": 0.03}),
}


def parts(flat, layers):
    found = []
    for layer in layers:
        weight = flat[layer.weight : layer.weight + layer.inputs * layer.outputs]
        found.append(weight.reshape(layer.outputs, layer.inputs))
        if layer.bias is not None:
            found.append(flat[layer.bias : layer.bias + layer.outputs])
    return found


def by_torch(x, target, order, parameters, layers, optimizer, rates, mse, smoothing, max_norm):
    own = [torch.nn.Parameter(torch.tensor(p)) for p in parts(parameters, layers)]
    made, losses = optimizer(own), []
    x, target = torch.tensor(x), torch.tensor(target)
    for samples, rate in zip(order, rates, strict=True):
        samples, values = torch.tensor(samples[samples >= 0]), iter(own)
        out = x[samples]
        for layer in layers:
            weight, bias = next(values), None if layer.bias is None else next(values)
            out = ACTIVATIONS[layer.activation](F.linear(out, weight, bias))
        if mse:
            loss = F.mse_loss(out, target[samples])
        else:
            loss = F.cross_entropy(out, target[samples], label_smoothing=smoothing)
        made.zero_grad()
        loss.backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(own, max_norm)
        made.param_groups[0]["lr"] = rate
        made.step()
        losses.append(loss.item())
    return losses, [p.detach().numpy() for p in own]


def hyper_rows(rule, options, rates):
    """The rows of `hyper` with the options of PyTorch's optimizers."""
    values = {k: v for k, v in options.items() if k != "nesterov"}
    if rule == "adam":
        values |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    hyper, rows = hyper_array(rule, lr=0.0, **values), []
    for rate in rates:
        hyper[0] = rate
        kernels.advance_step(hyper, rule=rule)
        rows.append(hyper.copy())
    return np.array(rows)


@pytest.mark.oracle
def test_training_agrees_with_pytorch():
    rng = np.random.default_rng(2)
    for number in range(20):
        name = list(OPTIMIZERS)[number % len(OPTIMIZERS)]
        kind, rule, options = OPTIMIZERS[name]
        widths = [int(n) for n in rng.integers(1, 12, rng.integers(2, 6))]
        layers, size = chain(
            widths, list(rng.permutation(list(ACTIVATIONS))), bias=bool(number % 3)
        )
        batch, steps, samples = int(rng.integers(1, 9)), 8, 20
        mse, smoothing = bool(number % 2), 0.0
        max_norm = [None, 0.05, 5.0][int(rng.integers(3))]
        if mse:
            target = rng.normal(size=(samples, widths[-1]))
        else:
            target, smoothing = rng.integers(0, widths[-1], samples), float(rng.choice([0, 0.2]))
        order = rng.integers(0, samples, (steps, batch))
        order[-1, max(1, batch // 2) :] = -1
        rates, x = 0.05 * 0.9 ** np.arange(steps), rng.normal(size=(samples, widths[0]))
        parameters = arena(rng, layers, size)
        expected = by_torch(
            x, target, order, parameters, layers, lambda p, k=kind, o=options: k(p, lr=0.1, **o),
            rates, mse, smoothing, max_norm,
        )  # fmt: skip
        states = 2 if rule == "adam" else int("momentum" in options)
        losses, _ = kernels.mlp_train(
            x, target, order, parameters, hyper_rows(rule, options, rates),
            *np.zeros((states, size)), layers=layers, rule=rule, decoupled=name == "adamw",
            nesterov=name == "nesterov", loss="mse" if mse else "cross_entropy",
            label_smoothing=smoothing, max_norm=max_norm,
        )  # fmt: skip
        words = f"{number}: {name}, {widths}, clip {max_norm}"
        np.testing.assert_allclose(losses, expected[0], rtol=1e-7, err_msg=words)
        for own, theirs in zip(parts(parameters, layers), expected[1], strict=True):
            np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-8, err_msg=words)
