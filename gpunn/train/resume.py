"""What a checkpoint of `Trainer.fit` holds, and how a run is put back where it was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn.autograd.random import get_rng_state, set_rng_state
from gpunn.autograd.tensor import Tensor
from gpunn.device import Device, as_array, device_of, is_array, to_device, to_numpy
from gpunn.nn import Module
from gpunn.train.callbacks import CallbackList
from gpunn.train.checkpoint import (
    loader_parts,
    model_differences,
    model_state,
    random_state,
    refuse,
    restore_model,
    restore_random,
    state_of,
)
from gpunn.train.checkpoint_file import CheckpointError
from gpunn.train.metrics.base import merged
from gpunn.train.parts import epoch_seed


@dataclass
class Place:
    """Where a training stands within an epoch.

    Attributes
    ----------
    number : of the epoch, from 1
    rate : the learning rate at its beginning
    begun : when, as `time.perf_counter` tells it
    step, batches : weight updates made in it, and batches taken for them
    record : what training measured, once all of its steps are made
    before : random states and the validation loader's state as they were before validation
    begin : random states before the first batch, of a loader that does not know its place
    """

    number: int
    rate: float
    begun: float
    step: int = 0
    batches: int = 0
    record: dict[str, float] | None = None
    before: dict[str, Any] | None = None
    begin: dict[str, Any] | None = None


# ---- what is kept --------------------------------------------------------------------------------


def training_state(loop: Any) -> dict[str, Any]:
    """All that `loop` needs to go on from here; of ranks that train together, all call it."""
    trainer, place = loop.trainer, loop.place
    running = place is not None and place.record is None
    if running and loop.group is None:
        trainer.step.mean.value()  # a loss that was not finite ends the training, with no trace
    before = (place.before if place else None) or before_validation(loop)
    return {
        "gpunn": gpunn.__version__,
        "fingerprint": fingerprint(trainer, loop.loader, loop.validation),
        "model": model_state(trainer.model),
        "loss": _loss_state(trainer.loss),
        "others": other_parameters(trainer),
        "optimizer": state_of(trainer.optimizer, "optimizer"),
        "precision": trainer.precision.state_dict(),
        "callbacks": [(type(c).__name__, c.state_dict()) for c in loop.callbacks.callbacks],
        "loader": optional_state(loop.loader),
        "history": trainer.history.state_dict(),
        "fit": {
            "first_epoch": trainer.first_epoch,
            "epochs": trainer.epochs,
            "epoch": trainer.epoch,
            "stop": trainer._stop,
            "one_kernel": loop.fused is not None,
        },
        "place": None if place is None else _place_state(trainer, place, running),
        **before,
    }


def before_validation(loop: Any) -> dict[str, Any]:
    """What a validation moves on and a run that repeats it begins with."""
    return {
        "random": random_state(loop.trainer.model, random_holders(loop)) | ranks_random(loop),
        "validation": optional_state(loop.validation),
    }


def ranks_random(loop: Any) -> dict[str, Any]:
    """gpunn's random state of each rank, where several train together."""
    return {} if loop.group is None else {"ranks": loop.group.exchange(get_rng_state())}


def restore_rank_random(loop: Any, state: Mapping[str, Any]) -> None:
    """Go on with this rank's own random numbers, not with those of rank 0.

    A rank that the run did not have before gets a seed of its own, at rank 0's place.
    """
    ranks = state["random"].get("ranks", [state["random"]["gpunn"]])
    if len(ranks) == (1 if loop.group is None else loop.group.size):
        set_rng_state(ranks[loop.rank])
    elif loop.rank:
        seed = loop.trainer.seed
        known = ranks[0]["seed"] if seed is None else seed
        number = epoch_seed(known, loop.trainer.epoch, loop.rank)
        set_rng_state({**ranks[0], "seed": number})


def random_holders(loop: Any) -> dict[str, Any]:
    """Objects besides the model that may hold generators, by name."""
    loaders = loader_parts(loop.loader) | loader_parts(loop.validation, "the validation loader")
    return {"the loss": loop.trainer.loss, **loaders}


def _loss_state(loss: Any) -> Any:
    return model_state(loss) if hasattr(loss, "named_parameters") else optional_state(loss)


def _place_state(trainer: Any, place: Place, running: bool) -> dict[str, Any]:
    return {
        "step": place.step,
        "batches": place.batches,
        "rate": float(place.rate),
        "seconds": time.perf_counter() - place.begun,
        "record": place.record,
        "begin": place.begin if running else None,
        "mean": trainer.step.mean.state_dict() if running else None,
        "metrics": [metric_state(m, trainer.device) for m in _merged(trainer)] if running else None,
    }


