"""The loss scale of float16 training: its state lives on the device, so that no step waits for it.

float16 ends at 6e-5 below and 65504 above: gradients are lost unless the loss is first multiplied
by a scale. Where one overflows all the same, the step is skipped and the scale lowered. `state` is
an array with the slots of `STATE`, float32; the update kernels of the optimizers look at
``found_inf`` (their argument `skip`) and do nothing where it is set.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import BLOCK, elementwise_grid
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import ELEMENTWISE_SHAPES, FLOAT32, FLOAT64, Fixed, Sample

STATE = ("scale", "growth_tracker", "found_inf", "skipped")
FOUND_INF = slice(2, 3)

# ---- specification -------------------------------------------------------------------------------


def _state(call, state):
    return call.inplace("state", state, dtypes=(FLOAT32, FLOAT64), shape=(len(STATE),))


@primitive(family="amp", cuda="amp.cu", numba="amp.py")
def unscale_gradients(call, gradients, state, *, found_inf=None):
    """Take the loss scale off, in place: ``g *= 1 / scale``; note infinities and NaN.

    ``found_inf`` becomes 1 if some element is not finite before, else it stays as it is. Nothing
    waits for the result.

    Parameters
    ----------
    gradients : float32 or float64 array of any shape, changed in place. 16-bit gradients would be
        rounded again, and lose what they were scaled for: keep float32 ones.
    state : float32 or float64 array (4,): scale, growth_tracker, found_inf, skipped
    found_inf : None for that of `state`, or another array (1,) of its dtype, which holds 0 or 1
    """
    gradients = call.inplace("gradients", gradients, dtypes=(FLOAT32, FLOAT64))
    state = _state(call, state)
    if found_inf is None:
        found_inf = state[FOUND_INF]
    else:
        found_inf = call.inplace("found_inf", found_inf, dtypes=(state.dtype,), shape=(1,))
    call.run(gradients.reshape(-1), state[:1], found_inf)
    return gradients


@primitive(family="amp", cuda="amp.cu", numba="amp.py")
def update_loss_scale(
    call,
    state,
    *,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
):
    """What follows from a step for the loss scale; on a GPU a launch of one thread.

    Where ``found_inf`` is set, the scale is multiplied by `backoff_factor`, the step counts as
    skipped, and the flag is reset. After `growth_interval` steps in a row without, the scale is
    multiplied by `growth_factor`, unless it would become infinite.

    Parameters
    ----------
    state : float32 or float64 array (4,): scale, growth_tracker, found_inf, skipped; changed in
        place
    growth_factor, backoff_factor : above 0
    growth_interval : 1 or more

    Source: Micikevicius et al. 2018, Mixed Precision Training; the rule of PyTorch's GradScaler.
    """
    state = _state(call, state)
    growth = call.number("growth_factor", growth_factor, low=0)
    backoff = call.number("backoff_factor", backoff_factor, low=0)
    interval = call.number("growth_interval", growth_interval, low=1)
    call.run(state, growth, backoff, interval)
    return state


# ---- reference -----------------------------------------------------------------------------------

_CHUNK = 1 << 16  # elements at a time: looked at and multiplied while they are in the cache


@unscale_gradients.reference
def _(gradients, scale, found_inf):
    with quiet():
        factor = 1 / gradients.dtype.type(scale[0])
        for start in range(0, gradients.size, _CHUNK):
            some = gradients[start : start + _CHUNK]
            if not np.isfinite(some).all():
                found_inf[0] = 1
            np.multiply(some, factor, out=some)


@update_loss_scale.reference
def _(state, growth, backoff, interval):
    scale, tracker, found, skipped = state
    with quiet():
        if found:
            scale, tracker, skipped = scale * state.dtype.type(backoff), 0, skipped + 1
        elif tracker + 1 >= interval:
            larger = scale * state.dtype.type(growth)
            scale, tracker = larger if np.isfinite(larger) else scale, 0
        else:
            tracker += 1
    state[:] = scale, tracker, 0, skipped


# ---- launch --------------------------------------------------------------------------------------


@unscale_gradients.cuda
def _(launch, gradients, scale, found_inf):
    if gradients.size == 0:
        return
    launch(
        f"unscale_gradients<{launch.ctype(gradients.dtype)}, {launch.ctype(scale.dtype)}>",
        grid=elementwise_grid(gradients.size, gradients.itemsize, True),
        block=(BLOCK,),
        args=(gradients, scale, found_inf, launch.int64(gradients.size)),
    )


@update_loss_scale.cuda
def _(launch, state, growth, backoff, interval):
    numbers = map(state.dtype.type, (growth, backoff, interval))
    name = f"update_loss_scale<{launch.ctype(state.dtype)}>"
    launch(name, grid=(1,), block=(1,), args=(state, *numbers))


@unscale_gradients.numba
def _(launch, gradients, scale, found_inf):
    if gradients.size:
        grid = (min(-(-gradients.size // 128), 65535),)
        launch("unscale_gradients", grid, (128,), (gradients, scale, found_inf))


@update_loss_scale.numba
def _(launch, state, growth, backoff, interval):
    numbers = map(state.dtype.type, (growth, backoff, interval))
    launch("update_loss_scale", (1,), (1,), (state, *numbers))


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@unscale_gradients.cost
def _(gradients, scale, found_inf):
    return Cost(3 * gradients.size, gradients.nbytes + scale.nbytes, gradients.nbytes)


@update_loss_scale.cost
def _(state, growth, backoff, interval):
    return Cost(flops=2, read=state.nbytes, written=state.nbytes)


def _numbers(scale: float, tracker: float = 0, found: float = 0, skipped: float = 0) -> Fixed:
    return Fixed(np.array([scale, tracker, found, skipped], np.float32))


@unscale_gradients.samples
def _(rng):
    both = {"dtypes": (FLOAT32, FLOAT64), "exact": True}  # one product, with one right result
    for size in (0, 1, 99):
        yield Sample(f"{size}", (rng.normal(size=size), _numbers(1024)), **both)
    found = (rng.normal(size=(7, 13)), _numbers(3.0, found=1))
    yield Sample("7x13, found before", found, exact=True)
    large = rng.normal(size=5003)
    yield Sample("5003 unaligned", (large, _numbers(0.5)), numba=False, unaligned=True, **both)
    for name, value in (("infinite", -np.inf), ("not a number", np.nan)):
        values = np.where(np.arange(70) == 69, value, rng.normal(size=70))
        elsewhere = {"found_inf": Fixed(np.zeros(1, np.float32))}
        yield Sample(name, (values, _numbers(8.0)), elsewhere, exact=True)
    large = np.where(np.isin(np.arange(5003), (0, 1500, 5002)), np.inf, large)
    yield Sample("in several blocks", (large, _numbers(8.0)), numba=False, **both)


@update_loss_scale.samples
def _(rng):
    cases = {
        "one more": _numbers(512.0, 3), "grows": _numbers(512.0, 4, 0, 7), "as it can":
        _numbers(3e38, 9), "backs off": _numbers(512.0, 4, 1, 7), "first": _numbers(65536.0),
    }  # fmt: skip
    for name, state in cases.items():
        yield Sample(name, (state,), {"growth_interval": 5}, exact=True)
    how = {"growth_factor": 1.5, "backoff_factor": 0.75, "growth_interval": 1}
    yield Sample("other factors", (_numbers(16.0),), how, exact=True)


@unscale_gradients.inputs
def _(rng, shape):
    state = np.array([1.0009765625, 0, 0, 0], np.float32)
    return (rng.standard_normal(shape, dtype=np.float32), state), {}


@update_loss_scale.inputs
def _(rng, shape):
    return (np.array([65536.0, 0, 0, 0], np.float32),), {}


unscale_gradients.bench_shapes = ELEMENTWISE_SHAPES
update_loss_scale.bench_shapes = ((1,),)
unscale_gradients.bench_in_float32 = update_loss_scale.bench_in_float32 = True
