"""matmul and bias_gradient on the CPU, and how products are cut up for the GPU."""

import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.device import compiler, sources
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import cpu_threads
from gpunn.primitives.activation import ACTIVATIONS, activation_forward
from gpunn.primitives.matmul import matmul
from gpunn.primitives.matmul_backward import bias_gradient
from gpunn.primitives.matmul_parity import menu_kernels
from gpunn.primitives.matmul_problem import Finish, batch_dimensions
from gpunn.primitives.matmul_simt import LARGE, TILES, choices, how_to_load
from gpunn.primitives.registry import intercepting, reachable_kernels

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
sizes = st.integers(1, 9)


def rand(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---- values ------------------------------------------------------------------------------------


def test_known_product():
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    b = np.array([[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]])
    expected = [[21.0, 24.0, 27.0], [47.0, 54.0, 61.0]]
    np.testing.assert_array_equal(matmul(a, b), expected)
    np.testing.assert_array_equal(matmul(a.T, b, transpose_a=True), expected)
    np.testing.assert_array_equal(matmul(a, b.T, transpose_b=True), expected)
    np.testing.assert_array_equal(matmul(a, b, bias=np.array([1.0, 0.0, -1.0]))[0], [22, 24, 26])


@settings(max_examples=60, deadline=None)
@given(
    M=sizes, N=sizes, K=st.integers(0, 9), ta=st.booleans(), tb=st.booleans(),
    batch_a=st.lists(st.sampled_from([1, 2]), max_size=3),
    batch_b=st.lists(st.sampled_from([1, 2]), max_size=3),
)  # fmt: skip
def test_agrees_with_numpy_for_all_shapes(M, N, K, ta, tb, batch_a, batch_b):
    a, b = rand(*batch_a, M, K), rand(*batch_b, K, N, seed=1)
    expected = np.matmul(a, b)
    a = np.ascontiguousarray(a.swapaxes(-1, -2)) if ta else a
    b = np.ascontiguousarray(b.swapaxes(-1, -2)) if tb else b
    out = matmul(a, b, transpose_a=ta, transpose_b=tb)
    assert out.shape == expected.shape and out.flags.c_contiguous
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation_are_the_separate_steps(activation):
    a, b, bias = rand(3, 4), rand(4, 5, seed=1), rand(5, seed=2)
    out, before = matmul(a, b, bias=bias, activation=activation, keep_preactivation=True)
    np.testing.assert_allclose(before, a @ b + bias, rtol=1e-14)
    np.testing.assert_array_equal(out, activation_forward(before, activation=activation))
    np.testing.assert_array_equal(out, matmul(a, b, bias=bias, activation=activation))


def test_alpha_reaches_the_activation():
    a, b = -np.eye(2), np.eye(2)
    out = matmul(a, b, activation="leaky_relu", alpha=0.25)
    np.testing.assert_array_equal(out, [[-0.25, 0.0], [0.0, -0.25]])


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16])
def test_sixteen_bit_types_are_rounded_once(dtype):
    a, b, bias = (rand(7, 300, dtype=dtype), rand(300, 5, dtype=dtype), rand(5, dtype=dtype))
    exact = np.maximum(a.astype(np.float64) @ b.astype(np.float64) + bias.astype(np.float64), 0)
    out, before = matmul(a, b, bias=bias, activation="relu", keep_preactivation=True)
    assert out.dtype == before.dtype == dtype
    # Half a unit in the last place, and a little for the sum in float32.
    unit = 2.0**-8 if dtype == BFLOAT16 else 2.0**-11
    assert (np.abs(out.astype(np.float64) - exact) <= 1.01 * unit * np.abs(exact) + 1e-4).all()


def test_float32_keeps_its_error_bound():
    for K in (64, 1024, 8192):
        a, b = rand(32, K, dtype=np.float32), rand(K, 32, dtype=np.float32, seed=1)
        exact = a.astype(np.float64) @ b.astype(np.float64)
        error = np.linalg.norm(matmul(a, b) - exact) / np.linalg.norm(exact)
        assert error <= 1e-6 * max(1, math.sqrt(K) / 32)


def test_an_empty_inner_dimension_leaves_the_bias():
    bias = np.array([1.0, -2.0, 3.0])
    out = matmul(np.ones((2, 0)), np.ones((0, 3)), bias=bias, activation="relu")
    np.testing.assert_array_equal(out, [[1, 0, 3], [1, 0, 3]])


