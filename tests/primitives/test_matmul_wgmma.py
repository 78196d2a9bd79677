"""The tensor-core products of sm_90a: the whole menu of tiles, in the emulator and the compiler."""

import numpy as np
import pytest

import gpunn
from gpunn import emulator
from gpunn.device import compiler
from gpunn.device.emulator_launch import emulated_chip, emulator_launcher
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import matmul_plan, matmul_simt
from gpunn.primitives import matmul_wgmma as wgmma
from gpunn.primitives.matmul_parity import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    bound,
    error,
    expected,
    make_problem,
    rounding,
    run_and_check,
)
from gpunn.primitives.matmul_problem import Finish, problem_of
from gpunn.primitives.registry import reachable_kernels

LAYOUTS = ("NN", "NT", "TN", "TT")
# Something beside a bias: the other ways out of the kernel.
FORWARD = {"bias": True, "activation": "gelu", "preactivation": True, "scale": 0.5}
BACKWARD = {"saved": True, "activation": "silu", "column_sums": True}
ENDINGS = {"direct": {"bias": True, "activation": "relu"}, "forward": FORWARD, "backward": BACKWARD}


def launcher():
    return emulator_launcher("matmul.cu")


def options(mode, *args, **kwargs):
    """The options for a problem."""
    return wgmma.options(make_problem(*args, **kwargs), launcher(), mode)


TALL, FLAT = (200, 264, 136), (40, 200, 136)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [TALL, FLAT])
def test_every_tile_multiplies_every_layout(shape, layout):
    beside = {"NT": [FORWARD], "TN": [BACKWARD]}.get(layout, [])  # of the layout they know nothing
    for ending in (ENDINGS["direct"], *beside):
        for candidate in options("native", *shape, BFLOAT16, layout, **ending):
            problem = make_problem(*shape, BFLOAT16, layout, **ending)
            run_and_check(candidate, launcher(), problem, rounding(BFLOAT16))


@pytest.mark.parametrize("shape", [TALL, FLAT])
def test_nothing_is_found_in_checked_mode(shape):
    with emulator.settings(check=True):
        for ending, layout in zip(ENDINGS.values(), ("NN", "TT", "NT"), strict=True):
            for candidate in options("native", *shape, BFLOAT16, layout, **ending):
                problem = make_problem(*shape, BFLOAT16, layout, **ending)
                run_and_check(candidate, launcher(), problem, rounding(BFLOAT16))


@pytest.mark.parametrize("mode, tolerance", [("split", 2e-7), ("tf32", 5e-4), ("bfloat16", 4e-3)])
@pytest.mark.parametrize("shape", [TALL, FLAT])
def test_float32_modes(shape, mode, tolerance):
    for ending in ENDINGS.values() if mode == "split" else (FORWARD,):
        with emulator.settings(check=mode == "split" and ending is not FORWARD):
            for candidate in options(mode, *shape, FLOAT32, "NT", **ending):
                problem = make_problem(*shape, FLOAT32, "NT", **ending)
                run_and_check(candidate, launcher(), problem, tolerance)


@pytest.mark.parametrize("processors", [2, 5])
def test_blocks_walk_over_many_tiles(processors):
    """More tiles than blocks: the ring and the turns go on from tile to tile."""
    with emulated_chip(multiprocessors=processors):
        for candidate in options("native", 500, 600, 130, FLOAT16):
            problem = make_problem(500, 600, 130, FLOAT16)
            run_and_check(candidate, launcher(), problem, rounding(FLOAT16))


def test_parts_of_k_are_added_in_order():
    problem = make_problem(130, 136, 1000, BFLOAT16, **FORWARD)
    for tile in wgmma.MENU:
        if not tile.split and not tile.swapped:
            wgmma.run(launcher(), problem, tile=tile, mode="native", parts=3, blocks=6)
            first = problem.out.copy()
            problem.out[...] = 0
            wgmma.run(launcher(), problem, tile=tile, mode="native", parts=3, blocks=6)
            np.testing.assert_array_equal(problem.out, first)
    wanted = expected(problem)
    assert np.abs(problem.out.astype(float) - wanted["out"]).max() < 0.3


