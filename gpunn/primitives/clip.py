"""What is done to all gradients between backward and update: norm, clipping, penalties.

Each works on one flat array, such as an optimizer's arena; several arrays are joined by taking the
norm of their norms.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import BLOCK, elementwise_grid
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    ELEMENTWISE_SHAPES,
    FLOAT64,
    FLOATING,
    Accumulator,
    Sample,
    accumulator_dtype,
)

# ---- specification -------------------------------------------------------------------------------


@primitive(family="clip", cuda="clip.cu", numba="clip.py")
def global_norm(call, gradients, *, out=None):
    """The Euclidean norm of all elements: ``out = sqrt(sum of g²)``.

    Groups of squares are added in float32 and the groups in float64, always in the same order: the
    relative error stays near 1e-7 for any length, and only a norm beyond float32 overflows (for
    float64 input, squares beyond float64). NaN and inf travel. The norm of nothing is 0.

    Parameters
    ----------
    gradients : floating array of any shape
    out : array of shape () to write, float32 (float64 for float64)
    """
    gradients = call.array("gradients", gradients, dtypes=FLOATING)
    out = call.output("out", out, shape=(), dtype=accumulator_dtype(gradients.dtype))
    call.run(gradients.reshape(-1), out.reshape(1))
    return out


@primitive(family="clip", cuda="clip.cu", numba="clip.py")
def clip_by_norm(call, gradients, norm, *, max_norm: float):
    """Scale down to a norm, in place: ``g *= min(1, max_norm / (norm + 1e-6))``.

    `norm` is read where the gradients are, so nothing waits for it. Nothing is written if there is
    nothing to clip. A NaN norm makes every element NaN but the zeros, which always stay zero.

    Parameters
    ----------
    gradients : floating array of any shape, changed in place
    norm : array of shape (), float32 (float64 for float64): what `global_norm` returned
    max_norm : the largest norm left alone, 0 or more

    Source: Pascanu et al. 2013; the formula of PyTorch's clip_grad_norm_.
    """
    gradients = call.inplace("gradients", gradients, dtypes=FLOATING)
    norm = call.array("norm", norm, dtypes=(accumulator_dtype(gradients.dtype),), shape=())
    max_norm = call.number("max_norm", max_norm, low=0)
    call.run(gradients.reshape(-1), norm.reshape(1), max_norm)
    return gradients


@primitive(family="clip", cuda="clip.cu", numba="clip.py")
def clip_by_value(call, gradients, *, limit: float):
    """Clamp to a range, in place: ``g = min(max(g, -limit), limit)``. NaN stays NaN.

    Parameters
    ----------
    gradients : floating array of any shape, changed in place
    limit : the largest absolute value left alone, 0 or more
    """
    gradients = call.inplace("gradients", gradients, dtypes=FLOATING)
    limit = call.number("limit", limit, low=0)
    call.run(gradients.reshape(-1), limit)
    return gradients


@primitive(family="clip", cuda="clip.cu", numba="clip.py")
def penalty_gradient(call, parameters, gradients, *, l1: float = 0.0, l2: float = 0.0):
    """Add the gradient of ``l1 · sum|w| + l2 · sum w²`` in place: ``g += l1 sign(w) + 2 l2 w``.

    Parameters
    ----------
    parameters : w, floating array of any shape
    gradients : array like it, changed in place
    l1, l2 : weights of the penalties, 0 or more; the derivative of |w| at 0 is taken as 0
    """
    parameters = call.array("parameters", parameters, dtypes=FLOATING)
    gradients = call.inplace("gradients", gradients, dtypes=FLOATING, shape=parameters.shape)
    call.same_dtype(parameters=parameters, gradients=gradients)
    l1, l2 = call.number("l1", l1, low=0), call.number("l2", l2, low=0)
    call.run(parameters.reshape(-1), gradients.reshape(-1), l1, 2 * l2)
    return gradients


# ---- reference -----------------------------------------------------------------------------------

# Short enough for a float32 sum of squares, and for one thread of the BLAS behind numpy.dot: with
# more, the result would depend on the number of its threads.
_BLOCK = 4096


def _sum_of_squares(block: np.ndarray) -> float:
    """The sum of squares of a few thousand elements; in float64 where float32 would not hold it."""
    if block.itemsize == 2:
        block = block.astype(np.float32)
    total = float(np.dot(block, block))
    if block.dtype == np.float32 and not 1e-25 < total < 1e37:
        block = block.astype(np.float64)
        total = float(np.dot(block, block))
    return total


@global_norm.reference
def _(gradients, out):
    with quiet():
        total = 0.0
        for start in range(0, gradients.size, _BLOCK):
            total += _sum_of_squares(gradients[start : start + _BLOCK])
        out[0] = math.sqrt(total)


@clip_by_norm.reference
def _(gradients, norm, max_norm):
    coefficient = max_norm / (float(norm[0]) + 1e-6)
    if coefficient >= 1:
        return
    accumulator = accumulator_dtype(gradients.dtype)
    with quiet():
        if gradients.dtype == accumulator and coefficient == coefficient:
            np.multiply(gradients, coefficient, out=gradients)  # the usual case, without a copy
            return
        scaled = gradients.astype(accumulator) * accumulator.type(coefficient)
        gradients[...] = np.where(gradients == 0, gradients, scaled)


@clip_by_value.reference
def _(gradients, limit):
    with quiet():
        np.clip(gradients, -limit, limit, out=gradients)


@penalty_gradient.reference
def _(parameters, gradients, l1, twice_l2):
    accumulator = accumulator_dtype(parameters.dtype)
    with quiet():
        w = parameters.astype(accumulator, copy=False)
        penalty = np.sign(w) * l1
        if twice_l2:
            penalty += w * twice_l2
        gradients[...] = gradients.astype(accumulator, copy=False) + penalty


# ---- launch --------------------------------------------------------------------------------------

_MOST_BLOCKS = 1024  # of the first stage of the norm: as many as fit on a large GPU at once


@global_norm.cuda
def _(launch, gradients, out):
    ctype = launch.ctype(gradients.dtype)
    vector = launch.aligned(16, gradients)
    (blocks,) = elementwise_grid(gradients.size, gradients.itemsize, vector)
    blocks = min(blocks, _MOST_BLOCKS)
    partials = launch.empty((blocks,), FLOAT64)
    launch(
        f"sum_of_squares<{ctype}, {str(vector).lower()}>",
        grid=(blocks,),
        block=(BLOCK,),
        args=(gradients, launch.int64(gradients.size), partials),
    )
    launch(
        f"norm_of_partials<{launch.ctype(out.dtype)}>",
        grid=(1,),
        block=(BLOCK,),
        args=(partials, launch.int64(blocks), out),
    )


def _launch_elementwise(launch, kernel: str, arrays: tuple, *args) -> None:
    """Launch ``kernel<T, VECTOR>(*args)`` over the elements of `arrays`; the last is written."""
    gradients = arrays[-1]
    if gradients.size == 0:
        return
    vector = launch.alike(16, *arrays)
    launch(
        f"{kernel}<{launch.ctype(gradients.dtype)}, {str(vector).lower()}>",
        grid=elementwise_grid(gradients.size, gradients.itemsize, vector),
        block=(BLOCK,),
        args=args,
    )


@clip_by_norm.cuda
def _(launch, gradients, norm, max_norm):
    args = (gradients, norm, launch.int64(gradients.size), np.float64(max_norm))
    _launch_elementwise(launch, "clip_by_norm", (gradients,), *args)


@clip_by_value.cuda
def _(launch, gradients, limit):
    limit = accumulator_dtype(gradients.dtype).type(limit)
    args = (gradients, launch.int64(gradients.size), limit)
    _launch_elementwise(launch, "clip_by_value", (gradients,), *args)


@penalty_gradient.cuda
def _(launch, parameters, gradients, l1, twice_l2):
    scalar = accumulator_dtype(gradients.dtype).type
    args = (parameters, gradients, launch.int64(gradients.size), scalar(l1), scalar(twice_l2))
    _launch_elementwise(launch, "penalty_gradient", (parameters, gradients), *args)


_THREADS = 128  # of a block of the Numba kernels; the norm's reduction is written for this number


def _numba_grid(size: int, most: int = 65535) -> tuple[int]:
    return (max(1, min(-(-size // _THREADS), most)),)


@global_norm.numba
def _(launch, gradients, out):
    grid = _numba_grid(gradients.size, 64)
    partials = launch.empty(grid, FLOAT64)
    launch("sum_of_squares", grid, (_THREADS,), (gradients, partials))
    launch("norm_of_partials", (1,), (_THREADS,), (partials, out))


@clip_by_norm.numba
def _(launch, gradients, norm, max_norm):
    if gradients.size:
        args = (gradients, norm, np.float64(max_norm))
        launch("clip_by_norm", _numba_grid(gradients.size), (_THREADS,), args)


@clip_by_value.numba
def _(launch, gradients, limit):
    if gradients.size:
        args = (gradients, gradients.dtype.type(limit))
        launch("clip_by_value", _numba_grid(gradients.size), (_THREADS,), args)


@penalty_gradient.numba
def _(launch, parameters, gradients, l1, twice_l2):
    if gradients.size:
        scalar = gradients.dtype.type
        args = (parameters, gradients, scalar(l1), scalar(twice_l2))
        launch("penalty_gradient", _numba_grid(gradients.size), (_THREADS,), args)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@global_norm.cost
def _(gradients, out):
    return Cost(flops=2 * gradients.size, read=gradients.nbytes, written=out.nbytes)


@clip_by_norm.cost
def _(gradients, norm, max_norm):
    return Cost(flops=gradients.size, read=gradients.nbytes, written=gradients.nbytes)


@clip_by_value.cost
def _(gradients, limit):
    return Cost(flops=2 * gradients.size, read=gradients.nbytes, written=gradients.nbytes)


@penalty_gradient.cost
def _(parameters, gradients, l1, twice_l2):
    read = parameters.nbytes + gradients.nbytes
    return Cost(flops=5 * gradients.size, read=read, written=gradients.nbytes)


def _arrays(rng):
    """(name, values, further arguments of Sample): ordinary lengths, odd ones, views, edges."""
    yield "1", rng.normal(size=1), {}
    yield "3", rng.normal(size=3), {}
    yield "nothing", np.zeros(0), {}
    yield "7x13", rng.normal(size=(7, 13)), {"dtypes": FLOATING}
    yield "5001", rng.normal(size=5001), {"dtypes": FLOATING, "numba": False}
    more = {"dtypes": FLOATING, "unaligned": True, "numba": False}
    yield "1003 unaligned", rng.normal(size=1003), more
    yield "zeros", np.zeros(70), {}
    yield "not a number", np.array([1.0, np.nan, 0.0, -2.0]), {}
    yield "infinite", np.array([1.0, -np.inf, 0.0, -2.0]), {}


@global_norm.samples
def _(rng):
    for name, values, more in _arrays(rng):
        yield Sample(name, (values,), **more)
    yield Sample("strided view", (rng.normal(size=(9, 22))[:, ::2],))
    yield Sample("70000", (rng.normal(size=70000),), numba=False)
    for scale in (1e25, 1e30, 1e-25, 1e-36):
        yield Sample(f"of size {scale}", (scale * rng.normal(size=300),))


@clip_by_norm.samples
def _(rng):
    for name, values, more in _arrays(rng):
        norm = Accumulator(np.array(np.linalg.norm(values.ravel())))
        yield Sample(f"{name}, scaled", (values, norm), {"max_norm": 0.7}, **more)
    for norm in (0.0, 1.0, 1e30, np.inf, np.nan):
        args = (rng.normal(size=99), Accumulator(np.array(norm)))
        yield Sample(f"norm {norm}", args, {"max_norm": 2.0})
    args = (rng.normal(size=99), Accumulator(np.array(9.9)))
    yield Sample("to zero", args, {"max_norm": 0.0})


@clip_by_value.samples
def _(rng):
    for name, values, more in _arrays(rng):
        yield Sample(name, (values,), {"limit": 0.8}, **more)
    yield Sample("no limit", (rng.normal(size=99),), {"limit": np.inf})


@penalty_gradient.samples
def _(rng):
    for name, values, more in _arrays(rng):
        args = (values, rng.normal(size=values.shape))
        yield Sample(name, args, {"l1": 0.1, "l2": 0.2}, **more)
    args = (np.array([np.inf, -np.inf, 0.0, -0.0]), np.ones(4))
    yield Sample("l1 alone at the edge", args, {"l1": 0.1})


def _random(rng, shape, count: int = 1) -> tuple[np.ndarray, ...]:
    return tuple(rng.standard_normal((count, *shape), dtype=np.float32))


@global_norm.inputs
def _(rng, shape):
    return _random(rng, shape), {}


@clip_by_norm.inputs
def _(rng, shape):
    return (*_random(rng, shape), np.float32(2.0).reshape(())), {"max_norm": 1.999}


@clip_by_value.inputs
def _(rng, shape):
    return _random(rng, shape), {"limit": 1.0}


@penalty_gradient.inputs
def _(rng, shape):
    return _random(rng, shape, 2), {"l1": 1e-4, "l2": 1e-4}


for _made in (global_norm, clip_by_norm, clip_by_value, penalty_gradient):
    _made.bench_shapes = ELEMENTWISE_SHAPES
