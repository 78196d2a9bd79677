"""What test_shim_math.py compiles, and exact references.

All expressions are compiled into one module; `value` runs one of them over arrays.
"""

import functools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np

from gpunn import emulator

RNG = np.random.default_rng(3)
TYPES = {
    "int": "i4", "unsigned": "u4", "long long": "i8", "unsigned long long": "u8", "short": "i2",
    "unsigned short": "u2", "float": "f4", "double": "f8", "half": "f2", "bool": "?",
    "__nv_bfloat16": ml_dtypes.bfloat16,
}
WORDS = np.array(
    [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x80808080, 0x7F7F7F7F, 0x80007FFF,
     0x7FFF8000, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, *RNG.integers(0, 2**32, 24)], np.uint32)
FLOATS = np.array(
    [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, 1e-45, -1e-45, 1.1754944e-38, 1, -1, 1 / 3, 2.0**24,
     16777217, 2147483647, -2147483648, 2147483520, 4294967295, 3e9, -3e9, 9.3e18, 2e19, -1e19,
     3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan, *RNG.normal(0, 1e3, 20)], np.float32)

# ---- what is compiled: name -> result type, types of a, b, c, expression -------------------------

EXPRESSIONS: dict[str, tuple[str, tuple[str, ...], str]] = {}


def declare(result, types, *names, call="{}"):
    for name in names:
        arguments = ", ".join("abc"[: len(types)])
        EXPRESSIONS[name] = (result, types, call.format(f"{name}({arguments})"))


U, I32, L, UL, F, D = "unsigned", "int", "long long", "unsigned long long", "float", "double"
declare(I32, (U,), "__popc")
declare(I32, (I32,), "__clz", "__ffs")
declare(I32, (UL,), "__popcll")
declare(I32, (L,), "__clzll", "__ffsll")
declare(U, (U,), "__brev")
declare(UL, (UL,), "__brevll")
declare(U, (U, U, U), "__byte_perm", "__usad", "__funnelshift_l", "__funnelshift_r",
        "__funnelshift_lc", "__funnelshift_rc")
declare(U, (I32, I32, U), "__sad")
declare(I32, (I32, I32), "__mulhi", "__mul24", "__hadd", "__rhadd")
declare(U, (U, U), "__umulhi", "__umul24", "__uhadd", "__urhadd")
declare(L, (L, L), "__mul64hi")
declare(UL, (UL, UL), "__umul64hi")
declare(I32, (I32, I32, I32), "__dp4a", "__dp2a_lo", "__dp2a_hi")

LANES = {  # name without the number of lanes: lanes are signed, function of two lanes
    "__vadd": (False, lambda a, b: a + b), "__vsub": (False, lambda a, b: a - b),
    "__vaddss": (True, lambda a, b: a + b), "__vaddus": (False, lambda a, b: a + b),
    "__vsubss": (True, lambda a, b: a - b), "__vsubus": (False, lambda a, b: a - b),
    "__vavgs": (True, lambda a, b: (a + b + (a + b >= 0)) >> 1),
    "__vavgu": (False, lambda a, b: (a + b + 1) >> 1),
    "__vhaddu": (False, lambda a, b: (a + b) >> 1),
    "__vmaxs": (True, np.maximum), "__vmaxu": (False, np.maximum),
    "__vmins": (True, np.minimum), "__vminu": (False, np.minimum),
    "__vabsdiffs": (True, lambda a, b: abs(a - b)), "__vabsdiffu": (False, lambda a, b: abs(a - b)),
    "__vcmpeq": (False, lambda a, b: -(a == b).astype(int)),
    "__vcmpgts": (True, lambda a, b: -(a > b).astype(int)),
    "__vcmpleu": (False, lambda a, b: -(a <= b).astype(int)),
    "__vsetne": (False, lambda a, b: a != b), "__vsetlts": (True, lambda a, b: a < b),
    "__vsetgeu": (False, lambda a, b: a >= b),
}
for _name in LANES:
    declare(U, (U, U), _name + "2", _name + "4")
declare(U, (U,), "__vabs2", "__vabs4", "__vabsss4", "__vneg2", "__vnegss2")
declare(U, (U, U), "__vsads4", "__vsadu2")
declare(I32, (I32, I32, I32), "__viaddmax_s32", "__viaddmin_s32_relu", "__vimax3_s32",
        "__vimin3_s32")

ROUNDINGS = ("_rn", "_rz", "_ru", "_rd")
INTEGERS = {"int": I32, "uint": U, "ll": L, "ull": UL}
ARITHMETIC = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
              "div": lambda a, b: a / b}
for _way in ROUNDINGS:
    for _word, _type in INTEGERS.items():
        declare(_type, (F,), f"__float2{_word}{_way}")
        declare(_type, (D,), f"__double2{_word}{_way}")
        declare(F, (_type,), f"__{_word}2float{_way}")
        declare(_type, ("half",), f"__half2{_word}{_way}")
        declare("__nv_bfloat16", (_type,), f"__{_word}2bfloat16{_way}")
    declare(F, (D,), f"__double2float{_way}")
    declare(F, (F, F), *(f"__f{name}{_way}" for name in ARITHMETIC))
    declare(D, (D, D), *(f"__d{name}{_way}" for name in ARITHMETIC))
    declare(F, (F, F, F), f"__fmaf{_way}")
    declare(D, (D, D, D), f"__fma{_way}")
    declare(F, (F,), f"__fsqrt{_way}", f"__frcp{_way}")
