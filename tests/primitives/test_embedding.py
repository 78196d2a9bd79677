"""Rows of a table, and sums of gradients into them: what parity samples do not say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe, to_device
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import indices as checks
from gpunn.primitives.registry import intercepting, using

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_rows_and_sums_by_hand():
    indices = np.array([[2, 0], [2, 3]])
    rows = kernels.embedding_forward(TABLE, indices)
    np.testing.assert_array_equal(rows, TABLE[indices])
    out = np.empty_like(rows)
    assert kernels.embedding_forward(TABLE, indices.astype(np.int32), out=out) is out
    grad = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    total = kernels.embedding_backward(grad, indices, num_embeddings=4)
    np.testing.assert_array_equal(total, [[3, 4], [0, 0], [6, 8], [7, 8]])
    options = {"num_embeddings": 4, "padding_idx": -1, "scale_grad_by_freq": True}
    halved = kernels.embedding_backward(grad, indices, **options)
    np.testing.assert_array_equal(halved, [[3, 4], [0, 0], [3, 4], [0, 0]])
    more = kernels.embedding_backward(grad, indices, num_embeddings=4, accumulate=True, out=total)
    assert more is total
    np.testing.assert_array_equal(total, [[6, 8], [0, 0], [12, 16], [14, 16]])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_16_bits_are_summed_wide_and_rounded_once(dtype):
    """3000 times 1/3: a running sum in 16 bits would stop growing."""
    grad = np.full((3000, 2), 1 / 3, dtype)
    total = kernels.embedding_backward(grad, np.zeros(3000, np.int64), num_embeddings=1)
    exact = 3000 * grad[0].astype(np.float64)
    np.testing.assert_array_equal(total[0].astype(np.float64), exact.astype(dtype).astype(float))


def test_long_sums_keep_their_digits():
    grad = np.full((100_000, 1), 0.1, np.float32)
    total = kernels.embedding_backward(grad, np.zeros(100_000, np.int64), num_embeddings=2)
    np.testing.assert_allclose(total[0], 100_000 * np.float64(np.float32(0.1)), rtol=5e-7)


@emulated
def test_the_sum_does_not_depend_on_the_order_of_threads():
    from gpunn import emulator

    rng = np.random.default_rng(0)
    grad = rng.normal(size=(1500, 2)).astype(np.float32)
    indices = np.where(rng.random(1500) < 0.8, 1, rng.integers(0, 700, 1500))
    found = []
    for seed in range(2):
        with using("emulator"), emulator.settings(schedule="random", seed=seed):
            found.append(kernels.embedding_backward(grad, indices, num_embeddings=700))
    np.testing.assert_array_equal(*found)
    exact = np.zeros((700, 2))
    np.add.at(exact, indices, grad.astype(np.float64))
    np.testing.assert_allclose(found[0], exact, rtol=1e-5, atol=1e-4)


@emulated
@pytest.mark.parametrize("columns", [3, 4])
def test_on_a_device_an_index_outside_the_table_is_nan_and_counts_nothing(columns, monkeypatch):
    table = to_device(np.ones((4, columns), np.float32), "emulator")
    indices = to_device(np.array([1, 4, -1, 2**40, 3]), "emulator")
    rows = kernels.embedding_forward(table, indices).get()
    np.testing.assert_array_equal(np.isnan(rows).all(1), [False, True, True, True, False])
    grad = to_device(np.ones((5, columns), np.float32), "emulator")
    total = kernels.embedding_backward(grad, indices, num_embeddings=4).get()
    np.testing.assert_array_equal(total[:, 0], [0, 1, 0, 1])
    monkeypatch.setattr(checks, "CHECK_EVERYWHERE", True)
    with pytest.raises(ValueError, match="indices holds 4 at position 1"):
        kernels.embedding_forward(table, indices)


def test_launches_of_the_backward():
    def launched(count, rows, columns=4, **options):
        launcher = RecordingLauncher("embedding.cu")
        grad, indices = np.zeros((count, columns), np.float32), np.zeros(count, np.int64)
        with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
            kernels.embedding_backward(grad, indices, num_embeddings=rows, **options)
        return [name.partition("<")[0] for _, name in launcher.launches]

    clear, reduce = "embedding_clear", "embedding_reduce"
    assert launched(0, 5) == [clear]
    assert launched(20, 5) == [clear, "sort_scatter", reduce]
    sort = ["sort_count", "sort_scatter"]
    assert launched(5000, 50_000) == [clear, *sort, *sort, reduce, reduce, reduce]
    sort.insert(1, "sort_scan")
    assert launched(40_000, 300, 1) == [clear, *sort, reduce, reduce, reduce, reduce]
    total = {"accumulate": True, "out": np.zeros((5, 4), np.float32)}
    assert launched(20, 5, **total) == ["sort_scatter", reduce]


INDICES, GRAD = np.array([[1, 2], [3, 4]]), np.ones((2, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: kernels.embedding_forward(TABLE, INDICES), ValueError,
         r"indices holds 4 at position \(1, 1\); expected 0 to 3 for the 4 rows"),
        (lambda: kernels.embedding_forward(TABLE, INDICES - 2), ValueError, "holds -1 at position"),
        (lambda: kernels.embedding_forward(TABLE[:0], INDICES), ValueError, "none at all"),
        (lambda: kernels.embedding_forward(TABLE, INDICES * 1.0), TypeError, "indices has"),
        (lambda: kernels.embedding_forward(TABLE[0], INDICES), ValueError, "2 dimensions"),
        (lambda: kernels.embedding_backward(GRAD, INDICES, num_embeddings=4), ValueError,
         "holds 4 .* num_embeddings = 4"),
        (lambda: kernels.embedding_backward(GRAD, INDICES[0], num_embeddings=9), ValueError,
         "grad_output has shape"),
        (lambda: kernels.embedding_backward(GRAD, INDICES, num_embeddings=5, padding_idx=5),
         ValueError, "padding_idx is 5; expected -5 to 4"),
        (lambda: kernels.embedding_backward(GRAD, INDICES, num_embeddings=5, accumulate=True),
         ValueError, "out is None"),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