@pytest.mark.parametrize("mode, dtype", [("native", BFLOAT16), ("split", FLOAT32)])
@pytest.mark.parametrize("batch_b", [(3, 2), (1, 1), (3, 1), (1, 2)])
def test_batches(mode, dtype, batch_b):
    tolerance = rounding(dtype)
    for ending in ({}, {"residual": True}):
        batches = {"batch": (3, 2), "batch_b": batch_b}
        for candidate in options(mode, 70, 72, 40, dtype, **batches, **ending)[3:8]:
            problem = make_problem(70, 72, 40, dtype, **batches, **ending)
            run_and_check(candidate, launcher(), problem, tolerance)


@pytest.mark.parametrize(
    "M, N, K", [(1, 8, 8), (1, 1, 1), (65, 129, 77), (64, 3, 513), (5, 1000, 31)]
)
def test_any_size_and_pitch(M, N, K):
    """Odd pitches are copied before tensor copies can read them."""
    for layout in ("NN", "TT"):
        for candidate in options("native", M, N, K, BFLOAT16, layout, bias=True)[-3:]:
            problem = make_problem(M, N, K, BFLOAT16, layout, bias=True)
            run_and_check(candidate, launcher(), problem, rounding(BFLOAT16))


def test_strides_that_no_tensor_copy_takes():
    for dtype, mode in ((BFLOAT16, "native"), (FLOAT32, "split")):
        whole = make_problem(66, 80, 72, dtype)
        for a, b in (
            (np.repeat(whole.a, 2, 1)[:, ::2], whole.b),  # every second element
            (whole.a[::-1], whole.b),  # backwards
            (whole.a, np.repeat(whole.b, 3, 0)[::3]),
            (np.broadcast_to(whole.a[:1], whole.a.shape), whole.b),
        ):
            problem = plain_problem(a, b, np.full_like(whole.out, np.nan))
            candidate = wgmma.options(problem, launcher(), mode)[-4]
            run_and_check(candidate, launcher(), problem, rounding(dtype))


def plain_problem(a, b, out):
    return problem_of(a, b, Finish(out), [])


def test_sums_of_rows_beside_the_product():
    """The gradient of a bias beside that of a weight, where results leave directly."""
    for M in (200, 64):
        problem = make_problem(M, 264, 300, BFLOAT16, "TN", row_sums=True)
        found = wgmma.options(problem, launcher(), "native")
        assert sum(wgmma.takes_direct(tile, problem, launcher()) for tile in wgmma.MENU) >= 6
        for candidate in found:
            problem = make_problem(M, 264, 300, BFLOAT16, "TN", row_sums=True)
            run_and_check(candidate, launcher(), problem, rounding(BFLOAT16))


