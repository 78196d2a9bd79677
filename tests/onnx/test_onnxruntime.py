"""`gpunn.onnx.load` beside onnxruntime, where rounding, versions and names decide the result."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import gpunn
import gpunn.onnx
from gpunn.errors import UnsupportedError

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper, shape_inference  # noqa: E402

BOOL, FLOAT, INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64
node, info = helper.make_node, helper.make_tensor_value_info


def _model(nodes, inputs, outputs, weights=(), opset=18):
    graph = helper.make_graph(
        nodes, "test", [info(*each) for each in inputs],
        [helper.make_empty_tensor_value_info(each) if isinstance(each, str) else info(*each)
         for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return shape_inference.infer_shapes(made)


def _same(model, given) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = gpunn.onnx.load(model)(**given)
    found = found if isinstance(found, tuple) else (found,)
    for got, wanted in zip(found, session.run(None, given), strict=True):
        got = got.detach().numpy()
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-5)


@pytest.mark.parametrize("mode, coordinates, scales", [
    ("nearest", "half_pixel", (0.6, 1.3)), ("nearest", "asymmetric", (0.7, 0.7)),
    ("linear", "half_pixel", (0.7, 1.3)), ("cubic", "pytorch_half_pixel", (0.1, 0.7)),
])  # fmt: skip
def test_sizes_by_scales(mode, coordinates, scales):
    """0.7 and 1.3 of 10 are 7 and 13, though their nearest float32 are less."""
    resize = node("Resize", ["x", "", "s"], ["y"], mode=mode, nearest_mode="floor",
                  coordinate_transformation_mode=coordinates)  # fmt: skip
    model = _model([resize], [("x", FLOAT, [1, 2, 10, 10])], ["y"],
                   [("s", np.float32([1, 1, *scales]))])  # fmt: skip
    _same(model, {"x": gpunn.randn(1, 2, 10, 10).numpy()})


@pytest.mark.parametrize("policy, sizes", [("not_larger", (1, 1)), ("not_smaller", (1, 5))])
def test_sizes_that_keep_the_ratio(policy, sizes):
    resize = node("Resize", ["x", "", "", "s"], ["y"], mode="linear", axes=[2, 3],
                  keep_aspect_ratio_policy=policy)  # fmt: skip
    model = _model([resize], [("x", FLOAT, [1, 2, 7, 9])], ["y"], [("s", np.int64(sizes))])
    _same(model, {"x": gpunn.randn(1, 2, 7, 9).numpy()})


def _branch(name: str, factor: float):
    return helper.make_graph(
        [node("Mul", ["x", "w"], [name])], name, [], [info(name, FLOAT, [1])],
        [numpy_helper.from_array(np.float32([factor]), "w")],
    )  # fmt: skip


@pytest.mark.parametrize("chosen", [True, False])
def test_weights_of_one_name_in_several_branches(chosen):
    nodes = [
        node("If", ["c"], [name], then_branch=_branch(f"{name}1", first),
             else_branch=_branch(f"{name}2", first + 1))
        for name, first in (("a", 2), ("b", 4))
    ]  # fmt: skip
    model = _model(nodes, [("x", FLOAT, [1]), ("c", BOOL, [])], ["a", "b"])
    assert len(gpunn.onnx.load(model).state_dict()) == 4
    _same(model, {"x": np.float32([1]), "c": np.array(chosen)})


@pytest.mark.parametrize("steps", [0, 2])
def test_what_a_loop_collects(steps):
    body = helper.make_graph(
        [node("Identity", ["c"], ["c2"]), node("Add", ["s", "i"], ["s2"]),
         node("Identity", ["s2"], ["row"])],
        "body", [info("i", INT64, []), info("c", BOOL, []), info("s", INT64, [2])],
        [info("c2", BOOL, []), info("s2", INT64, [2]), info("row", INT64, [2])],
    )  # fmt: skip
    loop = node("Loop", ["n", "", "s"], ["last", "rows"], body=body)
    outputs = [("last", INT64, [2]), ("rows", INT64, [None, 2])]
    model = _model([loop], [("n", INT64, []), ("s", INT64, [2])], outputs)
    _same(model, {"n": np.array(steps), "s": np.int64([5, 6])})


def test_a_loop_without_an_end_is_refused():
    body = helper.make_graph(
        [node("Identity", ["c"], ["c2"]), node("Identity", ["s"], ["s2"])], "body",
        [info("i", INT64, []), info("c", BOOL, []), info("s", INT64, [2])],
        [info("c2", BOOL, []), info("s2", INT64, [2])],
    )  # fmt: skip
    model = _model([node("Loop", ["", "", "s"], ["y"], body=body)], [("s", INT64, [2])],
                   [("y", INT64, [2])])  # fmt: skip
    with pytest.raises(UnsupportedError, match="Loop.* never ends"):
        gpunn.onnx.load(model)


def test_outputs_are_the_callers():
    """Writing to an output changes neither the weights nor what is remembered of the shapes."""
    model = gpunn.onnx.load(_model(
        [node("Shape", ["x"], ["shape"]), node("Identity", ["k"], ["kept"])],
        [("x", FLOAT, ["n", 2])], ["shape", "kept"], [("k", np.int64([1, 2]))],
    ))  # fmt: skip
    for _ in range(2):
        shape, kept = model(np.ones((3, 2), np.float32))
        assert (shape.tolist(), kept.tolist()) == ([3, 2], [1, 2])
        shape[0] = kept[0] = 99


def test_statistics_of_old_versions_are_updated_in_training():
    norm = node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], momentum=0.5)
    numbers = {"s": 1, "b": 0, "m": 0, "v": 1}
    weights = [(name, np.full(1, value, np.float32)) for name, value in numbers.items()]
    model = gpunn.onnx.load(_model([norm], [("x", FLOAT, [2, 1])], ["y"], weights, opset=6))
    x = np.float32([[1], [3]])
    np.testing.assert_allclose(model(x).detach().numpy(), x, 1e-4)
    np.testing.assert_allclose(model.train()(x).detach().numpy(), [[-1], [1]], 1e-4)
    assert model.state_dict()["m"].item() == 1


def test_the_checker_sees_no_weights_that_lie_in_another_file(tmp_path, monkeypatch):
    """They may be more than one message of protobuf holds."""
    model = _model([node("Add", ["x", "w"], ["y"])], [("x", FLOAT, [2])], ["y"],
                   [("w", np.float32([1, 2]))])  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    seen, check = [], onnx.checker.check_model
    monkeypatch.setattr(onnx.checker, "check_model", lambda m: (seen.append(m), check(m)))
    assert gpunn.onnx.load(path)([1.0, 1.0]).tolist() == [2, 3]
    assert seen == [str(path)]


@pytest.mark.parametrize("op", ["Erf", "Asinh", "Cosh", "Det", "Mod"])
def test_operators_without_a_function_of_gpunn_are_exported_again(op):
    more = {"fmod": 1} if op == "Mod" else {}
    inputs = ["x", "b"] if op == "Mod" else ["x"]
    model = _model([node(op, inputs, ["y"], **more)], [("x", FLOAT, [2, 2])], ["y"],
                   [("b", np.float32([0.7, -0.3]))], opset=20)  # fmt: skip
    loaded, x = gpunn.onnx.load(model), gpunn.randn(2, 2)
    again = gpunn.onnx.export(loaded, x, None)
    assert [each.op_type for each in again.graph.node] == [op]
    found = onnxruntime.InferenceSession(again.SerializeToString()).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found[0], loaded(x).detach().numpy(), 1e-5, 1e-6)
