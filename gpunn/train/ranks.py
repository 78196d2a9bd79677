"""What a Trainer does together with the other ranks of its group, besides the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gpunn.autograd.random import get_rng_state, manual_seed, set_rng_state
from gpunn.data.parts import parts_of
from gpunn.device import as_device
from gpunn.distributed import Group, init
from gpunn.distributed.link import Pending
from gpunn.nn import Module, synchronize_batch_norm
from gpunn.train.alike import same_batches
from gpunn.train.parts import epoch_seed
from gpunn.train.running import NonFiniteLoss

_by_itself = False  # inside `by_itself`


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Within, a Trainer trains alone unless it is given a group: for work of one rank."""
    global _by_itself
    before, _by_itself = _by_itself, True
    try:
        yield
    finally:
        _by_itself = before


def as_group(distributed: Any) -> Group | None:
    """The group that ``Trainer(distributed=…)`` asks for; None to train alone.

    "auto": the processes that mpirun, srun or torchrun started together with this one, if any;
    True: the same, and RuntimeError if it is alone; a `Group`; None or False: alone.
    """
    if distributed is None or distributed is False or (distributed == "auto" and _by_itself):
        return None
    if isinstance(distributed, Group):
        return distributed
    if distributed != "auto" and distributed is not True:
        raise ValueError(
            f"Trainer: distributed is {distributed!r}; expected 'auto', True, False or a Group"
        )
    group = init()
    if group is None and distributed is True:
        raise RuntimeError(
            "Trainer: distributed=True, and this process was started alone; start several, for "
            "example by: mpirun -n 2 python script.py"
        )
    return group


def join(group: Group, trainer: Any, zero: int) -> None:
    """Prepare the parts of a Trainer for training with others.

    TypeError for an optimizer that is not of `gpunn.optim`; ValueError for ZeRO with a callback
    that reads gradients, and for a model that is not on a GPU where NCCL alone connects the ranks.
    """
    optimizer = trainer.optimizer
    if not group.sums_numbers and trainer.device.type != "cuda":
        raise ValueError(
            f"Trainer: the model is on {trainer.device}, and these processes are connected by NCCL "
            "alone, between GPUs; leave device out, or start them by mpirun"
        )
    if not hasattr(optimizer, "arenas"):
        raise TypeError(
            "Trainer: several processes need an optimizer of gpunn.optim, whose gradients lie in "
            f"flat arrays, got {type(optimizer).__name__}"
        )
    if not zero or group.size == 1:
        return
    for callback in trainer.callbacks:
        if callback.reads_gradients:
            raise ValueError(
                f"Trainer: {type(callback).__name__} reads gradients, and with zero={zero} a rank "
                "has the sums of its part only; give it gradients=False, or leave zero out"
            )
    optimizer.shard(group)


def check_alone(optimizer: Any) -> None:
    """Raise ValueError for an optimizer that waits for others at each step."""
    if any(arena.bounds is not None for arena in getattr(optimizer, "arenas", ())):
        raise ValueError(
            "Trainer: the states of this optimizer are shared out to several ranks (zero=1), and "
            "this Trainer trains alone; give it an optimizer of its own, such as copy.deepcopy of "
            "the model and the optimizer together, called on all ranks"
        )


def set_batch_norm(model: Any, group: Group | None, together: bool) -> None:
    """Let batch norm count the rows of all ranks, or alone not wait for those of another Trainer.

    Not `together`, in a group, it stays as the user has set it.
    """
    if isinstance(model, Module) and (together or group is None):
        synchronize_batch_norm(model, group)


def placed(config: Any, group: Group | None) -> Any:
    """A job's configuration with the device that "auto" stands for here, or this rank's GPU."""
    device = as_device(None if config.device == "auto" else config.device)
    if group is not None and device.type == "cuda":
        device = group.gpu()
    return replace(config, device=str(device))


def begin_together(
    group: Group, model: Any, loss: Any, optimizer: Any, drawn: int, seed: int | None
) -> int:
    """At the beginning of `fit`: the same model everywhere; gives the seed of the shuffling.

    Without a `seed` of the Trainer it is the one that rank 0 has `drawn`, and the random numbers
    (of dropout) are made different on the other ranks, and different from those of a `fit` before.
    """
    broadcast_state(group, model, loss, optimizer)
    drawn, offset = group.share([drawn, get_rng_state()["offset"]])
    if seed is None and not group.main:
        manual_seed(epoch_seed(drawn, offset, group.rank))
    return drawn


def end_together(group: Group) -> None:
    """At the end of `fit`: the same random numbers everywhere, for what the script does next."""
    set_rng_state(group.share(get_rng_state()))


