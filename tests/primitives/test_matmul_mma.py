"""The tensor-core products by mma.sync: the whole menu, in the emulator and the compiler."""

import re
from dataclasses import replace

import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import compiler, sources
from gpunn.device.emulator_launch import emulated_chip, emulator_launcher
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import matmul_mma as mma
from gpunn.primitives import matmul_simt
from gpunn.primitives.matmul_parity import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    bound,
    error,
    expected,
    make_problem,
    random,
    rounding,
    run_and_check,
)
from gpunn.primitives.matmul_problem import Finish, problem_of
from gpunn.primitives.registry import reachable_kernels

LAYOUTS = ("NN", "NT", "TN", "TT")
SCHEDULES = ("reverse", "random", "in order")
MODES = {"native": BFLOAT16, "tf32": FLOAT32, "split": FLOAT32}
TOLERANCE = {"native": rounding(BFLOAT16), "tf32": 5e-4, "split": 2e-7}
FORWARD = {"bias": True, "activation": "gelu", "preactivation": True, "scale": 0.5}
BACKWARD = {"saved": True, "activation": "silu", "column_sums": True, "residual": True}
WEIGHTS = {"row_sums": True, "residual": "out"}
ENDINGS = {"FORWARD": FORWARD, "INPUT_GRADIENT": BACKWARD, "WEIGHT_GRADIENT": WEIGHTS}
STEP = {"native": 1, "tf32": 2, "split": 2}
# An A100 with few multiprocessors, so that small products fill it.
SM_80 = {"arch": "sm_80", "multiprocessors": 4, "shared_limit": 163 * 1024}
# More than one tile of each kind, the last ones not whole; three tiles of K and more.
SHAPE = (136, 264, 136)


@pytest.fixture(autouse=True)
def checked_on_a_small_chip():
    with emulated_chip(**SM_80), emulator.settings(check=True):
        yield


def launcher():
    return emulator_launcher("matmul.cu")


def check_all(mode, *args, dtype=None, pick=slice(None), **kwargs):
    """Run the options of a problem, each on a new one."""
    dtype = dtype or MODES[mode]
    for candidate in mma.options(make_problem(*args, dtype, **kwargs), launcher(), mode)[pick]:
        tolerance = TOLERANCE[mode] if dtype != FLOAT16 else rounding(FLOAT16)
        tolerance *= 1 if min(args[:2]) > 8 else 2  # the rounding of a few numbers may be the worst
        run_and_check(candidate, launcher(), make_problem(*args, dtype, **kwargs), tolerance)


# ---- every kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number, layout", list(enumerate(LAYOUTS)))
def test_every_tile_multiplies_every_layout(mode, number, layout):
    """All of them for bfloat16; in the other modes half, with every tile and every layout."""
    for tile in range(number % 2 if mode != "native" else 0, len(mma.TILES[mode]), STEP[mode]):
        check_all(mode, *SHAPE, layout=layout, pick=slice(tile, tile + 1), **FORWARD)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "purpose, number, layout",
    [
        ("INPUT_GRADIENT", 0, "NN"),
        ("INPUT_GRADIENT", 1, "NT"),
        ("WEIGHT_GRADIENT", 0, "TN"),
        ("WEIGHT_GRADIENT", 1, "TT"),
    ],
)
def test_every_tile_makes_gradients(mode, purpose, number, layout):
    check_all(mode, *SHAPE, layout=layout, pick=slice(number, None, 2), **ENDINGS[purpose])


@pytest.mark.parametrize("purpose", ENDINGS)
def test_float16(purpose):
    layout = "TN" if purpose == "WEIGHT_GRADIENT" else "NN"
    check_all("native", *SHAPE, dtype=FLOAT16, layout=layout, pick=slice(1, 4), **ENDINGS[purpose])


def test_sums_of_rows_that_the_kernel_does_not_make():
    for mode in MODES:
        check_all(mode, 64, 72, 40, layout="NN", pick=slice(2, 3), row_sums=True)
        check_all(mode, 64, 72, 40, layout="TN", pick=slice(2, 3), row_sums=True, activation="relu")


def every_kernel(kinds):
    """The name expressions of the whole menu for pairs (mode, dtype)."""
    recorder = RecordingLauncher("matmul.cu", "sm_80", 4, 163 * 1024)
    for mode, dtype in kinds:
        for finish in ENDINGS.values():
            for layout in LAYOUTS:
                for shape in (SHAPE, (5, 7, 3)):
                    problem = make_problem(*shape, dtype, layout, **finish)
                    for candidate in mma.options(problem, recorder, mode):
                        candidate.run(recorder, problem)
    return {e for source, e in recorder.launches if source == "matmul_mma.cu"}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_every_kernel_compiles_without_warnings_and_spills(arch):
    names = sorted(every_kernel(MODES.items()))
    assert len(names) == 2 * (6 * 8 + 3) + (5 * 8 + 3)
    # Two 16-bit types differ in a letter of mma.sync, and sm_90a has better kernels: some of each.
    names = names if arch == "sm_80" else names[::3]
    names += sorted(every_kernel([("native", FLOAT16)]))[::5]
    # And those that samples reach: so the test of all sources leaves this one out.
    names = sorted({*names, *reachable_kernels(arch)["matmul_mma.cu"]})
    made = compiler.build("matmul_mma.cu", names, arch)
    assert len(made.reports) == len(names) and not made.warnings
    text = sources.cuda_source("matmul_mma.cu")
    excused = re.findall(r"^// Spills: (\S.*?):", text, re.MULTILINE)
    spilling = [r.expression for r in made.reports if r.spill_stores or r.spill_loads or r.stack]
    assert all(expression.startswith(tuple(excused)) for expression in spilling)


