"""ONNX's own tests of operators, run by gpunn; what does not pass is listed with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402

from gpunn.onnx import load, report  # noqa: E402
from gpunn.onnx.backend import GpunnBackend  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"


@pytest.fixture(scope="module")
def results():
    return report.run()


def test_every_test_passes_or_is_listed(results):
    """All that gpunn accepts passes, but for a table of exceptions that has no entry too many."""
    failed = {row.name: row.reason for row in results if row.outcome == "failed"}
    unknown = {name: reason for name, reason in failed.items() if name not in report.EXCLUDED}
    assert unknown == {}
    assert set(failed) == set(report.EXCLUDED) & {row.name for row in results}
    assert sum(row.outcome == "passed" for row in results) > 0.9 * len(results)


def test_what_is_refused_is_refused_by_name(results):
    """A model that is not run names the operator, its version and what to look at."""
    refused = [row for row in results if row.outcome == "unsupported"]
    assert {row.operator for row in refused} >= {"DFT", "NonMaxSuppression", "StringSplit"}
    for row in refused:
        assert "opset" in row.reason and "gpunn" in row.reason, row


def test_the_page_has_these_results(results):
    """docs/onnx.md shows them as `python -m gpunn.onnx.report docs/onnx.md` writes them."""
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    if f"in onnx {onnx.__version__} pass" not in shown:
        pytest.skip(f"the page was written with another version than {onnx.__version__}")
    assert shown == report.table(results).strip()


def test_on_the_emulator():
    """Values on a device and on the host never meet by accident: a family of each kind."""
    rows = []
    for name in (
        "test_gather", "test_scatter_elements", "test_slice", "test_onehot_w", "test_expand_dim",
        "test_range_f", "test_loop11", "test_lstm_with_p", "test_compress", "test_topk",
        "test_batchnorm_ex", "test_resize_down", "test_dynamicq", "test_reversesequence",
    ):  # fmt: skip
        rows += report.run("emulator", only=name)
    assert len(rows) > 40
    assert {row.name: row.reason for row in rows if row.outcome != "passed"} == {}


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_whole_networks_of_onnx(name):
    """The networks that ONNX brings, with weights made in the graph, give the outputs it brings."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    path = folder / f"light_{name}.onnx"
    proto = onnx.load(path)
    initial = {tensor.name for tensor in proto.graph.initializer}
    inputs = [
        Runner.generate_dummy_data(value) for value in proto.graph.input
        if value.name not in initial
    ]  # fmt: skip
    expected = onnx.numpy_helper.to_array(onnx.load_tensor(folder / f"light_{name}_output_0.pb"))
    found = load(path)(*inputs)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-7)


def test_the_interface_of_a_backend():
    """`run_node` and `run_model` as onnx.backend.base describes them."""
    node = helper.make_node("Sub", ["a", "b"], ["c"])
    (found,) = GpunnBackend.run_node(node, [np.float32([5, 3]), np.float32([1, 1])])
    np.testing.assert_array_equal(found, [4, 2])
    twice = helper.make_node("Mul", ["a", "a"], ["c"])
    (found,) = GpunnBackend.run_node(twice, [np.int64([3]), np.int64([3])], opset_version=13)
    np.testing.assert_array_equal(found, [9])
    assert GpunnBackend.supports_device("CPU") and not GpunnBackend.supports_device("TPU")


@pytest.mark.gpu
def test_on_a_gpu():
    """All of it on a GPU, but for numbers of eight bits and fewer, which CuPy does not have."""
    small = re.compile(r"float[468]|FLOAT[468]|u?int[24](_|$)|U?INT[24](_|$)|e[2-8]m[0-3]", re.A)
    failed = {row.name: row.reason for row in report.run("CUDA") if row.outcome == "failed"}
    exact = {name for name in failed if "fp16" not in name and not small.search(name)}
    assert {name: failed[name] for name in exact - set(report.EXCLUDED)} == {}
