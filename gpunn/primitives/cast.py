"""An array in another floating type: between the 16 bits of products and the 32 of everything else.

Mixed precision lives on it: the weights go to 16 bits once a step, in one launch for a whole arena,
and the gradients come back into float32.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import BLOCK, elementwise_grid
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    BFLOAT16,
    ELEMENTWISE_SHAPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    Fixed,
    Sample,
)

_BY_NAME = {dtype.name: dtype for dtype in FLOATING}

# ---- specification -------------------------------------------------------------------------------


@primitive(family="cast", cuda="cast.cu", numba="cast.py")
def cast(call, x, dtype=None, *, out=None):
    """The same values in another floating type: ``out[i] = x[i]``, rounded to nearest even.

    Rounded once, also from float64 to bfloat16. What is too large for the new type becomes
    infinite; NaN and inf travel, subnormal numbers are kept.

    Parameters
    ----------
    x : array of any shape, float16, bfloat16, float32 or float64
    dtype : one of these, or its name. The type of `x` itself makes a copy.
    out : array of the shape of `x` to write, which shares no memory with it; its type may stand for
        `dtype`

    Raises
    ------
    TypeError, ValueError : a type that is not floating, neither dtype nor out, an `out` that does
        not fit
    """
    x = call.array("x", x, dtypes=FLOATING)
    if dtype is not None:
        dtype = _floating(call, dtype)
    if out is None:
        call.require(dtype is not None, "dtype", "is None", "give a dtype, or an out that has one")
        out = call.empty(x.shape, dtype)
    else:
        dtypes = FLOATING if dtype is None else (dtype,)
        out = call.inplace("out", out, dtypes=dtypes, shape=x.shape)
    call.run(x.reshape(-1), out.reshape(-1))
    return out


def _floating(call, dtype) -> np.dtype:
    """The dtype of a name or of anything NumPy takes for one."""
    found = dtype if dtype in FLOATING else _BY_NAME.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise TypeError(
            f"{call.primitive.name}: dtype is {dtype!r}; expected one of {', '.join(_BY_NAME)}."
        )
    return np.dtype(found)


# ---- reference -----------------------------------------------------------------------------------


def _rounded_to_odd(x: np.ndarray) -> np.ndarray:
    """float64 as float32, cut off, with the last bit set if anything was lost.

    Rounded from there to 16 bits it is what the exact number gives; the usual way over float32
    rounds twice.
    """
    cut = x.astype(np.float32)
    back, bits = cut.astype(np.float64), cut.view(np.int32)
    lost = (back != x) & (x == x)
    bits -= np.abs(back) > np.abs(x)  # it was rounded away from 0
    bits |= lost
    return cut


@cast.reference
def _(x, out):
    with quiet():
        out[...] = _rounded_to_odd(x) if x.dtype == FLOAT64 and out.dtype == BFLOAT16 else x


# ---- launch --------------------------------------------------------------------------------------


@cast.cuda
def _(launch, x, out):
    if x.size == 0:
        return
    widest = max(x.itemsize, out.itemsize)
    width = 16 // widest  # each side is aligned for what it moves of a pack
    vector = launch.aligned(width * x.itemsize, x) and launch.aligned(width * out.itemsize, out)
    launch(
        f"cast<{launch.ctype(x.dtype)}, {launch.ctype(out.dtype)}>",
        grid=elementwise_grid(x.size, widest, vector),
        block=(BLOCK,),
        args=(x, out, launch.int64(x.size), np.bool_(vector)),
    )


@cast.numba
def _(launch, x, out):
    if x.size:
        launch("cast", (min(-(-x.size // 128), 65535),), (128,), (x, out))


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@cast.cost
def _(x, out):
    return Cost(flops=x.size, read=x.nbytes, written=out.nbytes)


def _edges() -> np.ndarray:
    """Values at which rounding decides: halves, largest and smallest numbers, NaN, zeros."""
    halves = [1 + (k + half) * 2.0**-bits for bits in (7, 10, 23) for k in (0, 1) for half in
              (0.5, 0.5 + 2**-20, 0.5 - 2**-20)]  # fmt: skip
    ends = [65504.0, 65519.99, 65520.0, 3.3895e38, 3.3961e38, 3.4e38, 1e300, 2.0**-24, 2.0**-25]
    ends += [1.5 * 2.0**-25, 2.0**-133, 2.0**-134, 1.1 * 2.0**-134, 1e-45, 1e-310, 0.0, np.inf]
    values = np.array(halves + ends)
    return np.concatenate([values, -values, [np.nan]])


@cast.samples
def _(rng):
    """Into each type from each; exact, because a rounding has one right result."""
    for target in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64):
        numba = target in (FLOAT32, FLOAT64)
        more = {"dtypes": FLOATING, "exact": True}
        yield Sample(f"edges to {target}", (_edges(), target.name), numba=numba, **more)
        x = rng.normal(size=1003)
        out = {"out": Fixed(np.zeros(1003, target))}
        yield Sample(f"unaligned to {target}", (x,), out, unaligned=True, numba=False, **more)
    more = {"exact": True, "numba": False}
    for target, dtypes in ((BFLOAT16, (FLOAT32,)), (FLOAT32, (FLOAT16,))):
        x, strided = rng.normal(size=5001), rng.normal(size=(9, 22))[:, ::2]
        yield Sample(f"5001 to {target}", (x, target.name), dtypes=dtypes, **more)
        yield Sample(f"strided to {target}", (strided, target.name), dtypes=dtypes, **more)
    yield Sample("nothing", (np.zeros((0, 3)), "float32"), dtypes=(FLOAT16, FLOAT64), exact=True)


@cast.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32), "bfloat16"), {}


cast.bench_shapes = ELEMENTWISE_SHAPES