def test_float32_products_are_as_exact_as_float32_arithmetic():
    """Long sums: the tensor cores' cut-off bits must not show."""
    problem = make_problem(64, 64, 4096, FLOAT32)
    wanted = expected(problem)["out"]
    matmul_simt.run(launcher(), problem, tile=matmul_simt.MEDIUM, parts=1, length=4096)
    plain = error(problem.out, wanted)
    assert plain < bound(4096)
    for tile in wgmma.PLANES_MENU[:4]:
        wgmma.run(launcher(), problem, tile=tile, mode="split", parts=1, blocks=128)
        assert error(problem.out, wanted) < plain / 2


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
def test_what_three_planes_cannot_hold_is_multiplied_in_float32(value):
    problem = make_problem(70, 64, 40, FLOAT32, residual="out")
    before = problem.out.copy()
    problem.a[3, 5] = value
    with np.errstate(all="ignore"):
        wanted = np.matmul(problem.a, problem.b) + before
    wgmma.options(problem, launcher(), "split")[2].run(launcher(), problem)
    np.testing.assert_allclose(problem.out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("a, b", [(1e30, 1e30), (1.003e25, 1.003e25), (1.237e30, -1.011e30)])
def test_products_that_overflow_are_infinite(a, b):
    """+inf from the first planes and -inf from the others must not meet."""
    problem = make_problem(70, 64, 40, FLOAT32)
    problem.a[3], problem.b[...] = a, b
    with np.errstate(all="ignore"):
        wanted = np.matmul(problem.a, problem.b)
    assert np.isinf(wanted[3]).all()
    wgmma.options(problem, launcher(), "split")[2].run(launcher(), problem)
    np.testing.assert_array_equal(problem.out[3], wanted[3])


def test_every_nan_stays_one_in_tf32():
    problem = make_problem(66, 64, 40, FLOAT32)
    problem.a[3, 5] = np.array(0x7F800001, np.uint32).view(np.float32)
    wgmma.options(problem, launcher(), "tf32")[6].run(launcher(), problem)
    assert np.isnan(problem.out[3]).all() and np.isfinite(problem.out[4]).all()


@pytest.mark.parametrize("mode", ["tf32", "bfloat16"])
def test_infinity_and_nan_travel(mode):
    problem = make_problem(66, 64, 40, FLOAT32)
    problem.a[3, 5], problem.a[7, 1] = np.inf, np.nan
    wgmma.options(problem, launcher(), mode)[6].run(launcher(), problem)
    assert np.isinf(problem.out[3]).all() and np.isnan(problem.out[7]).all()
    assert np.isfinite(np.delete(problem.out, [3, 7], 0)).all()


def test_small_numbers_keep_their_digits():
    """Down to 2^-110 three planes hold a float32; the product is then exact to float32."""
    problem = make_problem(64, 64, 64, FLOAT32)
    problem.a[...] *= np.float32(2.0**-100)
    run_and_check(wgmma.options(problem, launcher(), "split")[2], launcher(), problem, 2e-7)


def test_the_precision_decides_about_float32():
    problem = make_problem(4096, 4096, 64, FLOAT32)
    chip = RecordingLauncher("matmul.cu")
    try:
        for precision, modes in (
            ("highest", {"split"}), ("high", {"tf32"}), ("medium", {"bfloat16"}),
        ):  # fmt: skip
            gpunn.set_matmul_precision(precision)
            assert gpunn.get_matmul_precision() == precision
            names = [o.name for o in matmul_plan.options(problem, chip)]
            assert {n.split()[-2] for n in names if n.startswith("wgmma")} == modes
    finally:
        gpunn.set_matmul_precision("highest")
    with pytest.raises(ValueError, match="'fast' is none of 'highest', 'high', 'medium'"):
        gpunn.set_matmul_precision("fast")


def test_every_tile_compiles_without_warnings_and_spills():
    recorder = RecordingLauncher("matmul.cu")
    some = (FORWARD,)
    for dtype, mode, endings in (
        (BFLOAT16, "native", (*ENDINGS.values(), {"row_sums": True})),
        (FLOAT32, "split", (FORWARD, BACKWARD)),
        (FLOAT32, "tf32", some),
        (FLOAT16, "native", some),
    ):
        for ending in endings:
            for shape in (TALL, FLAT):
                problem = make_problem(*shape, dtype, "TN", **ending)
                for candidate in wgmma.options(problem, recorder, mode):
                    candidate.run(recorder, problem)
    names = sorted({e for source, e in recorder.launches if source == "matmul_wgmma.cu"})
    assert len(names) > 100
    names = names[::2]  # neighbours differ in little
    # And those that samples reach: so the test of all sources leaves this one out.
    names = sorted({*names, *reachable_kernels("sm_90a")["matmul_wgmma.cu"]})
    made = compiler.build("matmul_wgmma.cu", names, "sm_90a")
    assert len(made.reports) == len(names) and not made.warnings
    assert not [r for r in made.reports if r.spill_stores or r.spill_loads or r.stack]