def shared_record(group: Group, record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record of an epoch, so that callbacks decide alike, to the last bit."""
    plain = {name: v.item() if hasattr(v, "item") else v for name, v in record.items()}
    shared: dict[str, Any] = group.share(plain)
    return shared


def with_rows(loader: Any, group: Group | None) -> Iterable[tuple[Any, tuple[int, int] | None]]:
    """Batches with (rows of this rank, rows of the whole batch), and the own rows alone.

    Alone: whole batches, with None. RuntimeError, on all ranks, if a loader of another kind than
    DataLoader gives other batches than on rank 0, as far as numbers of rows and the first tell.
    """
    if group is None:
        return ((batch, None) for batch in loader)
    if not hasattr(loader, "in_parts"):
        loader = same_batches(loader, group)
    return ((batch, (own, whole)) for batch, own, whole in parts_of(loader, group.rank, group.size))


def broadcast_state(group: Group, model: Any, loss: Any, optimizer: Any) -> None:
    """Give all ranks the parameters and buffers that rank 0 has.

    RuntimeError, on all ranks, if theirs have other names or shapes.
    """
    optimizer.follow_parameters()
    named: dict[str, Any] = {}
    for owner, name in ((model, ""), (loss, "the loss's ")):
        if hasattr(owner, "named_parameters"):
            named |= {name + key: value for key, value in owner.named_parameters()}
            named |= {name + key: value for key, value in owner.named_buffers()}
    here = [f"{name} {value.dtype} {list(value.shape)}" for name, value in named.items()]
    names = {id(value): name for name, value in named.items()}
    for tensor in (t for arena in optimizer.arenas for t in arena.tensors):
        name = names.get(id(tensor), f"a parameter of shape {list(tensor.shape)}")
        here.append(f"next in the optimizer {name}")  # where they lie in its flat arrays
    there = group.share(here)
    differ = [f"rank 0 has {a}, this rank {b}" for a, b in zip(there, here, strict=False) if a != b]
    if len(here) != len(there):
        differ.append(f"rank 0 has {len(there)} parameters and buffers, this rank {len(here)}")
    problems = [text[0] for text in group.exchange(differ) if text]
    if problems:
        raise RuntimeError(f"Trainer: the ranks have made different models: {problems[0]}")
    arenas = optimizer.arenas
    known = {id(tensor) for arena in arenas for tensor in arena.tensors}
    for arena in arenas:
        group.broadcast(arena.parameters)
    for value in named.values():
        if id(value) not in known:
            _broadcast(group, value)
    for arena in arenas:
        for tensor in arena.tensors:
            tensor._cell[0] += 1


def broadcast_buffers(group: Group, model: Any) -> None:
    """Give all ranks rank 0's buffers, such as the running statistics of batch norm."""
    for buffer in model.buffers():
        _broadcast(group, buffer)


def _broadcast(group: Group, tensor: Any) -> None:
    array = tensor._array
    if array.flags.c_contiguous:
        group.broadcast(array)
    else:
        dense = array.copy(order="C")
        group.broadcast(dense)
        array[...] = dense
    tensor._cell[0] += 1


class Agreement:
    """What any rank wishes becomes known to all, at the same step and without waiting for it.

    `ask` begins a sum of the wishes and gives that of the call before. Where NCCL alone connects
    the ranks, the hosts would have to wait for their GPUs: there they tell each other at every 16th
    call only.
    """

    def __init__(self, group: Group, size: int):
        self._group, self._size = group, size
        self._pending: tuple[Pending, np.ndarray] | None = None
        self._calls = 0

    def ask(self, wishes: list[bool]) -> list[bool]:
        """What some rank wished at the last call; all ranks call it equally often."""
        self._calls += 1
        if not self._group.sums_numbers:
            if self._calls % 16:
                return [False] * self._size
            return [any(each) for each in zip(*self._group.exchange(wishes), strict=True)]
        found = self.last()
        array = np.array(wishes, np.int32)
        self._pending = self._group.begin_reduce(array), array
        return found

    def last(self) -> list[bool]:
        """What was wished at the last call of `ask`, if that is not known yet."""
        if self._pending is None:
            return [False] * self._size
        pending, array = self._pending
        self._pending = None
        pending.wait()
        return [count > 0 for count in array.tolist()]


def raise_together(group: Group, error: NonFiniteLoss | None) -> None:
    """If some rank has seen a loss that is not finite, raise the earliest on all of them."""
    found = [seen for seen in group.exchange(error and [error.step, error.value]) if seen]
    if found:
        raise NonFiniteLoss(*min(found))
