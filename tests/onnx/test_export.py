"""ONNX export of every layer: onnxruntime gives what gpunn gives, at other batch sizes too."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import gpunn
import gpunn.onnx
from gpunn import nn

# What ONNX cannot express, or what is no part of a model that predicts.
OUTSIDE = {
    **dict.fromkeys(
        "BCELoss BCEWithLogitsLoss CTCLoss CrossEntropyLoss HuberLoss L1Loss LinearCrossEntropyLoss"
        " MSELoss NLLLoss QuantileLoss SmoothL1Loss".split(),
        "a loss belongs to training",
    ),
    "KeyValueCache": "memory between calls: an ONNX graph has none; give the state as inputs",
    "Module": "the base class",
    "Parameter": "no layer",
}
FUNCTIONS = {"ctc_beam_decode", "ctc_greedy_decode", "functional", "init", "utils"}


@dataclass
class Case:
    """A layer, and its inputs by their shapes: B is the batch; a pair (shape, n) is integers < n"""

    layer: Any
    shapes: list
    axes: list | None = None  # where the batch is in each input
    atol: float = 1e-5
    arguments: dict = field(default_factory=dict)
    opset: int = 20
    batches: tuple = (1, 5)


B = "B"
SEQUENCE, IMAGE, VOLUME = (B, 4, 9), (B, 4, 7, 6), (B, 4, 5, 6, 4)
SPATIAL = {1: SEQUENCE, 2: IMAGE, 3: VOLUME}


def _image_cases():
    for n, shape in SPATIAL.items():
        last = (B, *shape[2:], 4)
        conv, transposed = getattr(nn, f"Conv{n}d"), getattr(nn, f"ConvTranspose{n}d")
        yield f"Conv{n}d", Case(lambda c=conv: c(4, 6, 3, stride=2, padding=1), [shape])
        yield (
            f"Conv{n}d-groups-last",
            Case(
                lambda c=conv: c(4, 6, 2, dilation=2, groups=2, bias=False, channels_last=True),
                [last],
            ),
        )
        yield f"Conv{n}d-same", Case(lambda c=conv: c(4, 4, 2, padding="same"), [shape])
        for mode in ("reflect", "replicate", "circular"):
            yield (
                f"Conv{n}d-{mode}",
                Case(lambda c=conv, m=mode: c(4, 4, 3, padding=2, padding_mode=m), [shape]),
            )
        yield (
            f"ConvTranspose{n}d",
            Case(
                lambda c=transposed: c(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
                [shape],
            ),
        )
        for kind in ("Avg", "Max"):
            pool, adaptive, whole = (
                getattr(nn, f"{prefix}{kind}Pool{n}d") for prefix in ("", "Adaptive", "Global")
            )
            yield f"{kind}Pool{n}d", Case(lambda p=pool: p(3, 2, 1), [shape])
            yield (
                f"{kind}Pool{n}d-ceil",
                Case(lambda p=pool: p(3, 2, 1, ceil_mode=True, channels_last=True), [last]),
            )
            yield f"Adaptive{kind}Pool{n}d", Case(lambda a=adaptive: a(3), [shape])
            yield f"Global{kind}Pool{n}d", Case(lambda w=whole: w(), [shape])
        yield f"MaxUnpool{n}d", Case(lambda n=n: _Unpool(n), [shape])
        yield (
            f"AdaptiveMaxPool{n}d-indices",
            Case(lambda n=n: getattr(nn, f"AdaptiveMaxPool{n}d")(3, return_indices=True), [shape]),
        )
        for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero"):
            layer = getattr(nn, f"{kind}Pad{n}d")
            more = (2.5,) if kind == "Constant" else ()
            sides = tuple(range(1, 3)) * n
            yield f"{kind}Pad{n}d", Case(lambda k=layer, s=sides, m=more: k(s, *m), [shape])
        norm, instance = getattr(nn, f"BatchNorm{n}d"), getattr(nn, f"InstanceNorm{n}d")
        yield f"BatchNorm{n}d", Case(lambda k=norm: _used(k(4)), [shape])
        yield f"InstanceNorm{n}d", Case(lambda k=instance: k(4, affine=True), [shape])
        yield (
            f"InstanceNorm{n}d-running",
            Case(
                lambda k=instance: _used(k(4, track_running_stats=True, channels_last=True)), [last]
            ),
        )


def _used(norm):
    """A norm whose running statistics are no longer those at first."""
    norm.running_mean[...] = gpunn.linspace(-1, 1, 4)
    norm.running_var[...] = gpunn.linspace(0.5, 2, 4)
    return norm


class _Unpool(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{n}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{n}d")(2)

    def forward(self, x):
        values, indices = self.pool(x)
        return self.unpool(values, indices, output_size=x.shape[2:]), indices


def _plain_cases():
    vector, rows = (B, 8), (B, 5, 8)
    yield "Linear", Case(lambda: nn.Linear(8, 3), [vector])
    yield "Linear-rows", Case(lambda: nn.Sequential(nn.Linear(8, 3), nn.GELU()), [rows])
    for name in ("ELU GELU SELU Hardswish LeakyReLU LogSigmoid Mish ReLU Sigmoid SiLU "
                 "Softplus Tanh Softmax LogSoftmax Identity").split():  # fmt: skip
        yield name, Case(getattr(nn, name), [vector])
    yield "GELU-tanh", Case(lambda: nn.GELU("tanh"), [vector])
    yield "GELU-18", Case(lambda: nn.GELU(), [vector], opset=18)
    yield "GELU-tanh-18", Case(lambda: nn.GELU("tanh"), [vector], opset=18)
    yield "CircularPad2d-18", Case(lambda: nn.CircularPad2d(2), [IMAGE], opset=18)
    yield "Softplus-beta", Case(lambda: nn.Softplus(2.0, 5.0), [vector])
    yield "Softmax-first", Case(lambda: nn.Softmax(1), [rows])
    yield "Dropout", Case(lambda: nn.Dropout(0.5), [vector])
    yield "Dropout1d", Case(lambda: nn.Dropout1d(0.5), [SEQUENCE])
    yield "Dropout2d", Case(lambda: nn.Dropout2d(0.5), [IMAGE])
    yield "Flatten", Case(nn.Flatten, [rows])
    yield "Unflatten", Case(lambda: nn.Unflatten(1, (2, -1)), [vector])
    yield "Sequential", Case(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), [vector])
    yield "ModuleList", Case(lambda: _Several(nn.ModuleList([nn.Linear(8, 8)])), [vector])
    yield "ModuleDict", Case(lambda: _Several(nn.ModuleDict({"a": nn.Linear(8, 8)})), [vector])
    yield "LayerNorm", Case(lambda: nn.LayerNorm((5, 8)), [rows])
    yield "LayerNorm-plain", Case(lambda: nn.LayerNorm(8, elementwise_affine=False), [rows])
    yield "RMSNorm", Case(lambda: nn.RMSNorm(8), [rows])
    yield "BatchNorm1d-vectors", Case(lambda: _used(nn.BatchNorm1d(4, activation="silu")), [(B, 4)])
    yield (
        "BatchNorm1d-no-statistics",
        Case(lambda: nn.BatchNorm1d(4, track_running_stats=False), [SEQUENCE]),
    )
    yield "GroupNorm", Case(lambda: nn.GroupNorm(2, 4), [IMAGE])
    yield "GroupNorm-21", Case(lambda: nn.GroupNorm(2, 4), [IMAGE], opset=21)
    yield (
        "GroupNorm-last",
        Case(lambda: nn.GroupNorm(2, 4, activation="relu", channels_last=True), [(B, 7, 6, 4)]),
    )
    yield "LocalResponseNorm", Case(lambda: nn.LocalResponseNorm(3), [IMAGE])
    yield "Embedding", Case(lambda: nn.Embedding(11, 4, padding_idx=0), [((B, 6), 11)])
    yield "Embedding-max-norm", Case(lambda: nn.Embedding(11, 4, max_norm=1.0), [((B, 6), 11)])
    for mode in ("sum", "mean", "max"):
        yield (
            f"EmbeddingBag-{mode}",
            Case(lambda m=mode: nn.EmbeddingBag(11, 4, mode=m, padding_idx=0), [((B, 3), 11)]),
        )
        yield f"EmbeddingBag-{mode}-offsets", Case(
            lambda m=mode: _Bags(nn.EmbeddingBag(11, 4, mode=m)), [((12,), 11), ((B,), 1)],
            axes=[None, 0],
        )  # fmt: skip
    yield "EmbeddingBag", Case(lambda: nn.EmbeddingBag(11, 4), [((B, 3), 11)])
    yield "LearnedPositionalEncoding", Case(lambda: nn.LearnedPositionalEncoding(8, 9), [rows])
    yield (
        "SinusoidalPositionalEncoding",
        Case(
            lambda: nn.SinusoidalPositionalEncoding(8, 9, batch_first=False), [(5, B, 8)], axes=[1]
        ),
    )
    for interleaved in (False, True):
        yield (
            f"RotaryEmbedding-{interleaved}",
            Case(
                lambda i=interleaved: nn.RotaryEmbedding(6, interleaved=i, seq_dim=1),
                [(B, 5, 2, 8)],
            ),
        )
    yield "RotaryEmbedding", Case(lambda: nn.RotaryEmbedding(8), [(B, 2, 5, 8)])


class _Several(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        for layer in self.layers.values() if hasattr(self.layers, "values") else self.layers:
            x = layer(x) + x
        return x


class _Bags(nn.Module):
    """Bags of two entries each, by their offsets: the input counts from 0."""

    def __init__(self, bag):
        super().__init__()
        self.bag = bag

    def forward(self, tokens, zeros):
        return self.bag(tokens, (zeros + 1).cumsum(0) * 2 - 2)


def _resizing_cases():
    yield "Upsample", Case(lambda: nn.Upsample(scale_factor=2), [IMAGE])
    for mode in ("nearest", "nearest-exact", "area"):
        yield f"Upsample-{mode}-size", Case(lambda m=mode: nn.Upsample((5, 13), mode=m), [IMAGE])
    yield (
        "Upsample-factor",
        Case(lambda: nn.Upsample(scale_factor=(1.7, 0.6), mode="bilinear"), [IMAGE]),
    )
    yield "Upsample-linear", Case(lambda: nn.Upsample(13, mode="linear"), [SEQUENCE])
    yield (
        "Upsample-trilinear",
        Case(
            lambda: nn.Upsample((3, 9, 8), mode="trilinear", channels_last=True), [(B, 5, 6, 4, 4)]
        ),
    )
    yield "UpsamplingNearest2d", Case(lambda: nn.UpsamplingNearest2d(scale_factor=3), [IMAGE])
    yield "UpsamplingBilinear2d", Case(lambda: nn.UpsamplingBilinear2d((9, 4)), [IMAGE])


def _recurrent_cases():
    for name in ("RNN", "LSTM", "GRU"):
        kind, cell = getattr(nn, name), getattr(nn, f"{name}Cell")
        states = [(4, B, 3)] * (2 if name == "LSTM" else 1)
        yield name, Case(lambda k=kind: k(6, 3, 2, batch_first=True, bidirectional=True),
                         [(B, 5, 6)])  # fmt: skip
        yield f"{name}-states", Case(
            lambda k=kind: _WithState(k(6, 3, 2, bidirectional=True)), [(5, B, 6), *states],
            axes=[1, 1, 1][: 1 + len(states)],
        )  # fmt: skip
        yield f"{name}-lengths", Case(
            lambda k=kind: _WithLengths(k(6, 3, bidirectional=True)), [(5, B, 6), ((B,), 5)],
            axes=[1, 0],
        )  # fmt: skip
        yield f"{name}Cell", Case(lambda c=cell: c(6, 3), [(B, 6)])
    yield "RNN-relu", Case(lambda: nn.RNN(6, 3, nonlinearity="relu", bias=False), [(5, B, 6)],
                           axes=[1])  # fmt: skip


class _WithState(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *states):
        return self.layer(x, states if len(states) == 2 else states[0])


class _WithLengths(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, less):
        return self.layer(x, lengths=less + 1)


def _attention_cases():
    rows = (B, 5, 8)
    yield "MultiheadAttention", Case(lambda: nn.MultiheadAttention(8, 2, batch_first=True), [rows])
    yield "MultiheadAttention-causal", Case(
        lambda: nn.MultiheadAttention(8, 4, num_kv_heads=2, batch_first=True), [rows],
        arguments={"is_causal": True, "need_weights": False},
    )  # fmt: skip
    yield "MultiheadAttention-cross", Case(
        lambda: _Cross(nn.MultiheadAttention(8, 2, kdim=6, vdim=6)), [(5, B, 8), (4, B, 6),
                                                                      ((B, 4), 2)],
        axes=[1, 1, 0],
    )  # fmt: skip
    options = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "batch_first": True}
    yield "TransformerEncoderLayer", Case(
        lambda: nn.TransformerEncoderLayer(**options, norm_first=True), [rows],
        arguments={"is_causal": True},
    )  # fmt: skip
    yield (
        "TransformerDecoderLayer",
        Case(lambda: nn.TransformerDecoderLayer(**options, activation="gelu"), [rows, (B, 4, 8)]),
    )
    yield (
        "TransformerEncoder",
        Case(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), 2), [rows]),
    )
    yield (
        "TransformerDecoder",
        Case(
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), 2),
            [rows, (B, 4, 8)],
        ),
    )
    yield (
        "Transformer",
        Case(lambda: nn.Transformer(8, 2, 1, 1, 12, batch_first=True), [rows, (B, 4, 8)]),
    )


class _Cross(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query, memory, padding):
        return self.attention(query, memory, memory, key_padding_mask=padding == 1)


def _model_cases():
    from gpunn import models

    image = (B, 3, 16, 16)
    yield "MLP", Case(lambda: models.MLP(8, (6, 5), 3, dropout=0.1), [(B, 8)])
    yield "LeNet", Case(lambda: models.LeNet(), [(B, 1, 28, 28)])
    yield "ResNet9", Case(lambda: models.ResNet9(5, width=4), [image], atol=1e-4)
    yield "ResNet18", Case(lambda: models.ResNet18(5, small_images=True), [(B, 3, 8, 8)],
                           atol=1e-3, batches=(4,))  # fmt: skip
    yield "UNet", Case(lambda: models.UNet(3, 2, width=4, depth=2), [image], atol=1e-4)
    yield "ViT", Case(lambda: models.ViT(5, 16, 8, dim=12, depth=1), [image])
    yield (
        "LSTMClassifier",
        Case(
            lambda: models.LSTMClassifier(6, 3, 5, vocabulary=11, bidirectional=True),
            [((B, 4), 11)],
        ),
    )
    yield "LSTMLanguageModel", Case(lambda: models.LSTMLanguageModel(11, 6, 6), [((B, 4), 11)])
    yield (
        "Seq2Seq",
        Case(
            lambda: _Translation(models.Seq2Seq(11, 9, 6, 4)),
            [((B, 5), 11), ((B, 4), 9), ((B,), 5)],
        ),
    )
    yield (
        "GPT",
        Case(
            lambda: models.GPT(models.GPTConfig(13, 12, n_layer=2, n_head=2, n_embd=8)),
            [((B, 6), 13)],
        ),
    )


class _Translation(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, target, less):
        return self.model(source, target, less + 1)


CASES = {
    name: case
    for cases in (_image_cases, _plain_cases, _resizing_cases, _recurrent_cases, _attention_cases)
    for name, case in cases()
}
MODELS = dict(_model_cases())
ALL = {**CASES, **MODELS}


def _inputs(case: Case, batch: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for shape in case.shapes:
        most = None
        if isinstance(shape[-1], int) and isinstance(shape[0], tuple):
            shape, most = shape
        shape = tuple(batch if size == B else size for size in shape)
        if most is None:
            found.append(rng.standard_normal(shape).astype(np.float32))
        else:
            found.append(rng.integers(0, most, shape))
    return found


def _flat(result) -> list[np.ndarray]:
    if isinstance(result, gpunn.Tensor):
        return [result.detach().numpy()]
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in _flat(part)]
    return []


@functools.cache
def _exported(name: str):
    """(the layer, what was written of it)"""
    case = ALL[name]
    gpunn.manual_seed(0)
    layer = case.layer()

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *tensors):
            return self.layer(*tensors, **case.arguments)

    called = Called()
    arrays = _inputs(case, 3, 0)
    names = [f"x{number}" for number in range(len(arrays))]
    axes = zip(names, case.axes or [0] * len(names), strict=True)
    made = gpunn.onnx.export(
        called, tuple(map(gpunn.tensor, arrays)), None, input_names=names, opset=case.opset,
        dynamic_axes={name: {axis: "batch"} for name, axis in axes if axis is not None},
    )  # fmt: skip
    assert called.training and layer.training
    called.eval()
    return called, made


@pytest.mark.parametrize("name", ALL)
def test_onnxruntime_and_load_give_the_same(name):
    case = ALL[name]
    called, made = _exported(name)
    loaded = gpunn.onnx.load(made).eval()
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    for batch in case.batches:
        arrays = _inputs(case, batch, batch)
        tensors = tuple(map(gpunn.tensor, arrays))
        expected = _flat(called(*tensors))
        found = session.run(None, dict(zip(names, arrays, strict=True)))
        again = _flat(loaded(*tensors))
        for got, back, wanted in zip(found, again, expected, strict=True):
            assert got.dtype == back.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=case.atol)
            np.testing.assert_allclose(back, wanted, rtol=1e-4, atol=case.atol)


@pytest.mark.parametrize("name", ["Conv2d-circular", "MaxUnpool2d", "LSTM-lengths", "ViT", "GPT"])
def test_a_loaded_model_is_exported_again(name):
    case = ALL[name]
    called, made = _exported(name)
    names = [node.name for node in made.graph.input]
    axes = zip(names, case.axes or [0] * len(names), strict=True)
    again = gpunn.onnx.export(
        gpunn.onnx.load(made), tuple(map(gpunn.tensor, _inputs(case, 3, 1))), None,
        input_names=names, dynamic_axes={key: {axis: "batch"} for key, axis in axes},
    )  # fmt: skip
    arrays = _inputs(case, 4, 2)
    session = onnxruntime.InferenceSession(again.SerializeToString())
    found = session.run(None, dict(zip(names, arrays, strict=True)))
    expected = _flat(called(*map(gpunn.tensor, arrays)))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_every_public_layer_is_exported_or_listed_as_outside():
    layers = {
        name for name in nn.__all__ if name not in FUNCTIONS and isinstance(getattr(nn, name), type)
    }
    exported = {name.partition("-")[0] for name in CASES}
    assert exported | set(OUTSIDE) == layers
    assert not exported & set(OUTSIDE)
    from gpunn import models

    networks = {name for name in models.__all__ if hasattr(getattr(models, name), "forward")}
    assert {name.partition("-")[0] for name in MODELS} == networks


def test_every_function_of_autograd_has_a_converter_or_is_a_loss():
    from gpunn.autograd.function import Function
    from gpunn.onnx import recording, table

    def below(kind):
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    left = {
        kind.__name__ for kind in below(Function)
        if kind.__module__.startswith("gpunn.autograd.functions.")
        and kind.__module__.rpartition(".")[2] not in recording._LOSSES
        and table.converter_of(kind.__name__) is None
    }  # fmt: skip
    bases = {"Binary", "Extreme", "Unary", "ImageFunction", "_RowNorm", "_ChannelNorm"}
    assert left == bases | {"SyncBatchNorm"}  # of ranks that train; evaluation is BatchNorm


def test_the_table_of_operators_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|$", text, re.M)
    listed = {
        layer: set(operators.split(", "))
        for layers, operators in rows for layer in re.findall(r"`(\w+)`", layers)
    }  # fmt: skip
    for name in {name.partition("-")[0] for name in CASES} - {"ModuleList", "ModuleDict"}:
        kinds = {node.op_type for node in _exported(name)[1].graph.node}
        assert listed.get(name) == kinds, name
    for name in OUTSIDE:
        assert f"`{name}`" in text
