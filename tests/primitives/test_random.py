"""Random numbers: Philox's known answers, exact definitions, and wrong input."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.primitives import parity
from gpunn.primitives.random import (
    advance_counter,
    dropout,
    random_bits,
    random_normal,
    random_uniform,
)
from gpunn.primitives.random_reference import standard_normal
from gpunn.primitives.samples import FLOATING, Sample

ALL_ONES = (1 << 64) - 1
FILLS = {"random_uniform": random_uniform, "random_normal": random_normal}
SEEDS = st.integers(0, ALL_ONES)


def bits(size, seed=0, offset=0, first_block=0):
    return random_bits(np.empty(size, np.uint32), seed=seed, offset=offset, first_block=first_block)


def uniform(size, seed=0, offset=0, dtype=np.float32, **interval):
    return random_uniform(np.empty(size, dtype), seed=seed, offset=offset, **interval)


def normal(size, seed=0, offset=0, dtype=np.float32, **moments):
    return random_normal(np.empty(size, dtype), seed=seed, offset=offset, **moments)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers, from the paper's section 4.3."""
    c, (k0, k1) = list(counter), key
    for number in range(10):
        if number:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
    return c


def halves(number: int) -> list[int]:
    return [number % 2**32, number >> 32]


# ---- the words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "offset", "block", "words"),
    [  # from the authors' Random123 distribution
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ALL_ONES, ALL_ONES, ALL_ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            0x0370734413198A2E,
            0x85A308D3243F6A88,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(seed, offset, block, words):
    expected = [int(word, 16) for word in words.split()]
    assert bits(4, seed, offset, block).tolist() == expected
    assert philox(halves(block) + halves(offset), halves(seed)) == expected


@given(seed=SEEDS, offset=SEEDS, block=SEEDS, size=st.integers(1, 9))
def test_words_are_the_bijection_of_their_counters(seed, offset, block, size):
    expected = [
        word
        for step in range(3)
        for word in philox(halves((block + step) % 2**64) + halves(offset), halves(seed))
    ]
    assert bits(size, seed, offset, block).tolist() == expected[:size]


def test_blocks_carry_into_the_second_word():
    block = 2**32 - 1
    words = bits(12, 5, 0, block).reshape(3, 4)
    np.testing.assert_array_equal(words[1], philox([0, 1, 0, 0], [5, 0]))
    np.testing.assert_array_equal(words[2], bits(4, 5, 0, block + 2))


def test_many_elements_are_the_blocks_made_alone():
    size = 5 * 65536 + 3  # several passes of the reference
    words = bits(size, 11, 12)
    for element in (0, 65532, 65536, 131072, 262144, size - 3):
        block = element // 4
        part = bits(4, 11, 12, block)[: size - 4 * block]
        np.testing.assert_array_equal(words[4 * block : 4 * block + 4], part)


# ---- what all share: prefixes, shapes, views, dtypes ---------------------------------------------


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_longer_array_begins_with_a_shorter_one(fill, dtype):
    longest = fill(np.empty(66000, dtype), seed=3, offset=4)
    for size in (1, 2, 3, 4, 5, 63, 1000, 65536, 65537):
        shorter = fill(np.empty(size, dtype), seed=3, offset=4)
        np.testing.assert_array_equal(shorter, longest[:size])


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7),
    dtype=st.sampled_from(FLOATING),
    shift=st.integers(0, 3),
    seed=SEEDS,
)
def test_shapes_and_unaligned_views(shape, dtype, shift, seed):
    size = math.prod(shape)
    for fill in FILLS.values():
        flat = fill(np.empty(size, dtype), seed=seed)
        memory = np.full(size + 5, 7, dtype)
        view = memory[shift : shift + size].reshape(shape)
        assert fill(view, seed=seed) is view
        np.testing.assert_array_equal(view.reshape(-1), flat)
        untouched = np.concatenate([memory[:shift], memory[shift + size :]])
        assert (untouched == 7).all(), "wrote outside of the view"


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_dtypes_agree(fill):
    single = fill(np.empty(5000, np.float32), seed=8, offset=9)
    for narrow in (np.float16, ml_dtypes.bfloat16):
        rounded = fill(np.empty(5000, narrow), seed=8, offset=9)
        np.testing.assert_array_equal(rounded, single.astype(narrow))
    double = fill(np.empty(5000, np.float64), seed=8, offset=9)
    np.testing.assert_allclose(single, double, rtol=1e-6, atol=2.0**-23)
    assert np.count_nonzero(double.astype(np.float32) != double) > 4900  # has bits of its own


