"""Mixed precision by hand: `autocast` and `GradScaler`, with PyTorch's interface.

>>> scaler = gpunn.amp.GradScaler()
>>> for x, y in batches:
...     optimizer.zero_grad()
...     with gpunn.autocast("float16"):
...         loss = loss_function(model(x), y)
...     scaler.scale(loss).backward()
...     scaler.unscale_(optimizer)  # only if the gradients are clipped or looked at
...     gpunn.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
...     scaler.step(optimizer)
...     scaler.update()

bfloat16 has the range of float32 and needs no scaler. `gpunn.train.Trainer(precision="fp16")` does
all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.autocast import autocast, get_autocast_dtype, is_autocast_enabled
from gpunn.autograd.dtypes import is_low
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import Device, array_module, device_of, to_device, to_numpy, tracing
from gpunn.device.transfer import uploader
from gpunn.optim.clip import contiguous, grouped_runs, mark_written, with_gradient
from gpunn.primitives.amp import FOUND_INF, STATE, unscale_gradients, update_loss_scale

__all__ = ["GradScaler", "autocast", "get_autocast_dtype", "is_autocast_enabled"]


class GradScaler:
    """Scales a float16 loss so that small gradients survive, and skips steps that overflow.

    The interface is that of `torch.amp.GradScaler`. The scale, the count of good steps and the flag
    of an overflow live on the device of the loss; `step` launches the update in any case, and the
    kernel leaves everything as it is where the flag is set. So nothing waits for the GPU, and
    `step` returns what `optimizer.step` returned, whether or not it was skipped.

    Parameters
    ----------
    device : where the scale lives; None for the device of the first loss (inside `gpunn.compile` it
        must be there before)
    init_scale : the first scale
    growth_factor, growth_interval : the scale is multiplied by the one after so many good steps in
        a row
    backoff_factor : what it is multiplied by after a step with an infinite or NaN gradient
    enabled : False makes every method do what one would without a scaler

    Attributes
    ----------
    skipped : how many steps were skipped so far; waits for the device
    """

    def __init__(
        self,
        device: Device | str | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        if not growth_factor > 1.0:
            raise ValueError(f"GradScaler: growth_factor is {growth_factor}; expected above 1")
        if not 0.0 < backoff_factor < 1.0:
            raise ValueError(
                f"GradScaler: backoff_factor is {backoff_factor}; expected between 0 and 1"
            )
        if growth_interval < 1:
            raise ValueError(
                f"GradScaler: growth_interval is {growth_interval}; expected 1 or more"
            )
        self._device: Any = None if device is None else Device(device)
        self._enabled = bool(enabled)
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval = int(growth_interval)
        self._numbers = [float(init_scale), 0.0, 0.0, 0.0]  # of STATE, until they are on a device
        self._state: Any = None
        self._scale: Any = None  # a Tensor: a view of the state
        self._flags: list[Any] = []  # where the k-th optimizer of a step has its overflows noted
        self._stages: dict[int, str] = {}  # by the id of an optimizer: "unscaled" or "stepped"
        if self._enabled and self._device is not None:
            self._on(self._device)

    # ---- the state on the device ----------------------------------------------------------------

    def _on(self, device: Device) -> Any:
        """The state, on `device`, where it is from the first call on."""
        if self._state is None:
            self._device = device if self._device is None else self._device
            self._place(np.array(self._numbers, np.float32))
        if device != self._device:
            raise ValueError(
                f"GradScaler: its scale is on {self._device}, and this call has tensors on "
                f"{device}. Use one GradScaler for each device."
            )
        return self._state

    def _place(self, numbers: np.ndarray) -> None:
        if self._state is None:
            with tracing.made_once():
                self._state = to_device(numbers.copy(), self._device)
            self._scale = wrap(self._state[:1].reshape(()))
            self._flags = [self._state[FOUND_INF]]
        else:
            uploader(self._device).upload(numbers, out=self._state)

    def _read(self) -> list[float]:
        return self._numbers if self._state is None else to_numpy(self._state).tolist()

    def _write(self, **numbers: float) -> None:
        values = dict(zip(STATE, self._read(), strict=True)) | numbers
        self._numbers = list(values.values())
        if self._state is not None:
            self._place(np.array(self._numbers, np.float32))
            self._scale._cell[0] += 1

    def _flag(self, place: int) -> Any:
        while len(self._flags) <= place:
            with tracing.made_once():
                self._flags.append(to_device(np.zeros(1, np.float32), self._device))
        return self._flags[place]

    def flag_on(self, device: Device) -> Any:
        """The array (1,) on `device` that is not 0 where the first optimizer's step is skipped.

        For who calls ``optimizer.step`` himself: see `Optimizer.skip_flag`.
        """
        self._on(device)
        return self._flag(0)

    # ---- a step ---------------------------------------------------------------------------------

    def scale(self, outputs: Tensor | Iterable[Tensor]) -> Any:
        """The loss, or several, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            self._on(outputs.device)
            return outputs * self._scale
        if not isinstance(outputs, Iterable):
            raise TypeError(
                f"GradScaler.scale: outputs is {type(outputs).__name__}; expected a Tensor or "
                "several"
            )
        scaled = map(self.scale, outputs)
        return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, in place.

        To be called before gradients are clipped or read; `step` does it otherwise. All ranks call
        it for a sharded optimizer: an overflow on one is noted on all. RuntimeError for a second
        call since `update`; ValueError for gradients in 16 bits.
        """
        if not self._enabled:
            return
        stage = self._stages.get(id(optimizer))
        if stage is not None:
            raise RuntimeError(
                f"GradScaler.unscale_: this optimizer was {stage} already since the last update()"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._unscale(with_gradient(parameters), len(self._stages))
        self._stages[id(optimizer)] = "unscaled"

    def _unscale(self, parameters: list[Tensor], place: int) -> None:
        if not parameters:
            return
        state = self._on(parameters[0].device)
        for group, runs in grouped_runs(parameters).items():
            for run in runs:
                if is_low(run.dtype):
                    raise ValueError(
                        f"GradScaler.unscale_: a gradient has dtype {run.dtype}. Keep the "
                        "parameters in float32 and run the forward pass inside gpunn.autocast."
                    )
                self._on(device_of(run))
                with contiguous(run) as flat:
                    unscale_gradients(flat, state, found_inf=self._flag(place))
            if group is not None:  # sharded: an overflow in the part of one rank is one for all
                group.all_reduce(self._flag(place))
        mark_written(parameters)

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """``optimizer.step()`` on unscaled gradients, without effect if one is not finite.

        RuntimeError for a second step since `update`, for a closure, and where no parameter has a
        gradient.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if args or "closure" in kwargs:
            raise RuntimeError("GradScaler.step: takes no closure; run the forward pass before")
        stage = self._stages.get(id(optimizer))
        if stage == "stepped":
            raise RuntimeError("GradScaler.step: was called already since the last update()")
        if stage is None:
            self.unscale_(optimizer)
        if self._state is None or not any(
            p.grad is not None for group in optimizer.param_groups for p in group["params"]
        ):
            raise RuntimeError(
                "GradScaler.step: no parameter of this optimizer has a gradient; call "
                "scaler.scale(loss).backward() first"
            )
        self._stages[id(optimizer)] = "stepped"
        with self._skipping(optimizer):
            return optimizer.step(**kwargs)

    @contextlib.contextmanager
    def _skipping(self, optimizer: Any) -> Iterator[None]:
        before = optimizer.skip_flag
        optimizer.skip_flag = self._flag(list(self._stages).index(id(optimizer)))
        try:
            yield
        finally:
            optimizer.skip_flag = before

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Change the scale after a step: down if something overflowed, up after many good ones.

        `new_scale` sets it instead. RuntimeError if no gradients were unscaled since the last call.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._write(scale=float(new_scale), found_inf=0.0)
        else:
            if not self._stages:
                raise RuntimeError(
                    "GradScaler.update: no gradients were unscaled since the last update(); call "
                    "scaler.step(optimizer) first"
                )
            self._update()
        self._stages.clear()

    def begin(self) -> None:
        """Forget that a step was begun: for who goes on after one that an error broke off."""
        self._stages.clear()

    def _update(self) -> None:
        if self._state is None:
            return  # no parameter had a gradient
        found, *others = self._flags[: len(self._stages)]
        for flag in others:  # what one optimizer found counts for the scale of all
            array_module(self._device).maximum(found, flag, out=found)
            flag[...] = 0
        growth, backoff, interval = self._rule()
        update_loss_scale(
            self._state, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
        )
        if tracing.state.trace is not None:
            tracing.state.trace.hold(self._rule)  # arguments of the launch
        self._scale._cell[0] += 1

    def _rule(self) -> list[Any]:
        return [self._growth_factor, self._backoff_factor, self._growth_interval]

    # ---- what there is to ask and to set ---------------------------------------------------------

    def get_scale(self) -> float:
        """The scale now; waits for the device."""
        return self._read()[0] if self._enabled else 1.0

    @property
    def skipped(self) -> int:
        return int(self._read()[3])

    def is_enabled(self) -> bool:
        """Whether it scales at all."""
        return self._enabled

    def get_growth_factor(self) -> float:
        """What the scale is multiplied by after `get_growth_interval` good steps in a row."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """See `get_growth_factor`."""
        self._growth_factor = float(new_factor)

    def get_backoff_factor(self) -> float:
        """What the scale is multiplied by after a step that overflowed."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """See `get_backoff_factor`."""
        self._backoff_factor = float(new_factor)

    def get_growth_interval(self) -> int:
        """How many good steps in a row there are before the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """See `get_growth_interval`."""
        self._growth_interval = int(new_interval)

    def state_dict(self) -> dict[str, Any]:
        """The scale and how it changes, with PyTorch's names, and the steps skipped; {} if off."""
        if not self._enabled:
            return {}
        scale, tracker, _, skipped = self._read()
        return {
            "scale": scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": int(tracker),
            "skipped": int(skipped),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; PyTorch's fits too.

        RuntimeError for an empty one, which a scaler with ``enabled=False`` saves.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "GradScaler.load_state_dict: the state is empty, as a scaler with enabled=False "
                "saves it. Make this one with enabled=False, or do not load it."
            )
        self._growth_factor = float(state_dict["growth_factor"])
        self._backoff_factor = float(state_dict["backoff_factor"])
        self._growth_interval = int(state_dict["growth_interval"])
        self._write(
            scale=float(state_dict["scale"]),
            growth_tracker=float(state_dict["_growth_tracker"]),
            found_inf=0.0,
            skipped=float(state_dict.get("skipped", 0)),
        )
