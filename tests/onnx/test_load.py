"""`gpunn.onnx.load`: weights that train, modes, names, and files that are not what they say."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import optim
from gpunn.errors import FileFormatError, UnsupportedError

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from gpunn.onnx import load  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def made(nodes, inputs, outputs, weights=None, opset=17, **more):
    """A model of `nodes`; inputs and outputs are names with shapes, all float32 unless said."""

    def values(given):
        kinds = {n: kind if isinstance(kind, tuple) else (FLOAT, kind) for n, kind in given.items()}
        return [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]

    tensors = [numpy_helper.from_array(a, name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", values(inputs), values(outputs), tensors)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def network():
    """What an exporter makes of a small network: convolution, norm, shapes at run time, Gemm."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], pads=[1, 1, 1, 1], name="/conv"),
        node("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Shape", ["d"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Unsqueeze", ["batch", "first"], ["batches"]),
        node("Concat", ["batches", "rest"], ["sizes"], axis=0),
        node("Reshape", ["d", "sizes"], ["e"]),
        node("Mul", ["e", "scale"], ["f"]),
        node("Gemm", ["f", "head.weight", "head.bias"], ["y"], transB=1),
    ]

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32) * 0.5

    weights = {
        "conv.weight": normal(4, 2, 3, 3), "conv.bias": normal(4),
        "bn.weight": np.ones(4, np.float32), "bn.bias": np.zeros(4, np.float32),
        "bn.mean": normal(4), "bn.var": np.full(4, 2, np.float32),
        "zero": np.int64(0), "first": np.int64([0]), "rest": np.int64([-1]),
        "scale": np.float32(2.0), "head.weight": normal(3, 4), "head.bias": normal(3),
    }  # fmt: skip
    return made(nodes, {"x": ["N", 2, 5, 5]}, {"y": ["N", 3]}, weights)


