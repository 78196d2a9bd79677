"""Networks that PyTorch exported: gpunn gives PyTorch's outputs and gradients."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from gpunn.onnx import load  # noqa: E402

pytestmark = pytest.mark.oracle


def convolutions():
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.GELU(), nn.GroupNorm(2, 8),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Hardswish(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5), nn.LogSoftmax(-1),
    )  # fmt: skip


class Recurrent(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 6)
        self.layers = kind(6, 7, 2, bidirectional=True, batch_first=True)
        self.head = torch.nn.Linear(14, 3)

    def forward(self, tokens):
        y, _ = self.layers(self.embedding(tokens))
        return self.head(y)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.embedding = nn.Embedding(30, 16)
        self.positions = nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 30)

    def forward(self, tokens):
        h = self.embedding(tokens) + self.positions[:, : tokens.shape[1]]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(h, mask=mask, is_causal=True))


def images(batch):
    return torch.randn(batch, 3, 12, 12)


def tokens(batch):
    return torch.randint(0, 20, (batch, 9))


@pytest.mark.parametrize("make, draw, opset, axes", [
    (convolutions, images, 11, {0: "b"}),
    (convolutions, images, 18, {0: "b"}),
    (lambda: Recurrent(torch.nn.LSTM), tokens, 17, {0: "b", 1: "t"}),
    (lambda: Recurrent(torch.nn.GRU), tokens, 14, {0: "b", 1: "t"}),
    (Encoder, tokens, 17, {0: "b"}),
])  # fmt: skip
def test_exported_networks(make, draw, opset, axes):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # layers that start equal would share their weights in the file
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    file, x = io.BytesIO(), draw(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), file, dynamo=False, opset_version=opset, input_names=["x"],
            dynamic_axes={"x": axes},
        )  # fmt: skip
    loaded = load(onnx.load_from_string(file.getvalue()))
    for batch in (2, 3):
        x = draw(batch)
        expected, found = model(x), loaded(x.numpy())
        np.testing.assert_allclose(
            found.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=2e-6
        )
    expected.square().sum().backward()
    (found * found).sum().backward()
    weights, compared = dict(loaded.named_parameters()), 0
    for name, parameter in model.named_parameters():
        if name in weights and weights[name].shape == tuple(parameter.shape):
            wanted = parameter.grad.numpy()
            np.testing.assert_allclose(
                weights[name].grad.numpy(), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max()
            )
            compared += 1
    assert compared >= 2 and all(w.grad is not None for w in weights.values())