declare(F, (F,), "__frsqrt_rn", "__saturatef", "rsqrtf", "sinpif", "cospif", "erfinvf", "normcdff")
declare(F, (F, F), "__fdividef", "__powf", "fdimf")
declare(D, (D,), "rsqrt", "rcbrt", "sinpi", "cospi", "erfinv", "erfcinv", "erfcx", "normcdf",
        "normcdfinv", "cyl_bessel_i0", "cyl_bessel_i1", "exp10", "j0")
declare(D, (D, D, D), "norm3d", "rnorm3d")
for _half in ("half", "__nv_bfloat16"):
    for _function in ("hsqrt", "hrcp", "hexp", "hlog2", "hrint", "htanh", "hsin"):
        EXPRESSIONS[f"{_function} {_half}"] = (_half, (_half,), f"{_function}(a)")
    for _function in ("__hfma", "__hfma_relu", "__hfma_sat"):
        EXPRESSIONS[f"{_function} {_half}"] = (_half, (_half,) * 3, f"{_function}(a, b, c)")
    EXPRESSIONS[f"__hadd {_half}"] = (_half, (_half,) * 2, "__hadd(a, b)")
EXPRESSIONS |= {
    "unfused": (F, (F, F, F), "__fadd_rn(__fmul_rn(a, b), c)"),
    "max mixed": (U, (I32, U), "max(a, b)"),
    "min mixed": (D, (F, D), "min(a, b)"),
    "max float": (F, (F, F), "max(a, b)"),
    "float type": ("bool", (F,), "sizeof(sqrt(a) + abs(a) + pow(a, a) + fmin(a, a)) == 4"),
    "bits": (F, (F,), "__int_as_float(__float_as_int(__uint_as_float(__float_as_uint(a))))"),
    "double bits": (D, (D,), "__hiloint2double(__double2hiint(a), __double2loint(a))"),
    "classes": (I32, (F,), "isnan(a) + 2 * isinf(a) + 4 * (signbit(a) != 0) + 8 * isfinite(a)"),
    "cached": (F, (F,), "max(max(__ldg(&a), __ldcg(&a)), max(__ldcs(&a), __ldcv(&a)))"),
}


def signatures():
    """The expressions by their types: one kernel for all that take and give the same."""
    found = {}
    for name, (result, types, _) in EXPRESSIONS.items():
        found.setdefault((result, types), []).append(name)
    return found


@functools.cache
def compiled():
    text = ["#include <cuda_fp16.h>", "#include <cuda_bf16.h>"]
    for number, ((result, types), names) in enumerate(signatures().items()):
        parameters = "".join(f"const {t}* {n}s, " for t, n in zip(types, "abc", strict=False))
        loads = " ".join(f"{t} {n} = {n}s[i];" for t, n in zip(types, "abc", strict=False))
        cases = "\n".join(
            f"        case {i}: out[i] = {EXPRESSIONS[name][2]}; break;".replace("[i]", "[at]")
            for i, name in enumerate(names))
        text.append(f"""
extern "C" __global__ void signature{number}({parameters}{result}* out, int n, int which) {{
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    {loads.replace("[i]", "[at]")}
    switch (which) {{
{cases}
    }}
}}""")
    return emulator.RawModule("\n".join(text), check=False)


def value(name, *arrays):
    """An expression's results over arrays."""
    result, types, _ = EXPRESSIONS[name]
    arrays = np.broadcast_arrays(*arrays)
    n = arrays[0].size
    inputs = [np.ascontiguousarray(a).reshape(-1).astype(TYPES[t])
              for a, t in zip(arrays, types, strict=True)]
    out = np.zeros(n, TYPES[result])
    kernels = signatures()
    number = list(kernels).index((result, types))
    function = compiled().get_function(f"signature{number}")
    which = kernels[result, types].index(name)
    function((n // 128 + 1,), (128,), (*inputs, out, n, which))
    return out


def triples(values, count=400):
    return [RNG.choice(values, count) for _ in range(3)]


def s32(x):
    return (int(x) + 2**31) % 2**32 - 2**31


# ---- exact references ----------------------------------------------------------------------------

FORMATS = {np.dtype("f4"): (24, -149, 128), np.dtype("f8"): (53, -1074, 1024),
           np.dtype("f2"): (11, -24, 16), np.dtype(ml_dtypes.bfloat16): (8, -133, 128)}


def rounded(exact: Fraction, dtype, way="_rn") -> float:
    """The number of a format next to an exact one, in one of the four directions."""
    digits, lowest, top = FORMATS[np.dtype(dtype)]
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    up = way == "_ru" and exact > 0 or way == "_rd" and exact < 0
    steps = size / unit
    whole = round(steps) if way == "_rn" else math.ceil(steps) if up else math.floor(steps)
    size, limit = whole * unit, Fraction(2) ** top
    if size >= limit:
        size = math.inf if way == "_rn" or up else float(limit - limit / 2**digits)
    return -float(size) if exact < 0 else float(size)


def whole(x: float, way: str, dtype) -> int:
    """A floating-point number as an integer of a type: saturating; not-a-number as PTX has it."""
    limits = np.iinfo(dtype)
    if math.isnan(x):
        return limits.min if limits.min else 1 << 8 * np.dtype(dtype).itemsize - 1
    if math.isinf(x):
        return limits.max if x > 0 else limits.min
    f = {"_rn": round, "_rz": math.trunc, "_ru": math.ceil, "_rd": math.floor}[way]
    return min(max(f(Fraction(x)), limits.min), limits.max)