def test_weights_under_their_names():
    """Weights are Parameters, statistics, scalars and indices buffers; all are in the state."""
    model, proto = load(network()), network()
    assert [name for name, _ in model.named_parameters()] == [
        "conv.weight", "conv.bias", "bn.weight", "bn.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    state = model.state_dict()
    assert set(state) == {tensor.name for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        np.testing.assert_array_equal(state[tensor.name].numpy(), numpy_helper.to_array(tensor))
    assert model.input_names == ["x"] and not model.training
    frozen = load(network(), buffers=["conv.weight"])
    assert "conv.weight" not in dict(frozen.named_parameters())
    with pytest.raises(ValueError, match="nothing"):
        load(network(), buffers=["nothing"])


def test_fine_tuning_lowers_the_loss():
    """Gradients reach every weight; statistics follow in training; a copy stays as it was."""
    gpunn.manual_seed(0)
    model = load(network())
    before = copy.deepcopy(model)
    x, target = gpunn.randn(16, 2, 5, 5), gpunn.randint(0, 3, (16,))
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    model.train()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.6 * losses[0]
    old, new = before.state_dict(), model.state_dict()
    for name in ("bn.mean", "bn.var", "conv.weight"):
        assert np.abs(old[name].numpy() - new[name].numpy()).max() > 1e-3
    model.eval().load_state_dict(old)
    np.testing.assert_array_equal(model(x).detach().numpy(), before(x).detach().numpy())


def test_evaluation_is_what_the_file_says_and_training_is_not():
    """Dropout drops and BatchNormalization looks at the batch only after `.train()`."""
    ratio = numpy_helper.from_array(np.float32(0.5), "ratio")
    proto = made([helper.make_node("Dropout", ["x", "ratio"], ["y"])], {"x": [1000]}, {"y": [1000]})
    proto.graph.initializer.append(ratio)
    model, x = load(proto), gpunn.ones(1000)
    assert model(x).numpy().min() == 1
    assert set(np.unique(model.train()(x).numpy())) == {0.0, 2.0}
    y = load(network()).train()(gpunn.randn(8, 2, 5, 5) + 100).detach().numpy()
    assert np.abs(y).max() < 50  # the running statistics would have left the 100 in


def test_other_devices_and_integers_that_change():
    """The same on the emulator; loaded integers are used, not those of the file."""
    model, x = load(network()), np.random.default_rng(1).normal(size=(3, 2, 5, 5))
    expected = model(x).detach().numpy()  # a NumPy array of another float type is converted
    moved = load(network(), device="emulator")
    np.testing.assert_allclose(moved(x).detach().cpu().numpy(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'x' is on cpu and the model on emulator"):
        moved(gpunn.tensor(x, dtype=gpunn.float32))
    indices = {"at": np.int64([0, 2])}
    node = helper.make_node("Gather", ["x", "at"], ["y"], axis=0)
    for device in ("cpu", "emulator"):
        picks = load(made([node], {"x": [3]}, {"y": [2]}, indices), device=device)
        assert picks([1.0, 2.0, 3.0]).tolist() == [1, 3]
        picks.load_state_dict({"at": np.int64([1, 1])})
        assert picks([1.0, 2.0, 3.0]).tolist() == [2, 2]


def test_what_follows_from_shapes_is_made_once_for_each():
    """Half of these steps only make sizes; they are left out when the shapes come again."""
    model = load(network())
    reference = load(network())
    for batch, seed in [(3, 0), (3, 1), (5, 2), (3, 3), (5, 4)]:
        x = np.random.default_rng(seed).normal(size=(batch, 2, 5, 5)).astype(np.float32)
        reference._memory = type(reference._memory)()
        found, expected = model(x).detach().numpy(), reference(x).detach().numpy()
        np.testing.assert_array_equal(found, expected)
    records = list(model._memory._records.values())
    assert len(model._graph.steps) == 11 and [len(r.steps) for r in records] == [7, 7]
    node = helper.make_node
    nodes = [node("NonZero", ["x"], ["n"]), node("Shape", ["n"], ["y"])]  # by values, not by shapes
    counts = load(made(nodes, {"x": [3]}, {"y": (INT64, [2])}))
    assert counts([1.0, 0.0, 2.0]).tolist() == [1, 2] and counts([1.0, 1.0, 1.0])[1] == 3


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_a_compiled_step(device):
    """Fine-tuning as a compiled step: the same losses, nothing left that a replay could not do."""
    losses = []
    for compiled in (False, True):
        model = load(network(), device=device).train()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run, rng = gpunn.compile(step) if compiled else step, np.random.default_rng(0)
        for _ in range(5):
            x = gpunn.tensor(rng.standard_normal((4, 2, 5, 5), dtype=np.float32), device=device)
            losses.append(run(x, gpunn.tensor(rng.integers(0, 3, 4), device=device)).item())
    assert losses[:5] == losses[5:] and losses[4] != losses[0]


def test_inputs_by_name_and_wrong_ones():
    """Keywords, a default that a weight gives, several outputs; errors that name the input."""
    nodes = [helper.make_node("Split", ["z"], ["p", "q"], axis=0),
             helper.make_node("Add", ["x", "b"], ["z"])][::-1]  # fmt: skip
    proto = made(nodes, {"x": [4], "b": [4]}, {"p": [2], "q": [2]}, {"b": np.ones(4, np.float32)},
                 opset=13)  # fmt: skip
    model = load(proto)
    assert model.input_names == ["x"]
    p, q = model(x=[1.0, 2.0, 3.0, 4.0])
    assert (p.tolist(), q.tolist()) == ([2, 3], [4, 5])
    p, q = model(gpunn.zeros(4), b=gpunn.full(4, 7.0))
    assert p.tolist() == [7, 7]
    for arguments, named, words in [
        ((), {}, "needs x"),
        (([1.0], [2.0]), {}, "takes 1 inputs"),
        ((), {"y": [1.0]}, "has no input 'y'; its inputs are x"),
        (([[1.0]],), {}, "expected 1 dimensions"),
        ((np.arange(4),), {}, "has dtype int64; expected float32"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            model(*arguments, **named)
    with pytest.raises(ValueError) as caught:  # an error inside says in which node
        model([1.0, 2.0, 3.0])
    assert any("(Add, opset 13)" in note for note in caught.value.__notes__)


def test_graphs_in_nodes_and_functions():
    """A loop with weights of its own, learned through; a function of the model written out."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Mul", ["h", "w"], ["h2"]),
         helper.make_node("Add", ["h2", "x"], ["h3"])],
        "body",
        [helper.make_tensor_value_info("i", INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h", FLOAT, [1])],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h3", FLOAT, [1])],
        [numpy_helper.from_array(np.float32([3.0]), "w")],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    model = load(made(nodes, {"x": [1], "n": (INT64, [])}, {"y": [1]}))
    x = gpunn.tensor([2.0], requires_grad=True)
    y = model(x, np.int64(2))  # (2 w + 2) w + 2
    y.backward()
    (weight,) = model.parameters()
    assert (y.item(), weight.grad.item(), x.grad.item()) == (26, 14, 13)
    function = helper.make_function(
        "mine", "double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto = made([helper.make_node("double", ["x"], ["y"], domain="mine")], {"x": [1]}, {"y": [1]})
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    assert load(proto)([4.0]).item() == 8


@pytest.mark.parametrize("op, inputs, weights, attributes, opset", [
    ("Einsum", 2, {}, {"equation": "bij,bkj->bik"}, 17),
    ("Erf", 1, {}, {}, 17),
    ("Acosh", 1, {}, {}, 17),
    ("Mod", 2, {}, {"fmod": 1}, 17),
    ("Celu", 1, {}, {"alpha": 0.7}, 17),
    ("PRelu", 2, {}, {}, 17),
    ("LpPool", 1, {}, {"kernel_shape": [2], "p": 3, "auto_pad": "SAME_LOWER"}, 18),
    ("AveragePool", 1, {}, {"kernel_shape": [2], "dilations": [2], "ceil_mode": 1}, 22),
    ("ConvTranspose", 2, {}, {"strides": [2], "pads": [0, 2]}, 17),
    ("Resize", 1, {"": None, "scales": np.float32([1, 1, 1.7])}, {"mode": "cubic"}, 18),
    ("ScatterElements", 2, {}, {"reduction": "add"}, 18),
    ("CumProd", 1, {"axis": np.int64(2)}, {"reverse": 1, "exclusive": 1}, 26),
    ("LayerNormalization", 1, {"s": np.float32([2, 1, 3])}, {"epsilon": 0.1}, 17),
    ("LRN", 1, {}, {"size": 2, "alpha": 0.5}, 17),
    ("MeanVarianceNormalization", 1, {}, {"axes": [2]}, 17),
    ("Det", 1, {}, {}, 17),
    ("Swish", 1, {}, {"alpha": 1.5}, 24),
    ("GRU", 3, {}, {"hidden_size": 2, "clip": 0.9, "direction": "reverse"}, 17),
    ("GridSample", 2, {}, {"padding_mode": "reflection"}, 16),
    ("Attention", 3, {}, {"softcap": 0.8, "is_causal": 1, "q_num_heads": 1, "kv_num_heads": 1}, 23),
])  # fmt: skip
def test_gradients_of_what_is_put_together(op, inputs, weights, attributes, opset):
    """Against finite differences in float64."""
    rng = np.random.default_rng(3)
    shapes = {
        "Det": [(2, 3, 3)], "GRU": [(2, 2, 3), (1, 6, 3), (1, 6, 2)],
        "GridSample": [(1, 2, 3, 3), (1, 2, 2, 2)],
    }.get(op, [(2, 2, 3)] * inputs)  # fmt: skip
    given = [rng.uniform(1.2, 2.5, shape) for shape in shapes]
    if op in ("GRU", "GridSample"):
        given = [x - 1.8 for x in given]
    if op == "PRelu":
        given = [given[0] - 1.9, given[1]]
    names = [f"x{number}" for number in range(inputs)]
    arguments = [*names, *weights]
    if op == "ScatterElements":
        weights = {"at": np.int64([[[0, 1, 0], [1, 1, 0]]] * 2)}
        arguments, attributes = ["x0", "at", "x1"], {**attributes, "axis": 1}
    doubles = {
        name: array.astype(np.float64) if name == "s" else array
        for name, array in weights.items() if array is not None
    }  # fmt: skip
    kinds = [(TensorProto.DOUBLE, list(x.shape)) for x in given]
    proto = made(
        [helper.make_node(op, arguments, ["y"], **attributes)],
        dict(zip(names, kinds, strict=True)),
        {"y": (TensorProto.DOUBLE, [])}, doubles, opset,
    )  # fmt: skip
    proto.ir_version = 10
    model = load(proto)
    tensors = [gpunn.tensor(x, requires_grad=True) for x in given]
    assert gpunn.gradcheck(lambda *xs: model(*xs), tensors)


def test_what_gpunn_lacks_is_refused_by_name():
    """One sentence: the node, the operator, the version, and what there is instead."""

    def refused(nodes, opset=17, **more):
        with pytest.raises(UnsupportedError) as caught:
            load(made(nodes, {"x": [1, 1, 4]}, {"y": []}, opset=opset, **more))
        return str(caught.value)

    text = refused([helper.make_node("NonMaxSuppression", ["x", "x"], ["y"], name="boxes")])
    assert "node 'boxes' (NonMaxSuppression, opset 17)" in text and "docs/onnx.md" in text
    text = refused([helper.make_node("Upsample", ["x"], ["y"], height_scale=2.0, width_scale=1.0,
                                     name="up")], opset=6)  # fmt: skip
    assert "(Upsample, opset 6)" in text and "for the versions 7 to 8, 9 to" in text
    text = refused([helper.make_node("RNN", ["x", "x", "x"], ["y"], hidden_size=1,
                                     activations=["Cube"])])  # fmt: skip
    assert "attribute 'activations' names 'cube'" in text and "hardsigmoid" in text
    node = helper.make_node("Rocket", ["x"], ["y"], domain="com.acme")
    proto = made([node], {"x": [1]}, {"y": [1]})
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(UnsupportedError, match=r"no operators of the domain 'com.acme'"):
        load(proto)


def test_files_that_are_damaged_or_foreign(tmp_path):
    """Each is refused by a sentence that names the file; nothing is read outside its folder."""
    path = tmp_path / "model.onnx"
    whole = network().SerializeToString()
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    rng = np.random.default_rng(0)
    broken = [b"", b"\x89PNG\r\n\x1a\n" * 9, b"hello", whole[: len(whole) // 2], b"\x08\x08"]
    for _ in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            changed[place] = rng.integers(0, 256)
        broken.append(bytes(changed))
    for data in broken:
        path.write_bytes(data)
        try:
            load(path)  # some changes only touch a number
        except (FileFormatError, UnsupportedError) as error:
            assert str(path) in str(error) or "tensor" in str(error) or "model" in str(error)
    short = network()
    short.graph.initializer[0].raw_data = short.graph.initializer[0].raw_data[:-4]
    with pytest.raises(FileFormatError):
        load(short)


def test_weights_in_other_files(tmp_path):
    """External data is read from the model's folder alone, and as much as the shape asks for."""
    proto = network()
    path = tmp_path / "model.onnx"
    onnx.save_model(copy.deepcopy(proto), path, save_as_external_data=True, location="model.data",
                    size_threshold=0)  # fmt: skip
    x = gpunn.randn(2, 2, 5, 5)
    expected = load(proto)(x).detach().numpy()
    np.testing.assert_array_equal(load(path)(x).detach().numpy(), expected)
    secret = tmp_path.parent / "secret.data"
    secret.write_bytes(bytes(4096))
    (tmp_path / "link.data").symlink_to(secret)
    saved = onnx.load(path, load_external_data=False)
    outside = ("../secret.data", str(secret), "link.data", "a/../../secret.data", "C:\\x", "")
    for location in outside:
        _point(saved.graph.initializer[0], location)
        path.write_bytes(saved.SerializeToString())
        with pytest.raises(FileFormatError, match="folder"):
            load(path)
    _point(saved.graph.initializer[0], "gone.data")
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(FileNotFoundError, match="gone.data"):
        load(path)
    (tmp_path / "short.data").write_bytes(bytes(10))
    _point(saved.graph.initializer[0], "short.data")
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(FileFormatError, match="has 288 bytes"):
        load(path)
    with pytest.raises(FileFormatError, match="no folder"):
        load(saved)


def _point(tensor, location: str) -> None:
    """Make external data of a tensor lie at the start of another file."""
    del tensor.external_data[:]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