# ---- sizes, strides, batches ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M, N, K", [(1, 1, 1), (65, 129, 77), (64, 3, 1025), (5, 200, 31)])
def test_any_size_and_pitch(mode, M, N, K):
    for number, finish in enumerate(ENDINGS.values()):
        with emulator.settings(schedule=SCHEDULES[number]):
            check_all(mode, M, N, K, layout=LAYOUTS[number], **finish)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "M, N, K", [(8, 8, 8), (1, 520, 64), (520, 1, 72), (24, 40, 8), (16, 16, 0)]
)
def test_small_and_skinny(mode, M, N, K):
    for layout in LAYOUTS if mode == "native" else LAYOUTS[1::2]:  # kernels that run above, too
        check_all(mode, M, N, K, layout=layout, pick=slice(1, None, 2), bias=True)


@pytest.mark.parametrize("mode", MODES)
def test_strides_and_alignment(mode):
    dtype = MODES[mode]
    whole_a, whole_b = random((140, 160), dtype), random((160, 144), dtype, 1)
    for a, b in (
        (whole_a[::2, ::2], whole_b[::2]),
        (whole_a[::-1, ::-1], whole_b),
        (np.broadcast_to(whole_a[:1], whole_a.shape), whole_b),
        (whole_a[:, 1:], whole_b[1:]),  # rows that start between packs
        (whole_a[:, 8:72], whole_b[8:72, 16:80]),  # whole packs, with gaps
        (whole_a[8:72].T, whole_b[16:80, 8:72]),
        (whole_a, whole_b[:, :77]),
    ):
        out = np.full((a.shape[0], b.shape[1]), np.nan, dtype)
        problem = problem_of(a, b, Finish(out), [])
        for candidate in mma.options(problem, launcher(), mode)[-3:]:
            out[...] = np.nan
            run_and_check(candidate, launcher(), problem, TOLERANCE[mode])