def test_empty_results():
    assert matmul(np.ones((0, 4)), np.ones((4, 3))).shape == (0, 3)
    assert matmul(np.ones((4, 2, 3)), np.ones((3, 0))).shape == (4, 2, 0)
    assert matmul(np.ones((0, 2, 3)), np.ones((3, 5))).shape == (0, 2, 5)


def test_not_a_number_travels_silently(recwarn):
    a = np.array([[np.inf, 1.0]], np.float32)
    out = matmul(a, np.array([[0.0, 1.0], [1.0, 1.0]], np.float32))
    assert np.isnan(out[0, 0]) and np.isinf(out[0, 1]) and not recwarn.list


@pytest.mark.parametrize("view", ["transposed", "columns", "every second", "reversed", "broadcast"])
def test_views_are_read_in_place(view):
    whole = rand(12, 16)
    a = {
        "transposed": whole.T, "columns": whole[:, 3:9], "every second": whole[:, ::2],
        "reversed": whole[::-1, ::-1], "broadcast": np.broadcast_to(whole[0], (5, 16)),
    }[view]  # fmt: skip
    b = rand(a.shape[1], 4, seed=1)
    np.testing.assert_allclose(matmul(a, b), np.ascontiguousarray(a) @ b, rtol=1e-12)
    np.testing.assert_allclose(matmul(b.T, a.T), (np.ascontiguousarray(a) @ b).T, rtol=1e-12)


def test_read_only_inputs_and_the_same_bits_each_time():
    a, b = rand(40, 50, dtype=np.float32), rand(50, 30, dtype=np.float32, seed=1)
    a.flags.writeable = b.flags.writeable = False
    assert matmul(a, b).tobytes() == matmul(a, b).tobytes()


def test_out_and_preactivation_are_written():
    a, b = rand(2, 3), rand(3, 4, seed=1)
    out, before = np.full((2, 4), np.nan), np.full((2, 4), np.nan)
    returned = matmul(a, b, activation="tanh", out=out, preactivation=before)
    assert returned is out
    np.testing.assert_allclose(before, a @ b)
    np.testing.assert_allclose(out, np.tanh(a @ b))
    returned = matmul(a, b, out=out, preactivation=before, keep_preactivation=True)
    assert returned[0] is out and returned[1] is before
    np.testing.assert_array_equal(out, before)


def test_neighbours_in_one_arena_do_not_overlap():
    arena = np.zeros(12)
    a, out = arena[:6].reshape(2, 3), arena[6:8].reshape(1, 2)
    a[...] = 1
    matmul(np.ones((1, 3)), a, transpose_b=True, out=out)
    np.testing.assert_array_equal(out, [[3, 3]])


# ---- gradients -----------------------------------------------------------------------------------


def test_gradients_are_products_too():
    """Finite differences of sum(g * (a b + bias)) against the products that backward makes."""
    a, b, bias, g = rand(3, 4), rand(4, 5, seed=1), rand(5, seed=2), rand(3, 5, seed=3)

    def slope(x, i):
        step, at = 1e-6, x.flat[i]
        x.flat[i] = at + step
        above = (g * matmul(a, b, bias=bias)).sum()
        x.flat[i] = at - step
        below = (g * matmul(a, b, bias=bias)).sum()
        x.flat[i] = at
        return (above - below) / (2 * step)

    for x, gradient in (
        (a, matmul(g, b, transpose_b=True)),
        (b, matmul(a, g, transpose_a=True)),
        (bias, bias_gradient(g)),
    ):
        numeric = [slope(x, i) for i in range(x.size)]
        np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-7, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_bias_gradient_sums_all_rows(shape):
    grad = rand(*shape)
    expected = grad.reshape(math.prod(shape[:-1]), shape[-1]).sum(axis=0)
    np.testing.assert_allclose(bias_gradient(grad), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [512, 513, 1024, 1300, 300_000])
def test_bias_gradient_of_many_rows_stays_accurate(rows):
    grad = rand(rows, 3, dtype=np.float32)
    exact = grad.sum(axis=0, dtype=np.float64)
    error = np.linalg.norm(bias_gradient(grad) - exact) / np.linalg.norm(exact)
    assert error < 2e-6
    ones = np.ones((rows, 1), np.float16) / np.float16(1024)
    assert bias_gradient(ones)[0] == np.float16(rows / 1024)


def test_bias_gradient_out_and_views():
    grad, out = rand(6, 8), np.zeros(4)
    assert bias_gradient(grad[:, ::2], out=out) is out
    np.testing.assert_allclose(out, grad[:, ::2].sum(axis=0))


