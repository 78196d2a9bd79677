"""Sums that a metric keeps between steps, in arrays that stay, so that a replay can add to them.

A metric adds by making a new array, ``self._correct = self._correct + hits``, and counts in Python.
In a compiled step the new values are written into an array that was there before the capture, and
what was counted is counted again after every replay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpunn.device import device_of, empty, is_array, tracing


class Carried:
    """The sums of one object.

    Parameters
    ----------
    owner : whose attributes are the sums: arrays on the device, numbers, or None before the first
    """

    def __init__(self, owner: Any):
        self.owner = owner
        self._kept: dict[str, Any] = {}

    def update(self, run: Callable[[], None]) -> None:
        """Call `run`, which changes the owner's attributes."""
        trace = tracing.state.trace
        if trace is None:
            run()
            return
        self._adopt()
        before = dict(vars(self.owner))
        run()
        for name, value in list(vars(self.owner).items()):
            old = before.get(name)
            if value is old:
                continue
            if is_array(value):
                self._keep(name, value)
            elif _is_number(value) and _is_number(old):
                trace.after.append(partial(self._count, name, value - old))
            else:
                trace.after.append(partial(setattr, self.owner, name, value))
        trace.before.append(self._adopt)

    def _keep(self, name: str, value: Any) -> None:
        kept = self._kept.get(name)
        if kept is None:  # in a first run, whose memory is not planned
            kept = self._kept[name] = empty(value.shape, value.dtype, device_of(value))
        kept[...] = value
        setattr(self.owner, name, kept)

    def _adopt(self) -> None:
        """Put what others set, such as 0 for a new epoch, into the arrays that stay."""
        for name, kept in self._kept.items():
            value = getattr(self.owner, name)
            if value is not kept:
                kept[...] = 0 if value is None else value
                setattr(self.owner, name, kept)

    def _count(self, name: str, more: float) -> None:
        setattr(self.owner, name, getattr(self.owner, name) + more)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
