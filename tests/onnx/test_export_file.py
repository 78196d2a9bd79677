"""ONNX export: files, names, what is refused, and that the model is left as it was."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import onnx
import onnxruntime
import pytest

import gpunn
import gpunn.nn.functional as F
import gpunn.onnx
from gpunn import nn
from gpunn.autograd.function import Function
from gpunn.onnx import ExportError, saving


def _network():
    gpunn.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(), nn.Linear(96, 3))


def test_file_names_metadata_and_weights(tmp_path):
    model, x = _network(), gpunn.randn(2, 64)
    path = tmp_path / "model.onnx"
    gpunn.onnx.export(
        model, x, path, input_names=["features"], output_names="logits", dynamic_batch=True,
        metadata={"classes": 3},
    )  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    made = onnx.load(path)
    assert (made.producer_name, made.producer_version) == ("gpunn", gpunn.__version__)
    assert (made.ir_version, made.opset_import[0].version) == (9, 20)
    assert made.graph.name == "Sequential" and made.doc_string.startswith("Modules run one after")
    assert [node.name for node in made.graph.node] == ["/0/Gemm", "/0/Relu", "/3/Gemm"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())
    session = onnxruntime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map == {"classes": "3"}
    assert session.get_inputs()[0].shape == ["batch", 64]
    assert session.get_outputs()[0].name == "logits"


def test_a_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        gpunn.onnx.export(nn.ReLU(), gpunn.ones(2), path)
    assert path.read_text() == "mine"
    gpunn.onnx.export(nn.ReLU(), gpunn.ones(2), path, overwrite=True)
    onnx.checker.check_model(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        gpunn.onnx.export(nn.ReLU(), gpunn.ones(2), tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ExportError):
        gpunn.onnx.export(lambda x: x[x > 0], gpunn.randn(5), tmp_path / "none.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_large_weights_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "EXTERNAL", 10_000)
    model, x = _network().eval(), gpunn.randn(2, 64)
    made = gpunn.onnx.export(model, x, tmp_path / "m.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 5000
    assert len(made.SerializeToString()) < 5000
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected, 1e-5, 1e-6)
    loaded = gpunn.onnx.load(tmp_path / "m.onnx")
    np.testing.assert_allclose(loaded(x).detach().numpy(), expected, 1e-5, 1e-6)
    with pytest.raises(ValueError, match="give a path"):
        gpunn.onnx.export(model, x, None)


class _Named(nn.Module):
    def forward(self, tokens, state, scale=1, skip=None):
        h, c = state
        return {"logits": tokens.float() * scale + h, "state": [c * 1, None]}


def test_nested_arguments_and_results():
    inputs = {"tokens": np.array([[1, 2]]), "state": (gpunn.ones(1, 2), gpunn.zeros(1, 2)),
              "scale": 3, "skip": None}  # fmt: skip
    made = gpunn.onnx.export(_Named(), inputs, None)
    assert [node.name for node in made.graph.input] == ["tokens", "state_0", "state_1"]
    assert [node.name for node in made.graph.output] == ["logits", "state_0_out"]
    session = onnxruntime.InferenceSession(made.SerializeToString())
    state = np.full((1, 2), 2, np.float32)
    found = session.run(None, {"tokens": inputs["tokens"], "state_0": state, "state_1": state})
    np.testing.assert_array_equal(found[0], [[5, 8]])


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    model[1].eval()
    before = {name: (t._array, t.numpy().copy()) for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    originals = Function.apply.__func__, nn.Module.__call__
    arrays = [parameter._array for parameter in model.parameters()]

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            raise KeyError(float(self.model(x).sum().item() > 0))

    gpunn.onnx.export(model, gpunn.randn(2, 1, 4, 4), None)
    for broken, error in ((Broken(), KeyError), (nn.Sequential(model, _Item()), ExportError)):
        with pytest.raises(error):
            gpunn.onnx.export(broken, gpunn.randn(2, 1, 4, 4), None)
    assert (Function.apply.__func__, nn.Module.__call__) == originals
    assert [module.training for module in model.modules()] == modes
    assert all(p._array is a for p, a in zip(model.parameters(), arrays, strict=True))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name][1])


class _Item(nn.Module):
    def forward(self, x):
        return x * x.max().item()


class _Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", gpunn.zeros(1))
        self.register_buffer("last", gpunn.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean() + self.calls
        return x * self.calls


def test_buffers_that_forward_writes_are_as_before():
    model = _Writing()
    last = model.last
    made = gpunn.onnx.export(model, gpunn.ones(2), None)
    assert (model.calls.item(), model.last is last, last.item()) == (0, True, 0)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    for _ in range(2):
        found = session.run(None, {"input": np.float32([3, 5])})[0]
        np.testing.assert_array_equal(found, [3, 5])


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(9, 4)
        self.first = nn.Parameter(gpunn.zeros(1, 1, 4))

    def forward(self, tokens):
        x = self.words(tokens) + self.places(gpunn.arange(tokens.shape[1]))
        x = gpunn.cat([self.first.expand(x.shape[0], 1, 4), x], 1)
        return x @ self.words.weight.T


@pytest.mark.parametrize("axes", [{}, {0: "batch", 1: "time"}])
def test_parameters_keep_their_names_where_their_elements_are_moved(axes):
    model, tokens = _Tied(), np.array([[1, 2, 3], [4, 5, 6]])
    made = gpunn.onnx.export(model, tokens, None, dynamic_axes={"input": axes})
    shapes = {tensor.name: tuple(tensor.dims) for tensor in made.graph.initializer}
    weights = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert weights.items() <= shapes.items()
    assert sum(len(shape) > 1 for shape in shapes.values()) == 3  # no copies of them
    session = onnxruntime.InferenceSession(made.SerializeToString())
    expected = model(gpunn.tensor(tokens)).detach().numpy()
    found = session.run(None, {"input": tokens})[0]
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


def test_a_model_exported_by_several_threads():
    model, failed = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), []

    def export():
        try:
            for _ in range(3):
                gpunn.onnx.export(model, gpunn.ones(2, 3), None)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=export) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and all(module.training for module in model.modules())


def test_tables_that_layers_keep_are_ordinary_afterwards():
    layer = nn.RotaryEmbedding(4)
    gpunn.onnx.export(layer, gpunn.randn(2, 3, 4), None)
    assert all(type(t._array) is np.ndarray for pair in layer._tables.values() for t in pair)


def test_a_model_on_another_device():
    model = nn.Linear(3, 2).to("emulator")
    made = gpunn.onnx.export(model, gpunn.ones(1, 3, device="emulator"), None)
    assert model.weight.device.type == "emulator"
    session = onnxruntime.InferenceSession(made.SerializeToString())
    expected = model.to("cpu")(gpunn.ones(1, 3)).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"input": np.ones((1, 3), np.float32)})[0],
                               expected, 1e-5)  # fmt: skip


# ---- what is refused -----------------------------------------------------------------------------


class _Conditional(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class _Own(Function):
    def forward(self, x):
        return x + 1


def _stale(x):
    y = x * 2
    row = y[1]
    y[0] = 1.0
    return row * 2


def _taken(x):
    return gpunn.tensor(np.from_dlpack(x)) * 2


def _unknown_size(x):
    return x + gpunn.ones(x.shape[0] // 2, x.shape[0] // 2).tril().sum()


def _leaked(x):
    return x * float(np.asarray(x.array).max())


class _Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


REFUSED = [
    (nn.Sequential(nn.Linear(4, 4), _Conditional()), {}, "^export: 1 uses a condition"),
    (_Item(), {}, "the model uses .*item"),
    (lambda x: x[x > 0], {}, "uses Index.*number of elements that a mask picks depends on values"),
    (lambda x: x.unique(), {}, "numpy.unique.*shape of its result depends on values"),
    (lambda x: x + gpunn.randn(2, 4), {}, r"array of shape \(2, 4\) .*at random"),
    (lambda x: F.dropout(x), {}, "training=self.training"),
    (_stale, {}, "written in place since it was made"),
    (_leaked, {}, "argument of Mul in the model is 8.0"),
    (lambda x: gpunn.tensor(gpunn.kernels.softmax_forward(x.array)), {}, "kernel softmax_forward"),
    (_taken, {}, "DLPack.* reads a value that depends on the inputs"),
    (_unknown_size, {"dynamic_batch": True}, "no sum of products of these sizes"),
    (lambda x: F.mse_loss(x, x * 2), {}, "losses belong to training"),
    (lambda x: _Own.apply(x), {}, "function _Own of .* only gpunn's own"),
    (lambda x: sum(row for row in x), {"dynamic_axes": {"input": [0]}}, "takes another path"),
    (lambda x: x[: x.shape[0] // 2], {"dynamic_batch": True}, "no sum of products of these sizes"),
    (
        lambda x: x * (1 / x.shape[0]),
        {"dynamic_batch": True},
        "argument of Mul in the model is 0.5",
    ),
    (lambda x: x.reshape(4, 2), {"dynamic_batch": True}, "does not run with other sizes.*batch = "),
    (_Counting(), {}, "number that was 2 in one run of the model and 3 in another"),
    (lambda x: 3, {}, "returns a int"),
    (lambda x: None, {}, "returns no Tensor"),
    (nn.AdaptiveAvgPool1d(2), {"dynamic_axes": {"input": {1: "time"}}}, "adaptive pooling"),
]


@pytest.mark.parametrize(("model", "options", "text"), REFUSED)
def test_what_onnx_cannot_say_is_refused(model, options, text):
    with pytest.raises(ExportError, match=text):
        gpunn.onnx.export(model, gpunn.tensor([[1.0, -2, 3, 4], [5, 6, -7, 8]]), None, **options)


WRONG = [
    ({"opset": 17}, ValueError, "opset is 17; expected 18 to 23"),
    ({"opset": "20"}, ValueError, "opset is '20'"),
    ({"input_names": ["a", "b"]}, ValueError, "input_names are .* the example has 1 tensors"),
    ({"output_names": ["a", "b"]}, ValueError, "output_names are .* returns 1 tensors"),
    ({"output_names": "input"}, ValueError, "'input' is that of two things"),
    ({"input_names": ["weight"]}, ValueError, "'weight' is that of two things"),
    ({"dynamic_axes": {"x": [0]}}, ValueError, "name the input 'x'; the inputs are input"),
    ({"dynamic_axes": {"input": [2]}}, ValueError, r"axis 2 of 'input', which has the shape"),
    ({"dynamic_axes": {"input": {0: "n", 1: "n"}}}, ValueError, "'n' has the sizes 2 and 4"),
    ({"inputs": ()}, ValueError, "inputs hold no Tensor"),
    ({"inputs": (gpunn.ones(2, 5),)}, ValueError, "linear: input has shape"),
    ({"inputs": (gpunn.ones(2, 4), gpunn.ones(1))}, TypeError, "positional arguments"),
    ({"model": 3}, TypeError, "model is int"),
]


@pytest.mark.parametrize(("options", "error", "text"), WRONG)
def test_wrong_use(options, error, text):
    options = {"model": nn.Linear(4, 2), "inputs": gpunn.ones(2, 4), **options}
    with pytest.raises(error, match=text):
        gpunn.onnx.export(path=None, **options)


def test_onnx_is_imported_when_it_is_needed():
    code = (
        "import sys, gpunn, gpunn.onnx\n"
        "assert 'onnx' not in sys.modules\n"
        "sys.modules['onnx'] = None\n"
        "try: gpunn.onnx.export(gpunn.nn.ReLU(), gpunn.ones(2), None)\n"
        "except ImportError as error: assert \"pip install 'gpunn[onnx]'\" in str(error)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
