"""The sweep of matrix products."""

import json

import numpy as np
import pytest

from gpunn.bench import product_tables, products, results
from gpunn.bench.products import SWEEP, Product
from gpunn.cli.main import main
from gpunn.device.device import Device
from gpunn.primitives import matmul_precision

CPU = Device("cpu")
SMALL = Product("square", 24, 16, 40, "float32")


def test_the_sweep_has_every_kind():
    assert len({product.key for product in SWEEP}) == len(SWEEP)
    shapes = {(p.M, p.N, p.K, p.layout, p.batch) for p in SWEEP}
    assert len(shapes) >= 40
    assert {p.layout for p in SWEEP} == {"NN", "NT", "TN", "TT"}
    assert {p.dtype for p in SWEEP} == {"bfloat16", "float16", "float32", "tf32"}
    assert {p.kind for p in SWEEP} >= {"square", "skinny", "tall", "odd", "batched", "fused"}
    assert {p.fused for p in SWEEP} == {"", "relu", "gelu", "backward", "weight gradient"}


@pytest.mark.parametrize(
    "product",
    [
        SMALL,
        Product("square", 24, 16, 40, "bfloat16", "TT"),
        Product("batched", 5, 6, 7, "float32", "NT", batch=3),
        Product("square", 16, 16, 16, "tf32", "TN"),
        Product("fused", 8, 12, 16, "bfloat16", "NT", fused="gelu"),
        Product("fused", 8, 12, 16, "bfloat16", "NN", fused="backward"),
        Product("fused", 8, 12, 16, "float32", "TN", fused="weight gradient"),
        Product("fused", 8, 12, 16, "float32", "NT", fused="relu"),
    ],
    ids=lambda p: p.key,
)
def test_measuring(product):
    before = matmul_precision.get_matmul_precision()
    row, skipped = products.measure(product, CPU, samples=2, sample_seconds=1e-5)
    assert matmul_precision.get_matmul_precision() == before
    assert not skipped and row["seconds"] > 0 and row["kernel"].startswith("matmul")
    assert row["tflops"] == pytest.approx(product.flops / row["seconds"] / 1e12)
    for error in row["errors"].values():
        assert error < 1e-2
    assert set(row["samples"]) >= {"gpunn"} and json.loads(json.dumps(row))


def test_a_wrong_result_shows_in_the_errors(monkeypatch):
    ours = products._ours

    def wrong(product, x):
        run = ours(product, x)

        def half():
            run()
            x.out[...] *= 0.5

        return half

    monkeypatch.setattr(products, "_ours", wrong)
    row, _ = products.measure(SMALL, CPU, samples=1, sample_seconds=1e-5)
    assert row["errors"]["gpunn"] == pytest.approx(0.5)


def test_the_last_corner_counts(monkeypatch):
    ours = products._ours

    def late(product, x):
        run = ours(product, x)

        def spoilt():
            run()
            x.out[-1, -1] += 1e3

        return spoilt

    monkeypatch.setattr(products, "_ours", late)
    product = Product("square", 100, 90, 40, "float32")
    row, _ = products.measure(product, CPU, samples=1, sample_seconds=1e-5)
    assert row["errors"]["gpunn"] > 0.5


def test_summary():
    def row(ratio, error, **changes):
        base = {"kind": "square", "dtype": "float32", "key": f"shape {ratio}", "ratio": ratio,
                "errors": {"gpunn": error, "torch": 1e-6}}  # fmt: skip
        return base | changes

    rows = [row(0.5, 1e-6), row(2.0, 3e-6), row(3.0, 1e-7, kind="odd"), row(None, 0.0)]
    square, odd = product_tables.summary(rows)
    assert square["shapes"] == 2 and square["mean"] == pytest.approx(1.0)
    assert square["worst"] == 0.5 and square["worst_key"] == "shape 0.5"
    assert square["error"] == pytest.approx(3.0) and odd["mean"] == pytest.approx(3.0)
    text = product_tables.summary_text(rows)
    assert "square" in text and "0.50" in text
    assert product_tables.summary([]) == []


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(products, "SWEEP", (SMALL, Product("square", 9000, 900, 900, "float32")))
    path = tmp_path / "found.json"
    options = ["--device", "cpu", "--samples", "2", "--json", str(path)]
    assert main(["bench", "products", *options]) == 0
    said = capsys.readouterr().out
    assert "only the 1 smaller of 2 products" in said and SMALL.key in said
    (row,) = results.read(path).products
    assert row["key"] == SMALL.key and np.isfinite(row["seconds"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["matmul"], "products is measured alone"),
        (["--shape", "8x8"], "products takes no --shape"),
        (["--device", "emulator"], "does not say how fast"),
    ],
)
def test_wrong_arguments(arguments, said, capsys):
    assert main(["bench", "products", *arguments]) == 2
    assert said in capsys.readouterr().err
