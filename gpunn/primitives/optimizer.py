"""Weight updates over a flat arena: SGD, Adam and AdamW, RMSprop, Adagrad, Lion.

All arrays of an update have one shape; element i of each belongs to parameter i, so one call
updates a whole model whose parameters lie in one array. `parameters` and `gradients` have one
floating dtype, the state is float32 (float64 for float64). The arrays must not overlap.

`hyper` is a float64 array on the device of the arena with the slots that `HYPER` names for each
rule. Nothing that changes during training is an argument of a launch: a schedule writes into
`hyper`, and `advance_step`, called before each update, counts the step and computes what follows
from it. The last slots, behind ``step``, are its own.

`skip` is None, or a float32 array (1,) on the device: where it is not 0, nothing is changed and no
step is counted. So float16 training leaves out a step whose gradients overflowed, and nobody waits
to know it; see `gpunn.primitives.amp`.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives import optimizer_reference as reference
from gpunn.primitives.optimizer_launch import launch_numba, launch_update
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT32, FLOAT64, FLOATING, accumulator_dtype

HYPER = {
    "sgd": ("lr", "momentum", "dampening", "weight_decay", "step", "gradient_scale"),
    "adam": (
        "lr", "beta1", "beta2", "eps", "weight_decay", "step",
        "bias_correction1", "bias_correction2_sqrt",
    ),
    "rmsprop": ("lr", "alpha", "eps", "weight_decay", "momentum", "step"),
    "adagrad": ("lr", "lr_decay", "weight_decay", "eps", "step", "decayed_lr"),
    "lion": ("lr", "beta1", "beta2", "weight_decay", "step"),
}  # fmt: skip


def hyper_array(rule: str, **values: float) -> np.ndarray:
    """`hyper` of a rule on the CPU with the slots given and the others zero: no step made yet.

    >>> hyper = hyper_array("adam", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    """
    names = HYPER[rule]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"hyper_array: {rule} has no {', '.join(unknown)}; it has {names}")
    return np.array([values.get(name, 0.0) for name in names], FLOAT64)


# ---- checks --------------------------------------------------------------------------------------


def _arena(call, parameters, gradients, **states) -> list:
    """The arrays of an update, checked and flat: parameters, gradients, then each state or None."""
    parameters = call.inplace("parameters", parameters, dtypes=FLOATING)
    gradients = call.array("gradients", gradients, dtypes=FLOATING, shape=parameters.shape)
    call.same_dtype(parameters=parameters, gradients=gradients)
    dtypes = (accumulator_dtype(parameters.dtype),)
    found = [parameters, gradients]
    for name, state in states.items():
        if state is not None:
            state = call.inplace(name, state, dtypes=dtypes, shape=parameters.shape)
            for other in found:
                call.require(
                    state is not other,
                    name,
                    "is the same array as another argument",
                    "give each its own memory",
                )
        found.append(state)
    if parameters.ndim == 1:
        return found
    return [None if array is None else array.reshape(-1) for array in found]


def _check_slots(call, hyper, rule: str) -> None:
    names = HYPER[rule]
    call.require(
        hyper.shape == (len(names),),
        "hyper",
        f"has shape {hyper.shape}",
        f"{rule} needs {len(names)} slots: {', '.join(names)}",
    )


def _skip(call, skip):
    return None if skip is None else call.array("skip", skip, dtypes=(FLOAT32,), shape=(1,))


def _hyper(call, hyper, rule: str, skip, uses_step: bool = True):
    """`hyper` and `skip`, checked."""
    hyper = call.array("hyper", hyper, dtypes=(FLOAT64,))
    _check_slots(call, hyper, rule)
    skip = _skip(call, skip)
    # On a GPU the question would wait for all work under way.
    if uses_step and type(hyper) is np.ndarray and not (skip is not None and skip[0]):
        call.require(
            hyper[HYPER[rule].index("step")] >= 1,
            "hyper",
            "is at step 0",
            "call advance_step before the first update",
        )
    return hyper, skip


# ---- specification -------------------------------------------------------------------------------


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def advance_step(call, hyper, *, rule: str, skip=None):
    """Count one step: ``hyper[step] += 1``, and compute the slots behind it from the ones before.

    To be called before each update and after a change of hyperparameters. On a GPU it is a launch
    of one thread: an update itself cannot count, because all of its threads read the step.

    Parameters
    ----------
    hyper : float64 array with the slots of ``HYPER[rule]``, changed in place
    rule : "sgd", "adam" (also AdamW), "rmsprop", "adagrad" or "lion"
    skip : None, or the flag that says to leave this step out

    Raises
    ------
    TypeError, ValueError : an unknown rule, or an array that does not have its slots
    """
    call.choice("rule", rule, tuple(HYPER))
    hyper = call.inplace("hyper", hyper, dtypes=(FLOAT64,))
    _check_slots(call, hyper, rule)
    call.run(hyper, rule, _skip(call, skip))
    return hyper


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def sgd_update(
    call, parameters, gradients, momentum_buffer, hyper, *, nesterov=False, maximize=False,
    skip=None,
):  # fmt: skip
    """Stochastic gradient descent: ``w -= lr g``, or with momentum ``b = momentum b + s g``.

    With momentum, w -= lr b, or ``lr (g + momentum b)`` with `nesterov`. The factor s is 1 on the
    first step and 1 - dampening afterwards. Weight decay first adds ``weight_decay w`` to g.

    Parameters
    ----------
    parameters : floating array, updated in place
    gradients : array like it
    momentum_buffer : float32 (float64) array of that shape, zeros before the first step; None for
        descent without momentum, which needs no `advance_step`
    hyper : lr, momentum, dampening, weight_decay, step, gradient_scale
    maximize : step along the gradient, not against it
    skip : None, or the flag that says to leave this step out

    Source: Sutskever et al. 2013; the formulas of PyTorch's SGD.
    """
    arrays = _arena(call, parameters, gradients, momentum_buffer=momentum_buffer)
    hyper, skip = _hyper(call, hyper, "sgd", skip, uses_step=momentum_buffer is not None)
    call.run(*arrays, hyper, bool(nesterov), bool(maximize), skip)
    return parameters


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def adam_update(
    call,
    parameters,
    gradients,
    exp_avg,
    exp_avg_sq,
    hyper,
    *,
    decoupled: bool = False,
    maximize: bool = False,
    max_exp_avg_sq=None,
    skip=None,
):
    """Adam: ``w -= lr / c1 · m / (sqrt(v) / sqrt(c2) + eps)`` with running means m of g, v of g².

    c1 = 1 - beta1^step and c2 = 1 - beta2^step undo the start from zero. Weight decay is added to
    the gradient, or with `decoupled` (AdamW) taken off the parameter: w *= 1 - lr weight_decay.

    Parameters
    ----------
    parameters : floating array, updated in place
    gradients : array like it
    exp_avg, exp_avg_sq : m and v, float32 (float64) arrays of that shape, updated in place
    hyper : lr, beta1, beta2, eps, weight_decay, step, bias_correction1, bias_correction2_sqrt
    decoupled : AdamW
    maximize : step along the gradient, not against it
    skip : None, or the flag that says to leave this step out
    max_exp_avg_sq : None, or for AMSGrad the largest v so far, updated in place and used for v

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019; Reddi et al. 2018.
    """
    arrays = _arena(
        call, parameters, gradients,
        exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, max_exp_avg_sq=max_exp_avg_sq,
    )  # fmt: skip
    _require_state(call, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    hyper, skip = _hyper(call, hyper, "adam", skip)
    call.run(*arrays, hyper, bool(decoupled), bool(maximize), skip)
    return parameters


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def rmsprop_update(
    call, parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper, *, maximize=False,
    skip=None,
):  # fmt: skip
    """RMSprop: ``w -= lr g / (sqrt(v) + eps)`` with v the running mean of g².

    Parameters
    ----------
    parameters : floating array, updated in place
    gradients : array like it
    square_avg : v, float32 (float64) array of that shape, updated in place
    momentum_buffer : None, or b with b = momentum b + g / (sqrt(v) + eps) and w -= lr b
    grad_avg : None, or (centered) the running mean a of g; v - a² then stands for v, not below 0
    hyper : lr, alpha, eps, weight_decay, momentum, step
    maximize : step along the gradient, not against it
    skip : None, or the flag that says to leave this step out

    Source: Tieleman & Hinton 2012; Graves 2013; the formulas of PyTorch's RMSprop.
    """
    arrays = _arena(
        call, parameters, gradients,
        square_avg=square_avg, momentum_buffer=momentum_buffer, grad_avg=grad_avg,
    )  # fmt: skip
    _require_state(call, square_avg=square_avg)
    hyper, skip = _hyper(call, hyper, "rmsprop", skip)
    call.run(*arrays, hyper, bool(maximize), skip)
    return parameters


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def adagrad_update(call, parameters, gradients, state_sum, hyper, *, maximize=False, skip=None):
    """Adagrad: ``s += g²; w -= lr / (1 + (step - 1) lr_decay) · g / (sqrt(s) + eps)``.

    Parameters
    ----------
    parameters : floating array, updated in place
    gradients : array like it
    state_sum : s, float32 (float64) array of that shape, updated in place
    hyper : lr, lr_decay, weight_decay, eps, step, decayed_lr
    maximize : step along the gradient, not against it
    skip : None, or the flag that says to leave this step out

    Source: Duchi et al. 2011; the formulas of PyTorch's Adagrad.
    """
    arrays = _arena(call, parameters, gradients, state_sum=state_sum)
    _require_state(call, state_sum=state_sum)
    hyper, skip = _hyper(call, hyper, "adagrad", skip)
    call.run(*arrays, hyper, bool(maximize), skip)
    return parameters


@primitive(family="optimizer", cuda="optimizer.cu", numba="optimizer.py")
def lion_update(call, parameters, gradients, exp_avg, hyper, *, maximize=False, skip=None):
    """Lion: ``w = (1 - lr weight_decay) w - lr sign(beta1 m + (1 - beta1) g)``.

    Then m = beta2 m + (1 - beta2) g. The sign of 0 is 0, of NaN NaN.

    Parameters
    ----------
    parameters : floating array, updated in place
    gradients : array like it
    exp_avg : m, float32 (float64) array of that shape, updated in place
    hyper : lr, beta1, beta2, weight_decay, step
    maximize : step along the gradient, not against it
    skip : None, or the flag that says to leave this step out

    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2.
    """
    arrays = _arena(call, parameters, gradients, exp_avg=exp_avg)
    _require_state(call, exp_avg=exp_avg)
    hyper, skip = _hyper(call, hyper, "lion", skip)
    call.run(*arrays, hyper, bool(maximize), skip)
    return parameters


def _require_state(call, **states) -> None:
    for name, state in states.items():
        call.require(state is not None, name, "is None", "give an array of zeros before step 1")


# ---- launch --------------------------------------------------------------------------------------


@advance_step.cuda
def _(launch, hyper, rule, skip):
    launch(f"advance_step<{rule.title()}Hyper>", grid=(1,), block=(1,), args=(hyper, skip))


@sgd_update.cuda
def _(launch, parameters, gradients, momentum_buffer, hyper, nesterov, maximize, skip):
    flags = (momentum_buffer is not None,)
    arrays = (parameters, gradients, momentum_buffer)
    launch_update(launch, "sgd_update", flags, arrays, hyper, skip, (nesterov, maximize))


@adam_update.cuda
def _(
    launch, parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, decoupled, maximize,
    skip,
):  # fmt: skip
    flags = (max_exp_avg_sq is not None,)
    arrays = (parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq)
    launch_update(launch, "adam_update", flags, arrays, hyper, skip, (decoupled, maximize))


@rmsprop_update.cuda
def _(launch, parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper, maximize, skip):
    flags = (momentum_buffer is not None, grad_avg is not None)
    arrays = (parameters, gradients, square_avg, momentum_buffer, grad_avg)
    launch_update(launch, "rmsprop_update", flags, arrays, hyper, skip, (maximize,))


@adagrad_update.cuda
def _(launch, parameters, gradients, state_sum, hyper, maximize, skip):
    arrays = (parameters, gradients, state_sum)
    launch_update(launch, "adagrad_update", (), arrays, hyper, skip, (maximize,))


@lion_update.cuda
def _(launch, parameters, gradients, exp_avg, hyper, maximize, skip):
    arrays = (parameters, gradients, exp_avg)
    launch_update(launch, "lion_update", (), arrays, hyper, skip, (maximize,))


# ---- the other implementations, cost -------------------------------------------------------------

advance_step.reference(reference.advance_step)
sgd_update.reference(reference.sgd_update)
adam_update.reference(reference.adam_update)
rmsprop_update.reference(reference.rmsprop_update)
adagrad_update.reference(reference.adagrad_update)
lion_update.reference(reference.lion_update)


@advance_step.numba
def _(launch, hyper, rule, skip):
    has_skip = skip is not None  # Numba takes no None for an absent array
    skip = skip if has_skip else launch.empty((1,), FLOAT32)
    launch(f"advance_step_{rule}", (1,), (1,), (hyper, skip, np.bool_(has_skip)))


@sgd_update.numba
def _(launch, parameters, gradients, momentum_buffer, hyper, nesterov, maximize, skip):
    arrays = (parameters, gradients, momentum_buffer)
    has_momentum = momentum_buffer is not None
    launch_numba(launch, "sgd_update", arrays, hyper, skip, has_momentum, nesterov, maximize)


@adam_update.numba
def _(
    launch, parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, decoupled, maximize,
    skip,
):  # fmt: skip
    arrays = (parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq)
    amsgrad = max_exp_avg_sq is not None
    launch_numba(launch, "adam_update", arrays, hyper, skip, amsgrad, decoupled, maximize)


@rmsprop_update.numba
def _(launch, parameters, gradients, square_avg, momentum_buffer, grad_avg, hyper, maximize, skip):
    arrays = (parameters, gradients, square_avg, momentum_buffer, grad_avg)
    flags = (momentum_buffer is not None, grad_avg is not None, maximize)
    launch_numba(launch, "rmsprop_update", arrays, hyper, skip, *flags)


@adagrad_update.numba
def _(launch, parameters, gradients, state_sum, hyper, maximize, skip):
    arrays = (parameters, gradients, state_sum)
    launch_numba(launch, "adagrad_update", arrays, hyper, skip, maximize)


@lion_update.numba
def _(launch, parameters, gradients, exp_avg, hyper, maximize, skip):
    arrays = (parameters, gradients, exp_avg)
    launch_numba(launch, "lion_update", arrays, hyper, skip, maximize)


# ---- cost ----------------------------------------------------------------------------------------


@advance_step.cost
def _(hyper, rule, skip):
    return Cost(flops=10, read=hyper.nbytes, written=hyper.nbytes)


def _cost(flops: int, states: int):
    """The cost of an update with `flops` operations a parameter, and `states` places for state."""

    def cost(parameters, gradients, *rest):
        state = sum(array.nbytes for array in rest[:states] if array is not None)
        read = parameters.nbytes + gradients.nbytes + state
        return Cost(flops * parameters.size, read, parameters.nbytes + state)

    return cost


sgd_update.cost(_cost(8, 1))
adam_update.cost(_cost(18, 3))
rmsprop_update.cost(_cost(14, 3))
adagrad_update.cost(_cost(9, 1))
lion_update.cost(_cost(11, 1))