# ---- wrong input ---------------------------------------------------------------------------------


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((ones(2, 3), ones(4, 3)), {}, r"\(2, 3\) and b \(4, 3\): .* 3 and 4.*transpose_b=True"),
        ((ones(3, 2), ones(3, 4)), {}, "are 2 and 3.*pass transpose_a=True"),
        ((ones(3, 2), ones(4, 3)), {}, "transpose_a=True and transpose_b=True"),
        ((ones(2, 3), ones(5, 7)), {}, "no transpose makes them fit"),
        ((ones(2, 3), ones(3, 4)), {"transpose_b": True}, "with transpose_b=True.*transpose_b=Fal"),
        ((ones(3), ones(3, 4)), {}, r"a has shape \(3,\).*row with a\[None, :\]"),
        ((ones(2, 3), ones(3)), {}, r"b has shape \(3,\).*column with b\[:, None\]"),
        ((ones(2, 3), ones()), {}, r"b has shape \(\).*Multiply by a number with \*"),
        ((ones(2, 2, 3), ones(5, 3, 4)), {}, r"batch dim.* \(2,\) and \(5,\) do not broadcast"),
        ((ones(2, 3), ones(3, 4)), {"bias": ones(3)}, r"bias has shape \(3,\).*shape \(4,\)"),
        ((ones(2, 3), ones(3, 4)), {"bias": ones(2, 4)}, r"bias has shape \(2, 4\)"),
        ((ones(2, 3), ones(3, 4)), {"activation": "swish"}, "activation is 'swish'"),
        ((ones(2, 3), ones(3, 4)), {"activation": "relu", "alpha": 1.0}, "relu has no parameter"),
        ((ones(2, 3), ones(3, 4)), {"alpha": 1.0}, "identity has no parameter"),
        ((ones(2, 3), ones(3, 4)), {"out": ones(2, 3)}, r"out has shape \(2, 3\).*\(2, 4\)"),
        ((ones(2, 3), ones(3, 4)), {"out": ones(4, 2).T}, "out .*C-contiguous"),
        ((ones(2, 3), ones(3, 4)), {"preactivation": ones(2, 3)}, "preactivation has shape"),
    ],
)
def test_wrong_values(args, kwargs, message):
    with pytest.raises(ValueError, match=f"^matmul: .*{message}"):
        matmul(*args, **kwargs)


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((ones(2, 3, dtype=np.int64), ones(3, 4)), {}, "a has .*int64.*astype"),
        ((ones(2, 3), ones(3, 4, dtype=np.float64)), {}, "b .*float64.*dtype of a, float32"),
        ((ones(2, 3), ones(3, 4)), {"bias": ones(4, dtype=np.float64)}, "bias .*float64"),
        ((ones(2, 3), ones(3, 4)), {"out": ones(2, 4, dtype=np.float64)}, "out .*float64"),
        ((None, ones(3, 4)), {}, "a is None"),
        (([[1.0], [2.0, 3.0]], ones(3, 4)), {}, "a is list"),
    ],
)
def test_wrong_types(args, kwargs, message):
    with pytest.raises(TypeError, match=f"^matmul: .*{message}"):
        matmul(*args, **kwargs)


def test_outputs_must_not_overlap_inputs():
    square = ones(4, 4)
    for kwargs, message in (
        ({"out": square}, "out .*overlaps a"),
        ({"preactivation": square}, "preactivation .*overlaps a"),
    ):
        with pytest.raises(ValueError, match=message):
            matmul(square, ones(4, 4), **kwargs)
    with pytest.raises(ValueError, match="overlaps b"):
        matmul(ones(4, 4), square.T, out=square)
    both = ones(4, 4)
    with pytest.raises(ValueError, match="overlaps preactivation"):
        matmul(ones(4, 4), ones(4, 4), out=both, preactivation=both)
    with pytest.raises(ValueError, match="overlaps bias"):
        matmul(ones(4, 4), ones(4, 4), bias=both[0], out=both)
    np.testing.assert_array_equal(square, 1)
    locked = ones(4, 4)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        matmul(ones(4, 4), ones(4, 4), out=locked)


