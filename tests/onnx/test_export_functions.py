"""ONNX export of functions and of Tensors' methods: onnxruntime gives what gpunn gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import gpunn
import gpunn.nn.functional as F
import gpunn.onnx
from gpunn import nn, where
from gpunn.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

B = "B"  # a batch of 3 in the example, of 4 in the test
X, Y = (B, 4, 6), (B, 6, 5)
TOKENS, HEADS, LINES = ((B, 5), 9), (B, 2, 4, 6), (B, 4, 9)


def _table(rows: int, columns: int):
    return gpunn.linspace(-1, 1, rows * columns).reshape(rows, columns)


def _written(x):
    y = x.clone()
    y[:, 0] = 1.0
    y[:, 1, 2:4] = x[:, 2, :2]
    y[..., -1] = x[..., 0] * 2
    y[0] = 7.0
    y[1:, 3] = x[1:, 0]
    y[:, 2, 1:3] += 3
    y[y > 0.5] = 0.25
    y[x[:, :, 0] < 0] = -1
    return y


def _not_written(x):
    y = x * 1
    y[:, 3:1] = 5.0
    y[:, 2:-2] = 5.0  # of four
    return y


def _resized(x):
    sizes = (0.7, 2.3, 1.1, (1.7, 0.3))  # of 10 and 12, of which 1.1 keeps one and 0.7 rounds one
    return [
        F.interpolate(x, scale_factor=factor, mode=mode, align_corners=corners)
        for factor in sizes
        for mode, corners in (("nearest", None), ("nearest-exact", None), ("bilinear", False),
                              ("bilinear", True))
    ]  # fmt: skip


def _scattered(x):
    y = x * 1
    y[:, [0, 2], [1, 3]] = x[:, 0, :2]
    y[0, ::2] = x[1, :2]
    return y


def _rows_written(x, i):
    y, z = x * 1, x.reshape(-1) * 1
    y[gpunn.arange(x.shape[0]), i] = x[:, 0] * 2
    z[i] = 3.0
    return y, z


def _in_place(x):
    y = x * 2
    y += 1
    y *= x
    y.relu_()
    y.clamp_(0, 3)
    return y.add_(x, alpha=2)


def _into_zeros(x):
    y = gpunn.zeros(x.shape[0], 4, 8)
    y[:, :, 1:7] = x
    y[:, 0, 0] = 5
    return y


LAYER = nn.LSTM(6, 3, bidirectional=True)


def _packed(x):
    packed = pack_padded_sequence(x, [2, 4, 3], batch_first=True, enforce_sorted=False)
    out, states = LAYER(packed)
    return pad_packed_sequence(out, batch_first=True)[0], *states


def _pools(x):
    return (
        F.max_pool1d(x, 2, return_indices=True), F.max_pool1d(x, 2, 2, 1, 2, True),
        F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
        F.avg_pool1d(x, 4, 3, 1, True, divisor_override=5), F.avg_pool1d(x, 4, 3, 1, True, False),
        F.adaptive_avg_pool1d(x, 4), F.adaptive_max_pool1d(x, 4)
    )  # fmt: skip


def _attention(x, lengths):
    attend = F.scaled_dot_product_attention
    return (
        attend(x, x, x), attend(x, x, x, is_causal=True, window=2),
        attend(x, x, x, attn_mask=x[0, 0] @ x[0, 0].mT > 0), attend(x, x, x, kv_lengths=lengths),
        attend(x, x, x, attn_mask=where(x @ x.mT > 0, 0.0, -np.inf), q_lengths=lengths),
        attend(x, x, x, is_causal=True, causal_offset=-2),
        attend(x, x, x, is_causal=True, causal_offset=lengths - 2),
        attend(x, x[:, :1], x[:, :1], enable_gqa=True, scale=0.3),
    )  # fmt: skip


OPERATIONS = {
    "arithmetic": (lambda x, y: (x + y) * 2 - 1 / (x * x + 1), [X, (4, 1)]),
    "power": (lambda x: (x.abs() + 0.1) ** 1.5 + x**2 + 2.0**x, [X]),
    "remainder": (lambda x, y: (x % 0.7, x % y, x // 0.3), [X, X]),
    "extremes": (lambda x, y: gpunn.maximum(x, y) - gpunn.minimum(x, 0.25), [X, X]),
    "where": (lambda x, y: where((x > y) & ~(x < 0) | (y >= 1), x, 3.0), [X, X]),
    "bools": (lambda x, y: where(x > 0, y > 0, y <= -0.5) ^ (x != y), [X, X]),
    "masked_fill": (lambda x: x.masked_fill(x < 0, -5), [X]),
    "unary": (
        lambda x: (x.exp(), x.sin(), x.cos(), x.tan().atan(), x.abs().sqrt(), x.square(),
                   (x.abs() + 1).rsqrt(), x.reciprocal(), -x, x.sigmoid(), x.tanh()), [X],
    ),
    "logarithms": (
        lambda x: ((x.abs() + 0.1).log(), (x.abs() + 0.1).log2(), (x.abs() + 0.1).log10(),
                   x.abs().log1p(), (x * 1e-6).log1p() * 1e6, (x * 1e-6).expm1() * 1e6), [X],
    ),
    "roundings": (
        lambda x: ((x * 3).floor(), (x * 3).ceil(), (x * 3).round(), (x * 3).trunc(), x.sign()),
        [X],
    ),
    "clamp": (lambda x: (x.clamp(-0.5), x.clamp(max=0.2), x.clamp(-0.1, 0.1)), [X]),
    "tests": (lambda x: (gpunn.isnan(x / 0), gpunn.isinf(x / 0), gpunn.isfinite(x / 0)), [X]),
    "integers": (
        lambda x, i: (gpunn.div(x, 0.3, rounding_mode="trunc"), i // 3, i % 3, (i - 4) // 3,
                      (i - 4) % 3, i / 2, i & 3, i == 4), [X, TOKENS],
    ),
    "sums": (
        lambda x: (x.sum(1), x.mean((1, 2)), x.mean(), x.var(2), x.std(0), x.var(), x.prod(1),
                   x.norm(dim=1), x.norm(1, 2), x.norm(3.0, 2)), [X],
    ),
    "largest": (
        lambda x: (x.max(1), x.min(2, True), x.amax((1, 2)), x.argmax(), x.argmin(1), x.max()),
        [X],
    ),
    "any": (lambda x: ((x > 0).any(1), (x > 0).all(2), (x > -9).all(), (x > 0).sum(1)), [X]),
    "running": (lambda x: (x.cumsum(1), x.logsumexp(2), x.logsumexp((1, 2), True)), [X]),
    "gather": (lambda x, i: x.gather(2, i), [X, ((B, 4, 3), 6)]),
    "order": (
        lambda x: (*x.sort(2), *x.sort(1, descending=True), *x.topk(2, 1), x.argsort(2)), [X]
    ),
    "shapes": (
        lambda x: (x.reshape(-1, 3), x.view(x.shape[0], -1), x.permute(2, 0, 1), x.reshape(-1),
                   x.transpose(1, 2).flatten(1), x.unsqueeze(1).expand(-1, 3, -1, -1), x.mT, x.T,
                   x.flip(1, 2), x.repeat(1, 2, 1), x.unflatten(2, (2, 3)), x.moveaxis(0, -1),
                   x[:, :1].squeeze(1), x.reshape(x.shape[0] * 2, 2, 6)), [X],
    ),
    "joining": (
        lambda x, y: (gpunn.cat([x, y], 1), gpunn.stack([x, y], 1), gpunn.cat([x, y], 0),
                      *x.split(3, 2), *x.chunk(2, 1), *x.unbind(1), x.narrow(2, 1, 3)), [X, X],
    ),
    "indexing": (
        lambda x: (x[:, 0], x[:, -1], x[0], x[-1], x[:, 1:3, ::2], x[..., -2:], x[1:], x[::2],
                   x[:, None, :, ::-1], x[:, [0, 2]], x[:, :, [[0, 1], [2, 3]]],
                   x[:, [0, 1], [2, 3]], x[:, [0, 1], None, [2, 3]],
                   x[:, gpunn.tensor([True, False, True, True])],
                   x.index_select(1, gpunn.tensor([2, 0]))), [X],
    ),
    "indexing by inputs": (
        lambda x, i: (x[i], x[gpunn.arange(x.shape[0]), i], x[:, i]), [X, ((B,), 3)]
    ),
    "writing": (_written, [X]),
    "writing anywhere": (_scattered, [(3, 4, 6)]),
    "writing rows": (_rows_written, [X, ((B,), 4)]),
    "in place": (_in_place, [X]),
    "into zeros": (_into_zeros, [X]),
    "triangles": (lambda x: (x.tril(), x.triu(1), x.tril(-1)), [X]),
    "products": (
        lambda x, y: (x @ y, x @ y[0], x[0] @ y, x @ y[0, :, 0], x[0, 0] @ y, gpunn.bmm(x, y),
                      gpunn.outer(x[0, 0], y[0, 0])), [X, Y],
    ),
    "product of integers": (lambda i: i @ gpunn.arange(15).reshape(5, 3), [TOKENS]),
    "softmax": (lambda x: (x.softmax(1), x.log_softmax(-1), F.softmax(x, 0)), [X]),
    "dtypes": (
        lambda x, i: (x.double(), x.long(), x.bool(), i.float() * 2, x.half(), i.to(gpunn.int32)),
        [X, TOKENS],
    ),
    "masks": (lambda i: (F.one_hot(i, 9), F.sequence_mask(i[:, 0], 12)), [TOKENS]),
    "made on the way": (
        lambda x: (x + gpunn.ones_like(x), gpunn.zeros(x.shape[0], 3) + x[:, :3, 0],
                   gpunn.full((x.shape[0], 1), 7), gpunn.arange(x.shape[0]) * 2,
                   x @ gpunn.tril(gpunn.ones(6, 6)), x / x.shape[0]), [X],
    ),
    "isclose": (lambda x, y: gpunn.isclose(x, y, 0.5, 0.1), [X, X]),
    "normalize": (lambda x: (F.normalize(x, dim=2), F.local_response_norm(x, 2)), [X]),
    "activations": (
        lambda x: (F.elu(x, 0.5), F.leaky_relu(x, 0.2), F.selu(x), F.hardswish(x), F.silu(x),
                   F.softplus(x, 2.0, 1.0), F.logsigmoid(x), F.mish(x), F.gelu(x), F.relu(x)), [X],
    ),
    "linear": (lambda x: F.linear(x, _table(3, 6), None, "tanh"), [X]),
    "row norms": (
        lambda x: (F.layer_norm(x, 6), F.rms_norm(x, (4, 6), eps=0.1),
                   *F.add_layer_norm(x, x, 6), *F.add_rms_norm(x, x * 2, 6)), [X],
    ),
    "channel norms": (
        lambda x: (F.group_norm(x, 2), F.instance_norm(x), F.group_norm(x[:, :, 0], 2),
                   F.batch_norm(x, gpunn.zeros(4), gpunn.ones(4), residual=x, activation="relu")),
        [X],
    ),
    "attention": (_attention, [HEADS, ((B,), 5)]),
    "packed attention": (lambda x: F.packed_attention(x, is_causal=True), [(B, 4, 3, 2, 6)]),
    "pooling": (_pools, [LINES]),
    "one image": (lambda x: F.conv1d(x[0], _table(2, 12).reshape(2, 4, 3)), [LINES]),
    "padding": (
        lambda x: (F.pad(x, (1, -1, 0, 2), value=3.0), F.pad(x, (2, 1), "reflect"),
                   F.pad(x, (0, 0, 0, 0, 1, 1)), F.pad(x, (-1, 2), "replicate")), [X],
    ),
    "resizing": (
        lambda x: (F.interpolate(x, 13), F.interpolate(x, 4, mode="linear", align_corners=True),
                   F.interpolate(x, scale_factor=1.5, recompute_scale_factor=True, mode="linear"),
                   F.interpolate(x, 3, mode="nearest-exact")), [X],
    ),
    "resizing by factors": (_resized, [(B, 2, 10, 12)]),
    "rounded down": (lambda x: (x // 0.1, -x // gpunn.tensor([0.1, 0.3, -0.7, 2, 5, 1])), [X]),
    "nothing written": (_not_written, [X]),
    "embedding": (lambda i: F.embedding(i, _table(9, 2)), [TOKENS]),
    "bags": (
        lambda i, w: F.embedding_bag(i, _table(9, 2), mode="sum", per_sample_weights=w),
        [TOKENS, (B, 5)],
    ),
    "bags by their ends": (
        lambda i: F.embedding_bag(i[0], _table(9, 2), gpunn.tensor([0, 0, 2, 4]), mode="max",
                                  include_last_offset=True), [TOKENS],
    ),
    "rotary": (
        lambda x, p: (F.rotary_embedding(x, _table(10, 3), _table(10, 3), offset=2, inverse=True),
                      F.rotary_embedding(x, _table(10, 2), _table(10, 2), p, interleaved=True)),
        [X, ((B, 4), 10)],
    ),
    "packed sequences": (_packed, [(3, 4, 6)]),
    "rows one by one": (lambda x: [row * 2 for row in x.transpose(0, 1)], [X]),
    "gated by inputs": (lambda x, w: nn.functional.linear(x, w), [X, (3, 6)]),
}  # fmt: skip


def _arrays(shapes, batch: int, seed: int) -> list[np.ndarray]:
    rng, found = np.random.default_rng(seed), []
    for shape in shapes:
        most = None
        if isinstance(shape[0], tuple):
            shape, most = shape
        shape = tuple(batch if size == B else size for size in shape)
        found.append(rng.standard_normal(shape).astype(np.float32) if most is None
                     else rng.integers(0, most, shape))  # fmt: skip
    return found


def _flat(result) -> list[np.ndarray]:
    if isinstance(result, gpunn.Tensor):
        return [result.detach().numpy()]
    return [array for part in result for array in _flat(part)]


def _same(function, shapes, opset: int = 20) -> None:
    arrays = _arrays(shapes, 3, 0)
    names = [f"x{number}" for number in range(len(arrays))]
    whole = [shape[0] if isinstance(shape[0], tuple) else shape for shape in shapes]
    axes = {name: {0: "n"} for name, shape in zip(names, whole, strict=True) if shape[0] == B}
    made = gpunn.onnx.export(
        function, tuple(map(gpunn.tensor, arrays)), None, input_names=names, dynamic_axes=axes,
        opset=opset,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(made.SerializeToString())
    arrays = _arrays(shapes, 4 if axes else 3, 1)
    expected = _flat(function(*map(gpunn.tensor, arrays)))
    found = session.run(None, dict(zip(names, arrays, strict=True)))
    for number, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        assert got.dtype == wanted.dtype, number
        np.testing.assert_allclose(
            got.astype(np.float64), wanted.astype(np.float64), 2e-4, 2e-5, err_msg=str(number)
        )


@pytest.mark.parametrize("name", OPERATIONS)
def test_function_in_onnxruntime(name):
    _same(*OPERATIONS[name])


@pytest.mark.parametrize("opset", [18, 23])
def test_oldest_and_newest_opset(opset):
    for name in ("activations", "attention", "row norms", "channel norms", "padding", "resizing"):
        _same(*OPERATIONS[name], opset=opset)


# ---- more than one axis --------------------------------------------------------------------------


def _lines(n, *shape):
    return np.random.default_rng(n).standard_normal(shape).astype(np.float32)


class _Square(nn.Module):
    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        places = gpunn.arange(1, x.shape[1] + 1)[:, None]
        return (x @ x.mT + mask).softmax(-1) + gpunn.tril(gpunn.ones_like(mask)) * places


def _axes_cases():
    from gpunn import models

    time, image = {0: "batch", 1: "time"}, {0: "batch", 2: "height", 3: "width"}
    gpt = models.GPT(models.GPTConfig(13, 64, n_layer=1, n_head=2, n_embd=8))
    attention = nn.MultiheadAttention(8, 4, num_kv_heads=2, batch_first=True)
    line, pixels = _lines(0, 2, 5, 8), _lines(0, 2, 3, 8, 8)
    long, short = (_lines(1, 1, 9, 8),), (_lines(2, 3, 1, 8),)
    yield "GPT", gpt, np.arange(10).reshape(2, 5), time, [(np.arange(64)[None] % 13,)]
    yield "LSTM", nn.LSTM(8, 3, 2, bidirectional=True, batch_first=True), line, time, [long, short]
    yield "attention", lambda x: attention(x, is_causal=True), line, time, [long, short]
    yield "masks", _Square(), line, time, [long, short]
    yield "rotary", nn.RotaryEmbedding(8), line, time, [long, short]
    yield "waves", nn.SinusoidalPositionalEncoding(8, 40), line, time, [long, short]
    yield "UNet", models.UNet(3, 2, 4, 2), pixels, image, [(_lines(1, 1, 3, 12, 20),)]
    yield "pooling", nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ), _lines(0, 2, 3, 12, 12), image, [(_lines(1, 1, 3, 13, 19),)]  # fmt: skip
    yield (
        "upsampling",
        nn.Upsample(scale_factor=2.5, mode="bilinear"),
        pixels,
        image,
        [(_lines(1, 1, 3, 5, 7),)],
    )
    for mode in ("nearest", "nearest-exact", "bilinear"):
        layer = nn.Upsample(scale_factor=(2.3, 1.1), mode=mode)
        yield mode, layer, pixels, image, [(_lines(1, 1, 3, 31, 33),), (_lines(1, 1, 3, 5, 7),)]
    yield "variance", lambda x: x.var((0, 1)), line, time, [long]
    yield "shapes", lambda x: x.reshape(x.shape[0] * x.shape[1], 8)[:, :3].reshape(
        x.shape[0], x.shape[1] * 3), line, time, [long, short]  # fmt: skip


@pytest.mark.parametrize("case", list(_axes_cases()), ids=lambda case: case[0])
def test_several_dynamic_axes(case):
    _, model, example, axes, others = case
    made = gpunn.onnx.export(model, gpunn.tensor(example), None, dynamic_axes={"input": axes})
    session = onnxruntime.InferenceSession(made.SerializeToString())
    if isinstance(model, nn.Module):
        model.eval()
    for arrays in others:
        expected = _flat(model(*map(gpunn.tensor, arrays)))
        found = session.run(None, {"input": arrays[0]})
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, 1e-3, 1e-4)


# ---- other dtypes --------------------------------------------------------------------------------


def _networks():
    yield nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.LayerNorm(4), nn.Softmax()), (2, 6)
    yield nn.MultiheadAttention(6, 2), (3, 2, 6)
    yield nn.Sequential(nn.GroupNorm(2, 4), nn.ReplicationPad1d(1), nn.RMSNorm(8)), (3, 4, 6)


def _networks_of_16_bits():
    yield from _networks()
    yield nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, activation="relu"), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2)
    ), (2, 3, 8, 8)  # fmt: skip
    yield nn.LSTM(6, 4), (3, 2, 6)
    yield nn.Sequential(nn.Mish(), nn.GELU(), nn.Hardswish(), nn.Softplus()), (3, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float16", 1e-2)])
def test_float64_and_float16(dtype, tolerance):
    gpunn.manual_seed(0)
    for network, shape in _networks() if dtype == "float64" else _networks_of_16_bits():
        network = network.to(dtype).eval()
        x = gpunn.randn(*shape).to(dtype)
        made = gpunn.onnx.export(network, x, None)
        session = onnxruntime.InferenceSession(made.SerializeToString())
        found = session.run(None, {"input": x.numpy()})[0]
        expected = _flat(network(x))[0]
        assert found.dtype == expected.dtype == np.dtype(dtype)
        np.testing.assert_allclose(found.astype(float), expected.astype(float), tolerance,
                                   tolerance)  # fmt: skip


class _Widened(nn.Module):
    """The first result in float32, so that NumPy can take it out of onnxruntime."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        found = self.network(x)
        return (found[0] if isinstance(found, tuple) else found).float()


def test_bfloat16_is_rounded_where_gpunn_rounds():
    gpunn.manual_seed(0)
    kind = onnx.TensorProto.BFLOAT16
    for network, shape in _networks_of_16_bits():
        network = _Widened(network).bfloat16().eval()
        x = gpunn.randn(*shape).bfloat16()
        made = gpunn.onnx.export(network, x, None)
        kinds = {tensor.data_type for tensor in made.graph.initializer if "weight" in tensor.name}
        assert kinds <= {kind}  # half the bytes in the file
        session = onnxruntime.InferenceSession(made.SerializeToString())
        given = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            x.numpy().view(np.uint16), kind
        )
        found = session.run_with_ort_values(None, {"input": given})[0].numpy()
        np.testing.assert_allclose(found, network(x).detach().numpy(), 4e-2, 4e-2)