def _merged(trainer: Any) -> list[Any]:
    """The metrics with the samples of all ranks."""
    if trainer.group is None:
        return trainer.metrics
    return [merged(metric, trainer.group) for metric in trainer.metrics]


def optional_state(part: Any) -> Any:
    """The state of what may have one; None if it has none."""
    ready = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
    return part.state_dict() if ready else None


def other_parameters(trainer: Any) -> list[Any]:
    """Parameters that the optimizer trains and that are neither in the model nor in the loss."""
    owners = [trainer.model, *([trainer.loss] if hasattr(trainer.loss, "parameters") else [])]
    known = {id(parameter) for owner in owners for parameter in owner.parameters()}
    groups = trainer.optimizer.param_groups
    return [p for group in groups for p in group["params"] if id(p) not in known]


def metric_state(metric: Any, device: Device) -> dict[str, Any]:
    """The sums of a metric: its attributes but for functions, and which lie on `device`."""
    if hasattr(metric, "state_dict"):
        return {"own": metric.state_dict()}
    values = {name: value for name, value in vars(metric).items() if not callable(value)}
    there = [
        name
        for name, value in values.items()
        if any(device_of(array) == device for array in _arrays(value))
    ]
    return {"values": values, "on_device": there}


def restore_metric(metric: Any, saved: Mapping[str, Any], device: Device) -> None:
    """Put back what `metric_state` gave."""
    if "own" in saved:
        metric.load_state_dict(saved["own"])
        return
    for name, value in saved["values"].items():
        if name in saved["on_device"]:
            value = _mapped(value, lambda array: to_device(array, device))
        setattr(metric, name, value)


def _arrays(value: Any) -> Iterator[Any]:
    if is_array(value):
        yield as_array(value)
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _arrays(item)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if is_array(value):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    return value


def fingerprint(trainer: Any, loader: Any, validation: Any) -> dict[str, Any]:
    """What must be the same for a run to go on as it would have."""
    part, loss = trainer.regularization, trainer.loss
    settings = {
        name: value
        for name, value in (vars(loss) if _is_ours(loss) else {}).items()
        if isinstance(value, (bool, int, float, str)) and name != "training"
    }
    known = {
        "the loss": getattr(loss, "__name__", type(loss).__name__),
        "settings of the loss": settings,
        "the optimizer": type(trainer.optimizer).__name__,
        "the size of its parameter groups": [
            len(group["params"]) for group in trainer.optimizer.param_groups
        ],
        "precision": trainer.precision.name,
        "accumulate": trainer.accumulate,
        "seed": trainer.seed,
        "metrics": [metric.name for metric in trainer.metrics],
        "l1, l2, gradient_clip_norm, gradient_clip_value": [
            part.l1, part.l2, part.clip_norm, part.clip_value,
        ],
    }  # fmt: skip
    for name in ("batch_size", "shuffle", "drop_last"):
        if hasattr(loader, name):
            known[name] = getattr(loader, name)
    for name, batches in (("training", loader), ("validation", validation)):
        dataset: Any = getattr(batches, "dataset", None)
        if hasattr(dataset, "__len__"):
            known[f"the number of {name} samples"] = len(dataset)
        elif hasattr(batches, "__len__"):
            known[f"the number of {name} batches"] = len(batches)
    arrays = getattr(getattr(loader, "dataset", None), "arrays", ())
    known["the fields of a sample"] = [f"{a.dtype} {tuple(a.shape[1:])}" for a in arrays]
    return known


# ---- putting it back -----------------------------------------------------------------------------

_PARTS = (
    "gpunn", "fingerprint", "model", "loss", "others", "optimizer", "precision", "callbacks",
    "loader", "history", "place", "random", "validation",
)  # fmt: skip