def test_wrong_bias_gradients():
    with pytest.raises(TypeError, match="bias_gradient: grad_output .*int64"):
        bias_gradient(np.arange(3))
    with pytest.raises(ValueError, match="bias_gradient: grad_output .*at least 1 dimension"):
        bias_gradient(np.float32(1) * np.ones(()))
    with pytest.raises(ValueError, match=r"bias_gradient: out has shape \(2,\)"):
        bias_gradient(ones(5, 3), out=ones(2))
    row = ones(3)
    with pytest.raises(ValueError, match="overlaps grad_output"):
        bias_gradient(row, out=row)


# ---- how products are cut up ---------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    M=st.integers(1, 1 << 34), N=st.integers(1, 1 << 34), K=st.integers(0, 1 << 34),
    batch=st.integers(1, 1 << 20), itemsize=st.sampled_from([2, 4, 8]), packs=st.booleans(),
    processors=st.sampled_from([1, 4, 20, 132, 148]),
)  # fmt: skip
def test_parts_cover_the_inner_dimension(M, N, K, batch, itemsize, packs, processors):
    found = choices(M, N, K, batch, itemsize, packs, processors)
    assert [tile for tile, *_ in found] == [t for t in TILES[itemsize] if packs or t is not LARGE]
    for tile, parts, length, seconds in found:
        assert parts >= 1 and length % tile.depth == 0 and 0 < length <= 1 << 30 and seconds > 0
        assert (parts - 1) * length < max(K, 1) <= parts * length


def choose(M, N, K):
    """The fastest choice for float32 on an H200 by the estimates."""
    return min(choices(M, N, K, 1, 4, True, 132), key=lambda choice: choice[3])


