"""Models of the zoo written as ONNX and read again: the same weights get the same gradients."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.onnx
from gpunn import models

pytest.importorskip("onnx")

IMAGES = (3, 3, 16, 16)
CASES = {
    "MLP": (lambda: models.MLP(5, [8], 3), [(4, 5)]),
    "LeNet": (lambda: models.LeNet(4, 1, 16), [(2, 1, 16, 16)]),
    "ResNet9": (lambda: models.ResNet9(4, width=4), [IMAGES]),
    "UNet": (lambda: models.UNet(3, 2, 4, 2), [IMAGES]),
    "LSTMClassifier": (lambda: models.LSTMClassifier(4, 3, 6, 2, True), [(3, 5, 4)]),
    "LSTMLanguageModel": (lambda: models.LSTMLanguageModel(11, 8, 8), [((3, 5), 11)]),
    "Seq2Seq": (lambda: models.Seq2Seq(9, 8, 6, 8), [((2, 5), 9), ((2, 4), 8)]),
    "GPT": (
        lambda: models.GPT(models.GPTConfig(13, 8, n_layer=2, n_head=2, n_embd=8, dropout=0.0)),
        [((2, 6), 13)],
    ),
    "ViT": (lambda: models.ViT(4, 16, 8, dim=8, depth=2, heads=2), [IMAGES]),
}  # fmt: skip


def pair(name: str):
    """(a model, what came back of it, tensors to run both on)"""
    gpunn.manual_seed(0)
    make, shapes = CASES[name]
    model = make()
    inputs = [
        gpunn.randint(1, shape[1], shape[0]) if isinstance(shape[0], tuple) else gpunn.randn(*shape)
        for shape in shapes
    ]
    loaded = gpunn.onnx.load(gpunn.onnx.export(model, tuple(inputs), None, dynamic_batch=True))
    return model, loaded, inputs


def gradients(model, inputs) -> dict:
    model.zero_grad()
    out = model(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    (out * out).mean().backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def matching(name: str, expected: dict) -> np.ndarray:
    """The gradient of the weight `name` of the file; of recurrent layers sorted, as the gates are
    in another order there and both biases in one."""
    if not name.endswith(".onnx"):
        return expected[name]
    name = name.removesuffix(".onnx")
    parts = [expected[name]]
    if "bias_ih" in name:
        parts.append(expected[name.replace("bias_ih", "bias_hh")])
    return np.sort(np.concatenate(parts).reshape(-1))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same(name):
    model, loaded, inputs = pair(name)
    expected, found = gradients(model.eval(), inputs), gradients(loaded, inputs)
    assert set(found) == {weight for weight, _ in loaded.named_parameters()}
    for weight, got in found.items():
        if weight == "constant":  # GPT's positions, of a length that does not vary: rows of a table
            wanted = expected["transformer.wpe.weight"][:6]
        else:
            wanted = matching(weight, expected)
        got = np.sort(got.reshape(-1)) if weight.endswith(".onnx") else got
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * scale, err_msg=weight)


def test_training_goes_on_with_the_statistics_of_batches():
    """In training mode, too, a network with BatchNormalization computes what it did before."""
    model, loaded, inputs = pair("ResNet9")
    expected, found = model.train()(*inputs), loaded.train()(*inputs)
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-4
    )
    state, again = model.state_dict(), loaded.state_dict()
    moved = [name for name in again if name.endswith(("running_mean", "running_var"))]
    assert len(moved) > 8
    for name in moved:
        np.testing.assert_allclose(again[name].numpy(), state[name].numpy(), rtol=1e-3, atol=1e-5)