def check(loop: Any, path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training; CheckpointError names the differences."""
    if "fit" not in state:
        raise CheckpointError(
            f"{path} was not written by Trainer.fit; read it with gpunn.train.load_checkpoint"
        )
    if lost := [name for name in _PARTS if name not in state]:
        raise CheckpointError(f"{path} lacks {', '.join(lost)}: another gpunn's? begin a new run")
    problems = model_differences(state["model"], loop.trainer.model)
    problems += _loss_differences(state["loss"], loop.trainer.loss)
    here = fingerprint(loop.trainer, loop.loader, loop.validation)
    there = state["fingerprint"]
    problems += [
        f"{name} is {there.get(name, 'not known')!r} there and {here.get(name, 'not known')!r} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    refuse(path, problems)
    if state["gpunn"] != gpunn.__version__ and loop.rank == 0:
        warnings.warn(
            f"{path} was written by gpunn {state['gpunn']}, and this is {gpunn.__version__}: the "
            "run goes on, but perhaps not to the last bit as it would have",
            stacklevel=5,
        )


def _loss_differences(saved: Any, loss: Any) -> list[str]:
    """Other weights of classes, or another shape of what a loss of one's own has learned."""
    if not saved or not hasattr(loss, "named_parameters"):
        return []
    there, here = saved["more"], {n: to_numpy(b.array) for n, b in loss.named_buffers()}
    names = sorted({*there, *here} - set(saved["state"])) if _is_ours(loss) else []
    learned = model_differences(saved, loss)
    return [text.replace("the model here", "the loss here") for text in learned] + [
        f"the loss has another {name}"
        for name in names
        if name not in there or name not in here or not np.array_equal(there[name], here[name])
    ]


def _is_ours(loss: Any) -> bool:
    """Whether its attributes are known not to change while it is used."""
    return isinstance(loss, Module) and type(loss).__module__.startswith("gpunn.")


def adopt(loop: Any, state: Mapping[str, Any]) -> None:
    """What callbacks may ask for in ``on_train_begin``: how far the run had come."""
    trainer, fit = loop.trainer, state["fit"]
    trainer.epoch, trainer.first_epoch = fit["epoch"], fit["first_epoch"]
    trainer.history.load_state_dict(state["history"])
    trainer._stop, trainer.resumed = fit["stop"], True
    place = state["place"] or {"step": 0}
    done = trainer.epoch + 1 - trainer.first_epoch
    trainer.steps_before = done * (trainer.steps or 0) + place["step"]
    if not fit["one_kernel"] and loop.fused is not None:
        loop.fused, trainer.way = None, "step by step (as the run that goes on)"


def restore(loop: Any, state: Mapping[str, Any]) -> None:
    """Put everything where it was; arrays are written into those that are there."""
    trainer = loop.trainer
    restore_model(trainer.model, state["model"])
    if state["loss"] and hasattr(trainer.loss, "named_parameters"):
        restore_model(trainer.loss, state["loss"])
    elif state["loss"]:
        trainer.loss.load_state_dict(state["loss"])
    for parameter, values in zip(other_parameters(trainer), state["others"], strict=True):
        parameter.detach()[...] = Tensor(to_device(values, parameter.device))
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.precision.load_state_dict(state["precision"])
    for loader, name in ((loop.loader, "loader"), (loop.validation, "validation")):
        if state[name] is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(state[name])
    _restore_callbacks(loop.callbacks, state["callbacks"], loop.rank)
    if state["place"] is not None:
        _restore_place(loop, state["place"])
    restore_random(state["random"], trainer.model, random_holders(loop))
    restore_rank_random(loop, state)


def _restore_place(loop: Any, saved: Mapping[str, Any]) -> None:
    trainer, place = loop.trainer, loop.place
    place.step, place.batches, place.rate = saved["step"], saved["batches"], saved["rate"]
    place.begun, place.record = time.perf_counter() - saved["seconds"], saved["record"]
    place.begin = saved["begin"]
    if place.record is None:
        trainer.step.mean.load_state_dict(saved["mean"])
        if loop.rank:
            return  # rank 0 has what all have counted so far
        for metric, sums in zip(trainer.metrics, saved["metrics"], strict=True):
            restore_metric(metric, sums, trainer.device)


def _restore_callbacks(callbacks: CallbackList, saved: list[tuple[str, Any]], rank: int) -> None:
    """Each state goes to the next callback of the same class."""
    states: dict[str, list[Any]] = {}
    for name, state in saved:
        states.setdefault(name, []).append(state)
    for callback in callbacks.callbacks:
        own = states.get(type(callback).__name__)
        if own and (state := own.pop(0)) and callback in callbacks.called:
            callback.load_state_dict(state)
    lost = [name for name, rest in states.items() if any(rest)]
    if lost and rank == 0:
        warnings.warn(
            f"the run was begun with the callbacks {', '.join(lost)}, which are not there now: it "
            "goes on without what they knew",
            stacklevel=5,
        )
