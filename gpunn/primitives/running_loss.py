"""The mean of a loss over many steps, kept where the loss is, so that nobody waits for it."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT64, FLOATING, Fixed, Sample

# The slots of `state`.
TOTAL, COUNT, STEPS, BAD_STEP, BAD_VALUE = range(5)


@primitive(family="running_loss", cuda="running_loss.cu", numba="running_loss.py")
def add_loss(call, state, loss, *, weight: float, count: float):
    """Take the loss of a step into a running mean, in place.

    state = [total, count, steps, bad step, bad value]: ``total += weight · loss``,
    ``count += count``, ``steps += 1``. At the first loss that is NaN or infinite, the number of the
    step (from 1) and the value are kept, and total and count stay from then on: the mean is that
    of the steps before.

    Parameters
    ----------
    state : float64 array of shape (5,), zeros at the start, changed in place
    loss : floating array of shape (), read where it is
    weight : what the loss counts, such as the number of samples of its batch if it is their mean
    count : the number of samples

    Raises
    ------
    TypeError, ValueError : arrays of another shape or dtype, numbers that are NaN or below 0
    """
    state = call.inplace("state", state, dtypes=(FLOAT64,), shape=(5,))
    loss = call.array("loss", loss, dtypes=FLOATING, shape=())
    weight, count = call.number("weight", weight, low=0), call.number("count", count, low=0)
    call.run(state, loss.reshape(1), weight, count)
    return state


@add_loss.reference
def _(state, loss, weight, count):
    value = float(loss[0])
    state[STEPS] += 1
    if state[BAD_STEP]:
        return
    if not np.isfinite(value):
        state[BAD_STEP], state[BAD_VALUE] = state[STEPS], value
        return
    state[TOTAL] += weight * value
    state[COUNT] += count


@add_loss.cuda
def _(launch, state, loss, weight, count):
    args = (state, loss, np.float64(weight), np.float64(count))
    launch(f"add_loss<{launch.ctype(loss.dtype)}>", grid=(1,), block=(1,), args=args)


@add_loss.numba
def _(launch, state, loss, weight, count):
    launch("add_loss", (1,), (1,), (state, loss, np.float64(weight), np.float64(count)))


@add_loss.cost
def _(state, loss, weight, count):
    return Cost(flops=3, read=state.nbytes + loss.nbytes, written=state.nbytes)


@add_loss.samples
def _(rng):
    for name, state, loss in (
        ("the first", np.zeros(5), 0.75),
        ("a later one", np.array([12.5, 96.0, 3.0, 0.0, 0.0]), 2.5),
        ("not a number", np.array([12.5, 96.0, 3.0, 0.0, 0.0]), np.nan),
        ("infinite", np.zeros(5), -np.inf),
        ("after a bad one", np.array([12.5, 96.0, 5.0, 4.0, np.inf]), 2.5),
    ):
        args = (Fixed(state), np.array(loss))
        yield Sample(name, args, {"weight": 32.0, "count": 32.0}, FLOATING)


@add_loss.inputs
def _(rng, shape):
    loss = rng.standard_normal((), dtype=np.float32)
    return (np.zeros(5), np.asarray(loss)), {"weight": 32.0, "count": 32.0}


add_loss.bench_shapes = ((1,),)