def test_large_products_take_the_large_tile_and_small_ones_fill_the_chip():
    assert choose(4096, 4096, 4096)[:3] == (LARGE, 1, 4096)
    for M, N, K in ((128, 256, 784), (256, 784, 4096), (512, 512, 512), (1, 4096, 4096)):
        tile, parts, *_ = choose(M, N, K)
        assert -(-M // tile.rows) * -(-N // tile.columns) * parts >= 90


@pytest.mark.parametrize(
    "size, row, k, k_size, aligned, expected",
    [
        (8, 16, 1, 16, True, "ALONG_K"),
        (8, 16, 1, 16, False, "STRIDED"),
        (8, 15, 1, 16, True, "STRIDED"),
        (1, 15, 1, 16, True, "ALONG_K"),
        (8, 16, 1, 15, True, "STRIDED"),
        (8, 1, 8, 15, True, "ALONG_ROWS"),
        (8, 1, 24, 15, True, "ALONG_ROWS"),
        (7, 1, 8, 15, True, "STRIDED"),
        (8, 2, 16, 15, True, "STRIDED"),
        (8, 0, 1, 16, True, "ALONG_K"),
        (8, -16, 1, 16, True, "ALONG_K"),
    ],
)
def test_how_an_operand_is_loaded(size, row, k, k_size, aligned, expected):
    assert how_to_load(size, row, k, k_size, (0, 64), 4, aligned) == expected
    assert how_to_load(size, row, k, k_size, (0, 63), 4, aligned) == "STRIDED"


class Notes(RecordingLauncher):
    """Keeps expression, grid and arguments of every launch, on a GPU without tensor cores."""

    def __init__(self):
        super().__init__("matmul.cu", arch="sm_75")
        self.calls = []

    def __call__(self, expression, grid, block, args, shared=0):
        super().__call__(expression, grid, block, args, shared)
        self.calls.append((expression, grid, args))


def launches(function, *args, **kwargs):
    notes = Notes()
    with intercepting(lambda call, given: call.primitive.run_cuda(notes, given)):
        function(*args, **kwargs)
    return notes.calls


def test_a_transposed_view_is_the_transpose_flag():
    a, b = ones(16, 24), ones(24, 32)
    for x, y, kwargs, expected in (
        (a, b, {}, "ALONG_K, ALONG_ROWS, false>"),
        (a.T.copy().T, b, {}, "ALONG_ROWS, ALONG_ROWS, false>"),
        (a.T.copy(), b, {"transpose_a": True}, "ALONG_ROWS, ALONG_ROWS, false>"),
        (a, b.T.copy(), {"transpose_b": True}, "ALONG_K, ALONG_K, false>"),
        (a.T, b.T, {"transpose_a": True, "transpose_b": True}, "ALONG_K, ALONG_ROWS, false>"),
        (ones(16, 64)[:, 8:32], b, {}, "ALONG_K, ALONG_ROWS, false>"),
        (ones(16, 48)[:, ::2], b, {}, "STRIDED, STRIDED, false>"),
    ):
        ((expression, _, args),) = launches(matmul, x, y, **kwargs)
        assert expression.endswith(expected)
        assert args[0].base is x or args[0] is x or args[0].base is x.base  # no copy


def test_batches_are_strides():
    a, b = ones(3, 1, 8, 16), ones(5, 16, 8)
    ((_, _, args),) = launches(matmul, a, b)
    assert args[0] is a and args[1] is b
    assert batch_dimensions(a, b, (3, 5)) == [(3, 128, 0), (5, 0, 128)]
    assert batch_dimensions(ones(3, 5, 8, 16), ones(3, 5, 16, 8), (3, 5)) == [(15, 128, 128)]
    heads = ones(2, 7, 3, 8).swapaxes(1, 2)  # (batch, heads, time, features) of a wider array
    assert batch_dimensions(heads, heads, (2, 3)) == [(2, 168, 168), (3, 8, 8)]
    # A stack of matrices times one matrix is one tall product.
    ((_, grid, args),) = launches(matmul, ones(4, 8, 16), ones(16, 8))
    assert args[0].shape == (32, 16) and grid == (1,)
    # More batch dimensions than the kernel knows: one launch for each of the first.
    assert len(launches(matmul, ones(2, 1, 3, 8, 16), ones(1, 2, 1, 16, 8))) == 2


def test_matrices_beyond_two_billion_elements():
    row = np.broadcast_to(np.zeros(1, np.float32), (70_000, 50_000))
    notes = Notes()
    out = np.broadcast_to(row[:1, :1], (70_000, 70_000))
    matmul.run_cuda(notes, (row, row.T, Finish(out)))
    ((_, grid, sent),) = notes.calls
    assert grid[0] == math.ceil(70_000 / 64) ** 2  # strides of 0 are no packs: medium tiles
    assert all(isinstance(n, np.int64) for n in sent[2:9])


def test_long_sums_are_split_and_added_in_order():
    first, second = launches(matmul, ones(64, 4096), ones(4096, 64), bias=ones(64))
    assert first[0].startswith("matmul<float") and second[0] == "matmul_combine<float, 4, false>"
    parts = first[2][16]
    assert parts.shape[1:] == (64, 64) and second[2][0] is parts and parts.dtype == np.float32
    first, second = launches(bias_gradient, ones(10_000, 64))
    assert first[0] == second[0] == "column_sum<float, float, 4>" and first[1][1] > 1
    assert len(launches(bias_gradient, ones(128, 256))) == 1


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_every_tile_in_float32_compiles_without_spills(arch):
    names = menu_kernels(RecordingLauncher("matmul.cu", arch))["matmul.cu"]
    names = {n for n in names if n.startswith("matmul<float")}
    assert len(names) > 15
    # And those that samples reach: so the test of all sources leaves this one out.
    every = sorted({*names, *reachable_kernels(arch)["matmul.cu"]})
    made = compiler.build("matmul.cu", every, arch)
    assert [report.expression for report in made.reports] == every and not made.warnings
    excused = re.findall(r"^// Spills: (\S.*?):", sources.cuda_source("matmul.cu"), re.MULTILINE)
    spilling = [
        r.expression
        for r in made.reports
        if r.spill_stores or r.spill_loads or (r.stack and r.expression in names)
    ]
    assert all(expression.startswith(tuple(excused)) for expression in spilling)


def test_cost_counts_each_operand_once():
    cost = matmul.cost_of(ones(3, 8, 16), ones(16, 4), bias=ones(4))
    assert cost.flops == 2 * 3 * 8 * 16 * 4
    assert cost.read == 4 * (3 * 8 * 16 + 16 * 4 + 4) and cost.written == 4 * 3 * 8 * 4
    cost = bias_gradient.cost_of(ones(3, 8))
    assert (cost.flops, cost.read, cost.written) == (24, 96, 32)


@pytest.mark.parametrize("rows, columns", [(1030, 70), (70, 1030)])
def test_a_large_product_is_shared_out_by_its_shape_alone(rows, columns, monkeypatch):
    a = rand(rows, 500, dtype=np.float32)
    b = rand(500, columns, dtype=np.float32, seed=1)
    whole = a.astype(np.float64) @ b
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(cpu_threads, "thread_count", lambda threads=threads: threads)
        with cpu_threads.blas_on_one_thread():  # as it is where there is but one
            found.append(matmul(a, b))
    np.testing.assert_array_equal(*found)
    assert np.linalg.norm(found[0] - whole) < 1e-6 * np.linalg.norm(whole)
