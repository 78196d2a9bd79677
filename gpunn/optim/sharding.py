"""`Part`: of an arena whose optimizer is sharded over ranks; ZeRO's first stage.

Every rank has all parameters and all gradients of an `Arena`, and keeps the optimizer's states for
its own part alone. Only there are its gradients complete; it updates the parameters there, and the
ranks then give each other their parts:

    gradients    | reduced to rank 0 | to rank 1 | to rank 2 |
    rank 1                           | update: its states    |
    parameters   | all ranks gather all parts                |

Updates are elementwise, so it does not matter that a cut goes through the middle of a parameter.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from gpunn.device import device_of, empty, to_numpy
from gpunn.primitives.samples import accumulator_dtype


class Ranks(Protocol):
    """What an optimizer needs of a `gpunn.distributed.Group`; all ranks take part in each call."""

    rank: int
    size: int

    def all_reduce(self, array: Any) -> None:
        """Add up `array` over all ranks, in place."""

    def all_gather(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        """Give all ranks the parts ``flat[start:stop]`` of each; ``bounds[r]`` is rank r's."""

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Make `array` everywhere what it is on rank `root`."""

    def exchange(self, value: Any) -> list[Any]:
        """What each rank gave, by rank: values that JSON knows."""


class Part:
    """What of an arena this rank updates: ``[start:stop]`` of its flat arrays.

    Parameters
    ----------
    size : of the arena
    step : elements that belong together, so that every part is aligned
    group : the ranks; None for an arena that is not sharded, whose part is all of it

    Attributes
    ----------
    size : of the arena with what was added behind it: then all parts are of one length, and a
        gather of them is a single message of each rank
    bounds : (start, stop) of each rank; None if it is not sharded
    start, stop : of this rank
    """

    def __init__(self, size: int, step: int, group: Ranks | None):
        self.group, self.size = group, size
        self.bounds: list[tuple[int, int]] | None = None
        self.start, self.stop = 0, size
        if group is not None:
            each = -(-size // (step * group.size)) * step
            self.size = each * group.size
            self.bounds = [(rank * each, (rank + 1) * each) for rank in range(group.size)]
            self.start, self.stop = self.bounds[group.rank]

    def inside(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """What of (start, stop) in the flat arrays is in this part."""
        if self.group is None:
            return runs
        cut = [(max(start, self.start), min(stop, self.stop)) for start, stop in runs]
        return [run for run in cut if run[0] < run[1]]

    def held(self, start: int, stop: int) -> slice:
        """Where in a state array, which is as long as the part, that run of the arena lies."""
        return slice(start - self.start, stop - self.start)

    def gather(self, flat: Any) -> None:
        """Give all ranks all parts of a flat array of the arena; each has its own. All take part.

        Nothing if it is not sharded.
        """
        if self.group is not None and self.bounds is not None:
            self.group.all_gather(flat, self.bounds)

    def whole(self, own: Any) -> Any:
        """A state array as long as the arena: `own`, or of a sharded one, in NumPy, all ranks'.

        All take part. It comes part by part, as there may be no room for all of it on the device.
        """
        if self.group is None or self.bounds is None:
            return own
        flat = np.empty((self.size,), own.dtype)
        for rank, (start, stop) in enumerate(self.bounds):
            part = own if rank == self.group.rank else empty(own.shape, own.dtype, device_of(own))
            self.group.broadcast(part, rank)
            flat[start:stop] = to_numpy(part)
        return flat


class Shardable:
    """What `Optimizer` does for several ranks."""

    _ranks: Ranks | None = None  # what `shard` got

    def shard(self: Any, group: Ranks | None) -> None:
        """Keep the states of this rank's part of all parameters alone; all ranks call it.

        Each rank then updates its part, which is as long as the others', and gives it to them: ZeRO
        stage 1. `step` wants complete gradients in that part only (`arena.bounds`), as
        `gpunn.distributed.GradientSync` leaves them; what `zero_grad`, clipping and `GradScaler` do
        stays the same. `state_dict` gathers the whole states, `load_state_dict` takes them.
        `copy.deepcopy` and pickle make a whole one that is not sharded. These are for all ranks to
        call, as `step` is, and in every step they must have gradients for the same parameters.

        Parameters
        ----------
        group : a `gpunn.distributed.Group`; nothing is done for None, a single rank, and again for
            the same

        Raises ValueError, on all ranks, if they differ in parameters or in steps made.
        """
        if group is None or group.size == 1 or group is self._ranks:
            return
        self.follow_parameters()
        _check_alike(type(self).__name__, group, self.arenas, self._step_slot)
        lows = {dtype for arena in self.arenas for dtype in arena.lows}
        self._ranks = group
        for k in range(len(self._arenas)):
            self._remake_arenas(k)
        for dtype in lows:
            self.prepare_low(dtype)

    @property
    def state_bytes(self: Any) -> tuple[int, int]:
        """What the states take, once there are all: (on this rank, without sharding)."""
        here = whole = 0
        for group, arenas in zip(self.param_groups, self._arenas, strict=True):
            for arena in arenas:
                each = len(self.state_names(group)) * accumulator_dtype(arena.dtype).itemsize
                here += each * (arena.own.stop - arena.own.start)
                whole += each * arena.size
        return here, whole


def _check_alike(name: str, group: Ranks, arenas: list[Any], step_slot: int) -> None:
    """Raise ValueError, on all ranks, if their optimizers differ in layout or in steps made."""
    mine = [
        {
            "the shapes of the parameters": [list(shape) for shape in arena.shapes],
            "their dtypes": str(arena.dtype),
            "their devices": arena.device.type,
            "the states": sorted(arena.state),
            "the steps made": [
                [float(cohort.hyper[step_slot]), cohort.members] for cohort in arena.cohorts
            ],
        }
        for arena in arenas
    ]
    first, *others = group.exchange(mine)
    for rank, other in enumerate(others, 1):
        differ = "the number of dtypes or groups" if len(other) != len(first) else ""
        for one, two in zip(first, other, strict=False):
            differ = differ or next((what for what in one if one[what] != two[what]), "")
        if differ:
            raise ValueError(
                f"{name}.shard: {differ} of rank {rank} are not those of rank 0. Make the same "
                "model and the same optimizer on all ranks, and load the same states, before"
            )
