"""Numba kernels where a launch is cut up: several tiles, parts of an axis, rows beyond a block."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpunn.device import probe

SCRIPT = """
import numpy as np
from gpunn import kernels

random = np.random.default_rng(0)


def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)


def check(name, got, wanted, bound=1e-6):
    wanted = np.asarray(wanted, np.float64)
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert got.shape == wanted.shape and error < bound, (name, error)


with kernels.using("numba"):
    # Tiles of 128 x 64, with a rest along each axis; every way that an operand may lie.
    a, b = normal(130, 7), normal(7, 67)
    wanted = a.astype(np.float64) @ b
    check("plain", kernels.matmul(a, b), wanted)
    check("A turned", kernels.matmul(a.T.copy(), b, transpose_a=True), wanted)
    check("B turned", kernels.matmul(a, b.T.copy(), transpose_b=True), wanted)
    check("float64", kernels.matmul(a.astype(np.float64), b.astype(np.float64)), wanted, 1e-14)

    for rows, columns in ((300, 5), (129, 33), (127, 2)):  # three parts, two, one
        grad = normal(rows, columns)
        check("column sums", kernels.bias_gradient(grad), grad.astype(np.float64).sum(0), 2e-6)

    for shape, axis in (((1, 3100), 1), ((2100, 3), 0), ((2, 1500, 2), 1)):
        x = normal(*shape)
        wide = x.astype(np.float64)
        check("sum", kernels.reduce_sum(x, axis=axis), wide.sum(axis), 2e-6)
        check("mean", kernels.reduce_mean(x, axis=axis), wide.mean(axis), 2e-6)
        x.reshape(-1)[7] = np.nan
        top, place = kernels.reduce_max(x, axis=axis), kernels.reduce_argmax(x, axis=axis)
        np.testing.assert_array_equal(top, x.max(axis))
        np.testing.assert_array_equal(place, x.argmax(axis))
    counts = random.integers(0, 5, (1, 5000)).astype(np.int32)
    assert kernels.reduce_sum(counts, axis=1) == counts.sum()

    for rows, columns in ((70, 3), (3, 2500)):  # a last block that is not full; long rows
        x = normal(rows, columns)
        wide = np.exp(x.astype(np.float64))
        check("softmax", kernels.softmax_forward(x), wide / wide.sum(1, keepdims=True))
print("all right")
"""


@pytest.mark.skipif(not probe.find_numba().passed, reason="Numba is not there")
def test_in_the_simulator():
    environment = dict(os.environ, NUMBA_ENABLE_CUDASIM="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0 and done.stdout == "all right\n", done.stdout + done.stderr
