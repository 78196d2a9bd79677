"""`SlidingWindows`: the past and the future around each step of a series, without copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.data.dataset import Dataset, gather
from gpunn.device import to_numpy


class SlidingWindows(Dataset):
    """Samples of a series: `window` steps of inputs, and the `horizon` steps of targets after them.

    Sample i is ``(inputs[s : s + window], targets[s + window : s + window + horizon])`` with
    ``s = starts[i]``. What a sample's inputs end with is known when its forecast is made, and its
    targets lie after that: a target at the step of the last input is never given.

    Parameters
    ----------
    inputs : (T, …) Tensor or array; kept where it is, nothing is copied but the samples of a batch
    targets : (T, …), of the same length; None takes the inputs
    window, horizon : steps, 1 or more
    stride : a sample every so many steps
    first, last : only samples whose targets all lie in the rows ``first … last - 1``; by default in
        all of the series. So (0, n) is training data before row n, and (n, None) what is forecast
        after it, whose inputs may reach back before n
    runs : (T,) whole numbers such as `Series.runs`: samples lie within one run, none across a seam

    Attributes
    ----------
    starts : int64, the first row of each sample; ``starts + window`` is its first target's row

    ValueError for lengths that differ and where no sample fits.
    """

    def __init__(
        self, inputs: Any, targets: Any = None, *, window: int, horizon: int = 1, stride: int = 1,
        first: int = 0, last: int | None = None, runs: Any = None,
    ):  # fmt: skip
        self.inputs = raw_array(inputs)
        self.targets = self.inputs if targets is None else raw_array(targets)
        total = len(self.inputs)
        for name, value in {"window": window, "horizon": horizon, "stride": stride}.items():
            if value < 1:
                raise ValueError(f"SlidingWindows: {name} must be 1 or more, got {value}")
        if len(self.targets) != total or (runs is not None and len(runs) != total):
            raise ValueError(
                f"SlidingWindows: inputs, targets and runs must be of one length, got {total}, "
                f"{len(self.targets)}{'' if runs is None else f' and {len(runs)}'}"
            )
        self.window, self.horizon = int(window), int(horizon)
        end = total if last is None else min(int(last), total)
        starts = np.arange(max(0, int(first) - window), end - window - horizon + 1, stride)
        if runs is not None:
            numbers = to_numpy(raw_array(runs))
            starts = starts[numbers[starts] == numbers[starts + window + horizon - 1]]
        if not len(starts):
            raise ValueError(
                f"SlidingWindows: no sample of {window} + {horizon} steps fits with targets in the "
                f"rows {first} to {end - 1} of {total}"
            )
        self.starts = starts.astype(np.int64)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = int(self.starts[index])
        middle = start + self.window
        past = self.inputs[start:middle]
        return Tensor(past), Tensor(self.targets[middle : middle + self.horizon])

    def take(self, indices: np.ndarray | slice) -> tuple[Any, Any]:
        """The samples at `indices`: inputs (n, window, …) and targets (n, horizon, …)."""
        starts = self.starts[indices]
        past = starts[:, None] + np.arange(self.window)
        future = (starts + self.window)[:, None] + np.arange(self.horizon)
        return gather(self.inputs, past), gather(self.targets, future)

    def whole(self) -> tuple[Any, Any]:
        """All samples at once, as `take` gives them."""
        return self.take(slice(None))
