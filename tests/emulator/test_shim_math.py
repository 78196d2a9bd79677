"""The CUDA Math API on the host: values at the edges against exact arithmetic in Python."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from math_values import (
    ARITHMETIC,
    FLOATS,
    INTEGERS,
    LANES,
    RNG,
    ROUNDINGS,
    TYPES,
    WORDS,
    rounded,
    s32,
    triples,
    value,
    whole,
)

HALVES = FLOATS[~(abs(FLOATS) > 65000) | np.isinf(FLOATS)].astype("f2")

# ---- integers ------------------------------------------------------------------------------------


def test_counting_bits():
    words = WORDS.astype("u8") << np.uint64(32) | WORDS[::-1]
    for name, values, bits in (("", WORDS, 32), ("ll", words, 64)):
        integers = [int(v) for v in values]
        assert value("__popc" + name, values).tolist() == [v.bit_count() for v in integers]
        assert value("__clz" + name, values).tolist() == [bits - v.bit_length() for v in integers]
        assert value("__ffs" + name, values).tolist() == [(v & -v).bit_length() for v in integers]
        assert value("__brev" + name, values).tolist() == [
            int(f"{v:0{bits}b}"[::-1], 2) for v in integers]


def test_bytes_and_shifts():
    a, b, c = triples(WORDS)
    for x, y, s, result in zip(a, b, c, value("__byte_perm", a, b, c), strict=True):
        source = int(y) << 32 | int(x)
        expected = [source >> 8 * (int(s) >> 4 * i & 7) & 255 for i in range(4)]
        assert int(result).to_bytes(4, "little") == bytes(expected)
    c = RNG.integers(0, 70, a.size).astype("u4")
    for suffix, count in (("", lambda s: s & 31), ("c", lambda s: min(s, 32))):
        both = [(int(h) << 32 | int(low), count(int(s))) for low, h, s in zip(a, b, c, strict=True)]
        left = [(w << s) % 2**64 >> 32 for w, s in both]
        assert value("__funnelshift_l" + suffix, a, b, c).tolist() == left
        right = [(w >> s) % 2**32 for w, s in both]
        assert value("__funnelshift_r" + suffix, a, b, c).tolist() == right


def test_products_and_averages():
    a, b, c = triples(WORDS)
    u, s = [[int(v) for v in x] for x in (a, b, c)], [[s32(v) for v in x] for x in (a, b, c)]
    low = [[(v + 2**23) % 2**24 - 2**23 for v in x] for x in s]
    expected = {
        "__mulhi": [x * y >> 32 for x, y, _ in zip(*s, strict=True)],
        "__umulhi": [x * y >> 32 for x, y, _ in zip(*u, strict=True)],
        "__mul24": [s32(x * y) for x, y, _ in zip(*low, strict=True)],
        "__umul24": [(x % 2**24) * (y % 2**24) % 2**32 for x, y, _ in zip(*u, strict=True)],
        "__hadd": [x + y >> 1 for x, y, _ in zip(*s, strict=True)],
        "__rhadd": [x + y + 1 >> 1 for x, y, _ in zip(*s, strict=True)],
        "__uhadd": [x + y >> 1 for x, y, _ in zip(*u, strict=True)],
        "__urhadd": [x + y + 1 >> 1 for x, y, _ in zip(*u, strict=True)],
    }
    for name, wanted in expected.items():
        assert value(name, a, b).tolist() == wanted, name
    sums = [(abs(x - y) + z) % 2**32 for x, y, z in zip(s[0], s[1], u[2], strict=True)]
    assert value("__sad", a, b, c).tolist() == sums
    sums = [(abs(x - y) + z) % 2**32 for x, y, z in zip(*u, strict=True)]
    assert value("__usad", a, b, c).tolist() == sums
    big = [int(x) << 32 | int(y) for x, y in zip(a, b, strict=True)]
    wide = np.array(big, "u8")
    other = wide[::-1].copy()
    assert value("__umul64hi", wide, other).tolist() == [
        x * y >> 64 for x, y in zip(big, big[::-1], strict=True)]
    signed = wide.view("i8").tolist()
    assert value("__mul64hi", wide.view("i8"), other.view("i8")).tolist() == [
        x * y >> 64 for x, y in zip(signed, signed[::-1], strict=True)]


def test_dot_products():
    a, b, c = triples(WORDS)
    bytes_a, bytes_b = (x.view("i1").reshape(-1, 4).astype(int) for x in (a, b))
    expected = [s32(v) for v in (bytes_a * bytes_b).sum(1) + c.astype(int)]
    assert value("__dp4a", a, b, c).tolist() == expected
    shorts = a.view("i2").reshape(-1, 2).astype(int)
    for name, part in (("__dp2a_lo", bytes_b[:, :2]), ("__dp2a_hi", bytes_b[:, 2:])):
        expected = [s32(v) for v in (shorts * part).sum(1) + c.astype(int)]
        assert value(name, a, b, c).tolist() == expected


@pytest.mark.parametrize("name", LANES)
def test_lanes(name):
    signed, function = LANES[name]
    a, b, _ = triples(WORDS)
    for lanes in (2, 4):
        dtype = np.dtype(f"{'i' if signed else 'u'}{4 // lanes}")
        expected = function(*(x.view(dtype).astype(int) for x in (a, b)))
        if name.endswith(("ss", "us")):
            expected = np.clip(expected, np.iinfo(dtype).min, np.iinfo(dtype).max)
        expected = np.asarray(expected).astype(f"u{4 // lanes}").view("u4")
        np.testing.assert_array_equal(value(f"{name}{lanes}", a, b), expected)


def test_lanes_of_one_word_sums_and_dpx():
    a, b, c = triples(WORDS)
    shorts, chars = a.view("i2").astype(int), a.view("i1").astype(int)
    for name, expected, dtype in (
        ("__vabs2", abs(shorts), "u2"), ("__vabs4", abs(chars), "u1"), ("__vneg2", -shorts, "u2"),
        ("__vabsss4", np.minimum(abs(chars), 127), "u1"),
        ("__vnegss2", np.minimum(-shorts, 32767), "u2"),
    ):
        np.testing.assert_array_equal(value(name, a), expected.astype(dtype).view("u4"))
    sums = abs(chars - b.view("i1").astype(int)).reshape(-1, 4).sum(1)
    assert value("__vsads4", a, b).tolist() == sums.tolist()
    sums = abs(a.view("u2").astype(int) - b.view("u2").astype(int)).reshape(-1, 2).sum(1)
    assert value("__vsadu2", a, b).tolist() == sums.tolist()
    x, y, z = ([s32(v) for v in w] for w in (a, b, c))
    every = list(zip(x, y, z, strict=True))
    assert value("__vimax3_s32", a, b, c).tolist() == [max(t) for t in every]
    assert value("__vimin3_s32", a, b, c).tolist() == [min(t) for t in every]
    assert value("__viaddmax_s32", a, b, c).tolist() == [max(s32(p + q), r) for p, q, r in every]
    assert value("__viaddmin_s32_relu", a, b, c).tolist() == [
        max(min(s32(p + q), r), 0) for p, q, r in every]


# ---- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ROUNDINGS)
@pytest.mark.parametrize("word", INTEGERS)
def test_conversions(word, way):
    dtype = np.dtype(TYPES[INTEGERS[word]])
    wide = dtype.itemsize == 8
    for source, values in (("float", FLOATS), ("double", FLOATS.astype("f8") * (1 + 2**-40)),
                           ("half", HALVES)):
        expected = [whole(float(v), way, dtype) for v in values]
        if source != "double" and not wide:  # 32 bits on both sides: not-a-number is 0
            expected = [0 if math.isnan(v) else e for v, e in zip(values, expected, strict=True)]
        assert value(f"__{source}2{word}{way}", values).tolist() == expected, source
    limits = np.iinfo(dtype)
    integers = [limits.min, limits.max, 0, 1, 257, 2**24 + 1, 2**31 - 65, 255, 256, 511]
    integers += RNG.integers(0, limits.max, 20, dtype).tolist()
    for to, target in (("float", "f4"), ("bfloat16", ml_dtypes.bfloat16)):
        expected = [rounded(Fraction(i), target, way) for i in integers]
        result = value(f"__{word}2{to}{way}", np.array(integers, dtype))
        assert result.astype(float).tolist() == expected, to


@pytest.mark.parametrize("way", ROUNDINGS)
@pytest.mark.parametrize("letter", ["f", "d"])
def test_arithmetic_with_a_direction(letter, way):
    dtype = np.dtype({"f": "f4", "d": "f8"}[letter])
    largest = float(np.finfo(dtype).max)
    values = np.array([1, 1 / 3, -1 / 3, 3, 1e-30, -1e-30, largest, -largest, 1 + 2**-20,
                       float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).tiny),
                       *RNG.normal(0, 1e9, 20), *RNG.normal(0, 1e-20, 20)], dtype)
    a, b, c = triples(values, 300)
    exact = [tuple(Fraction(float(v)) for v in t) for t in zip(a, b, c, strict=True)]
    for name, function in ARITHMETIC.items():
        expected = [rounded(function(x, y), dtype, way) for x, y, _ in exact]
        assert value(f"__{letter}{name}{way}", a, b).tolist() == expected, name
    expected = [rounded(x * y + z, dtype, way) for x, y, z in exact]
    assert value(("__fmaf" if letter == "f" else "__fma") + way, a, b, c).tolist() == expected


@pytest.mark.parametrize("way", ROUNDINGS)
def test_roots_reciprocals_and_narrowing(way):
    positive = np.array([v for v in abs(FLOATS) if 0 < v < np.inf], np.float32)
    expected = [rounded(1 / Fraction(float(v)), "f4", way) for v in positive]
    assert value(f"__frcp{way}", positive).tolist() == expected
    # sqrt to 200 bits is enough to round it in any direction
    roots = [Fraction(math.isqrt(int(Fraction(float(v)) * 2**500)), 2**250) for v in positive]
    roots = [r + (Fraction(1, 2**250) if r * r != Fraction(float(v)) else 0)
             for r, v in zip(roots, positive, strict=True)]
    assert value(f"__fsqrt{way}", positive).tolist() == [rounded(r, "f4", way) for r in roots]
    if way == "_rn":
        expected = [rounded(1 / r, "f4") for r in roots]
        assert value("__frsqrt_rn", positive).tolist() == expected
    doubles = np.concatenate([FLOATS[np.isfinite(FLOATS)] * (1 + 2.0**-30), [1e300, -1e300, 1e-60]])
    expected = [rounded(Fraction(float(v)), "f4", way) for v in doubles]
    assert value(f"__double2float{way}", doubles).tolist() == expected


def test_the_intrinsics_are_not_fused():
    a, b, c = (RNG.normal(size=500).astype("f4") for _ in range(3))
    np.testing.assert_array_equal(value("unfused", a, b, c), a * b + c)


# ---- half and bfloat16 ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["half", "__nv_bfloat16"])
def test_half_precision_is_rounded_once(kind):
    dtype = np.dtype(TYPES[kind])
    patterns = RNG.integers(0, 2**16, (3, 3000)).astype("u2")
    patterns[2, ::3] = patterns[2, ::3] & 0x83FF | patterns[0, ::3] & 0x7C00  # like exponents
    a, b, c = (p.view(dtype) for p in patterns)
    good = np.all([np.isfinite(x.astype("f4")) for x in (a, b, c)], axis=0)
    a, b, c = a[good], b[good], c[good]
    # A tie that a third number, far below, decides: 1.5 (1 + 2^-7) has nine digits.
    ties = np.array([[1 + 2**-7, 1.5, t] for t in (1e-30, -1e-30, 0)], np.float64).astype(dtype)
    a, b, c = (np.concatenate([x, t]) for x, t in zip((a, b, c), ties.T, strict=True))
    exact = [tuple(Fraction(float(v)) for v in t) for t in zip(a, b, c, strict=True)]
    fused = np.array([rounded(x * y + z, dtype) for x, y, z in exact])
    np.testing.assert_array_equal(value(f"__hfma {kind}", a, b, c).astype(float), fused)
    np.testing.assert_array_equal(
        value(f"__hfma_relu {kind}", a, b, c).astype(float), np.maximum(fused, 0))
    np.testing.assert_array_equal(
        value(f"__hfma_sat {kind}", a, b, c).astype(float), np.clip(fused, 0, 1))
    np.testing.assert_array_equal(
        value(f"__hadd {kind}", a, b).astype(float), [rounded(x + y, dtype) for x, y, _ in exact])

    positive = abs(a[a != 0])
    wide = positive.astype(float)
    with np.errstate(over="ignore"):
        for name, function in (("hsqrt", np.sqrt), ("hrcp", np.reciprocal), ("hexp", np.exp),
                               ("hlog2", np.log2), ("hrint", np.rint), ("htanh", np.tanh)):
            expected = [rounded(Fraction(v), dtype) if np.isfinite(v) else v
                        for v in function(wide)]
            np.testing.assert_array_equal(
                value(f"{name} {kind}", positive).astype(float), expected, err_msg=name)
    assert np.isnan(value(f"hsqrt {kind}", np.array([-1.0], dtype))[0].astype(float))


# ---- functions -----------------------------------------------------------------------------------


def test_error_functions_and_their_inverses():
    x = np.concatenate([RNG.uniform(-1, 1, 300), 1 - 10.0 ** -RNG.uniform(1, 15, 100), [1e-200]])
    y = value("erfinv", x)
    for a, b in zip(x, y, strict=True):  # error of the inverse times the slope: error of erf
        if abs(a) < 0.9:
            assert math.isclose(math.erf(b), a, rel_tol=4e-15)
        else:
            assert math.isclose(math.erfc(abs(b)), 1 - abs(a), rel_tol=1e-13)
    assert value("erfinv", [1, -1, 0]).tolist() == [np.inf, -np.inf, 0]
    assert np.isnan(value("erfinv", [1.1, np.nan])).all()
    q = 10.0 ** -RNG.uniform(0, 300, 200)
    for a, b in zip(q, value("erfcinv", q), strict=True):
        assert math.isclose(math.erfc(b), a, rel_tol=2e-12)
    assert value("erfcinv", [0, 2, 1]).tolist() == [np.inf, -np.inf, 0]
    x = np.linspace(-37, 9, 300)
    expected = [math.erfc(-v / math.sqrt(2)) / 2 for v in x]
    np.testing.assert_allclose(value("normcdf", x), expected, rtol=1e-12)
    p = np.array([0.5, 0.975, 1e-10, 0.1])
    np.testing.assert_allclose(value("normcdf", value("normcdfinv", p)), p, rtol=1e-14)
    x = np.linspace(-5, 24, 200)
    expected = [math.exp(v * v) * math.erfc(v) for v in x]
    np.testing.assert_allclose(value("erfcx", x), expected, rtol=1e-12)
    below, above = value("erfcx", [24.999999, 25.000001])
    assert 0 < below - above < 2e-9


def test_multiples_of_pi_are_exact_where_they_can_be():
    x = [0, -0.0, 0.5, 1, -1, 1.5, 2, 2.5, -2.5, 1e15, 2.0**60, 1 / 6, 1e300]
    sines, cosines = value("sinpi", x), value("cospi", x)
    assert sines.tolist()[:10] == [0, 0, 1, 0, 0, -1, 0, 1, -1, 0]
    assert cosines.tolist()[:11] == [1, 1, 0, -1, -1, 0, 1, 0, 0, 1, 1]
    assert np.signbit(sines[1]) and abs(sines[11] - 0.5) < 1e-16
    assert value("sinpif", [1e6 + 0.5, 3.25]).tolist() == [1, np.float32(-math.sqrt(0.5))]
    assert np.isnan(value("cospi", [np.inf]))[0]


def test_bessel_norms_and_roots():
    x = np.array([0, 0.1, 1, -3, 29.9, 30.1, 100, 500])
    quarter = [Fraction(v) ** 2 / 4 for v in x]
    for order in (0, 1):
        expected = []
        for v, q in zip(x, quarter, strict=True):
            term = total = Fraction(v) / 2 if order else Fraction(1)
            for k in range(1, 900):
                term = Fraction(term * q / (k * (k + order))).limit_denominator(10**400)
                total += term
                if abs(term) < total * Fraction(1, 10**20):
                    break
            expected.append(float(total))
        np.testing.assert_allclose(value(f"cyl_bessel_i{order}", x), expected, rtol=5e-15)
    norms = value("norm3d", [1e200, 3], [1e200, 4], [0, 12])
    assert norms.tolist() == [math.hypot(1e200, 1e200), 13]
    assert value("rnorm3d", [2.0], [1.0], [2.0])[0] == 1 / 3
    assert value("rsqrt", [0.25, 0, -0.0, np.inf]).tolist() == [2, np.inf, -np.inf, 0]
    assert value("rcbrt", [0.125])[0] == 2
    assert math.isclose(value("exp10", [3.0])[0], 1000, rel_tol=1e-15)
    assert value("j0", [0.0])[0] == 1 and value("fdimf", [3, 1], [1, 3]).tolist() == [2, 0]


def test_edges_of_the_fast_functions():
    assert value("__saturatef", [-1, 0.25, 2, np.nan, -np.inf]).tolist() == [0, 0.25, 1, 0, 0]
    assert value("__fdividef", [6, 1], [3, 2.0**127]).tolist() == [2, 0]
    powers = value("__powf", [2, -2, 0, 9], [10, 2, 2, 0.5])
    assert powers[0] == 1024 and np.isnan(powers[1]) and powers[2] == 0 and powers[3] == 3


def test_overloads_bit_casts_and_classes():
    assert value("max mixed", [-1, 3], [5, 4]).tolist() == [2**32 - 1, 4]
    assert value("min mixed", [0.5], [0.25])[0] == 0.25
    assert value("max float", [np.nan, 2], [1, np.nan]).tolist() == [1, 2]
    assert value("float type", [1.0])[0]
    values = FLOATS[~np.isnan(FLOATS)]
    for name, array in (("bits", values), ("cached", values[np.isfinite(values)])):
        np.testing.assert_array_equal(value(name, array), array)
    np.testing.assert_array_equal(value("double bits", values.astype(float)), values)
    assert value("classes", [1, -1, np.inf, -np.inf, np.nan]).tolist() == [8, 12, 2, 6, 1]