def test_an_output_between_packs():
    """Results, residual and saved values at odd addresses are stored one by one."""
    for dtype, mode in ((BFLOAT16, "native"), (FLOAT32, "tf32")):
        for finish in (FORWARD, BACKWARD):
            whole = make_problem(70, 72, 40, dtype, **finish)
            shifted = {"out": np.full(70 * 72 + 1, np.nan, dtype)[1:].reshape(70, 72)}
            problem = replace(whole, finish=replace(whole.finish, **shifted))
            for candidate in mma.options(problem, launcher(), mode)[2:4]:
                run_and_check(candidate, launcher(), problem, TOLERANCE[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_b", [(3, 2), (1, 1), (3, 1), (1, 2)])
def test_batches(mode, batch_b):
    for finish in (FORWARD, BACKWARD):
        for K in (40, 41):
            check_all(mode, 70, 72, K, layout="NT", batch=(3, 2), batch_b=batch_b,
                      pick=slice(-2, None), **finish)  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("purpose, layout", [
    ("FORWARD", "NN"), ("INPUT_GRADIENT", "NT"), ("WEIGHT_GRADIENT", "TN"),
])  # fmt: skip
def test_parts_of_k_are_added_in_order(mode, purpose, layout):
    with emulated_chip(**(SM_80 | {"multiprocessors": 40})):
        finish = ENDINGS[purpose]
        found = mma.options(make_problem(40, 48, 1000, MODES[mode], layout), launcher(), mode)
        assert any(not o.name.endswith(" k1") for o in found)
        check_all(mode, 40, 48, 1000, layout=layout, pick=slice(2, 4), **finish)
        problems = [make_problem(40, 48, 1000, MODES[mode], layout, **finish) for _ in range(2)]
        for problem, schedule in zip(problems, ("in order", "random"), strict=True):
            with emulator.settings(schedule=schedule):
                mma.options(problem, launcher(), mode)[3].run(launcher(), problem)
        assert problems[0].out.tobytes() == problems[1].out.tobytes()


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [16, 256, 4096])
def test_split_products_are_as_exact_as_float32_arithmetic(K):
    problem = make_problem(64, 64, K, FLOAT32)
    plain = run_and_check(
        matmul_simt.options(problem, launcher())[0], launcher(), problem, bound(K)
    )
    for candidate in mma.options(problem, launcher(), "split")[2:3]:
        assert run_and_check(candidate, launcher(), problem, bound(K)) < 1.1 * plain


@pytest.mark.parametrize("exponent", [-110, -60, 60, 126])
def test_split_products_of_small_and_large_numbers(exponent):
    """The three parts hold all bits from 2^-110 on."""
    problem = make_problem(64, 64, 64, FLOAT32)
    magnitude = 1 + np.abs(problem.a) / 8
    problem.a[...] = np.copysign(np.ldexp(magnitude, exponent), problem.a)
    problem.b[...] *= np.float32(2.0 ** (-exponent // 2))
    for candidate in mma.options(problem, launcher(), "split"):
        run_and_check(candidate, launcher(), problem, 2e-7)


def test_split_products_below_that_lose_a_little():
    problem = make_problem(64, 64, 64, FLOAT32)
    problem.a[...] *= np.float32(2.0**-120)
    wanted = expected(problem)["out"]
    mma.options(problem, launcher(), "split")[2].run(launcher(), problem)
    lost = 2.0**-134 * np.abs(problem.b.astype(np.float64)).sum(0) + 2.0**-149
    assert (np.abs(problem.out - wanted) <= lost + 1e-6 * np.abs(wanted)).all()


def special(dtype, value, where: str):
    problem = make_problem(70, 80, 40, dtype, residual="out")
    (problem.a if where == "a" else problem.b)[3, 5] = value
    with np.errstate(all="ignore"):
        a, b = problem.a.astype(np.float32), problem.b.astype(np.float32)
        return problem, np.matmul(a, b) + problem.out.astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
def test_infinities_and_nan_travel(mode, where, value):
    if value == 3.4e38 and mode != "split":
        return  # rounded to infinity with the operand
    problem, wanted = special(MODES[mode], value, where)
    for candidate in mma.options(problem, launcher(), mode)[2:4]:
        problem, wanted = special(MODES[mode], value, where)
        candidate.run(launcher(), problem)
        found, tolerance = problem.out.astype(np.float32), 4 * TOLERANCE[mode]
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=8 * tolerance)


def test_tf32_rounds_to_nearest_and_keeps_every_nan():
    """Operands alone decide: times the identity, each comes back rounded to 11 bits."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, (64, 64), np.uint32)
    bits[0, :6] = 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF
    bits[1, :4] = 0x3F801000, 0x3F800FFF, 0xBF801000, 0x3F803000  # halves go away from zero
    kept = bits + ((bits >> 12) & 1) * np.uint32(0x1000) & np.uint32(0xFFFFE000)
    a = bits.view(np.float32)
    column = np.zeros((64, 64), np.float32)  # one column at a time, for NaN spreads along rows
    with np.errstate(all="ignore"):
        for n in range(6):
            column[...] = 0
            problem = problem_of(a[:, n : n + 1], np.ones((1, 64), np.float32),
                                 Finish(np.empty((64, 64), np.float32)), [])  # fmt: skip
            mma.options(problem, launcher(), "tf32")[0].run(launcher(), problem)
            normal = np.abs(a[:, n]) >= 2.0**-126
            wanted = np.where(np.isnan(a[:, n]), np.nan, kept[:, n].view(np.float32))
            np.testing.assert_array_equal(problem.out[normal | np.isnan(a[:, n]), 0],
                                          wanted[normal | np.isnan(a[:, n])])  # fmt: skip


def test_row_sums_of_float32_are_not_rounded_to_tf32():
    problem = make_problem(136, 64, 500, FLOAT32, "TN", row_sums=True)
    wanted = problem.a.astype(np.float64).sum(1)
    for candidate in mma.options(problem, launcher(), "tf32"):
        candidate.run(launcher(), problem)
        assert error(problem.finish.row_sums, wanted) < 1e-6


# ---- choices -------------------------------------------------------------------------------------


def test_tiles_that_do_not_fit_are_not_offered():
    problem = make_problem(512, 512, 64, BFLOAT16)
    for limit in (99, 163, 227):
        with emulated_chip(**(SM_80 | {"shared_limit": limit * 1024})):
            found = mma.options(problem, launcher(), "native")
            names = [o.name for o in found]
            assert found and ("mma 128x256x64 s3 native k1" in names) == (limit > 144)


def test_estimates_prefer_what_they_should():
    a100 = RecordingLauncher("matmul.cu", "sm_80", 108, 163 * 1024)

    def best(M, N, K, mode="native"):
        problem = make_problem(M, N, 8, MODES[mode])
        problem = problem_of(
            np.broadcast_to(problem.a[:, :1], (M, K)), problem.b, problem.finish, []
        )
        sizes = M, N, K, 1, problem.out.itemsize
        found = mma._choices(*sizes, mode, True, 1024, a100.multiprocessors, a100.shared_limit)
        return min(found, key=lambda choice: choice[-1])

    large, parts, _, seconds = best(8192, 8192, 8192)
    assert large.rows * large.columns == 128 * 256 and parts == 1
    assert 2 * 8192**3 / 312e12 < seconds < 3 * 2 * 8192**3 / 312e12
    skinny, parts, *_ = best(16, 4096, 4096)
    assert skinny.rows == 32 and parts > 1
    small, *_ = best(256, 256, 512)
    assert small.rows * small.columns <= 64 * 128