GOLDEN_UNIFORM = [0.40598195791244507, 0.8958139419555664, 0.42380964756011963, 0.33379507064819336]
GOLDEN_NORMAL = [-0.23789319396018982, 1.2580546140670776, -0.1921568661928177, -0.4294576644897461]
GOLDEN_UNIFORM_DOUBLE = [0.40598196834731204, 0.8958139895764188]
GOLDEN_NORMAL_DOUBLE = [-0.2378931910456473, 1.2580545720429412]


def test_values_of_a_seed_stay_what_they_are():
    """A model's start must not change with a release: these are version 0.1's."""
    assert uniform(4, 42, 7).tolist() == GOLDEN_UNIFORM
    assert normal(4, 42, 7).tolist() == GOLDEN_NORMAL
    assert uniform(2, 42, 7, np.float64).tolist() == GOLDEN_UNIFORM_DOUBLE
    assert normal(2, 42, 7, np.float64).tolist() == GOLDEN_NORMAL_DOUBLE


# ---- uniform -------------------------------------------------------------------------------------


def test_uniform_is_the_upper_24_bits():
    np.testing.assert_array_equal(uniform(9999, 1, 2), (bits(9999, 1, 2) >> 8) * 2.0**-24)


def test_uniform_float64_is_53_bits():
    low_words = bits(999, 1, 2, first_block=1 << 63).astype(np.uint64)
    expected = (bits(999, 1, 2).astype(np.uint64) << 21 | low_words >> 11) * 2.0**-53
    np.testing.assert_array_equal(uniform(999, 1, 2, np.float64), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_interval_is_rounded_operation_by_operation(dtype):
    u = uniform(9999, 1, 2, dtype)
    values = uniform(9999, 1, 2, dtype, low=-0.3, high=1.1)
    np.testing.assert_array_equal(values, u * dtype(1.1 - -0.3) + dtype(-0.3))
    assert values.min() >= dtype(-0.3) and values.max() <= dtype(1.1)


def test_uniform_of_a_point():
    assert (uniform(99, low=0.1, high=0.1) == np.float32(0.1)).all()


def test_uniform_never_reaches_one():
    values = uniform(1 << 20, 4)
    assert values.min() >= 0 and values.max() < 1
    assert values.min() < 1e-5 and values.max() > 1 - 1e-5


# ---- normal --------------------------------------------------------------------------------------


def edges(limit: int, rng) -> np.ndarray:
    """Draws below `limit`: the ends, the middle, powers of two, and at random."""
    near = np.arange(64)
    powers = [1 << k for k in range(limit.bit_length() - 1)]
    lower = np.concatenate([near, limit // 2 - 1 - near, powers, rng.integers(0, limit // 2, 2000)])
    return np.unique(lower[lower < limit // 2])


@pytest.mark.parametrize(
    ("dtype", "limit", "tolerance"), [(np.uint32, 1 << 32, 5e-7), (np.uint64, 1 << 53, 3e-15)]
)
def test_normal_is_the_quantile_of_the_draw(dtype, limit, tolerance):
    """Against the standard library's own inverse (Wichura's AS241), to relative precision."""
    draws = edges(limit, np.random.default_rng(0))
    # Below the middle (draw + 1/2) / limit is exact in float64.
    expected = np.array([NormalDist().inv_cdf((2 * int(d) + 1) / (2 * limit)) for d in draws])
    z = standard_normal(draws.astype(dtype))
    np.testing.assert_allclose(z, expected, rtol=tolerance)
    mirrored = standard_normal((limit - 1 - draws).astype(dtype))
    np.testing.assert_allclose(mirrored, -expected, rtol=tolerance)
    assert z.dtype == (np.float32 if dtype == np.uint32 else np.float64)


def test_normal_is_monotone_and_bounded():
    ends = standard_normal(np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32))
    assert ends[0] == -ends[3] and ends[1] == -ends[2] and 0 < ends[2] < 1e-9
    assert 6.33 < ends[3] < 6.34
    far = standard_normal(np.array([0, 2**53 - 1], np.uint64))
    assert far[0] == -far[1] and 8.29 < far[1] < 8.30
    spread = standard_normal(np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32))
    assert (np.diff(spread) > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_and_std_are_rounded_operation_by_operation(dtype):
    z = normal(9999, 1, 2, dtype)
    values = normal(9999, 1, 2, dtype, mean=-0.3, std=0.07)
    np.testing.assert_array_equal(values, z * dtype(0.07) + dtype(-0.3))
    assert (normal(9, dtype=dtype, mean=0.1, std=0) == dtype(0.1)).all()


# ---- wrong input ---------------------------------------------------------------------------------

OUT = np.empty(4, np.float32)
PRIMITIVES = {
    "random_bits": lambda **given: random_bits(np.empty(4, np.uint32), **given),
    "random_uniform": lambda **given: random_uniform(OUT, **given),
    "random_normal": lambda **given: random_normal(OUT, **given),
    "dropout": lambda **given: dropout(OUT, p=0.5, **given),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_seed_and_offset_are_64_bit_integers(name):
    run = PRIMITIVES[name]
    for argument in ("seed", "offset"):
        for number in (-1, 1 << 64):
            with pytest.raises(ValueError) as error:
                run(**{"seed": 0, argument: number})
            assert str(error.value) == (
                f"{name}: {argument} is {number}; expected an integer from 0 to 2^64 - 1."
            )
        for wrong in (1.5, "7", None, np.float32(3)):
            with pytest.raises(TypeError, match=rf"{name}: {argument} is .*expected an integer"):
                run(**{"seed": 0, argument: wrong})
    run(seed=ALL_ONES, offset=ALL_ONES)
    run(seed=np.int32(3), offset=np.uint64(ALL_ONES))


def test_first_block_is_a_64_bit_integer():
    with pytest.raises(ValueError, match="random_bits: first_block is 18446744073709551616"):
        bits(4, first_block=1 << 64)


@pytest.mark.parametrize("name", [*FILLS, "random_bits"])
def test_out_must_fit(name):
    fill = {**FILLS, "random_bits": random_bits}[name]
    right = np.uint32 if name == "random_bits" else np.float32
    cases = [
        (np.zeros(4, np.int64), TypeError, "out has shape (4,) and dtype int64 on cpu; expected"),
        (np.zeros((4, 4), right)[:, ::2], ValueError, "expected a C-contiguous array"),
        ([0.0, 0.0], ValueError, "out is [0.0, 0.0]; expected an array to write into"),
        (None, ValueError, "out is None; expected an array to write into"),
        (right(3), ValueError, "out is np."),
    ]
    frozen = np.zeros(4, right)
    frozen.flags.writeable = False
    for out, kind, text in [*cases, (frozen, ValueError, "this one is read-only")]:
        with pytest.raises(kind, match=re.escape(text)) as error:
            fill(out, seed=0)
        assert str(error.value).startswith(f"{name}: ")
    assert (frozen == 0).all()


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda: uniform(4, low=1, high=0), "random_uniform: low is 1.0 and high is 0.0; give"),
        (lambda: uniform(4, low=math.nan), "random_uniform: low is nan; expected a number"),
        (lambda: uniform(4, high=math.inf), "random_uniform: high is inf; expected a number that"),
        (lambda: uniform(4, low=-3e38, high=3e38), "random_uniform: high - low is 6e+38"),
        (lambda: uniform(4, high=1e39), "high is 1e+39; expected a number that is finite in"),
        (lambda: normal(4, std=-1), "random_normal: std is -1; expected a number from 0.0 to inf"),
        (lambda: normal(4, mean=math.inf), "random_normal: mean is inf; expected a number that is"),
        (lambda: normal(4, std=math.nan), "random_normal: std is nan"),
        (lambda: dropout(OUT, p=1.5, seed=0), "dropout: p is 1.5; expected a number from 0.0 to"),
        (lambda: dropout(OUT, p=-0.1, seed=0), "dropout: p is -0.1; expected"),
        (lambda: dropout(OUT, p=math.nan, seed=0), "dropout: p is nan; expected"),
        (lambda: dropout(OUT, p=0.5, seed=0, out=OUT.reshape(2, 2)), "dropout: out has shape"),
    ],
)
def test_wrong_numbers(run, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        run()


def test_nothing_is_written_before_a_refusal():
    out = np.full(4, 7, np.float32)
    for arguments in ({"seed": -1}, {"seed": 0, "low": 2, "high": 1}):
        with pytest.raises(ValueError):
            random_uniform(out, **arguments)
    assert (out == 7).all()


# ---- a seed and an offset in device memory -------------------------------------------------------


@pytest.mark.parametrize("name", PRIMITIVES)
@given(seed=SEEDS, held=SEEDS, offset=SEEDS)
def test_a_counter_holds_the_seed_and_the_offset_that_is_added_to(name, seed, held, offset):
    counter = np.array([seed, held], np.uint64)
    counted = PRIMITIVES[name](seed=5, offset=offset, counter=counter).copy()
    np.testing.assert_array_equal(
        counted, PRIMITIVES[name](seed=seed, offset=(held + offset) % (1 << 64))
    )
    assert counter.tolist() == [seed, held]


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_counter_must_be_two_uint64(name):
    with pytest.raises(TypeError, match=f"{name}: counter has .* int64 .*expected dtype uint64"):
        PRIMITIVES[name](seed=0, counter=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=rf"{name}: counter has shape \(3,\).*shape \(2,\)"):
        PRIMITIVES[name](seed=0, counter=np.zeros(3, np.uint64))


def test_a_counter_moves_on_and_around():
    counter = np.array([7, 5], np.uint64)
    assert advance_counter(counter, draws=3) is counter and counter.tolist() == [7, 8]
    assert advance_counter(counter, draws=0).tolist() == [7, 8]
    assert advance_counter(counter, draws=ALL_ONES).tolist() == [7, 7]
    with pytest.raises(ValueError, match="advance_counter: draws is -1; expected an integer"):
        advance_counter(counter, draws=-1)
    with pytest.raises(TypeError, match="advance_counter: counter has .* uint32"):
        advance_counter(np.zeros(2, np.uint32), draws=1)
    counter.flags.writeable = False
    with pytest.raises(ValueError, match="advance_counter: counter .* read-only"):
        advance_counter(counter, draws=1)


# ---- the same bits everywhere --------------------------------------------------------------------


def test_every_floating_sample_must_agree_bit_for_bit():
    """The hardware's and the simulator's parity tests then check the promise of this family."""
    for made in (random_uniform, random_normal, dropout):
        assert all(sample.exact for sample in made.sample_list())


def test_an_exact_sample_sees_one_bit():
    sample = Sample("one", (np.zeros(64),), {"seed": 1}, exact=True)
    assert parity.check(random_normal, sample, np.float32, "numpy").passed
    a = np.array([1.0, 0.0, np.nan], np.float32)
    assert parity.compare_bits(a, a.copy()) == (0.0, "")
    for place, value in ((0, np.nextafter(np.float32(1), np.float32(2))), (1, -0.0), (2, 0.0)):
        b = a.copy()
        b[place] = value
        assert "1 of 3 differ" in parity.compare_bits(b, a)[1]
    assert parity.compare_bits(a.astype(np.float64), a)[1]
    assert parity.compare_bits(a[:2], a)[1]


def test_the_compiler_fuses_nothing():
    """No multiplication and addition with one rounding in the machine-independent code."""
    pytest.importorskip("cupy")
    from cupy.cuda import nvrtc

    from gpunn.device import compiler, sources

    kinds, types = ("uniform", "normal"), ("float", "double")
    names = [f"random_{kind}<{real}, true>" for kind in kinds for real in types]
    program = nvrtc.createProgram(sources.cuda_source("random.cu"), "random.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(program, compiler._options("compute_90"))
    code = nvrtc.getPTX(program).decode()
    assert "mul.rn.f32" in code and "add.rn.f64" in code
    assert not re.findall(r"\bfma\.\S+", code)
