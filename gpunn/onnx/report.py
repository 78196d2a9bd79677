"""Which of ONNX's own tests of operators pass: ``python -m gpunn.onnx.report docs/onnx.md``.

The package onnx brings models with inputs and outputs: one or more for each operator, written-out
definitions of operators, and small models that PyTorch exported. This runs them all in one process
and writes the table of results between two markers of a page.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from gpunn.autograd.random import get_rng_state, manual_seed, set_rng_state
from gpunn.errors import UnsupportedError
from gpunn.io.atomic import write_text
from gpunn.onnx.backend import GpunnBackend
from gpunn.onnx.operators import names, versions

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
BEGIN, END = "<!-- onnx-tests begin -->", "<!-- onnx-tests end -->"

_RANDOM = "compares what is random with the numbers of NumPy's generator"
_HALF = "float16: one unit in the last place, as our sums are rounded once at their end"

# Tests of operators that gpunn has which do not pass, and why. A test of the suite holds this table
# to be exact: whatever else fails is an error, and so is an entry that passes.
EXCLUDED = {
    "test_attention_4d_causal_fp16_expanded": _HALF,
    "test_bernoulli": _RANDOM,
    "test_bernoulli_double": _RANDOM,
    "test_bernoulli_double_expanded": _RANDOM,
    "test_bernoulli_expanded": _RANDOM,
    "test_bernoulli_seed": _RANDOM,
    "test_bernoulli_seed_expanded": _RANDOM,
    "test_training_dropout": _RANDOM,
    "test_training_dropout_default": _RANDOM,
    "test_training_dropout_default_mask": _RANDOM,
    "test_training_dropout_mask": _RANDOM,
}


class Result(NamedTuple):
    """One test: the operator that it is about ("" for a model of several), and what came of it."""

    name: str
    kind: str
    operator: str
    outcome: str  # "passed", "failed" or "unsupported"
    reason: str


def run(device: str = "CPU", only: str = "") -> list[Result]:
    """Run the tests of ONNX whose names contain `only`; a Result for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own arithmetic
        cases = [(kind, case) for kind in KINDS for case in load_model_tests(kind=kind)]
    before = get_rng_state()
    manual_seed(0)
    try:
        return [_result(kind, case, device) for kind, case in cases if only in case.name]
    finally:
        set_rng_state(before)


def _result(kind: str, case: Any, device: str) -> Result:
    model = case.model
    if model is None:
        model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
    operator = _subject(model) if kind == "node" else ""
    try:
        prepared = GpunnBackend.prepare(model, device)
    except UnsupportedError as error:
        return Result(case.name, kind, operator, "unsupported", str(error))
    try:
        for inputs, expected in _data(model, case):
            _compare(expected, prepared.run(inputs), case)
    except Exception as error:  # whatever goes wrong is a test that failed
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Result(case.name, kind, operator, "failed", text)
    return Result(case.name, kind, operator, "passed", "")


def _subject(model: Any) -> str:
    """The operator of a model with one node beside constants, "" for a model of several."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    if len(nodes) > 1 or len(model.graph.node) == 0:
        return ""
    node = nodes[0] if nodes else model.graph.node[0]
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _data(model: Any, case: Any) -> Iterator[tuple[list, list]]:
    """(inputs, expected outputs) of a test."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield list(map(_array, inputs)), list(map(_array, outputs))
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        yield _read(folder, "input", model.graph.input), _read(folder, "output", model.graph.output)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _read(folder: Path, what: str, declared: Any) -> list:
    found = []
    for number, value in enumerate(declared):
        path = folder / f"{what}_{number}.pb"
        if not path.exists():
            break
        if value.type.HasField("sequence_type"):
            sequence = onnx.SequenceProto()
            sequence.ParseFromString(path.read_bytes())
            found.append(numpy_helper.to_list(sequence))
        else:
            found.append(_array(onnx.load_tensor(str(path))))
    return found


def _compare(expected: list, found: tuple, case: Any) -> None:
    """Raise AssertionError by ONNX's own comparison."""
    flat_expected, flat_found = [], []
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, list):  # which the comparison takes apart only where no item is 0-d
            assert isinstance(other, list) and len(one) == len(other), "another list is expected"
            flat_expected += map(np.asarray, one)
            flat_found += other
        else:
            flat_expected.append(one)
            flat_found.append(other)
    Runner.assert_similar_outputs(flat_expected, flat_found, case.rtol, case.atol)


# ---- the page ------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """The results as markdown."""
    by_operator: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.operator:
            by_operator[result.operator].append(result)
    several = [result for result in results if not result.operator]
    lacking = sorted(name for name, rows in by_operator.items() if not _has(name, rows))
    have = sorted({*names(), *by_operator} - set(lacking))
    done = [result for result in results if result.outcome == "passed"]
    possible = [result for result in results if result.outcome != "unsupported"]
    lines = [
        f"{len(done)} of the {len(results)} tests in onnx {onnx.__version__} pass; of the "
        f'{len(possible)} that need nothing gpunn lacks {len(done)}. "Versions" are those of the '
        "operator set.",
        "",
        "| operator | versions | tests passed | note |",
        "| --- | --- | --- | --- |",
    ]
    for name in have:
        rows = by_operator.get(name, [])
        passed = sum(row.outcome == "passed" for row in rows)
        tested = f"{passed} of {len(rows)}" if rows else "no test of its own"
        span = versions("", name) or "by ONNX's definition"
        lines.append(f"| {name} | {span} | {tested} | {_note(rows)} |")
    for kind in KINDS:
        rows = [row for row in several if row.kind == kind]
        passed = sum(row.outcome == "passed" for row in rows)
        lines.append(f"| *{_KIND_NAMES[kind]}* | | {passed} of {len(rows)} | {_note(rows)} |")
    lacks = ", ".join(f"{name} ({len(by_operator[name])})" for name in lacking)
    return "\n".join([*lines, "", f"Operators with tests that gpunn does not have: {lacks}."])


_KIND_NAMES = {
    "node": "operators written out by others",
    "simple": "small models",
    "pytorch-operator": "operators as PyTorch exported them",
    "pytorch-converted": "layers as PyTorch exported them",
}


def _has(name: str, rows: list[Result]) -> bool:
    return bool(versions("", name)) or any(row.outcome != "unsupported" for row in rows)


def _note(rows: list[Result]) -> str:
    """What the tests that did not pass are about."""
    reasons = Counter(EXCLUDED.get(row.name, row.reason) for row in rows if row.outcome == "failed")
    notes = [f"{count}: {reason}" for reason, count in sorted(reasons.items())]
    lacking = [row for row in rows if row.outcome == "unsupported"]
    if lacking:
        notes.append(f"{len(lacking)}: need an operator or a form that is not there")
    return "; ".join(notes)


def rewrite(path: str | os.PathLike, results: list[Result]) -> None:
    """Put the table of `results` between the markers of a page."""
    text = Path(path).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r} to write between")
    write_text(path, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def main(arguments: list[str]) -> int:
    """Run the tests, print the table or write it to a page; 1 if what fails is not what should."""
    results = run()
    if arguments:
        rewrite(arguments[0], results)
    else:
        print(table(results))
    failed = {row.name: row.reason for row in results if row.outcome == "failed"}
    for name in sorted(set(failed) - set(EXCLUDED)):
        print(f"{name}: {failed[name]}", file=sys.stderr)
    return int(set(failed) != set(EXCLUDED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
