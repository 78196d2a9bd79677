"""Kernels of the kind that CuPy's users launch, checked: right results, and nothing to report.

The sources stand in public_kernels/, typed anew after papers, textbooks and samples that they name.
Those with a race, planted or historic, are here to be caught.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "public_kernels"))
from public_launch import RNG, F, module, run, uniform

from gpunn import emulator

# ---- linear.cu -----------------------------------------------------------------------------------


def test_saxpy_with_a_grid_stride():
    x, y = uniform(1000), uniform(1000)
    expected = F(2) * x + y
    run("linear.saxpy", (3,), (128,), 1000, F(2), x, y)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)


def test_squared_difference_of_doubles():
    x, y, z = uniform(300, dtype=float), uniform(300, dtype=float), np.zeros(300)
    run("linear.squared_difference", (3,), (128,), x, y, z, 300)
    np.testing.assert_array_equal(z, (x - y) ** 2)


def test_matrix_product_in_tiles():
    m, n = uniform(37, 50), uniform(50, 23)
    p = np.zeros((37, 23), F)
    run("linear.matrix_multiply", (2, 3), (16, 16), m, n, p, 37, 50, 23)
    np.testing.assert_allclose(p, m @ n, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_matrix_product_without_its_second_barrier_races(seed):
    m, n, p = uniform(64, 64), uniform(64, 64), np.zeros((64, 64), F)
    with pytest.raises(emulator.RaceError):
        run("linear.matrix_multiply_racy", (4, 4), (16, 16), m, n, p, 64, seed=seed)


def test_matrix_product_with_float4():
    a, b, c = uniform(64, 40), uniform(40, 96), np.zeros((64, 96), F)
    run("linear.sgemm_float4", (3, 2), (64,), 40, a, b, c, 96)
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)


def test_transpose_without_bank_conflicts():
    source = uniform(70, 45)
    out = np.zeros((45, 70), F)
    run("linear.transpose_no_bank_conflicts", (2, 3), (32, 8), out, source, 45, 70)
    np.testing.assert_array_equal(out, source.T)


def test_sparse_matrix_times_vector_by_warps():
    dense = uniform(50, 80) * (RNG.random((50, 80)) < 0.2)
    starts = np.concatenate([[0], np.cumsum((dense != 0).sum(1))]).astype(np.int32)
    x, y = uniform(80), np.zeros(50, F)
    columns = np.nonzero(dense)[1].astype(np.int32)
    run("linear.spmv_csr_vector", (13,), (128,), 50, starts, columns, dense[dense != 0], x, y)
    np.testing.assert_allclose(y, dense @ x, rtol=1e-4, atol=1e-5)


# ---- reductions.cu -------------------------------------------------------------------------------


def test_reduction_interleaved_and_sequential():
    data, out = uniform(512), np.zeros(4, F)
    run("reductions.reduce1", (4,), (128,), data, out, shared=512)
    np.testing.assert_allclose(out, data.reshape(4, 128).sum(1), rtol=1e-4, atol=1e-5)
    data, out = uniform(700), np.zeros(3, F)
    run("reductions.reduce4", (3,), (128,), data, out, np.uint32(700), shared=512)
    expected = [data[i : i + 256].sum() for i in (0, 256, 512)]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_reduction_trusting_lock_step_is_a_race():
    data, out = uniform(1024), np.zeros(4, F)
    with pytest.raises(emulator.RaceError):
        run("reductions.reduce5_volatile", (4,), (128,), data, out, shared=512,
            schedule="random")


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("reduce7<float, 256>", F), ("reduce7<double, 64>", np.float64), ("reduce7<int, 512>", "i4")],
)
def test_reduction_with_shuffles_as_a_template(kernel, dtype):
    data, out = RNG.integers(-50, 50, 5000).astype(dtype), np.zeros(3, dtype)
    threads = int(kernel.split()[1][:-1])
    run(f"reductions.{kernel}", (3,), (threads,), data, out, np.uint32(5000))
    assert out.sum() == data.sum()


@pytest.mark.parametrize("schedule", ["in order", "reverse", "random"])
def test_reduction_by_the_last_block(schedule):
    data = RNG.integers(0, 9, 3000).astype(F)
    for _ in range(2):  # the second launch finds the counter as the first left it
        partial, result = np.zeros(7, F), np.zeros(1, F)
        run("reductions.reduce_single_pass", (7,), (256,), data, partial, result, np.uint32(3000),
            schedule=schedule)
        assert result[0] == data.sum()


def test_reduction_with_tiles():
    data, total = RNG.integers(-9, 9, 1000).astype("i4"), np.zeros(1, "i4")
    run("reductions.reduce_tiles", (4,), (96,), data, total, 1000)
    assert total[0] == data.sum()


def test_reduction_with_a_barrier_of_the_grid():
    kernels = module("reductions", enable_cooperative_groups=True)
    data, partial, result = uniform(2000, dtype=float), np.zeros(6), np.zeros(1)
    kernels.get_function("reduce_grid_sync")(
        (6,), (64,), (data, partial, result, 2000), shared_mem=512)
    np.testing.assert_allclose(result[0], data.sum(), rtol=1e-12)


def test_double_atomics_by_compare_and_swap():
    a, b = RNG.integers(0, 9, (2, 500)).astype(float)
    out = np.zeros(1)
    run("reductions.dot_cas", (4,), (128,), a, b, out, 500)
    assert out[0] == a @ b


def test_argmax_by_packed_keys():
    x, best = uniform(777), np.zeros(1, np.uint64)
    run("reductions.argmax", (4,), (256,), x, best, 777)
    assert ~np.uint32(best[0] & np.uint64(0xFFFFFFFF)) == x.argmax()


# ---- scans.cu ------------------------------------------------------------------------------------


def test_blelloch_scan():
    data, out = RNG.integers(0, 9, 256).astype(F), np.zeros(256, F)
    run("scans.blelloch_scan", (1,), (128,), out, data, 256, shared=4 * (256 + 8))
    np.testing.assert_array_equal(out, np.cumsum(data) - data)


def test_hillis_steele_scan():
    data, out = RNG.integers(-9, 9, 200).astype("i4"), np.zeros(200, "i4")
    run("scans.hillis_steele_scan", (1,), (200,), out, data, 200, shared=1600)
    np.testing.assert_array_equal(out, np.cumsum(data))


def test_compaction_keeps_the_order():
    data = RNG.integers(-9, 9, 1000).astype("i4")
    out, count = np.zeros(1000, "i4"), np.zeros(1, "i4")
    run("scans.compact_positive", (1,), (256,), data, out, count, 1000)
    np.testing.assert_array_equal(out[: count[0]], data[data > 0])


@pytest.mark.parametrize("schedule", ["in order", "reverse", "random"])
def test_filter_with_warp_aggregated_atomics(schedule):
    data, out, count = RNG.integers(0, 99, 900).astype("i4"), np.zeros(900, "i4"), np.zeros(1, "i4")
    run("scans.filter_k", (4,), (256,), out, count, data, 900, 50, schedule=schedule)
    np.testing.assert_array_equal(np.sort(out[: count[0]]), np.sort(data[data > 50]))


def test_bitonic_sorts():
    keys = RNG.integers(0, 2**32, 512).astype(np.uint32)
    expected = np.sort(keys.reshape(2, 256), axis=1)
    run("scans.bitonic_sort_shared", (2,), (256,), keys, shared=1024)
    np.testing.assert_array_equal(keys.reshape(2, 256), expected)
    values = uniform(128)
    expected = np.sort(values.reshape(4, 32), axis=1)
    run("scans.bitonic_sort_warp", (2,), (64,), values)
    np.testing.assert_array_equal(values.reshape(4, 32), expected)


def test_radix_sort_by_splits():
    data, out = RNG.integers(0, 256, 96).astype(np.uint32), np.zeros(96, np.uint32)
    expected = np.sort(data)
    for bit in range(8):
        run("scans.split_by_bit", (1,), (96,), data, out, bit, shared=96 * 4)
        data, out = out, data
    np.testing.assert_array_equal(data, expected)


# ---- images.cu -----------------------------------------------------------------------------------


def test_histogram_in_shared_memory():
    data, bins = RNG.integers(0, 256, 5000).astype(np.uint8), np.zeros(256, np.uint32)
    run("images.histogram256", (4,), (96,), data, bins, 5000)
    np.testing.assert_array_equal(bins, np.bincount(data, minlength=256))


def test_histogram_without_its_barrier_races():
    data, bins = RNG.integers(0, 256, 5000).astype(np.uint8), np.zeros(256, np.uint32)
    with pytest.raises(emulator.EmulatorError) as caught:
        run("images.histogram256_racy", (4,), (256,), data, bins, 5000)
    assert isinstance(caught.value, emulator.RaceError | emulator.UninitializedReadError)


def test_separable_convolution_with_constant_memory():
    image, taps = uniform(30, 100), uniform(9)
    rows, out = np.zeros_like(image), np.zeros_like(image)
    module("images").get_global("c_Kernel").set(taps)
    run("images.convolution_rows", (2, 8), (16, 4), rows, image, 100, 30)
    run("images.convolution_columns", (4, 4), (32, 8), out, rows, 100, 30)
    expected = np.apply_along_axis(np.convolve, 1, image, taps, "same")
    expected = np.apply_along_axis(np.convolve, 0, expected, taps, "same")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_bilateral_filter():
    image, out, r = uniform(20, 27, low=0), np.zeros((20, 27), F), 2
    run("images.bilateral", (4, 3), (8, 8), image, out, 27, 20, r, F(1.5), F(0.2),
        shared=4 * (8 + 2 * r) ** 2)
    wide = np.pad(image, r, mode="edge").astype(float)
    total, norm = np.zeros_like(image, float), np.zeros_like(image, float)
    for dy in range(-r, r + 1):
        for dx in range(-r, r + 1):
            v = wide[r + dy : r + dy + 20, r + dx : r + dx + 27]
            g = np.exp(-(dx * dx + dy * dy) / 4.5 - (v - image) ** 2 / 0.08)
            total, norm = total + g * v, norm + g
    np.testing.assert_allclose(out, total / norm, rtol=1e-5)


def test_sobel_on_bytes():
    image, out = RNG.integers(0, 256, (20, 40, 4)).astype(np.uint8), np.zeros((20, 40), np.uint8)
    run("images.sobel_rgba", (3, 3), (16, 8), image, out, 40, 20)
    grey = (image[..., :3].astype(int) @ [77, 150, 29]) >> 8
    smooth, step = [1, 2, 1], [1, 0, -1]
    across = lambda a, k, axis: np.apply_along_axis(np.convolve, axis, a, k, "valid")  # noqa: E731
    gx, gy = across(across(grey, step, 1), smooth, 0), across(across(grey, step, 0), smooth, 1)
    expected = np.pad(np.minimum(255, abs(gx) + abs(gy)), 1)
    np.testing.assert_array_equal(out, expected)


def test_mandelbrot():
    counts = np.zeros((24, 32), "i4")
    run("images.mandelbrot", (2,), (128,), counts, 32, 24, F(-2), F(-1), F(0.09375), F(0.0833), 60)
    c = -2 + 0.09375 * np.arange(32) + 1j * (-1 + 0.0833 * np.arange(24)[:, None])
    z, expected = np.zeros_like(c), np.zeros(c.shape, int)
    with np.errstate(all="ignore"):
        for _ in range(60):
            inside = abs(z) <= 2
            expected += inside
            z = np.where(inside, z * z + c, z)
    assert (counts == expected).mean() > 0.99  # float against double, at the border


def test_game_of_life():
    now = RNG.integers(0, 2, (33, 50)).astype(np.uint8)
    for _ in range(3):
        following = np.zeros_like(now)
        run("images.life", (4, 5), (16, 8), now, following, 50, 33)
        neighbours = sum(
            np.roll(now, (dy, dx), (0, 1)).astype(int)
            for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
        )
        expected = (neighbours == 3) | ((neighbours == 2) & (now == 1))
        np.testing.assert_array_equal(following, expected)
        now = following
